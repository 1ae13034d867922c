//! SPF records read (RFC 7208 §4.6, §5, §6, §12). A record with one fault anywhere is faulty as a
//! whole, wherever evaluation would have ended.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::expand::DomainSpec;

/// What a directive says of those it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Qualifier {
    Pass,
    Fail,
    SoftFail,
    Neutral,
}

/// How many leading bits of an address count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prefixes {
    pub(super) v4: u8,
    pub(super) v6: u8,
}

/// What a directive matches. Without a domain, the domain of the record is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mechanism {
    All,
    Include(DomainSpec),
    A(Option<DomainSpec>, Prefixes),
    Mx(Option<DomainSpec>, Prefixes),
    Ptr(Option<DomainSpec>),
    Ip4(Ipv4Addr, u8),
    Ip6(Ipv6Addr, u8),
    Exists(DomainSpec),
}

/// A record without faults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(super) directives: Vec<(Qualifier, Mechanism)>,
    /// Absent too where `all` leaves nothing to redirect (§6.1).
    pub(super) redirect: Option<DomainSpec>,
}

/// The record breaks the grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// `v=spf1`, ended by a space or the end of the record (§4.5).
pub(super) fn is_spf(record: &[u8]) -> bool {
    let version = record.get(..6).is_some_and(|start| start.eq_ignore_ascii_case(b"v=spf1"));
    version && matches!(record.get(6), None | Some(b' '))
}

