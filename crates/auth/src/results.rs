//! The `Authentication-Results` field (RFC 8601). What strangers wrote goes into it only quoted.

use std::fmt::Write;

use crate::arc::ArcResult;
use crate::client::SpfIdentity;
use crate::dkim::DkimCheck;
use crate::verify::Verification;

/// The most characters of a value that a stranger chose.
const MAX_VALUE: usize = 320;

impl Verification {
    /// The field of the authentication server `id`, folded, ended by CRLF. `utf8`: the message is
    /// internationalised, so values may hold UTF-8 (RFC 8616 §5).
    #[must_use]
    pub fn render(&self, id: &str, utf8: bool) -> String {
        let mut field = Results { text: String::with_capacity(512), utf8 };
        field.text.push_str("Authentication-Results: ");
        field.value(id);
        self.write_client(&mut field);
        if self.dkim.is_empty() {
            field.result("dkim", "none", None);
        }
        for check in &self.dkim {
            write_dkim(&mut field, check);
        }
        let reason = self.dmarc.author_error.as_ref().map(ToString::to_string);
        field.result("dmarc", self.dmarc.result.as_str(), reason.as_deref());
        if let Some(domain) = &self.dmarc.domain {
            field.property("header.from", domain);
        }
        if self.dmarc.policy.is_some() {
            field.property("policy.dmarc", self.dmarc.applied.as_str());
        }
        field.result("arc", self.arc.result.as_str(), self.arc.reason);
        if self.arc.result != ArcResult::None {
            field.comment(&format!("i={}", self.arc.sets));
        }
        field.text.push_str("\r\n");
        field.text
    }

    fn write_client(&self, field: &mut Results) {
        let (iprev, spf) = (&self.client.iprev, &self.client.spf);
        field.result("iprev", iprev.result.as_str(), None);
        field.property("policy.iprev", &iprev.ip.to_string());
        if let Some(name) = &iprev.name {
            field.comment(name);
        }
        field.result("spf", spf.result.as_str(), None);
        let property = match spf.identity {
            SpfIdentity::MailFrom => "smtp.mailfrom",
            SpfIdentity::Helo => "smtp.helo",
        };
        field.property(property, &spf.value);
    }
}

fn write_dkim(field: &mut Results, check: &DkimCheck) {
    field.result("dkim", check.result.as_str(), check.reason);
    if !check.domain.is_empty() {
        field.property("header.d", &check.domain);
    }
    if let Some(identity) = &check.identity {
        field.property("header.i", identity);
    }
    for (name, value) in
        [("header.s", &check.selector), ("header.a", &check.algorithm), ("header.b", &check.signature)]
    {
        if !value.is_empty() {
            field.property(name, value);
        }
    }
}

struct Results {
    text: String,
    utf8: bool,
}

impl Results {
    /// A method on a line of its own, with a reason for people (§2.2 `reasonspec`).
    fn result(&mut self, method: &str, result: &str, reason: Option<&str>) {
        let _ = write!(self.text, ";\r\n\t{method}={result}");
        if let Some(reason) = reason {
            self.text.push_str(" reason=");
            self.quoted(reason);
        }
    }

    fn property(&mut self, name: &str, value: &str) {
        self.text.push(' ');
        self.text.push_str(name);
        self.text.push('=');
        self.value(value);
    }

    /// A value as it is where it is a token or a plain address, else quoted.
    fn value(&mut self, value: &str) {
        if is_plain(value) { self.text.push_str(value) } else { self.quoted(value) }
    }

    fn quoted(&mut self, value: &str) {
        self.text.push('"');
        for character in value.chars().take(MAX_VALUE) {
            if matches!(character, '"' | '\\') {
                self.text.push('\\');
            }
            self.text.push(self.safe(character));
        }
        self.text.push('"');
    }

    /// A comment (RFC 5322 §3.2.2), of the characters of host names and tags only.
    fn comment(&mut self, text: &str) {
        let known = |c: &char| c.is_ascii_alphanumeric() || "-._=".contains(*c);
        self.text.push_str(" (");
        self.text.extend(text.chars().filter(known).take(MAX_VALUE));
        self.text.push(')');
    }

    fn safe(&self, character: char) -> char {
        let shown = !character.is_control() && (self.utf8 || character.is_ascii());
        if shown { character } else { '?' }
    }
}

