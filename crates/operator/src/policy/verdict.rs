//! What is told of a policy.

use super::{Memory, Sight, Wanted, refused};
use crate::keys::Seen;

/// Why the condition is as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is served and announced.
    Served(String),
    /// The policy host does not serve it.
    Unreachable(String),
    /// It serves something else.
    Mismatch(String),
    /// Something takes its time.
    Waiting(String),
    /// A name server does not answer.
    Unknown(String),
    /// MX names a host that the policy forbids.
    NotCovered(String),
    /// `enforce` is not begun.
    EnforceHeld(String),
    /// MX records are not published yet.
    MxHeld(String),
    /// A host shows a certificate that senders refuse.
    Certificate(String),
    /// It is on its way out.
    Withdrawing(String),
}

impl Memory {
    /// The first that a person should know, of all that is so.
    pub(super) fn verdict(
        &self,
        wanted: &Wanted<'_>,
        sight: &Sight,
        in_force: bool,
        obstacle: Option<String>,
        mx_held: Option<&str>,
    ) -> Verdict {
        if self.withdrawn {
            let text = "senders have forgotten the policy; its TXT record is to go";
            return Verdict::Withdrawing(text.to_owned());
        }
        if let Err(why) = &sight.texts {
            return Verdict::Unreachable(why.clone());
        }
        if !self.is_seen(sight) {
            let text = "the policy host serves another text than that of status.mtaSts.policy";
            return Verdict::Mismatch(text.to_owned());
        }
        if self.announced != self.served {
            return Verdict::Waiting(
                "the policy is served; its id follows when it has been for a while".to_owned(),
            );
        }
        if sight.record == Seen::Unknown {
            return Verdict::Unknown("a name server does not answer for the TXT record".to_owned());
        }
        if sight.record == Seen::No {
            return Verdict::Waiting("the TXT record is not at every name server".to_owned());
        }
        if let Some(host) = self.strays(wanted).find(|(_, one)| one.ends().is_none()).map(|(host, _)| host)
            && self.enforces()
        {
            return Verdict::NotCovered(format!(
                "MX names {host}, where senders do not deliver: add it to spec.mx, or remove it from MX"
            ));
        }
        if let Some(why) = obstacle {
            return Verdict::EnforceHeld(format!("the policy is in mode testing: {why}"));
        }
        if let Some(why) = mx_held {
            return Verdict::MxHeld(format!("MX records wait: {why}"));
        }
        if let Some(why) = refused(wanted.hosts, sight).filter(|_| self.enforces()) {
            return Verdict::Certificate(why.to_owned());
        }
        let rest = self.remembered_until.filter(|end| *end > sight.now);
        match (wanted.policy, rest) {
            (None, Some(end)) => {
                return Verdict::Withdrawing(format!(
                    "mode none is served until {end}, when senders have forgotten"
                ));
            }
            (None, None) if !in_force => {
                return Verdict::Withdrawing("mode none is being announced".to_owned());
            }
            _ => {}
        }
        let mode = self.served.as_ref().map_or("none", |served| served.policy.mode.name());
        Verdict::Served(match (self.former.keys().next(), rest) {
            (Some(host), _) => {
                format!("mode {mode}; {host} stays in it until MX has not named it for a while")
            }
            (_, Some(end)) if mode == "none" => {
                format!("mode none; senders may hold an enforced policy until {end}")
            }
            _ => format!("mode {mode}"),
        })
    }
}
