//! The DNS tree walk (RFC 9989 §4.10), which finds policy records and organizational domains without a
//! list of public suffixes.

use std::sync::Arc;

use crate::dns::{Dns, TemporaryFailure};

use super::record::{PublicSuffix, Record, is_dmarc};

/// The record at a domain itself. Of several, none counts.
pub(super) async fn record(dns: &Dns, domain: &str) -> Result<Option<Arc<Record>>, TemporaryFailure> {
    let name = format!("_dmarc.{domain}");
    if let Some(known) = dns.caches.dmarc.get(name.as_str()) {
        return Ok(known);
    }
    let answer = dns.txt(&name).await?;
    let mut records = answer.found().iter().filter(|record| is_dmarc(record));
    let record = match (records.next(), records.next()) {
        (Some(record), None) => Record::parse(record).map(Arc::new),
        _ => None,
    };
    dns.caches.dmarc.insert(name.into(), record.clone(), answer.until);
    Ok(record)
}

/// The records from `domain` up to the top of the tree, the longest name first. At most eight names
/// are asked for; a record that says whether its domain is a public suffix ends the walk.
pub(super) async fn walk<'d>(
    dns: &Dns,
    domain: &'d str,
) -> Result<Vec<(&'d str, Arc<Record>)>, TemporaryFailure> {
    let mut found = Vec::new();
    for name in steps(domain) {
        if let Some(record) = record(dns, name).await? {
            let last = record.psd != PublicSuffix::Unknown;
            found.push((name, record));
            if last {
                break;
            }
        }
    }
    Ok(found)
}

/// The names of a walk: the domain, and then, from seven labels down, each name above it.
fn steps(domain: &str) -> impl Iterator<Item = &str> {
    let parents = std::iter::successors(Some(domain), |name| name.split_once('.').map(|(_, parent)| parent));
    let labels = domain.split('.').count();
    parents.enumerate().filter(move |(at, _)| *at == 0 || labels - at <= 7).map(|(_, name)| name)
}

/// The organizational domain of `start` by the records of its walk (§4.10.2); `start` itself when
/// there are none.
pub(super) fn organizational_domain<'d>(found: &[(&'d str, Arc<Record>)], start: &'d str) -> &'d str {
    for (name, record) in found {
        match record.psd {
            PublicSuffix::No => return name,
            PublicSuffix::Yes if *name != start => return one_below(name, start),
            PublicSuffix::Yes | PublicSuffix::Unknown => {}
        }
    }
    found.last().map_or(start, |(name, _)| name)
}

/// The name one label below `suffix` on the way to `start`.
fn one_below<'d>(suffix: &str, start: &'d str) -> &'d str {
    let above = start.len() - suffix.len();
    let below = start[..above.saturating_sub(1)].rfind('.').map_or(0, |dot| dot + 1);
    &start[below..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(records: &[(&'static str, &str)]) -> Vec<(&'static str, Arc<Record>)> {
        let record =
            |text: &str| Arc::new(Record::parse(format!("v=DMARC1; p=none; {text}").as_bytes()).unwrap());
        records.iter().map(|(name, text)| (*name, record(text))).collect()
    }

    #[test]
    fn at_most_eight_names_are_asked_for() {
        let short: Vec<&str> = steps("a.mail.example.com").collect();
        assert_eq!(short, ["a.mail.example.com", "mail.example.com", "example.com", "com"]);
        let long: Vec<&str> = steps("1.2.3.4.5.6.7.8.9.example.com").collect();
        assert_eq!(long.len(), 8);
        assert_eq!(&long[..2], ["1.2.3.4.5.6.7.8.9.example.com", "5.6.7.8.9.example.com"]);
        assert_eq!(steps("1.2.3.4.5.6.7.8").count(), 8);
    }

    #[test]
    fn organizational_domains() {
        let start = "a.b.example.co.test";
        let of = |records: &[(&'static str, &str)]| organizational_domain(&found(records), start);
        assert_eq!(of(&[]), start);
        assert_eq!(of(&[("b.example.co.test", ""), ("example.co.test", "")]), "example.co.test");
        assert_eq!(of(&[("b.example.co.test", "psd=n")]), "b.example.co.test");
        assert_eq!(of(&[("example.co.test", ""), ("co.test", "psd=y")]), "example.co.test");
        assert_eq!(of(&[("test", "psd=y")]), "co.test");
        let own = found(&[("co.test", "psd=y")]);
        assert_eq!(organizational_domain(&own, "co.test"), "co.test");
    }
}
