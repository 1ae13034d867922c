//! The DNS records that a domain should have. Pure: a spec and the keys give the records.

use std::time::Duration;

use domains::Algorithm;
use domains::types::{Dkim, MailDomainSpec, RecordPolicy};
use mta_sts::{Mode, Policy};

use crate::policy::Memory;

/// Time to live where the spec gives none, in seconds.
const TTL: u32 = 300;
/// The most octets of one character-string of a TXT record (RFC 1035 §3.3).
const TXT_STRING: usize = 255;

/// What the text that proves ownership begins with.
const CHALLENGE: &str = "packetboat-challenge=";

/// What the TLSA records begin with that a key's digest follows: the domain issues the certificate (3), the key
/// counts (1), as SHA-256 (1).
pub const PIN: &str = "3 1 1 ";

/// What a record is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Where mail for the domain goes (RFC 5321 §5).
    Mx,
    /// Who may send as the domain (RFC 7208).
    Spf,
    /// A signing key (RFC 6376 §3.6.1).
    Dkim,
    /// That the keys of a selector lie in another zone.
    DkimCname,
    /// What is to be done about mail that fails (RFC 9989).
    Dmarc,
    /// That there is an MTA-STS policy (RFC 8461 §3.1).
    MtaSts,
    /// Where TLS reports go (RFC 8460 §3).
    TlsRpt,
    /// The key of a mail host's certificate (RFC 7672).
    Tlsa,
    /// That whoever declares the domain may change its DNS.
    Ownership,
}

impl Purpose {
    /// Its name in a status; but for `dkimCname`, which goes with `dkim`, its key in `spec.dns.records`.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Mx => "mx",
            Self::Spf => "spf",
            Self::Dkim => "dkim",
            Self::DkimCname => "dkimCname",
            Self::Dmarc => "dmarc",
            Self::MtaSts => "mtaSts",
            Self::TlsRpt => "tlsRpt",
            Self::Tlsa => "tlsa",
            Self::Ownership => "ownership",
        }
    }

    /// The type of its records.
    #[must_use]
    pub fn record_type(self) -> &'static str {
        match self {
            Self::Mx => "MX",
            Self::DkimCname => "CNAME",
            Self::Tlsa => "TLSA",
            _ => "TXT",
        }
    }

    /// What is done about it, as the spec says or by default: what lies at the apex, beside the records of
    /// others, is compared only.
    #[must_use]
    pub fn policy(self, spec: &MailDomainSpec) -> RecordPolicy {
        match self {
            Self::Ownership => return RecordPolicy::Verify,
            Self::DkimCname => return Self::Dkim.policy(spec),
            _ => {}
        }
        let given = spec.dns.as_ref().and_then(|dns| dns.records.get(self.key()).copied());
        given.unwrap_or(match self {
            Self::Mx | Self::Spf | Self::Ownership => RecordPolicy::Verify,
            Self::Dkim | Self::DkimCname | Self::Dmarc | Self::MtaSts | Self::TlsRpt | Self::Tlsa => {
                RecordPolicy::Manage
            }
        })
    }

    /// Whether a value is one of these; others at the same name are none of ours.
    #[must_use]
    pub fn is_one(self, value: &str) -> bool {
        let begins = |prefix: &str| {
            let value = value.trim_start();
            value.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        };
        match self {
            Self::Mx | Self::Dkim | Self::DkimCname => true,
            Self::Spf => begins("v=spf1") && value.trim_start()[6..].chars().next().is_none_or(|c| c == ' '),
            Self::Dmarc => begins("v=DMARC1"),
            Self::MtaSts => begins("v=STSv1"),
            Self::TlsRpt => begins("v=TLSRPTv1"),
            Self::Tlsa => begins(PIN),
            Self::Ownership => begins(CHALLENGE),
        }
    }
}

