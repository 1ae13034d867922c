//! What the services read: who is hosted, who exists, who may submit, what signs.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use secrecy::SecretString;
use smtp::{Domain, Mailbox};

use crate::key::SigningKey;
use crate::types::{Inbound, MailDomainSpec, RecipientMode};

/// Most addresses an alias may lead to, and most aliases on the way.
const MAX_EXPANSION: usize = 1000;

/// The present index, for everybody who holds a clone.
#[derive(Clone)]
pub struct Domains(Arc<ArcSwap<DomainIndex>>);

impl Domains {
    /// An index that changes only by [`Domains::replace`].
    #[must_use]
    pub fn fixed(index: DomainIndex) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(index)))
    }

    /// The index as it is now. Hold it for one decision, not for long.
    #[must_use]
    pub fn current(&self) -> Arc<DomainIndex> {
        self.0.load_full()
    }

    /// Puts another index in its place.
    pub fn replace(&self, index: DomainIndex) {
        self.0.store(Arc::new(index));
    }
}

/// One hosted domain.
#[derive(Debug)]
pub struct HostedDomain {
    /// The domain, as a lower-case A-label.
    pub name: String,
    /// `namespace/name` of its MailDomain.
    pub resource: String,
    /// What was declared.
    pub spec: MailDomainSpec,
    /// Keys that sign; empty unless the role asked for them.
    pub signing_keys: Vec<SigningKey>,
    /// Which MTA-STS policy is served.
    pub policy: ServedPolicy,
    pub(crate) addresses: HashMap<String, Mailbox>,
    pub(crate) aliases: HashMap<String, Vec<Mailbox>>,
    pub(crate) catch_all: bool,
}

impl HostedDomain {
    /// What was declared about mail for the domain.
    #[must_use]
    pub fn inbound(&self) -> Option<&Inbound> {
        self.spec.inbound.as_ref()
    }

    /// The folder for what is quarantined.
    #[must_use]
    pub fn quarantine_folder(&self) -> &str {
        self.inbound().map_or("Junk", |inbound| &inbound.dmarc.quarantine_folder)
    }
}

/// Which MTA-STS policy of a domain is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServedPolicy {
    /// That which the spec declares: nobody orders changes.
    Declared,
    /// The text that the operator told last; none before it told any.
    Told(Option<String>),
}

/// A user who may submit mail.
#[derive(Debug, Clone)]
pub struct SubmissionUser {
    /// The login: an address.
    pub login: String,
    /// The argon2id hash of the password, as a PHC string.
    pub password_hash: SecretString,
    /// The addresses the user may write as.
    pub owned_addresses: Vec<String>,
}

/// Whether `owned`, an address or `@domain`, covers a mailbox. Local parts of hosted domains are
/// compared without regard to case, as everywhere here.
#[must_use]
pub fn owns(owned: &str, mailbox: &Mailbox) -> bool {
    if let Some(domain) = owned.strip_prefix('@') {
        return domain.parse::<Domain>().is_ok_and(|domain| domain == *mailbox.domain());
    }
    owned.parse::<Mailbox>().is_ok_and(|owned| same(&owned, mailbox))
}

/// Whether a recipient is ours, and exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecipientStanding {
    /// The domain is not ours, or takes no mail.
    NotHosted,
    /// The domain is ours, the recipient does not exist.
    Unknown,
    /// The recipient exists.
    Exists,
    /// The mailbox store must be asked.
    AskStore,
}

/// All hosted domains.
#[derive(Debug, Default)]
pub struct DomainIndex {
    pub(crate) domains: HashMap<String, Arc<HostedDomain>>,
    pub(crate) users: HashMap<String, Arc<SubmissionUser>>,
}

impl DomainIndex {
    /// The hosted domain of this name.
    #[must_use]
    pub fn hosted(&self, domain: &str) -> Option<&Arc<HostedDomain>> {
        self.domains.get(domain)
    }

    /// All hosted domains, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<HostedDomain>> {
        self.domains.values()
    }

    /// The user of this login, compared without regard to case.
    #[must_use]
    pub fn user(&self, login: &str) -> Option<&Arc<SubmissionUser>> {
        self.users.get(&login.to_lowercase())
    }

    /// All users, in no order.
    pub fn users(&self) -> impl Iterator<Item = &Arc<SubmissionUser>> {
        self.users.values()
    }

    /// Whether a recipient is ours, and exists.
    #[must_use]
    pub fn recipient(&self, mailbox: &Mailbox) -> RecipientStanding {
        let hosted = mailbox.domain_name().and_then(|name| self.hosted(name));
        let Some((domain, inbound)) = hosted.and_then(|domain| Some((domain, domain.inbound()?))) else {
            return RecipientStanding::NotHosted;
        };
        let local_part = mailbox.local_part().to_lowercase();
        let listed = domain.catch_all
            || matches!(local_part.as_str(), "postmaster" | "abuse")
            || domain.aliases.contains_key(&local_part)
            || domain.addresses.contains_key(&local_part);
        match inbound.recipients.mode {
            _ if listed => RecipientStanding::Exists,
            RecipientMode::AcceptAll => RecipientStanding::Exists,
            RecipientMode::Callout => RecipientStanding::AskStore,
            RecipientMode::List => RecipientStanding::Unknown,
        }
    }

    /// The addresses that mail for `mailbox` goes to in the end: through aliases, each once. Somebody
    /// who is no alias is their own; an alias that leads only to itself is delivered as it is.
    #[must_use]
    pub fn expand(&self, mailbox: &Mailbox) -> Vec<Mailbox> {
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut open = vec![mailbox.clone()];
        while let Some(address) = open.pop() {
            if seen.len() == MAX_EXPANSION {
                tracing::warn!(
                    limit = MAX_EXPANSION,
                    "an alias leads to too many addresses; the rest is left out"
                );
                break;
            }
            if !seen.insert(address.clone()) {
                continue;
            }
            match self.targets(&address) {
                Some(targets) => {
                    // `alice: [alice, archive]` keeps a copy: there the name is a mailbox, too.
                    let (own, others): (Vec<_>, Vec<_>) =
                        targets.iter().partition(|target| same(target, &address));
                    found.extend(own.into_iter().take(1).map(|own| self.canonical(own.clone())));
                    open.extend(others.into_iter().rev().cloned());
                }
                None => found.push(self.canonical(address)),
            }
        }
        if found.is_empty() { vec![mailbox.clone()] } else { found }
    }

    fn targets(&self, address: &Mailbox) -> Option<&Vec<Mailbox>> {
        let domain = self.hosted(address.domain_name()?)?;
        domain.aliases.get(&address.local_part().to_lowercase())
    }

    /// The mailbox as its domain lists it: stores tell `Alice` from `alice`.
    fn canonical(&self, address: Mailbox) -> Mailbox {
        let Domain::Name(name) = address.domain() else { return address };
        let listed =
            self.hosted(name).and_then(|domain| domain.addresses.get(&address.local_part().to_lowercase()));
        listed.cloned().unwrap_or(address)
    }
}

