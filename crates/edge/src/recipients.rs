//! Who exists: by the domain index, and by the mailbox store where a domain says so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use domains::{Domains, RecipientStanding as Listed};
use proto::{Delivery, ProbeRequest, RecipientStanding};
use smtp::{Domain, ForwardPath, Mailbox};
use tokio::time::{Instant, timeout};

/// How long the store's "exists" is believed.
const KNOWN_FOR: Duration = Duration::from_secs(300);
/// How long the store's "unknown" is believed: a new user wants mail soon.
const UNKNOWN_FOR: Duration = Duration::from_secs(30);
/// Most answers remembered.
const MAX_ANSWERS: usize = 50_000;

/// Where a recipient stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The domain is not ours.
    NotHosted,
    /// The domain is ours, the recipient does not exist.
    Unknown,
    /// The recipient exists.
    Exists,
    /// The answer cannot be had now.
    Unavailable,
}

/// Answers for recipients.
pub(crate) struct Recipients {
    domains: Domains,
    delivery: Arc<dyn Delivery>,
    answers: Mutex<HashMap<Mailbox, (bool, Instant)>>,
    patience: Duration,
}

impl Recipients {
    pub(crate) fn new(domains: Domains, delivery: Arc<dyn Delivery>, patience: Duration) -> Self {
        Self { domains, delivery, answers: Mutex::default(), patience }
    }

    /// The mailbox that a forward-path stands for. `<postmaster>` alone is the postmaster of the
    /// hosted domain that our host name lies in, or else of the first one.
    pub(crate) fn mailbox(&self, path: ForwardPath, hostname: &str) -> Option<Mailbox> {
        let ForwardPath::Mailbox(mailbox) = path else {
            let index = self.domains.current();
            let takes_mail = |name: &str| index.hosted(name).is_some_and(|domain| domain.inbound().is_some());
            let mut name = Some(hostname);
            while let Some(candidate) = name
                && !takes_mail(candidate)
            {
                name = candidate.split_once('.').map(|(_, parent)| parent);
            }
            let first =
                || index.all().map(|domain| domain.name.as_str()).filter(|name| takes_mail(name)).min();
            let domain = name.or_else(first)?.to_owned();
            return Mailbox::new("postmaster", Domain::Name(domain)).ok();
        };
        Some(mailbox)
    }

    /// Where `mailbox` stands.
    pub(crate) async fn standing(&self, mailbox: &Mailbox) -> Standing {
        let listed = self.domains.current().recipient(mailbox);
        match listed {
            Listed::NotHosted => Standing::NotHosted,
            Listed::Unknown => Standing::Unknown,
            Listed::Exists => Standing::Exists,
            Listed::AskStore => self.ask(mailbox).await,
        }
    }

    async fn ask(&self, mailbox: &Mailbox) -> Standing {
        if let Some(exists) = self.remembered(mailbox) {
            return if exists { Standing::Exists } else { Standing::Unknown };
        }
        let probe = self.delivery.probe(ProbeRequest { forward_path: mailbox.to_string() });
        match timeout(self.patience, probe).await {
            Ok(Ok(answer)) => match answer.standing() {
                RecipientStanding::Exists => {
                    self.remember(mailbox, true);
                    Standing::Exists
                }
                RecipientStanding::Unknown => {
                    self.remember(mailbox, false);
                    Standing::Unknown
                }
                RecipientStanding::Unavailable | RecipientStanding::Unspecified => {
                    tracing::info!(detail = answer.detail, "mailbox store has no answer about a recipient");
                    Standing::Unavailable
                }
            },
            Ok(Err(error)) => {
                tracing::warn!(%error, "delivery cannot ask the mailbox store");
                Standing::Unavailable
            }
            Err(_) => {
                tracing::warn!("delivery took too long to ask the mailbox store");
                Standing::Unavailable
            }
        }
    }

    fn remembered(&self, mailbox: &Mailbox) -> Option<bool> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(mailbox).filter(|(_, until)| *until > Instant::now()).map(|(exists, _)| *exists)
    }

    fn remember(&self, mailbox: &Mailbox, exists: bool) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if answers.len() >= MAX_ANSWERS {
            answers.retain(|_, (_, until)| *until > now);
            if answers.len() >= MAX_ANSWERS {
                answers.clear();
            }
        }
        answers.insert(mailbox.clone(), (exists, now + if exists { KNOWN_FOR } else { UNKNOWN_FOR }));
    }
}
