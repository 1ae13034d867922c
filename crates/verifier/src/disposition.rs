//! What becomes of a message, from what is known of it. Pure.
//!
//! The policy of the author's domain is followed where the recipient's domain wants that
//! (`inbound.dmarc.enforce`). A message to several domains has one reply, so what the strictest of them
//! asks for holds for all: rejected mail comes back to its sender, who can act on it; a forged message
//! that is delivered can not be taken back.

use auth::{DmarcCheck, DmarcResult, Policy};
use domains::types::{InboundDmarc, OnReject};
use proto::{Disposition, SmtpReply};

use crate::config::{Config, MalformedFrom, OnTempError};

/// What becomes of a message.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) disposition: Disposition,
    /// Where it is refused or deferred.
    pub(crate) reply: Option<SmtpReply>,
}

impl Verdict {
    const DELIVER: Self = Self { disposition: Disposition::Deliver, reply: None };
    const QUARANTINE: Self = Self { disposition: Disposition::Quarantine, reply: None };

    pub(crate) fn reject(reply: SmtpReply) -> Self {
        Self { disposition: Disposition::Reject, reply: Some(reply) }
    }

    pub(crate) fn defer(reply: SmtpReply) -> Self {
        Self { disposition: Disposition::Defer, reply: Some(reply) }
    }
}

pub(crate) fn reply(code: u32, enhanced: &str, text: impl Into<String>) -> SmtpReply {
    SmtpReply { code, enhanced: enhanced.to_owned(), text: text.into() }
}

/// How strict the recipients' domains are, together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Strictness {
    /// One of them enforces policies.
    pub(crate) enforce: bool,
    /// One that enforces refuses what `p=reject` covers.
    pub(crate) reject: bool,
}

impl Strictness {
    /// The strictest of the settings.
    pub(crate) fn of<'a>(settings: impl Iterator<Item = &'a InboundDmarc>) -> Self {
        let none = Self { enforce: false, reject: false };
        settings.filter(|dmarc| dmarc.enforce).fold(none, |sum, dmarc| Self {
            enforce: true,
            reject: sum.reject || dmarc.on_reject == OnReject::Reject,
        })
    }
}

/// Decides.
pub(crate) fn decide(dmarc: &DmarcCheck, strictness: Strictness, config: &Config) -> Verdict {
    if !strictness.enforce {
        return Verdict::DELIVER;
    }
    let domain = dmarc.domain.as_deref().unwrap_or_default();
    match dmarc.result {
        DmarcResult::Pass | DmarcResult::None => Verdict::DELIVER,
        DmarcResult::PermError => malformed(dmarc, config),
        DmarcResult::TempError => {
            // A policy that asks for nothing cannot be the reason to keep a message waiting.
            let harmless = dmarc.policy.is_some() && dmarc.applied == Policy::None;
            if harmless || config.on_temperror == OnTempError::Deliver {
                return Verdict::DELIVER;
            }
            Verdict::defer(reply(
                451,
                "4.4.3",
                format!("The DNS gave no answer that is needed to check mail from {domain}; try again later"),
            ))
        }
        DmarcResult::Fail => match dmarc.applied {
            Policy::None => Verdict::DELIVER,
            Policy::Reject if strictness.reject => Verdict::reject(reply(
                550,
                "5.7.1",
                format!(
                    "Mail from {domain} that passes neither SPF nor DKIM for that domain is refused, as the \
                     DMARC policy of {domain} asks (p=reject); send it through a server of {domain}"
                ),
            )),
            Policy::Quarantine | Policy::Reject => Verdict::QUARANTINE,
        },
    }
}

fn malformed(dmarc: &DmarcCheck, config: &Config) -> Verdict {
    match config.malformed_from {
        MalformedFrom::Deliver => Verdict::DELIVER,
        MalformedFrom::Quarantine => Verdict::QUARANTINE,
        MalformedFrom::Reject => {
            let why = dmarc.author_error.as_ref().map(ToString::to_string).unwrap_or_default();
            let text = format!("The message must have one From field with one address: {why}");
            Verdict::reject(reply(550, "5.7.1", text))
        }
    }
}