/// A record set of one purpose. At the apex others may have TXT records beside it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Record {
    /// What it is for.
    pub purpose: Purpose,
    /// The owner name, without a dot at the end.
    pub name: String,
    /// Time to live, in seconds.
    pub ttl: u32,
    /// The values: of TXT the whole text, of MX `PREFERENCE HOST` and of CNAME the host, without a dot at the end; of
    /// TLSA the three numbers and the digest in lower case. Without any the record set is to go.
    pub values: Vec<String>,
}

impl Record {
    /// `TXT`, `MX`, `CNAME` or `TLSA`.
    #[must_use]
    pub fn record_type(&self) -> &'static str {
        self.purpose.record_type()
    }

    /// The lines to paste into a zone (RFC 1035 §5); long texts are split as TXT records must be.
    #[must_use]
    pub fn zone_lines(&self) -> Vec<String> {
        let line = |value: &String| {
            let data = match self.purpose {
                Purpose::Mx | Purpose::DkimCname => format!("{value}."),
                Purpose::Tlsa => value.clone(),
                _ => quoted(value),
            };
            format!("{}. {} IN {} {data}", self.name, self.ttl, self.record_type())
        };
        self.values.iter().map(line).collect()
    }
}

/// The time to live of a domain's records, in seconds.
pub(crate) fn ttl_seconds(spec: &MailDomainSpec) -> u32 {
    spec.dns.as_ref().and_then(|dns| dns.ttl).unwrap_or(TTL)
}

/// The time to live of a domain's records.
#[must_use]
pub fn ttl(spec: &MailDomainSpec) -> Duration {
    Duration::from_secs(ttl_seconds(spec).into())
}

/// The record that proves that who made the object of this UID may change the domain's DNS.
#[must_use]
pub fn challenge(spec: &MailDomainSpec, uid: &str) -> Record {
    Record {
        purpose: Purpose::Ownership,
        name: format!("_packetboat-challenge.{}", spec.domain),
        ttl: ttl_seconds(spec),
        values: vec![format!("{CHALLENGE}{uid}")],
    }
}

/// The name of the TLSA records of a mail host (RFC 7672 §2.2.3).
#[must_use]
pub fn tlsa_name(host: &str) -> String {
    format!("_25._tcp.{host}")
}

/// The TLSA records of a mail host.
#[must_use]
pub fn tlsa_record(spec: &MailDomainSpec, host: &str, values: Vec<String>) -> Record {
    Record { purpose: Purpose::Tlsa, name: tlsa_name(host), ttl: ttl_seconds(spec), values }
}

/// A text as the character-strings of a TXT record.
#[must_use]
pub fn txt_strings(text: &str) -> Vec<Vec<u8>> {
    text.as_bytes().chunks(TXT_STRING).map(<[u8]>::to_vec).collect()
}

/// A text as zone files have it: quoted, and split where it is long.
pub(crate) fn quoted(text: &str) -> String {
    let escaped = |string: Vec<u8>| {
        let text = String::from_utf8_lossy(&string).replace('\\', "\\\\").replace('"', "\\\"");
        format!("\"{text}\"")
    };
    txt_strings(text).into_iter().map(escaped).collect::<Vec<_>>().join(" ")
}

/// The text of character-strings, quoted as zone files have them or as they are.
pub(crate) fn unquoted(content: &str) -> String {
    if !content.starts_with('"') {
        return content.to_owned();
    }
    let (mut text, mut inside, mut octets) = (String::new(), false, content.chars());
    while let Some(octet) = octets.next() {
        match octet {
            '"' => inside = !inside,
            '\\' if inside => text.extend(octets.next()),
            other if inside => text.push(other),
            _ => {}
        }
    }
    text
}

/// A key as it is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedKey {
    /// Its selector.
    pub selector: String,
    /// What it signs with.
    pub algorithm: Algorithm,
    /// The public key in base64, as `p=` has it; nothing when it is revoked.
    pub public_key: Option<String>,
    /// The name of its record, where the selector is a CNAME.
    pub target: Option<String>,
}

