//! What is wrong with the TLSA records of a domain's mail hosts (RFC 7672).

use anyhow::Result;
use dns::Resolver;

use super::check::Findings;

const TLSA: &str = "TLSA";

/// Looks at the TLSA records of every mail host.
pub(super) async fn check(resolver: &Resolver, domain: &str, found: &mut Findings) -> Result<()> {
    let Ok(plan) = resolver.mx_plan(domain, "").await else { return Ok(()) };
    for host in plan.hosts {
        let name = format!("_25._tcp.{}", host.name);
        let Ok(records) = resolver.tlsa(&name).await else {
            let text =
                format!("the name servers fail for {name}: who looks for it before sending defers your mail");
            found.wrong(
                TLSA,
                text,
                "have every server of the zone answer for it, if only that there is none",
            );
            continue;
        };
        let usages: Vec<u8> = records.iter().map(|record| record.cert_usage.into()).collect();
        if let Some(usage) = usages.iter().find(|usage| !matches!(usage, 2 | 3)) {
            let text = format!("{name} has the usage {usage}, which means nothing for mail");
            found.wrong(TLSA, text, "publish the key as 3 1 1, see dns.records.tlsa of a MailDomain");
            continue;
        }
        match (records.is_empty(), is_signed(resolver, &host.name).await) {
            (false, true) => found.fine(TLSA, format!("{name} has {} in a signed zone", records.len())),
            (false, false) => {
                let text = format!("{name} is there, and nobody believes it: its zone is not signed");
                found.advise(TLSA, text, "sign the zone, and give your registrar its DS record");
            }
            (true, true) => {
                let text =
                    format!("the zone of {} is signed, and no TLSA record pins the host's key", host.name);
                found.advise(TLSA, text, "declare tlsa with the host's certificate in a MailDomain");
            }
            (true, false) => {}
        }
    }
    Ok(())
}

/// Whether the zone that a host lies in is signed, as the zone above it says.
async fn is_signed(resolver: &Resolver, host: &str) -> bool {
    match resolver.zone_of(host).await {
        Ok(Some(zone)) => {
            resolver.delegation_signers(&zone.name).await.is_ok_and(|signers| !signers.is_empty())
        }
        _ => false,
    }
}