/// The name of a disposition in metrics, logs and traces.
pub(crate) fn name(disposition: Disposition) -> &'static str {
    match disposition {
        Disposition::Unspecified => "unspecified",
        Disposition::Deliver => "deliver",
        Disposition::Quarantine => "quarantine",
        Disposition::Reject => "reject",
        Disposition::Defer => "defer",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENFORCING: Strictness = Strictness { enforce: true, reject: true };

    fn check(result: DmarcResult, policy: Option<Policy>, applied: Policy) -> DmarcCheck {
        DmarcCheck { result, domain: Some("author.test".into()), policy, applied, author_error: None }
    }

    fn disposition(result: DmarcResult, applied: Policy, strictness: Strictness) -> Disposition {
        decide(&check(result, Some(applied), applied), strictness, &Config::default()).disposition
    }

    #[test]
    fn the_policy_is_followed_where_mail_fails() {
        for policy in [Policy::None, Policy::Quarantine, Policy::Reject] {
            for result in [DmarcResult::Pass, DmarcResult::None] {
                assert_eq!(disposition(result, policy, ENFORCING), Disposition::Deliver);
            }
        }
        assert_eq!(disposition(DmarcResult::Fail, Policy::None, ENFORCING), Disposition::Deliver);
        assert_eq!(disposition(DmarcResult::Fail, Policy::Quarantine, ENFORCING), Disposition::Quarantine);
        let reject = check(DmarcResult::Fail, Some(Policy::Reject), Policy::Reject);
        let verdict = decide(&reject, ENFORCING, &Config::default());
        let reply = verdict.reply.unwrap();
        assert_eq!(
            (verdict.disposition, reply.code, reply.enhanced.as_str()),
            (Disposition::Reject, 550, "5.7.1")
        );
        assert!(reply.text.contains("author.test") && reply.text.contains("p=reject"), "{}", reply.text);
    }

    #[test]
    fn a_failure_of_the_dns_defers_only_where_it_matters() {
        let temp = |policy, applied, config: &Config| {
            decide(&check(DmarcResult::TempError, policy, applied), ENFORCING, config)
        };
        let config = Config::default();
        let unknown = temp(None, Policy::None, &config);
        assert_eq!((unknown.disposition, unknown.reply.unwrap().code), (Disposition::Defer, 451));
        let strict = temp(Some(Policy::Reject), Policy::Reject, &config);
        assert_eq!(strict.disposition, Disposition::Defer);
        let harmless = temp(Some(Policy::None), Policy::None, &config);
        assert_eq!(harmless.disposition, Disposition::Deliver);
        let open = Config { on_temperror: OnTempError::Deliver, ..config };
        assert_eq!(temp(None, Policy::None, &open).disposition, Disposition::Deliver);
    }

    #[test]
    fn mail_without_one_author() {
        let check = DmarcCheck { domain: None, ..check(DmarcResult::PermError, None, Policy::None) };
        for (setting, expected) in [
            (MalformedFrom::Quarantine, Disposition::Quarantine),
            (MalformedFrom::Reject, Disposition::Reject),
            (MalformedFrom::Deliver, Disposition::Deliver),
        ] {
            let config = Config { malformed_from: setting, ..Config::default() };
            assert_eq!(decide(&check, ENFORCING, &config).disposition, expected);
        }
    }

    #[test]
    fn the_strictest_domain_of_the_recipients_decides() {
        let dmarc = |enforce, on_reject| InboundDmarc { enforce, on_reject, ..InboundDmarc::default() };
        let lax = dmarc(false, OnReject::Reject);
        let milder = dmarc(true, OnReject::Quarantine);
        let strict = dmarc(true, OnReject::Reject);
        for (settings, expected) in [
            (vec![&lax], Disposition::Deliver),
            (vec![&milder], Disposition::Quarantine),
            (vec![&lax, &milder], Disposition::Quarantine),
            (vec![&milder, &strict, &lax], Disposition::Reject),
        ] {
            let strictness = Strictness::of(settings.into_iter());
            assert_eq!(disposition(DmarcResult::Fail, Policy::Reject, strictness), expected);
        }
        let nobody = Strictness { enforce: false, reject: false };
        for result in [DmarcResult::TempError, DmarcResult::PermError, DmarcResult::Fail] {
            assert_eq!(disposition(result, Policy::Reject, nobody), Disposition::Deliver);
        }
    }
}
