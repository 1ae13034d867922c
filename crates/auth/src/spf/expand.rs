//! Macros (RFC 7208 §7).

use std::fmt::Write;
use std::net::IpAddr;

use super::record::Malformed;

/// The longest name, in octets without the dot at its end (§7.3).
const MAX_NAME: usize = 253;

/// A domain with macros in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DomainSpec {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Macro(Macro),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Macro {
    letter: u8,
    /// How many parts are kept, from the right; 0 for all.
    keep: usize,
    reverse: bool,
    delimiters: String,
    /// The letter was written large: the value is escaped as in URLs.
    escape: bool,
}

/// What macros stand for.
pub(super) struct Variables<'a> {
    pub(super) ip: IpAddr,
    pub(super) local_part: &'a str,
    pub(super) sender_domain: &'a str,
    pub(super) helo: &'a str,
    /// The domain whose record is evaluated.
    pub(super) domain: &'a str,
    /// The name of the address, validated; looked up only where a record asks for it.
    pub(super) validated: Option<&'a str>,
}

impl DomainSpec {
    /// Reads a `domain-spec`: it ends in a macro, or in a dot and a top label, which is no number.
    pub(super) fn parse(text: &str) -> Result<Self, Malformed> {
        let parts = parse_parts(text)?;
        let complete = match parts.last() {
            Some(Part::Macro(_)) => true,
            // What follows the last macro must hold the whole last label with a dot before it.
            Some(Part::Literal(end)) => end
                .strip_suffix('.')
                .unwrap_or(end)
                .rsplit_once('.')
                .is_some_and(|(_, label)| is_top_label(label)),
            None => false,
        };
        if complete { Ok(Self { parts }) } else { Err(Malformed) }
    }

    /// Whether a text is a `macro-string`, as modifiers that are not known must be.
    pub(super) fn check_macro_string(text: &str) -> Result<(), Malformed> {
        parse_parts(text).map(drop)
    }

    /// Whether the name of the address is needed.
    pub(super) fn needs_validated(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Macro(Macro { letter: b'p', .. })))
    }

    /// The name, in lower case and without a dot at its end; labels too many for a name go from the
    /// left.
    pub(super) fn expand(&self, variables: &Variables<'_>) -> String {
        let mut name = String::new();
        for part in &self.parts {
            match part {
                Part::Literal(text) => name.push_str(text),
                Part::Macro(part) => part.expand(variables, &mut name),
            }
        }
        let name = name.strip_suffix('.').unwrap_or(&name);
        let mut rest = name;
        while rest.len() > MAX_NAME {
            match rest.split_once('.') {
                Some((_, shorter)) => rest = shorter,
                None => break,
            }
        }
        rest.to_ascii_lowercase()
    }
}

fn is_top_label(label: &str) -> bool {
    let characters = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let edges = !label.starts_with('-') && !label.ends_with('-');
    !label.is_empty() && characters && edges && !label.bytes().all(|byte| byte.is_ascii_digit())
}

fn parse_parts(text: &str) -> Result<Vec<Part>, Malformed> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if first != '%' {
            if !first.is_ascii_graphic() {
                return Err(Malformed);
            }
            literal.push(first);
            rest = &rest[1..];
            continue;
        }
        let escape = rest.as_bytes().get(1).ok_or(Malformed)?;
        match escape {
            b'%' => literal.push('%'),
            b'_' => literal.push(' '),
            b'-' => literal.push_str("%20"),
            b'{' => {
                let (inside, after) = rest[2..].split_once('}').ok_or(Malformed)?;
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                }
                parts.push(Part::Macro(Macro::parse(inside)?));
                rest = after;
                continue;
            }
            _ => return Err(Malformed),
        }
        rest = &rest[2..];
    }
    if !literal.is_empty() {
        parts.push(Part::Literal(literal));
    }
    Ok(parts)
}

impl Macro {
    /// `macro-letter *DIGIT ["r"] *delimiter` (§7.1). The letters `c`, `r` and `t` are for
    /// explanations only.
    fn parse(inside: &str) -> Result<Self, Malformed> {
        let letter = *inside.as_bytes().first().ok_or(Malformed)?;
        if !b"slodiphv".contains(&letter.to_ascii_lowercase()) {
            return Err(Malformed);
        }
        let rest = &inside[1..];
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = rest.split_at(digits);
        let keep = match number {
            "" => 0,
            // More parts than any name has is all of them.
            _ => number.parse().unwrap_or(usize::MAX),
        };
        if !number.is_empty() && keep == 0 {
            return Err(Malformed);
        }
        let delimiters = rest.strip_prefix(['r', 'R']);
        let reverse = delimiters.is_some();
        let delimiters = delimiters.unwrap_or(rest);
        if !delimiters.bytes().all(|byte| b".-+,/_=".contains(&byte)) {
            return Err(Malformed);
        }
        let delimiters = if delimiters.is_empty() { "." } else { delimiters }.to_owned();
        let escape = letter.is_ascii_uppercase();
        Ok(Self { letter: letter.to_ascii_lowercase(), keep, reverse, delimiters, escape })
    }

