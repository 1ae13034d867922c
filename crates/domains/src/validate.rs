//! What is wrong with a MailDomain, in words for the person who wrote it.

use std::collections::HashSet;
use std::net::IpAddr;

use smtp::{Domain, Mailbox};

use crate::types::{Algorithm, Dkim, Inbound, MailDomainSpec, RecipientMode, Route};

/// All that is wrong: the key and what to do about it.
pub(crate) fn validate(spec: &MailDomainSpec) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut wrong = |key: &str, text: String| found.push((key.to_owned(), text));
    match spec.domain.parse::<Domain>() {
        Ok(Domain::Name(name)) if name != spec.domain => {
            wrong("spec.domain", format!("{:?} must be a lower-case A-label: write {name}", spec.domain));
        }
        Ok(Domain::Name(name)) if !name.contains('.') => {
            wrong(
                "spec.domain",
                format!("{name:?} has only one label: write a whole domain such as example.com"),
            );
        }
        Ok(Domain::Name(_)) => {}
        _ => wrong("spec.domain", format!("{:?} is not a domain name", spec.domain)),
    }
    if let Some(inbound) = &spec.inbound {
        check_inbound(inbound, &mut wrong);
    }
    if let Some(relay) = spec.outbound.as_ref().and_then(|outbound| outbound.relay.as_ref()) {
        check_host_port("spec.outbound.relay", relay, &mut wrong);
    }
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if let Some(pool) = spec.outbound.as_ref().and_then(|outbound| outbound.pool.as_ref())
        && (!(1..=63).contains(&pool.len())
            || !pool.chars().all(fits)
            || pool.starts_with('-')
            || pool.ends_with('-'))
    {
        let text = "a source pool is named by lower-case letters, digits and hyphens, as in outbound.pools";
        wrong("spec.outbound.pool", text.to_owned());
    }
    if let Some(dkim) = &spec.dkim {
        check_dkim(dkim, &mut wrong);
    }
    let mut hosts = HashSet::new();
    for mx in &spec.mx {
        if !hosts.insert(mx.host.to_lowercase()) {
            wrong("spec.mx", format!("the host {} stands twice", mx.host));
        }
    }
    if let Some(dmarc) = &spec.dmarc {
        for (key, policy) in
            [("policy", Some(&dmarc.policy)), ("subdomainPolicy", dmarc.subdomain_policy.as_ref())]
        {
            if policy.is_some_and(|policy| !matches!(policy.as_str(), "none" | "quarantine" | "reject")) {
                wrong(&format!("spec.dmarc.{key}"), "write none, quarantine or reject".to_owned());
            }
        }
        for (key, mode) in [("adkim", &dmarc.adkim), ("aspf", &dmarc.aspf)] {
            if mode.as_ref().is_some_and(|mode| !matches!(mode.as_str(), "relaxed" | "strict")) {
                wrong(&format!("spec.dmarc.{key}"), "write relaxed or strict".to_owned());
            }
        }
    }
    if let Some(policy) = &spec.mta_sts
        && !matches!(policy.mode.as_str(), "none" | "testing" | "enforce")
    {
        wrong("spec.mtaSts.mode", "write none, testing or enforce".to_owned());
    }
    if let Some(policy) = &spec.mta_sts
        && policy.mode != "none"
        && spec.mx.is_empty()
    {
        wrong("spec.mtaSts", "it needs mx: a policy names the hosts that senders may deliver to".to_owned());
    }
    for (at, mx) in spec.mx.iter().enumerate() {
        if !matches!(mx.host.trim_end_matches('.').parse::<Domain>(), Ok(Domain::Name(_))) {
            wrong(&format!("spec.mx[{at}].host"), format!("{:?} is not a host name", mx.host));
        }
    }
    found
}

fn check_inbound(inbound: &Inbound, wrong: &mut impl FnMut(&str, String)) {
    let recipients = &inbound.recipients;
    let local_part_ok = |local_part: &str| format!("{local_part}@x.example").parse::<Mailbox>().is_ok();
    for (at, address) in recipients.addresses.iter().enumerate() {
        if address != "*" && !local_part_ok(address) {
            let hint =
                if address.contains('@') { "; write the local part alone, without @ and domain" } else { "" };
            let key = format!("spec.inbound.recipients.addresses[{at}]");
            wrong(&key, format!("{address:?} is not a local part{hint}"));
        }
    }
    for (alias, targets) in &recipients.aliases {
        let key = format!("spec.inbound.recipients.aliases.{alias}");
        if !local_part_ok(alias) {
            wrong(&key, format!("{alias:?} is not a local part"));
        }
        if targets.is_empty() {
            wrong(&key, "the alias leads nowhere: name at least one address".to_owned());
        }
        for target in targets {
            if !(local_part_ok(target) || target.parse::<Mailbox>().is_ok()) {
                wrong(&key, format!("{target:?} is neither a local part nor an address"));
            }
        }
    }
    match &inbound.route {
        Some(Route::Lmtp(server)) => {
            check_host_port("spec.inbound.route.lmtp.address", &server.address, wrong)
        }
        Some(Route::Smtp(server)) => {
            check_host_port("spec.inbound.route.smtp.address", &server.address, wrong)
        }
        Some(Route::Maildir(maildir)) if maildir.path.is_empty() => {
            wrong("spec.inbound.route.maildir.path", "name a folder".to_owned());
        }
        Some(Route::Maildir(_)) if recipients.mode == RecipientMode::Callout => {
            let text = "Callout asks an LMTP or SMTP route; a Maildir cannot be asked: use List or AcceptAll";
            wrong("spec.inbound.recipients.mode", text.to_owned());
        }
        Some(Route::Maildir(_)) => {}
        None => wrong("spec.inbound.route", "name a route: lmtp, smtp or maildir".to_owned()),
    }
    let folder = &inbound.dmarc.quarantine_folder;
    if folder.is_empty() || folder.starts_with('.') || folder.contains(['/', '\0']) {
        let text = format!("{folder:?} is not a folder name: write for example Junk");
        wrong("spec.inbound.dmarc.quarantineFolder", text);
    }
}

fn check_dkim(dkim: &Dkim, wrong: &mut impl FnMut(&str, String)) {
    if !matches!(dkim.rsa_bits, 2048 | 3072 | 4096) {
        wrong("spec.dkim.rsaBits", format!("{} bits: write 2048, 3072 or 4096", dkim.rsa_bits));
    }
    if !dkim.algorithms.contains(&Algorithm::RsaSha256) {
        wrong("spec.dkim.algorithms", "many receivers know only rsa-sha256: list it too".to_owned());
    }
    let mut selectors = HashSet::new();
    for (at, key) in dkim.imported.iter().enumerate() {
        let path = format!("spec.dkim.imported[{at}].selector");
        if !matches!(key.selector.parse::<Domain>(), Ok(Domain::Name(name)) if name == key.selector) {
            wrong(
                &path,
                format!("{:?} is not a selector: write lower-case letters, digits and hyphens", key.selector),
            );
        }
        if !selectors.insert(&key.selector) {
            wrong(&path, format!("the selector {:?} stands twice", key.selector));
        }
    }
}

fn check_host_port(key: &str, address: &str, wrong: &mut impl FnMut(&str, String)) {
    let fine = address.rsplit_once(':').is_some_and(|(host, port)| {
        let host = host.trim_matches(['[', ']']);
        let host_ok = host.parse::<IpAddr>().is_ok() || matches!(host.parse(), Ok(Domain::Name(_)));
        host_ok && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if !fine {
        wrong(key, format!("{address:?} is not host:port, such as dovecot.mail.svc:24"));
    }
}