fn same(one: &Mailbox, other: &Mailbox) -> bool {
    one.domain() == other.domain() && one.local_part().to_lowercase() == other.local_part().to_lowercase()
}

/// The key of a Secret with an imported private key, unless its reference says otherwise.
pub(crate) const DEFAULT_KEY: &str = "tls.key";

/// A domain without its keys, ready to be looked up.
pub(crate) fn hosted(resource: String, spec: MailDomainSpec) -> HostedDomain {
    let name = spec.domain.clone();
    let at_home = |local_part: &str| -> Option<Mailbox> {
        local_part.parse().ok().or_else(|| Mailbox::new(local_part, Domain::Name(name.clone())).ok())
    };
    let recipients =
        spec.inbound.as_ref().map(|inbound: &Inbound| inbound.recipients.clone()).unwrap_or_default();
    let catch_all = recipients.addresses.iter().any(|address| address == "*");
    let listed = recipients.addresses.iter().filter(|address| *address != "*");
    let addresses = listed.filter_map(|address| Some((address.to_lowercase(), at_home(address)?))).collect();
    let aliases = recipients.aliases;
    let aliases = aliases
        .into_iter()
        .map(|(alias, targets)| {
            (alias.to_lowercase(), targets.iter().filter_map(|target| at_home(target)).collect())
        })
        .collect();
    let policy = ServedPolicy::Declared;
    HostedDomain { name, resource, spec, signing_keys: Vec::new(), policy, addresses, aliases, catch_all }
}

/// A user's own address, and the aliases that lead to it.
pub(crate) fn owned_addresses(domain: &HostedDomain, local_part: &str) -> Vec<String> {
    let own = format!("{local_part}@{}", domain.name);
    let is_own = |target: &Mailbox| target.to_string().eq_ignore_ascii_case(&own);
    let aliases = domain.aliases.iter().filter(|(_, targets)| targets.iter().any(is_own));
    let mut owned: Vec<String> = aliases.map(|(alias, _)| format!("{alias}@{}", domain.name)).collect();
    owned.sort();
    owned.insert(0, own.clone());
    owned.dedup();
    owned
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::index_of;

    fn mailbox(text: &str) -> Mailbox {
        text.parse().unwrap()
    }

    fn index(recipients: &str) -> DomainIndex {
        index_of(&format!(
            "apiVersion: mail.packetboat.dev/v1alpha1\nkind: MailDomain\nmetadata: {{name: a, namespace: mail}}\n\
             spec: {{domain: a.example, inbound: {{recipients: {recipients}, route: {{maildir: {{path: m}}}}}}}}\n"
        ))
        .unwrap()
    }

    fn expanded(index: &DomainIndex, address: &str) -> Vec<String> {
        index.expand(&mailbox(address)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn recipients_exist_as_listed() {
        let index = index("{addresses: [Alice], aliases: {sales: [alice]}}");
        for known in [
            "alice@a.example",
            "ALICE@a.example",
            "sales@a.example",
            "postmaster@a.example",
            "abuse@a.example",
        ] {
            assert_eq!(index.recipient(&mailbox(known)), RecipientStanding::Exists, "{known}");
        }
        assert_eq!(index.recipient(&mailbox("bob@a.example")), RecipientStanding::Unknown);
        assert_eq!(index.recipient(&mailbox("bob@b.example")), RecipientStanding::NotHosted);
    }

    #[test]
    fn aliases_lead_to_mailboxes_and_never_in_circles() {
        let index = index(
            "{addresses: [Alice, bob], aliases: {sales: [alice, crm@b.example], all: [sales, bob], \
             ring: [gnir], gnir: [ring], bob: [bob, archive]}}",
        );
        assert_eq!(
            expanded(&index, "all@a.example"),
            ["Alice@a.example", "crm@b.example", "bob@a.example", "archive@a.example"]
        );
        assert_eq!(expanded(&index, "ring@a.example"), ["ring@a.example"]);
        assert_eq!(expanded(&index, "x@elsewhere.example"), ["x@elsewhere.example"]);
    }
}