/// The TXT record of a policy, as what is remembered says: without values before there is anything to remember,
/// and when it is withdrawn; nothing while what stands there is to be left.
pub(crate) fn policy_record(spec: &MailDomainSpec, memory: Option<&Memory>) -> Option<Record> {
    let values = match memory.filter(|memory| !memory.withdrawn) {
        Some(memory) => vec![mta_sts::record::text(&memory.announced.as_ref()?.id)],
        None => Vec::new(),
    };
    let name = mta_sts::record::name(&spec.domain);
    Some(Record { purpose: Purpose::MtaSts, name, ttl: ttl_seconds(spec), values })
}

/// The records that a domain should have.
#[must_use]
pub fn desired(spec: &MailDomainSpec, keys: &[PublishedKey]) -> Vec<Record> {
    let ttl = ttl_seconds(spec);
    let record = |purpose, name: String, values| Record { purpose, name, ttl, values };
    let domain = &spec.domain;
    let mut records = Vec::new();
    if !spec.mx.is_empty() {
        let mut values: Vec<String> =
            spec.mx.iter().map(|mx| format!("{} {}", mx.preference, mx.host.trim_end_matches('.'))).collect();
        values.sort();
        records.push(record(Purpose::Mx, domain.clone(), values));
    }
    if let Some(spf) = &spec.spf {
        let terms = ["v=spf1"].into_iter().chain(spf.mechanisms.iter().map(String::as_str));
        let text = terms.chain([spf.all.as_str()]).collect::<Vec<_>>().join(" ");
        records.push(record(Purpose::Spf, domain.clone(), vec![text]));
    }
    if let Some(delegation) = spec.dkim.as_ref().and_then(Dkim::delegated) {
        let base = delegation.base(domain);
        for selector in delegation.selectors() {
            let target = format!("{selector}.{base}");
            records.push(record(Purpose::DkimCname, format!("{selector}._domainkey.{domain}"), vec![target]));
        }
    }
    for key in keys {
        let name = key.target.clone().unwrap_or_else(|| format!("{}._domainkey.{domain}", key.selector));
        records.push(record(Purpose::Dkim, name, vec![dkim_text(key)]));
    }
    if let Some(dmarc) = &spec.dmarc {
        records.push(record(Purpose::Dmarc, format!("_dmarc.{domain}"), vec![dmarc_text(dmarc)]));
    }
    if let Some(policy) = declared_policy(spec) {
        let text = mta_sts::record::text(&policy.id());
        records.push(record(Purpose::MtaSts, mta_sts::record::name(domain), vec![text]));
    }
    if let Some(report) = spec.tls_rpt.as_ref().filter(|report| !report.rua.is_empty()) {
        let text = format!("v=TLSRPTv1; rua={}", report.rua.join(","));
        records.push(record(Purpose::TlsRpt, format!("_smtp._tls.{domain}"), vec![text]));
    }
    records.retain(|record| record.purpose.policy(spec) != RecordPolicy::Ignore);
    records
}

fn dkim_text(key: &PublishedKey) -> String {
    let kind = match key.algorithm {
        Algorithm::RsaSha256 => "rsa",
        Algorithm::Ed25519Sha256 => "ed25519",
    };
    match &key.public_key {
        Some(public_key) => format!("v=DKIM1; k={kind}; p={public_key}"),
        // RFC 6376 §3.6.1: an empty p= says that the key has been revoked.
        None => "v=DKIM1; p=".to_owned(),
    }
}

fn dmarc_text(dmarc: &domains::types::Dmarc) -> String {
    let mode = |mode: &Option<String>| match mode.as_deref() {
        Some("strict") => Some("s"),
        Some(_) => Some("r"),
        None => None,
    };
    let list = |addresses: &[String]| (!addresses.is_empty()).then(|| addresses.join(","));
    let mut text = format!("v=DMARC1; p={}", dmarc.policy);
    let tags = [
        ("sp", dmarc.subdomain_policy.clone()),
        ("adkim", mode(&dmarc.adkim).map(str::to_owned)),
        ("aspf", mode(&dmarc.aspf).map(str::to_owned)),
        ("rua", list(&dmarc.rua)),
        ("ruf", list(&dmarc.ruf)),
    ];
    for (tag, value) in tags {
        if let Some(value) = value {
            text.push_str(&format!("; {tag}={value}"));
        }
    }
    text
}

