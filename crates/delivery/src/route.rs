//! Where each recipient goes next. Planning is pure: an envelope and the index of hosted domains
//! give the entries of a message. What a hosted domain's route is gets looked up by each attempt
//! anew, so that a changed route takes effect on mail that waits.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use domains::DomainIndex;
use message::{Envelope, Origin, Recipient, Standing};
use queue::{NewEntry, NextHop};
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
    /// of each next hop (more, where they are many).
    pub(crate) fn plan(&self, envelope: &Envelope, index: &DomainIndex) -> Vec<NewEntry> {
        let sender = envelope.reverse_path.mailbox().and_then(Mailbox::domain_name);
        let max_age = sender.and_then(|domain| retry_max_age(index, domain)).unwrap_or(self.max_age);
        let mut entries: Vec<NewEntry> = Vec::new();
        let mut open: HashMap<NextHop, usize> = HashMap::new();
        let mut seen = HashSet::new();
        for given in &envelope.recipients {
            // Mail from outside that an alias sends on is the responsibility of the alias's domain.
            let responsible = match envelope.origin {
                Origin::Mx => given.domain_name(),
                Origin::Submission | Origin::Local => sender,
            };
            for address in index.expand(given) {
                if !seen.insert(address.clone()) {
                    continue;
                }
                let next_hop = next_hop(&address, responsible, index);
                let original = (address != *given).then(|| given.clone());
                let recipient = Recipient { address, original, standing: Standing::Pending };
                match open.get(&next_hop).and_then(|place| entries.get_mut(*place)) {
                    Some(entry) if entry.recipients.len() < self.recipients_per_entry => {
                        entry.recipients.push(recipient);
                    }
                    _ => {
                        open.insert(next_hop.clone(), entries.len());
                        entries.push(NewEntry { next_hop, recipients: vec![recipient], max_age });
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
        Domain::Name(name) if index.hosted(name).is_some() => Hop::Local(name).next_hop(),
        domain => match relay() {
            Some(relay) => Hop::Relay(relay).next_hop(),
            None => Hop::Mx(&domain.to_string()).next_hop(),
        },
    }
}

fn retry_max_age(index: &DomainIndex, domain: &str) -> Option<Duration> {
    index.hosted(domain)?.spec.outbound.as_ref()?.retry.as_ref()?.max_age
}
