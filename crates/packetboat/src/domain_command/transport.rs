//! What senders are promised about TLS, MTA-STS (RFC 8461), and where they report what they found (RFC 8460).

use anyhow::{Context, Result};
use dns::{MxError, Resolver};
use mta_sts::record::{self, RecordError};
use mta_sts::{FetchError, Fetcher, Mode, POLICY_PATH, Policy, Standing, policy_host};

use super::check::Findings;
use crate::report::one_line;

const MTA_STS: &str = "MTA-STS";
/// A policy that is remembered for less protects little: a week, in seconds.
const SHORT: u32 = 604_800;

/// The policy of a domain, as a sender finds it, and whether its mail exchangers keep it.
pub(super) async fn policy(
    resolver: &Resolver,
    fetcher: &Fetcher,
    domain: &str,
    found: &mut Findings,
) -> Result<()> {
    let name = record::name(domain);
    let texts = resolver.texts(&name).await.with_context(|| format!("looking for {name}"))?;
    let id = match record::id(texts.iter().map(String::as_str)) {
        Ok(id) => id,
        Err(RecordError::Missing) => {
            found.advise(
                MTA_STS,
                "there is none: mail to you may be read on its way",
                "declare mtaSts in a MailDomain, mode testing first",
            );
            return Ok(());
        }
        Err(error @ RecordError::Several) => {
            found.wrong(MTA_STS, error.to_string(), format!("leave one TXT record at {name}"));
            return Ok(());
        }
        Err(error @ RecordError::Id) => {
            let fix = format!("publish: {name}. IN TXT \"v=STSv1; id=1;\", with another id for each policy");
            found.wrong(MTA_STS, error.to_string(), fix);
            return Ok(());
        }
    };
    match fetcher.fetch(domain).await {
        Ok((policy, _)) => {
            found.fine(MTA_STS, format!("the policy {id} says {}", in_short(&policy)));
            judge(resolver, fetcher, domain, &policy, found).await
        }
        Err(error) => {
            let (what, fix) = unfetched(domain, error);
            found.wrong(MTA_STS, what, fix);
            Ok(())
        }
    }
}

fn in_short(policy: &Policy) -> String {
    format!("mode {}, mx {}, max_age {}", policy.mode.name(), policy.mx.join(" "), policy.max_age)
}

/// Why there is no policy to be had, and what to do about it.
fn unfetched(domain: &str, error: FetchError) -> (String, String) {
    let (host, url) = (policy_host(domain), format!("https://{}{POLICY_PATH}", policy_host(domain)));
    let fix = match &error {
        FetchError::Address(_) => {
            format!(
                "give {host} an A, AAAA or CNAME record that leads to the server of policies; or remove the record"
            )
        }
        FetchError::Connect { .. } | FetchError::Deadline { .. } | FetchError::Http(..) => {
            format!("see that a web server answers for {url}")
        }
        FetchError::Handshake { .. } if error.is_certificate() => {
            format!("get a certificate for {host} from an authority that everybody trusts, with its chain")
        }
        FetchError::Handshake { .. } => format!("see that {host} speaks TLS 1.2 or 1.3"),
        FetchError::Status { .. } => {
            format!("answer {url} with 200 and the policy itself: redirects are not followed")
        }
        FetchError::MediaType(_) => format!("serve {url} with Content-Type: text/plain"),
        FetchError::TooLong | FetchError::Policy(_) => {
            format!(
                "serve at {url} lines such as: version: STSv1, mode: testing, mx: mx.{domain}, max_age: 604800"
            )
        }
    };
    (format!("no sender gets the policy: {}", one_line(&error.into())), fix)
}

/// Whether the policy does what it is for, and the mail exchangers keep it.
async fn judge(
    resolver: &Resolver,
    fetcher: &Fetcher,
    domain: &str,
    policy: &Policy,
    found: &mut Findings,
) -> Result<()> {
    let enforced = policy.mode == Mode::Enforce;
    match policy.mode {
        Mode::None => {
            found.advise(MTA_STS, "mode none: senders do nothing", "use mode testing, and then enforce");
            return Ok(());
        }
        Mode::Testing => found.advise(
            MTA_STS,
            "mode testing: senders report, and deliver all the same",
            "when the TLS reports are clean, use mode enforce",
        ),
        Mode::Enforce => {}
    }
    if policy.max_age < SHORT {
        let text = format!(
            "max_age {} is short: who keeps senders from the policy for that long undoes it",
            policy.max_age
        );
        found.advise(MTA_STS, text, format!("use {SHORT} or more"));
    }
    let hosts = match resolver.mx_plan(domain, "").await {
        Ok(plan) => plan.hosts,
        // Told where MX is looked at.
        Err(MxError::NullMx { .. } | MxError::NoSuchDomain { .. } | MxError::OnlySelf { .. }) => {
            return Ok(());
        }
        Err(error) => return Err(error).context("looking for MX"),
    };
    for host in hosts {
        let mut fault = |text: String, fix: String| match enforced {
            true => found.wrong(MTA_STS, text, fix),
            false => found.advise(MTA_STS, text, fix),
        };
        if !policy.covers(&host.name) {
            let text =
                format!("the policy does not name {}: senders that keep it do not deliver there", host.name);
            fault(
                text,
                format!(
                    "add \"mx: {}\" to the policy and change the id, or remove the host from MX",
                    host.name
                ),
            );
            continue;
        }
        match fetcher.exchanger(&host.name).await {
            Standing::Good => {
                found.fine(MTA_STS, format!("{} shows a certificate that senders trust", host.name))
            }
            Standing::Bad(why) => {
                let fix = format!(
                    "have {} offer STARTTLS under a certificate for its name that everybody trusts",
                    host.name
                );
                fault(why, fix);
            }
            Standing::Unknown(why) => found.advise(
                MTA_STS,
                format!("whether senders trust its certificate could not be looked at: {why}"),
                "look from a machine that may connect to port 25",
            ),
        }
    }
    Ok(())
}

/// Where senders report what they found.
pub(super) async fn reports(resolver: &Resolver, domain: &str, found: &mut Findings) -> Result<()> {
    let name = format!("_smtp._tls.{domain}");
    let texts = resolver.texts(&name).await.with_context(|| format!("looking for {name}"))?;
    let texts: Vec<&String> = texts.iter().filter(|text| text.starts_with("v=TLSRPTv1")).collect();
    match texts.as_slice() {
        [] => found.advise(
            "TLS-RPT",
            "there is none: you will not learn of failed TLS",
            format!("publish: {name}. IN TXT \"v=TLSRPTv1; rua=mailto:postmaster@{domain}\""),
        ),
        [record] if record.contains("rua=") => found.fine("TLS-RPT", record.as_str()),
        _ => found.wrong(
            "TLS-RPT",
            "the record has no rua=, or there are several",
            "leave one with rua=mailto:…",
        ),
    }
    Ok(())
}