/// Whether a value stands without quotes: a token of RFC 2045 §5.1, or two with an @ between them.
fn is_plain(value: &str) -> bool {
    let token = |part: &str| {
        part.bytes().all(|byte| byte.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?=".contains(&byte))
    };
    let (local, domain) = value.split_once('@').unwrap_or(("", value));
    value.len() <= MAX_VALUE && !domain.is_empty() && token(local) && token(domain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::*;

    fn verification() -> Verification {
        Verification {
            client: ClientCheck {
                spf: SpfCheck {
                    result: SpfResult::Pass,
                    identity: SpfIdentity::MailFrom,
                    value: "alice@example.com".into(),
                    domain: Some("example.com".into()),
                },
                iprev: IprevCheck {
                    result: IprevResult::Pass,
                    ip: [192, 0, 2, 1].into(),
                    name: Some("mail.example.com".into()),
                },
            },
            dkim: vec![DkimCheck {
                result: DkimResult::Pass,
                reason: None,
                domain: "example.com".into(),
                identity: Some("@example.com".into()),
                selector: "s1".into(),
                algorithm: "rsa-sha256".into(),
                signature: "abc+/d==".into(),
                testing: false,
            }],
            arc: ArcCheck { result: ArcResult::None, reason: None, sets: 0, sealer: None },
            dmarc: DmarcCheck {
                result: DmarcResult::Pass,
                domain: Some("example.com".into()),
                policy: Some(Policy::Reject),
                applied: Policy::Reject,
                author_error: None,
            },
        }
    }

    #[test]
    fn the_whole_field() {
        assert_eq!(
            verification().render("mx.example.test", false),
            "Authentication-Results: mx.example.test;\r\n\
             \tiprev=pass policy.iprev=192.0.2.1 (mail.example.com);\r\n\
             \tspf=pass smtp.mailfrom=alice@example.com;\r\n\
             \tdkim=pass header.d=example.com header.i=@example.com header.s=s1 \
             header.a=rsa-sha256 header.b=\"abc+/d==\";\r\n\
             \tdmarc=pass header.from=example.com policy.dmarc=reject;\r\n\
             \tarc=none\r\n"
        );
    }

    #[test]
    fn a_null_sender_shows_the_ehlo_name() {
        let mut verification = verification();
        verification.client.spf.identity = SpfIdentity::Helo;
        verification.client.spf.value = "x; dkim=pass".into();
        verification.client.iprev.ip = std::net::Ipv6Addr::LOCALHOST.into();
        verification.dkim.clear();
        let field = verification.render("mx.example.test", false);
        assert!(field.contains("\tspf=pass smtp.helo=\"x; dkim=pass\";\r\n\tdkim=none;\r\n"), "{field}");
        assert!(field.contains("policy.iprev=\"::1\""), "{field}");
    }

    /// The field without its quoted strings: what a reader takes for syntax.
    fn syntax(field: &str) -> String {
        let (mut out, mut quoted, mut escaped) = (String::new(), false, false);
        for character in field.chars() {
            match character {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                _ if quoted => {}
                character => out.push(character),
            }
        }
        assert!(!quoted, "{field}");
        out
    }

    proptest! {
        /// Whatever strangers choose, the field is one field of the same methods, in ASCII.
        #[test]
        fn values_inject_nothing(values in prop::collection::vec(
            prop_oneof!["[ -~]{0,30}", ".{0,30}", "[\"\\\\;=()@\r\n a]{0,30}"], 7)) {
            let mut verification = verification();
            verification.client.spf.value = values[0].clone();
            verification.client.iprev.name = Some(values[1].clone());
            let dkim = &mut verification.dkim[0];
            dkim.identity = Some(values[2].clone());
            dkim.selector = values[3].clone();
            dkim.algorithm = values[4].clone();
            dkim.signature = values[5].clone();
            verification.dmarc.domain = Some(values[6].clone());
            let field = verification.render("mx.example.test", false);
            prop_assert!(field.is_ascii());
            let syntax = syntax(&field);
            prop_assert_eq!(syntax.matches(';').count(), 5);
            prop_assert_eq!(syntax.matches("\r\n").count(), 6);
            prop_assert_eq!(field.matches('\n').count(), 6);
            prop_assert_eq!(syntax.matches('(').count(), 1);
            for method in ["\tiprev=pass", "\tspf=pass", "\tdkim=pass", "\tdmarc=pass", "\tarc=none"] {
                prop_assert_eq!(syntax.matches(method).count(), 1);
            }
        }
    }
}
