//! Everything that is wrong with a domain's mail DNS, as any receiver or sender would find it.

use anyhow::{Context, Result, bail};
use comfy_table::{Table, presets};
use dns::{AddressPolicy, MxError, Resolver};
use mta_sts::Fetcher;
use serde::Serialize;

use super::{pins, spf, transport};
use crate::command::Output;

/// Nothing is sent there, so any address may be looked at.
pub(super) const ANYWHERE: AddressPolicy = AddressPolicy { allow_loopback: true };

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Weight {
    Fine,
    Advice,
    Wrong,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    about: &'static str,
    weight: Weight,
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    fix: String,
}

pub(super) struct Findings(Vec<Finding>);

impl Findings {
    pub(super) fn fine(&mut self, about: &'static str, found: impl Into<String>) {
        self.add(about, Weight::Fine, found, "");
    }

    pub(super) fn wrong(&mut self, about: &'static str, found: impl Into<String>, fix: impl Into<String>) {
        self.add(about, Weight::Wrong, found, fix);
    }

    pub(super) fn advise(&mut self, about: &'static str, found: impl Into<String>, fix: impl Into<String>) {
        self.add(about, Weight::Advice, found, fix);
    }

    fn add(&mut self, about: &'static str, weight: Weight, found: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Finding { about, weight, found: found.into(), fix: fix.into() });
    }
}

/// Looks at a domain, and tells.
pub(super) async fn run(
    resolver: &Resolver,
    fetcher: &Fetcher,
    domain: &str,
    selectors: &[String],
    output: Output,
) -> Result<()> {
    let domain = match domain.parse::<smtp::Domain>() {
        Ok(smtp::Domain::Name(name)) => name,
        _ => bail!("{domain:?} is not a domain name"),
    };
    let mut found = Findings(Vec::new());
    mail_exchangers(resolver, &domain, &mut found).await?;
    sender_policy(resolver, &domain, &mut found).await?;
    for selector in selectors {
        signing_key(resolver, &domain, selector, &mut found).await?;
    }
    dmarc(resolver, &domain, &mut found).await?;
    transport::policy(resolver, fetcher, &domain, &mut found).await?;
    transport::reports(resolver, &domain, &mut found).await?;
    pins::check(resolver, &domain, &mut found).await?;
    let wrong = found.0.iter().filter(|one| one.weight == Weight::Wrong).count();
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&found.0)?),
        Output::Table => print(&found.0),
    }
    if wrong > 0 {
        bail!("{wrong} things are wrong with the mail DNS of {domain}");
    }
    Ok(())
}

fn print(findings: &[Finding]) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for one in findings {
        let mark = match one.weight {
            Weight::Fine => "ok",
            Weight::Advice => "hint",
            Weight::Wrong => "WRONG",
        };
        table.add_row([mark, one.about, &one.found]);
        if !one.fix.is_empty() {
            table.add_row(["", "", &format!("-> {}", one.fix)]);
        }
    }
    println!("{table}");
}

async fn mail_exchangers(resolver: &Resolver, domain: &str, found: &mut Findings) -> Result<()> {
    const MX: &str = "MX";
    let plan = match resolver.mx_plan(domain, "").await {
        Ok(plan) => plan,
        Err(MxError::NullMx { .. }) => {
            found.fine(MX, "a null MX: the domain takes no mail");
            return Ok(());
        }
        Err(MxError::Temporary { .. }) => {
            found.wrong(
                MX,
                "the name servers do not answer",
                "see that every one of the zone's answers for MX",
            );
            return Ok(());
        }
        Err(error) => {
            found.wrong(MX, error.to_string(), format!("publish: {domain}. IN MX 10 <your mail server>."));
            return Ok(());
        }
    };
    for host in plan.hosts {
        let addresses = resolver.addresses(&host.name, ANYWHERE).await.unwrap_or_default();
        if addresses.is_empty() {
            let fix = format!("publish an A record for {}, or remove it from MX", host.name);
            found.wrong(MX, format!("{} has no address", host.name), fix);
        }
        for address in addresses {
            let names = resolver.names_of(address).await.context("looking for the names of an address")?;
            match names.first() {
                None => {
                    let fix = format!("have who runs {address} make its PTR record lead to {}", host.name);
                    found.advise(
                        MX,
                        format!("{} has the address {address}, which leads back to no name", host.name),
                        fix,
                    );
                }
                Some(name) => {
                    found.fine(MX, format!("{} {} is {address}, which is {name}", host.preference, host.name))
                }
            }
        }
    }
    Ok(())
}

async fn sender_policy(resolver: &Resolver, domain: &str, found: &mut Findings) -> Result<()> {
    const SPF: &str = "SPF";
    let texts = resolver.texts(domain).await.with_context(|| format!("looking for the texts of {domain}"))?;
    let records: Vec<&String> = texts.iter().filter(|text| spf::is_spf(text)).collect();
    match records.as_slice() {
        [] => found.wrong(SPF, "there is none", format!("publish: {domain}. IN TXT \"v=spf1 mx -all\"")),
        [record] => {
            let lookups = spf::lookups(resolver, record, 0).await?;
            if lookups > spf::MOST {
                let text =
                    format!("checking it takes more than {} look-ups, so it fails for everybody", spf::MOST);
                found.wrong(SPF, text, "replace includes by the addresses behind them");
            }
            match record.split_ascii_whitespace().last().unwrap_or_default() {
                "+all" | "all" => found.wrong(SPF, "it lets everybody send as you", "end it with -all"),
                "-all" | "~all" => found.fine(SPF, format!("{record} ({lookups} look-ups)")),
                last if last.starts_with("redirect=") => found.fine(SPF, record.as_str()),
                _ => found.advise(
                    SPF,
                    format!("{record} says nothing of the others"),
                    "end it with -all or ~all",
                ),
            }
        }
        many => {
            let text = format!("there are {}; two are an error for every receiver", many.len());
            found.wrong(SPF, text, "merge them into one");
        }
    }
    Ok(())
}

