//! DMARC records (RFC 9989 §4.7), with `pct` as RFC 7489 §6.3 had it, since it is still published.

use crate::tags::Tags;

/// What a domain owner asks for mail that does not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    /// Nothing.
    None,
    /// To be treated as suspicious.
    Quarantine,
    /// To be refused.
    Reject,
}

/// How alike two domains must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alignment {
    /// The same organizational domain.
    Relaxed,
    /// The same domain.
    Strict,
}

/// Whether the domain is a public suffix (`psd=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PublicSuffix {
    Yes,
    No,
    Unknown,
}

/// A policy record that applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// `p`: for the domain.
    pub(crate) policy: Policy,
    /// `sp`: for the names below it.
    pub(crate) subdomains: Policy,
    /// `np`: for the names below it that do not exist.
    pub(crate) nonexistent: Policy,
    pub(crate) dkim: Alignment,
    pub(crate) spf: Alignment,
    pub(crate) psd: PublicSuffix,
    /// `t=y`: the owner is testing.
    pub(crate) testing: bool,
    /// The share of failing mail that the policy is for, in percent.
    pub(crate) pct: u8,
}

impl Policy {
    /// The word of `p=`, and of `policy.dmarc` in `Authentication-Results`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Quarantine => "quarantine",
            Self::Reject => "reject",
        }
    }

    /// One step milder.
    pub(crate) fn milder(self) -> Self {
        match self {
            Self::Reject => Self::Quarantine,
            Self::Quarantine | Self::None => Self::None,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::None, Self::Quarantine, Self::Reject]
            .into_iter()
            .find(|policy| policy.as_str().eq_ignore_ascii_case(text))
    }
}

/// Whether a TXT record says that it is a DMARC record: `v=DMARC1` stands first, in this case.
pub(crate) fn is_dmarc(record: &[u8]) -> bool {
    let first = record.split(|byte| *byte == b';').next().unwrap_or_default();
    let mut parts = first.splitn(2, |byte| *byte == b'=').map(<[u8]>::trim_ascii);
    parts.next() == Some(b"v") && parts.next() == Some(b"DMARC1")
}

impl Record {
    /// Reads a record; `None` when it holds no policy that could apply. Unknown tags are ignored, and
    /// so are optional ones that are faulty. A record without a valid `p`, or with a faulty `sp` or
    /// `np`, asks for reports at most: it counts as `p=none` if it says where to send them.
    pub(crate) fn parse(record: &[u8]) -> Option<Self> {
        let tags = Tags::parse_lenient(record)?;
        let policy = |name| tags.get(name).map(Policy::parse);
        let alignment = |name| match tags.get(name) {
            Some(mode) if mode.eq_ignore_ascii_case("s") => Alignment::Strict,
            _ => Alignment::Relaxed,
        };
        let (p, sp, np) = (policy("p"), policy("sp"), policy("np"));
        let faulty = p.flatten().is_none() || sp == Some(None) || np == Some(None);
        if faulty && !tags.get("rua").is_some_and(has_uri) {
            return None;
        }
        let policy = if faulty { Policy::None } else { p.flatten().unwrap_or(Policy::None) };
        let subdomains = if faulty { Policy::None } else { sp.flatten().unwrap_or(policy) };
        let nonexistent = if faulty { Policy::None } else { np.flatten().unwrap_or(subdomains) };
        Some(Self {
            policy,
            subdomains,
            nonexistent,
            dkim: alignment("adkim"),
            spf: alignment("aspf"),
            psd: match tags.get("psd") {
                Some(psd) if psd.eq_ignore_ascii_case("y") => PublicSuffix::Yes,
                Some(psd) if psd.eq_ignore_ascii_case("n") => PublicSuffix::No,
                _ => PublicSuffix::Unknown,
            },
            testing: tags.get("t").is_some_and(|t| t.eq_ignore_ascii_case("y")),
            pct: tags.get("pct").and_then(|pct| pct.parse().ok()).filter(|pct| *pct <= 100).unwrap_or(100),
        })
    }

    /// What is asked for a message of which a number below 100 has been drawn.
    pub(crate) fn sampled(&self, policy: Policy, draw: u8) -> Policy {
        let policy = if self.testing { policy.milder() } else { policy };
        if draw < self.pct { policy } else { policy.milder() }
    }
}

fn has_uri(list: &str) -> bool {
    list.split(',').any(|uri| match uri.trim().split_once(':') {
        Some((scheme, rest)) => {
            !rest.is_empty()
                && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(record: &str) -> Option<Record> {
        Record::parse(record.as_bytes())
    }

    #[test]
    fn the_version_stands_first_and_exact() {
        for yes in ["v=DMARC1", "v=DMARC1; p=none", " v = DMARC1 ;p=none"] {
            assert!(is_dmarc(yes.as_bytes()), "{yes}");
        }
        for no in ["", "v=dmarc1; p=none", "V=DMARC1; p=none", "p=none; v=DMARC1", "v=DMARC12", "v=spf1 -all"]
        {
            assert!(!is_dmarc(no.as_bytes()), "{no}");
        }
    }

    #[test]
    fn defaults_follow_from_p() {
        let record = parse("v=DMARC1; p=Reject").unwrap();
        let all = [record.policy, record.subdomains, record.nonexistent];
        assert_eq!(all, [Policy::Reject; 3]);
        assert_eq!((record.dkim, record.spf, record.pct), (Alignment::Relaxed, Alignment::Relaxed, 100));
        let record = parse("v=DMARC1; p=reject; sp=quarantine").unwrap();
        assert_eq!(record.nonexistent, Policy::Quarantine);
        let record = parse("v=DMARC1; p=none; sp=quarantine; np=reject; adkim=s; aspf=s; psd=n").unwrap();
        assert_eq!(record.nonexistent, Policy::Reject);
        assert_eq!((record.dkim, record.spf), (Alignment::Strict, Alignment::Strict));
        assert_eq!(record.psd, PublicSuffix::No);
    }

    #[test]
    fn faults_are_forgiven_where_the_rfc_does() {
        let lenient = "v=DMARC1; p=reject; adkim=x; pct=1000; rf=afrf; ri=x; unknown=1; t=maybe; psd=q";
        let record = parse(lenient).unwrap();
        assert_eq!((record.policy, record.pct, record.testing), (Policy::Reject, 100, false));
        for faulty in ["p=rejekt", "sp=reject", "p=reject; sp=x", "p=reject; np=x", ""] {
            assert_eq!(parse(&format!("v=DMARC1; {faulty}")), None, "{faulty}");
            let with_rua = parse(&format!("v=DMARC1; {faulty}; rua=mailto:a@b.example")).unwrap();
            assert_eq!(with_rua.policy, Policy::None, "{faulty}");
            assert_eq!(parse(&format!("v=DMARC1; {faulty}; rua=nowhere")), None, "{faulty}");
        }
    }

    #[test]
    fn shares_of_mail() {
        let half = parse("v=DMARC1; p=reject; pct=50").unwrap();
        assert_eq!(half.sampled(Policy::Reject, 49), Policy::Reject);
        assert_eq!(half.sampled(Policy::Reject, 50), Policy::Quarantine);
        let zero = parse("v=DMARC1; p=quarantine; pct=0").unwrap();
        assert_eq!(zero.sampled(Policy::Quarantine, 0), Policy::None);
        let testing = parse("v=DMARC1; p=reject; t=y").unwrap();
        assert_eq!(testing.sampled(Policy::Reject, 0), Policy::Quarantine);
    }
}