impl Record {
    /// Reads a record that [`is_spf`].
    pub(super) fn parse(record: &[u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(record).ok().filter(|text| text.is_ascii()).ok_or(Malformed)?;
        let mut directives = Vec::new();
        let (mut redirect, mut explained) = (None, false);
        for term in text[6..].split(' ').filter(|term| !term.is_empty()) {
            match modifier(term) {
                Some((name, value)) if name.eq_ignore_ascii_case("redirect") => {
                    if redirect.replace(DomainSpec::parse(value)?).is_some() {
                        return Err(Malformed);
                    }
                }
                Some((name, value)) if name.eq_ignore_ascii_case("exp") => {
                    // Explanations go nowhere from here; the grammar holds all the same.
                    DomainSpec::parse(value)?;
                    if std::mem::replace(&mut explained, true) {
                        return Err(Malformed);
                    }
                }
                Some((_, value)) => DomainSpec::check_macro_string(value)?,
                None => directives.push(directive(term)?),
            }
        }
        let leaves_nothing = directives.iter().any(|(_, mechanism)| *mechanism == Mechanism::All);
        Ok(Self { directives, redirect: redirect.filter(|_| !leaves_nothing) })
    }
}

/// `name "=" macro-string` (§6): a name, and an equals sign before any colon or slash.
fn modifier(term: &str) -> Option<(&str, &str)> {
    let (name, value) = term.split_once('=')?;
    let well_formed = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    well_formed.then_some((name, value))
}

fn directive(term: &str) -> Result<(Qualifier, Mechanism), Malformed> {
    let (qualifier, term) = match term.as_bytes().first() {
        Some(b'+') => (Qualifier::Pass, &term[1..]),
        Some(b'-') => (Qualifier::Fail, &term[1..]),
        Some(b'~') => (Qualifier::SoftFail, &term[1..]),
        Some(b'?') => (Qualifier::Neutral, &term[1..]),
        _ => (Qualifier::Pass, term),
    };
    let end = term.find([':', '/']).unwrap_or(term.len());
    let (name, rest) = term.split_at(end);
    let mechanism = match name.to_ascii_lowercase().as_str() {
        "all" if rest.is_empty() => Mechanism::All,
        "include" => Mechanism::Include(required(rest)?),
        "exists" => Mechanism::Exists(required(rest)?),
        "ptr" => Mechanism::Ptr(optional(rest)?),
        "a" => with_prefixes(rest).map(|(domain, prefixes)| Mechanism::A(domain, prefixes))?,
        "mx" => with_prefixes(rest).map(|(domain, prefixes)| Mechanism::Mx(domain, prefixes))?,
        "ip4" => network(rest, 32).map(|(address, prefix)| Mechanism::Ip4(address, prefix))?,
        "ip6" => network(rest, 128).map(|(address, prefix)| Mechanism::Ip6(address, prefix))?,
        _ => return Err(Malformed),
    };
    Ok((qualifier, mechanism))
}

fn required(rest: &str) -> Result<DomainSpec, Malformed> {
    DomainSpec::parse(rest.strip_prefix(':').ok_or(Malformed)?)
}

fn optional(rest: &str) -> Result<Option<DomainSpec>, Malformed> {
    if rest.is_empty() { Ok(None) } else { required(rest).map(Some) }
}

/// `[":" domain-spec] ["/" prefix] ["//" prefix]`. A domain may hold slashes, so the prefixes are read
/// from the end.
fn with_prefixes(rest: &str) -> Result<(Option<DomainSpec>, Prefixes), Malformed> {
    let (mut rest, mut prefixes) = (rest, Prefixes { v4: 32, v6: 128 });
    if let Some((before, digits)) = split_digits(rest)
        && let Some(before) = before.strip_suffix('/')
    {
        prefixes.v6 = prefix(digits, 128)?;
        rest = before;
    }
    if let Some((before, digits)) = split_digits(rest) {
        prefixes.v4 = prefix(digits, 32)?;
        rest = before;
    }
    Ok((optional(rest)?, prefixes))
}

fn split_digits(text: &str) -> Option<(&str, &str)> {
    let (before, digits) = text.rsplit_once('/')?;
    let all = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    all.then_some((before, digits))
}

/// A number without leading zeros, at most `max`.
fn prefix(digits: &str, max: u8) -> Result<u8, Malformed> {
    let padded = digits.len() > 1 && digits.starts_with('0');
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && !padded;
    digits.parse().ok().filter(|prefix| plain && *prefix <= max).ok_or(Malformed)
}

fn network<A: std::str::FromStr>(rest: &str, max: u8) -> Result<(A, u8), Malformed> {
    let rest = rest.strip_prefix(':').ok_or(Malformed)?;
    let (address, length) = match rest.split_once('/') {
        Some((address, digits)) => (address, prefix(digits, max)?),
        None => (rest, max),
    };
    address.parse().map(|address| (address, length)).map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn terms(text: &str) -> Result<usize, Malformed> {
        let text = format!("v=spf1 {text}");
        assert!(is_spf(text.as_bytes()));
        Record::parse(text.as_bytes()).map(|record| record.directives.len())
    }

    #[test]
    fn versions() {
        for yes in ["v=spf1", "V=SPF1 -all", "v=spf1  a"] {
            assert!(is_spf(yes.as_bytes()), "{yes}");
        }
        for no in ["", "v=spf", "v=spf10", "v=spf1\ta", "v=spf2.0/pra", " v=spf1"] {
            assert!(!is_spf(no.as_bytes()), "{no}");
        }
    }

    #[test]
    fn well_formed_terms() {
        for text in [
            "",
            " ",
            "all",
            "-ALL",
            "?a ~mx +ptr  -all ",
            "a:b.example/24//64",
            "a/0",
            "a//0",
            "mx:b.example//128",
            "ip4:192.0.2.0/24",
            "ip6:2001:db8::/32",
            "include:_spf.b.example",
            "exists:%{ir}.%{v}._spf.%{d2}",
            "exists:a%%b%-c%_.example",
            "redirect=b.example",
            "exp=b.example",
            "unknown=%{s} x-y_z.1=",
            "a:foo:bar/baz.example",
            "a:b.example.",
            "a:%{d}",
            "all redirect=b.example",
        ] {
            assert!(terms(text).is_ok(), "{text}");
        }
        assert_eq!(terms("a mx -all unknown=1"), Ok(3));
    }

    #[test]
    fn malformed_terms() {
        for text in [
            "all.",
            "all:x.example",
            "all/8",
            "foo",
            "a:",
            "a:/24",
            "a/33",
            "a/032",
            "a//129",
            "a/24/64",
            "a/",
            "a:b.example/",
            "a:b",
            "a:111.222.33.44",
            "a:b.example-",
            "a:b.-example",
            "mx:",
            "ptr/24",
            "ptr:",
            "ip4",
            "ip4:",
            "ip4:1.2.3",
            "ip4:1.2.3.4/33",
            "ip4:1.2.3.4/",
            "ip4:1.2.3.4//24",
            "ip6:1.2.3.4",
            "ip6:::1/129",
            "ip6",
            "include",
            "include:",
            "include:b.example/24",
            "exists:b",
            "redirect=",
            "redirect:b.example",
            "redirect=b.example redirect=c.example",
            "exp=b.example exp=c.example",
            "redirect=b.example/24",
            "exists:%{x}.b.example",
            "exists:%(i).b.example",
            "exists:%{i0}.b.example",
            "exists:%{c}.b.example",
            "exists:%{i.b.example",
            "exists:%",
            "=x",
            "1a=x",
            "a=b%x",
            "x=%{q}",
            "-redirect=b.example",
            "\u{e9}=x",
        ] {
            assert_eq!(terms(text), Err(Malformed), "{text}");
        }
        assert_eq!(Record::parse(b"v=spf1 a:\xff.example -all"), Err(Malformed));
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[ -~]{0,60}", octets in prop::collection::vec(any::<u8>(), 0..30)) {
            let _ = terms(&text);
            let _ = Record::parse(&[b"v=spf1 ", &octets[..]].concat());
        }
    }
}