async fn signing_key(resolver: &Resolver, domain: &str, selector: &str, found: &mut Findings) -> Result<()> {
    const DKIM: &str = "DKIM";
    let name = format!("{selector}._domainkey.{domain}");
    let texts = resolver.texts(&name).await.with_context(|| format!("looking for {name}"))?;
    match texts.as_slice() {
        [] => match resolver.alias(&name).await.with_context(|| format!("looking for {name}"))? {
            Some(target) => found.wrong(
                DKIM,
                format!("{name} leads by CNAME to {target}, where nothing is"),
                format!(
                    "see that whoever looks after {target} publishes the key there, or stop signing with it"
                ),
            ),
            None => found.wrong(
                DKIM,
                format!("{name} is not there"),
                "publish the key's record (or the CNAME that leads to it), or stop signing with it",
            ),
        },
        [text] => {
            let tags: Vec<&str> = text.split(';').map(str::trim).collect();
            let tag = |tag: &str| tags.iter().find_map(|one| one.strip_prefix(tag));
            match tag("p=") {
                None => {
                    found.wrong(DKIM, format!("{name} has no p="), "publish the key's record as it was made")
                }
                Some("") => {
                    found.advise(DKIM, format!("{selector} is revoked"), "see that nothing signs with it")
                }
                // 1024 bits make some 216 characters, 2048 bits 392.
                Some(key) if key.len() < 300 && tag("k=") != Some("ed25519") => {
                    found.wrong(
                        DKIM,
                        format!("the key of {selector} is shorter than 2048 bits"),
                        "make a new one",
                    );
                }
                Some(_) if tag("t=").is_some_and(|flags| flags.contains('y')) => {
                    found.advise(DKIM, format!("{selector} says that it is a test (t=y)"), "remove t=y");
                }
                Some(_) => found.fine(DKIM, format!("{selector} is there")),
            }
        }
        _ => found.wrong(DKIM, format!("{name} has several records"), "leave one"),
    }
    Ok(())
}

async fn dmarc(resolver: &Resolver, domain: &str, found: &mut Findings) -> Result<()> {
    const DMARC: &str = "DMARC";
    let name = format!("_dmarc.{domain}");
    let texts = resolver.texts(&name).await.with_context(|| format!("looking for {name}"))?;
    let records: Vec<&String> = texts.iter().filter(|text| text.starts_with("v=DMARC1")).collect();
    let record = match records.as_slice() {
        [] => {
            let fix =
                format!("publish: {name}. IN TXT \"v=DMARC1; p=quarantine; rua=mailto:postmaster@{domain}\"");
            found.wrong(DMARC, "there is none", fix);
            return Ok(());
        }
        [record] => record,
        _ => {
            found.wrong(DMARC, "there are several, so none counts", "leave one");
            return Ok(());
        }
    };
    let tags: Vec<(&str, &str)> = record
        .split(';')
        .filter_map(|tag| tag.trim().split_once('='))
        .map(|(k, v)| (k.trim(), v.trim()))
        .collect();
    let tag = |name: &str| tags.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    match tag("p") {
        Some("quarantine" | "reject") => found.fine(DMARC, record.as_str()),
        Some("none") => found.advise(
            DMARC,
            "p=none: receivers do nothing",
            "when the reports are clean, use p=quarantine, then p=reject",
        ),
        other => found.wrong(
            DMARC,
            format!("p={} is no policy", other.unwrap_or_default()),
            "use none, quarantine or reject",
        ),
    }
    for target in tag("rua").unwrap_or_default().split(',').filter(|target| !target.is_empty()) {
        let Some(address) = target.trim().strip_prefix("mailto:") else {
            found.wrong(DMARC, format!("rua={target} is no mailto: address"), "write mailto: before it");
            continue;
        };
        let host = address
            .rsplit_once('@')
            .map(|(_, host)| host.split('!').next().unwrap_or(host))
            .unwrap_or_default();
        if host == domain || host.ends_with(&format!(".{domain}")) || domain.ends_with(&format!(".{host}")) {
            continue;
        }
        // RFC 9990: who gets reports about others must have agreed to it.
        let consent = format!("{domain}._report._dmarc.{host}");
        let agreed = resolver.texts(&consent).await.with_context(|| format!("looking for {consent}"))?;
        if !agreed.iter().any(|text| text.starts_with("v=DMARC1")) {
            let fix = format!("have {host} publish: {consent}. IN TXT \"v=DMARC1\"");
            found.wrong(
                DMARC,
                format!("{host} has not agreed to take reports about {domain}: none are sent"),
                fix,
            );
        }
    }
    Ok(())
}
