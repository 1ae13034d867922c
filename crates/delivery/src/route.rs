//! Where each recipient goes next. Planning is pure: an envelope and the index of hosted domains
//! give the entries of a message. What a hosted domain's route is gets looked up by each attempt
//! anew, so that a changed route takes effect on mail that waits.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use domains::DomainIndex;
use message::{Envelope, Origin, Recipient, Standing};
use queue::{NewEntry, NextHop, Tenant};
use smtp::{Domain, Mailbox};

/// Where an entry goes next; the text of it is the queue's [`NextHop`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hop<'a> {
    /// `local:DOMAIN`: the route of a domain that is hosted here.
    Local(&'a str),
    /// `mx:DOMAIN`: the domain's mail servers by DNS; the domain may be an address literal.
    Mx(&'a str),
    /// `relay:HOST:PORT`: the smart host of the domain that is responsible for the message.
    Relay(&'a str),
}

impl<'a> Hop<'a> {
    /// The kinds of next hops that mail leaves for, by a source pool.
    pub(crate) const LEAVING: [&'static str; 2] = ["mx", "relay"];

    /// Whether it is one of those.
    pub(crate) fn leaves(self) -> bool {
        !matches!(self, Self::Local(_))
    }

    /// Reads a next hop; `None` when the text is none of ours.
    pub(crate) fn parse(next_hop: &'a NextHop) -> Option<Self> {
        match next_hop.0.split_once(':')? {
            ("local", domain) => Some(Self::Local(domain)),
            ("mx", domain) => Some(Self::Mx(domain)),
            ("relay", address) => Some(Self::Relay(address)),
            _ => None,
        }
    }

    fn next_hop(self) -> NextHop {
        NextHop(match self {
            Self::Local(domain) => format!("local:{domain}"),
            Self::Mx(domain) => format!("mx:{domain}"),
            Self::Relay(address) => format!("relay:{address}"),
        })
    }
}

/// Plans the entries of messages.
#[derive(Debug, Clone)]
pub(crate) struct Planner {
    /// The most recipients of one entry.
    pub(crate) recipients_per_entry: usize,
    /// When messages are given up, where the sender's domain does not say.
    pub(crate) max_age: Duration,
}

impl Planner {
    /// The entries of a message: aliases followed, duplicates merged, one entry for the recipients
    /// of each next hop and tenant (more, where they are many).
    pub(crate) fn plan(&self, envelope: &Envelope, index: &DomainIndex) -> Vec<NewEntry> {
        let sender = envelope.reverse_path.mailbox().and_then(Mailbox::domain_name);
        // Only what was submitted is known to come from its sender's domain.
        let submitted = sender.filter(|_| envelope.origin == Origin::Submission);
        let max_age = submitted.and_then(|domain| retry_max_age(index, domain)).unwrap_or(self.max_age);
        let mut entries: Vec<NewEntry> = Vec::new();
        // What leaves for one next hop may be of several tenants: each has its own source pool and rate.
        let mut open: HashMap<(NextHop, Tenant), usize> = HashMap::new();
        let mut seen = HashSet::new();
        for given in &envelope.recipients {
            // Mail from outside that an alias sends on is the responsibility of the alias's domain.
            let responsible = match envelope.origin {
                Origin::Mx => given.domain_name(),
                Origin::Submission | Origin::Local => submitted,
            };
            for address in index.expand(given) {
                if !seen.insert(address.clone()) {
                    continue;
                }
                let next_hop = next_hop(&address, responsible, index);
                let lane = (next_hop.clone(), tenant(&next_hop, responsible, index));
                let original = (address != *given).then(|| given.clone());
                let recipient = Recipient { address, original, standing: Standing::Pending, attempt: None };
                match open.get(&lane).and_then(|place| entries.get_mut(*place)) {
                    Some(entry) if entry.recipients.len() < self.recipients_per_entry => {
                        entry.recipients.push(recipient);
                    }
                    _ => {
                        let tenant = lane.1.clone();
                        open.insert(lane, entries.len());
                        entries.push(NewEntry { next_hop, tenant, recipients: vec![recipient], max_age });
                    }
                }
            }
        }
        entries
    }
}

fn next_hop(address: &Mailbox, responsible: Option<&str>, index: &DomainIndex) -> NextHop {
    let relay = || {
        let domain = index.hosted(responsible?)?;
        domain.spec.outbound.as_ref()?.relay.as_ref()
    };
    match address.domain() {
        // A domain may be ours for sending alone; its mail goes where its MX records say.
        Domain::Name(name) if index.hosted(name).is_some_and(|domain| domain.inbound().is_some()) => {
            Hop::Local(name).next_hop()
        }
        domain => match relay() {
            Some(relay) => Hop::Relay(relay).next_hop(),
            None => Hop::Mx(&domain.to_string()).next_hop(),
        },
    }
}

/// Whose mail it is: what leaves counts for the hosted domain that answers for it. Mail for a hosted domain
/// is nobody's; its next hop is the domain already, so that the domains share by that.
fn tenant(next_hop: &NextHop, responsible: Option<&str>, index: &DomainIndex) -> Tenant {
    let leaves = !matches!(Hop::parse(next_hop), Some(Hop::Local(_)));
    let domain = responsible.filter(|domain| leaves && index.hosted(domain).is_some());
    Tenant(domain.unwrap_or_default().to_ascii_lowercase())
}

fn retry_max_age(index: &DomainIndex, domain: &str) -> Option<Duration> {
    index.hosted(domain)?.spec.outbound.as_ref()?.retry.as_ref()?.max_age
}

#[cfg(test)]
mod tests {
    use smtp::ReversePath;

    use super::*;

    fn index(specs: &[&str]) -> DomainIndex {
        let folder = tempfile::tempdir().unwrap();
        for (number, spec) in specs.iter().enumerate() {
            let resource = format!(
                "{{apiVersion: mail.packetboat.dev/v1alpha1, kind: MailDomain, \
                 metadata: {{name: d{number}}}, spec: {{{spec}}}}}"
            );
            std::fs::write(folder.path().join(format!("{number}.yaml")), resource).unwrap();
        }
        let wanted = domains::SecretsWanted { submission_users: false, signing_keys: false };
        domains::load_folder(folder.path(), wanted).unwrap()
    }

    fn plan(index: &DomainIndex, origin: Origin, from: &str, to: &[&str]) -> Vec<NewEntry> {
        let envelope = Envelope {
            reverse_path: from.parse::<ReversePath>().unwrap(),
            recipients: to.iter().map(|recipient| recipient.parse().unwrap()).collect(),
            smtputf8: false,
            eight_bit: false,
            user: None,
            origin,
        };
        let planner = Planner { recipients_per_entry: 2, max_age: Duration::from_secs(7) };
        planner.plan(&envelope, index)
    }

    fn planned(index: &DomainIndex, origin: Origin, from: &str, to: &[&str]) -> Vec<(String, Vec<String>)> {
        plan(index, origin, from, to)
            .into_iter()
            .map(|entry| {
                let recipients = entry.recipients.iter().map(|recipient| recipient.address.to_string());
                (format!("{} {}s", entry.next_hop, entry.max_age.as_secs()), recipients.collect())
            })
            .collect()
    }

    fn entry(next_hop: &str, recipients: &[&str]) -> (String, Vec<String>) {
        (next_hop.to_owned(), recipients.iter().map(|recipient| (*recipient).to_owned()).collect())
    }

    const HOSTED: &str = "domain: a.example, inbound: {recipients: {mode: AcceptAll, \
        aliases: {sales: [x, y@b.example]}}, route: {maildir: {path: m}}}, \
        outbound: {relay: 'smart.example:25', retry: {maxAge: 1m}}";

    #[test]
    fn recipients_are_gathered_by_next_hop_in_entries_of_limited_size() {
        let to = ["1@b.example", "1@a.example", "2@b.example", "1@b.example", "3@b.example", "1@[192.0.2.1]"];
        let plan = planned(&index(&[HOSTED]), Origin::Mx, "s@c.example", &to);
        assert_eq!(
            plan,
            [
                entry("mx:b.example 7s", &["1@b.example", "2@b.example"]),
                entry("local:a.example 7s", &["1@a.example"]),
                entry("mx:b.example 7s", &["3@b.example"]),
                entry("mx:[192.0.2.1] 7s", &["1@[192.0.2.1]"]),
            ]
        );
    }

    #[test]
    fn what_a_domain_sends_or_forwards_goes_by_its_relay_and_its_time() {
        let index = index(&[HOSTED]);
        assert_eq!(
            planned(&index, Origin::Submission, "s@a.example", &["1@b.example", "1@a.example"]),
            [
                entry("relay:smart.example:25 60s", &["1@b.example"]),
                entry("local:a.example 60s", &["1@a.example"]),
            ]
        );
        assert_eq!(
            planned(&index, Origin::Mx, "s@c.example", &["sales@a.example"]),
            [
                entry("local:a.example 7s", &["x@a.example"]),
                entry("relay:smart.example:25 7s", &["y@b.example"]),
            ]
        );
        // A forged sender does not get to use it.
        assert_eq!(
            planned(&index, Origin::Mx, "s@a.example", &["1@b.example"]),
            [entry("mx:b.example 7s", &["1@b.example"])]
        );
    }

    #[test]
    fn forwards_of_several_tenants_to_one_next_hop_are_entries_of_each() {
        let forwards = |domain: &str| {
            format!(
                "domain: {domain}, inbound: {{recipients: {{mode: AcceptAll, aliases: \
                 {{x: [x.{domain}@far.example], y: [y.{domain}@far.example]}}}}, route: {{maildir: {{path: m}}}}}}"
            )
        };
        let index = index(&[&forwards("a.example"), &forwards("b.example")]);
        let to = ["x@a.example", "x@b.example", "y@a.example", "y@b.example"];
        let entries = plan(&index, Origin::Mx, "s@c.example", &to).into_iter();
        let told: Vec<_> = entries
            .map(|entry| {
                let recipients: Vec<_> = entry.recipients.iter().map(|one| one.address.to_string()).collect();
                (entry.next_hop.0, entry.tenant.0, recipients.join(" "))
            })
            .collect();
        let far = "mx:far.example".to_owned();
        let of = |tenant: &str| {
            let recipients = format!("x.{tenant}@far.example y.{tenant}@far.example");
            (far.clone(), tenant.to_owned(), recipients)
        };
        assert_eq!(told, [of("a.example"), of("b.example")]);
    }

    #[test]
    fn next_hops_survive_their_text() {
        for text in ["local:a.example", "mx:[IPv6:2001:db8::1]", "relay:[::1]:25"] {
            let next_hop = NextHop(text.to_owned());
            assert_eq!(Hop::parse(&next_hop).map(Hop::next_hop), Some(next_hop.clone()));
        }
        assert_eq!(Hop::parse(&NextHop("carrier pigeon".into())), None);
    }
}