/// The MTA-STS policy that a domain declares (RFC 8461 §3.2).
#[must_use]
pub fn declared_policy(spec: &MailDomainSpec) -> Option<Policy> {
    let declared = spec.mta_sts.as_ref()?;
    let hosts = spec.mx.iter().map(|mx| mx.host.as_str());
    Some(Policy::new(Mode::from_name(&declared.mode)?, hosts, declared.max_age))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> MailDomainSpec {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_whole_domain_is_told() {
        let spec = spec(serde_json::json!({
            "domain": "example.com",
            "mx": [{"host": "mx1.example.net", "preference": 10}],
            "spf": {"mechanisms": ["include:_spf.example.net"], "all": "-all"},
            "dmarc": {"policy": "reject", "adkim": "strict", "rua": ["mailto:d@example.com"]},
            "mtaSts": {"mode": "testing", "maxAge": 604800},
            "tlsRpt": {"rua": ["mailto:t@example.com"]},
        }));
        let key = PublishedKey {
            selector: "rsa1".to_owned(),
            algorithm: Algorithm::RsaSha256,
            public_key: Some("x".repeat(392)),
            target: None,
        };
        let revoked = PublishedKey { selector: "old".to_owned(), public_key: None, ..key.clone() };
        let lines: Vec<String> =
            desired(&spec, &[key, revoked]).iter().flat_map(Record::zone_lines).collect();
        assert_eq!(lines[0], "example.com. 300 IN MX 10 mx1.example.net.");
        assert_eq!(lines[1], "example.com. 300 IN TXT \"v=spf1 include:_spf.example.net -all\"");
        let long = &lines[2];
        assert!(long.starts_with("rsa1._domainkey.example.com. 300 IN TXT \"v=DKIM1; k=rsa; p=xxx"));
        assert!(long.split('"').all(|part| part.len() <= 255), "{long}");
        assert_eq!(long.matches('"').count(), 4);
        assert_eq!(lines[3], "old._domainkey.example.com. 300 IN TXT \"v=DKIM1; p=\"");
        assert_eq!(
            lines[4],
            "_dmarc.example.com. 300 IN TXT \"v=DMARC1; p=reject; adkim=s; rua=mailto:d@example.com\""
        );
        assert!(lines[5].starts_with("_mta-sts.example.com. 300 IN TXT \"v=STSv1; id="));
        assert_eq!(lines[6], "_smtp._tls.example.com. 300 IN TXT \"v=TLSRPTv1; rua=mailto:t@example.com\"");
    }

    #[test]
    fn delegated_selectors_are_cnames_to_where_the_keys_are() {
        let spec = spec(serde_json::json!({
            "domain": "example.com",
            "dkim": {"delegation": {"cname": true, "targetZone": "dkim.example.net", "slots": 3}},
        }));
        let key = PublishedKey {
            selector: "s2".to_owned(),
            algorithm: Algorithm::Ed25519Sha256,
            public_key: Some("x".to_owned()),
            target: Some("s2.example.com.dkim.example.net".to_owned()),
        };
        let lines: Vec<String> = desired(&spec, &[key]).iter().flat_map(Record::zone_lines).collect();
        let cname = |slot: u8| {
            format!("s{slot}._domainkey.example.com. 300 IN CNAME s{slot}.example.com.dkim.example.net.")
        };
        assert_eq!(lines[..3], [cname(1), cname(2), cname(3)]);
        let key = "s2.example.com.dkim.example.net. 300 IN TXT \"v=DKIM1; k=ed25519; p=x\"";
        assert_eq!(lines[3..], [key]);
    }

    #[test]
    fn only_our_kind_of_text_is_ours() {
        assert!(Purpose::Spf.is_one("v=spf1 -all") && Purpose::Spf.is_one("V=SPF1"));
        assert!(!Purpose::Spf.is_one("v=spf10 -all") && !Purpose::Spf.is_one("google-site-verification=x"));
    }
}
