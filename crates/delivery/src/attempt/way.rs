//! Where the open recipients of an entry go, as the domains have it now, and the going there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use domains::{HostedDomain, RecipientStanding, Route};
use message::Failure;
use queue::{Entry, Leased};
use tracing::Instrument;

use super::{Attempts, Open, Outcomes, all, failure};
use crate::content::ContentReader;
use crate::maildir::{Filing, mailbox_folder};
use crate::outbound::{Ledger, Protocol};
use crate::policy::pool_of;
use crate::route::Hop;
use crate::transfer::{RecipientOutcome, Transfer};

/// What an attempt sets out with.
pub(super) struct Course {
    /// The name of the route, for metrics.
    pub(super) route: &'static str,
    pub(super) way: Way,
    /// Who goes that way.
    pub(super) open: Open,
    /// What is known of the others.
    pub(super) outcomes: Outcomes,
}

/// A way to go.
pub(super) enum Way {
    /// The mail exchangers of a domain, by the source pool of whose mail it is.
    Exchangers(String),
    /// A smart host, by the source pool of whose mail it is.
    Relay(String),
    /// The server that a hosted domain's route names.
    Server(String, Protocol),
    Maildirs(Filing),
    /// None for now.
    Nowhere(Failure),
}

impl Attempts {
    pub(super) fn course(&self, leased: &Leased, open: Open) -> Course {
        let (route, way) = match Hop::parse(&leased.entry.next_hop) {
            Some(Hop::Local(domain)) => return self.locally(leased, open, domain),
            Some(Hop::Mx(domain)) => ("mx", Way::Exchangers(domain.to_owned())),
            Some(Hop::Relay(address)) => ("relay", Way::Relay(address.to_owned())),
            None => {
                let text = "the next hop of the queue entry is not known";
                ("none", Way::Nowhere(failure("4.3.5", text)))
            }
        };
        Course { route, way, open, outcomes: Outcomes::new() }
    }

    /// By the route of a hosted domain, to those who still exist.
    fn locally(&self, leased: &Leased, open: Open, domain: &str) -> Course {
        let (route, index) = ("local", self.domains.current());
        let Some(domain) = index.hosted(domain) else {
            let way = Way::Nowhere(failure("4.3.5", "the domain is no longer hosted here"));
            return Course { route, way, open, outcomes: Outcomes::new() };
        };
        let (open, unknown): (Open, Open) = open
            .into_iter()
            .partition(|(_, address)| !matches!(index.recipient(address), RecipientStanding::Unknown));
        let outcomes = all(unknown, RecipientOutcome::Failed(failure("5.1.1", "there is no such mailbox")));
        let way = match domain.inbound().and_then(|inbound| inbound.route.as_ref()) {
            Some(Route::Maildir(maildir)) => Way::Maildirs(self.filing(leased, &open, domain, &maildir.path)),
            Some(Route::Lmtp(server)) => Way::Server(server.address.clone(), Protocol::Lmtp),
            Some(Route::Smtp(server)) => Way::Server(server.address.clone(), Protocol::Smtp),
            None => Way::Nowhere(failure("4.3.5", "the domain has no route")),
        };
        Course { route, way, open, outcomes }
    }

    fn filing(&self, leased: &Leased, open: &Open, domain: &HostedDomain, path: &str) -> Filing {
        let root = self.base_folder.join(path);
        let junk = leased.message.quarantine.then(|| domain.quarantine_folder());
        let folders =
            open.iter().map(|(place, address)| (*place, mailbox_folder(&root, address, junk))).collect();
        Filing::new(leased, &self.hostname, folders)
    }

    /// Goes a way; what comes of it is in the ledger, which is of `open`, also when this is dropped before its end.
    /// `ended` is set when a peer is sent the end of the message.
    pub(super) async fn go(
        &self,
        way: Way,
        leased: &Arc<Leased>,
        open: &Open,
        ended: &Arc<AtomicBool>,
        ledger: &mut Ledger,
    ) {
        if open.is_empty() {
            return;
        }
        match way {
            Way::Exchangers(domain) => {
                let transfer = self.leaving(leased, open, ended);
                self.outbound.offer_to_domain(&domain, &transfer, ledger).await;
            }
            Way::Relay(address) => {
                let transfer = self.leaving(leased, open, ended);
                self.outbound.offer_to_host(&address, Protocol::Smtp, &transfer, ledger).await;
            }
            Way::Server(address, protocol) => {
                let transfer = self.new_transfer(leased, open, ended);
                self.outbound.offer_to_host(&address, protocol, &transfer, ledger).await;
            }
            Way::Maildirs(filing) => {
                let content = ContentReader::new(Arc::clone(&self.queue), leased);
                let span = tracing::info_span!("maildir", mail.recipients = open.len());
                let outcomes = filing.run(leased, content).instrument(span).await;
                outcomes.into_iter().enumerate().for_each(|(number, outcome)| ledger.settle(number, outcome));
            }
            Way::Nowhere(why) => {
                let outcome = RecipientOutcome::Deferred(why);
                (0..open.len()).for_each(|number| ledger.settle(number, outcome.clone()));
            }
        }
    }

    /// A transfer by the source pool of whose mail it is.
    fn leaving(&self, leased: &Arc<Leased>, open: &Open, ended: &Arc<AtomicBool>) -> Transfer {
        let Entry { tenant, next_hop, .. } = &leased.entry;
        let pool = pool_of(&self.domains.current(), tenant, next_hop);
        Transfer { pool, ..self.new_transfer(leased, open, ended) }
    }

    fn new_transfer(&self, leased: &Arc<Leased>, open: &Open, ended: &Arc<AtomicBool>) -> Transfer {
        let envelope = &leased.message.envelope;
        let (queue, held) = (Arc::clone(&self.queue), Arc::clone(leased));
        let (account, lease, ended) = (Arc::clone(&self.queue), leased.lease, Arc::clone(ended));
        Transfer {
            id: leased.message.id,
            pool: None,
            reverse_path: envelope.reverse_path.clone(),
            recipients: open.iter().map(|(_, address)| address.clone()).collect(),
            smtputf8: envelope.smtputf8,
            eight_bit: envelope.eight_bit,
            size: leased.message.size,
            before_end: Box::new(move |peer| {
                let (queue, ended) = (Arc::clone(&account), Arc::clone(&ended));
                Box::pin(async move {
                    queue.doubt(&lease, &peer).await?;
                    ended.store(true, Ordering::Relaxed);
                    Ok(())
                })
            }),
            content: Box::new(move || ContentReader::new(Arc::clone(&queue), &held)),
        }
    }
}