    fn expand(&self, variables: &Variables<'_>, out: &mut String) {
        let value = self.value(variables);
        let mut parts: Vec<&str> = value.split(|c| self.delimiters.contains(c)).collect();
        if self.reverse {
            parts.reverse();
        }
        let kept = if self.keep == 0 { parts.len() } else { self.keep.min(parts.len()) };
        let joined = parts[parts.len() - kept..].join(".");
        if !self.escape {
            out.push_str(&joined);
            return;
        }
        for byte in joined.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                out.push(byte.into());
            } else {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }

    fn value(&self, variables: &Variables<'_>) -> String {
        match self.letter {
            b's' => format!("{}@{}", variables.local_part, variables.sender_domain),
            b'l' => variables.local_part.to_owned(),
            b'o' => variables.sender_domain.to_owned(),
            b'd' => variables.domain.to_owned(),
            b'h' => variables.helo.to_owned(),
            b'p' => variables.validated.unwrap_or("unknown").to_owned(),
            b'v' if variables.ip.is_ipv4() => "in-addr".to_owned(),
            b'v' => "ip6".to_owned(),
            // Only `i` is left.
            _ => dotted(variables.ip),
        }
    }
}

/// An address in the form of `%{i}`: IPv6 as nibbles with dots between them.
fn dotted(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => {
            let nibbles = ip.octets().into_iter().flat_map(|octet| [octet >> 4, octet & 15]);
            nibbles.map(|nibble| format!("{nibble:x}")).collect::<Vec<_>>().join(".")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(text: &str, ip: &str) -> String {
        let variables = Variables {
            ip: ip.parse().unwrap(),
            local_part: "strong-bad",
            sender_domain: "email.example.com",
            helo: "mail.example.org",
            domain: "email.example.com",
            validated: Some("mx.example.org"),
        };
        DomainSpec::parse(text).unwrap().expand(&variables)
    }

    #[test]
    fn the_examples_of_the_rfc() {
        // RFC 7208 §7.4
        for (text, expected) in [
            ("%{s}", "strong-bad@email.example.com"),
            ("%{o}", "email.example.com"),
            ("%{d}", "email.example.com"),
            ("%{d4}", "email.example.com"),
            ("%{d3}", "email.example.com"),
            ("%{d2}", "example.com"),
            ("%{d1}", "com"),
            ("%{dr}", "com.example.email"),
            ("%{d2r}", "example.email"),
            ("%{l}", "strong-bad"),
            ("%{l-}", "strong.bad"),
            ("%{lr}", "strong-bad"),
            ("%{lr-}", "bad.strong"),
            ("%{l1r-}", "strong"),
            ("%{ir}.%{v}._spf.%{d2}", "3.2.0.192.in-addr._spf.example.com"),
            ("%{lr-}.lp._spf.%{d2}", "bad.strong.lp._spf.example.com"),
            ("%{lr-}.lp.%{ir}.%{v}._spf.%{d2}", "bad.strong.lp.3.2.0.192.in-addr._spf.example.com"),
            ("%{ir}.%{v}.%{l1r-}.lp._spf.%{d2}", "3.2.0.192.in-addr.strong.lp._spf.example.com"),
            ("%{d2}.trusted-domains.example.net", "example.com.trusted-domains.example.net"),
            ("%{p2}.%{h}.x%_y%-z%%.example", "example.org.mail.example.org.x y%20z%.example"),
            ("%{S}", "strong-bad%40email.example.com"),
        ] {
            assert_eq!(expand(text, "192.0.2.3"), expected, "{text}");
        }
        assert_eq!(
            expand("%{ir}.%{v}._spf.%{d2}", "2001:db8::cb01"),
            "1.0.b.c.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6._spf.example.com"
        );
    }

    #[test]
    fn long_names_lose_labels_from_the_left() {
        let long = format!("{}.%{{d}}", "a.".repeat(130));
        let name = expand(&long.replace("..", "."), "192.0.2.3");
        assert!(name.len() <= MAX_NAME && name.ends_with(".email.example.com"), "{name}");
    }
}
