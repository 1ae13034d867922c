//! What is to be seen of a domain's MTA-STS policy from outside, and what follows: the policy host, the TXT record,
//! MX, and the certificates of the hosts that it names.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use domains::types::{MailDomain, RecordPolicy, RecordState};
use futures::future::join_all;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, RecordType};
use jiff::Timestamp;
use mta_sts::{FetchConfig, FetchError, Fetcher, Standing, policy_host};
use serde::Deserialize;
use tls::TlsError;

use crate::exchange::ask;
use crate::memory::MemoryStore;
use crate::observe::{Authorities, Observation, name_of};
use crate::policy::{Exchangers, Memory, Plan, Sight, Verdict, Version, Wanted, plan};
use crate::reconcile::{Context, told};
use crate::record::{Purpose, Record, declared_policy, policy_record, ttl_seconds};
use crate::status::Reason;
use crate::{Error, keys::Seen};

/// How long what was found of a mail exchanger holds.
const GOOD_FOR: Duration = Duration::from_secs(3600);
const UNKNOWN_FOR: Duration = Duration::from_secs(600);
const BAD_FOR: Duration = Duration::from_secs(30);

/// Settings of MTA-STS.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
    /// A policy must have been seen for so long at its host before its id is published: replicas take their time.
    /// Default 30 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub settle: Duration,
    /// Mail exchangers are connected to before a policy that names them is enforced, to see whether senders will
    /// take their certificates. One that cannot be reached from here holds nothing back. Default yes.
    pub check_exchangers: bool,
    /// How policies are fetched, and mail exchangers reached.
    pub fetch: FetchConfig,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self { settle: Duration::from_secs(30), check_exchangers: true, fetch: FetchConfig::default() }
    }
}

/// Looks from outside.
pub(crate) struct Witness {
    config: PolicyConfig,
    fetcher: Fetcher,
    /// What was found of mail exchangers, and when.
    standings: Mutex<HashMap<String, (Instant, Standing)>>,
}

impl Witness {
    pub(crate) fn new(config: PolicyConfig, resolver: dns::Resolver) -> Result<Self, TlsError> {
        let fetcher = Fetcher::new(resolver, config.fetch.clone())?;
        Ok(Self { config, fetcher, standings: Mutex::default() })
    }

    /// What each address of the policy host serves.
    async fn texts(&self, domain: &str) -> Result<Vec<String>, String> {
        let texts = self.fetcher.texts(domain).await;
        let outcome = if texts.is_ok() { "fetched" } else { "failed" };
        metrics::counter!("packetboat_operator_policy_fetches_total", "outcome" => outcome).increment(1);
        texts.map_err(|error| match &error {
            FetchError::Address(_) => {
                let host = policy_host(domain);
                format!(
                    "{}: give {host} an A, AAAA or CNAME record that leads to where policies are served",
                    told(&error)
                )
            }
            _ => told(&error),
        })
    }

    async fn standings(&self, hosts: &[String]) -> BTreeMap<String, Standing> {
        if !self.config.check_exchangers {
            return BTreeMap::new();
        }
        let look = async |host: &String| (host.clone(), self.standing(host).await);
        join_all(hosts.iter().map(look)).await.into_iter().collect()
    }

    /// What a look at a mail exchanger found, now or not long ago.
    async fn standing(&self, host: &str) -> Standing {
        let known = {
            let mut standings = self.standings.lock().unwrap_or_else(PoisonError::into_inner);
            standings.retain(|_, (then, standing)| {
                then.elapsed()
                    < match standing {
                        Standing::Good => GOOD_FOR,
                        Standing::Bad(_) => BAD_FOR,
                        Standing::Unknown(_) => UNKNOWN_FOR,
                    }
            });
            standings.get(host).map(|(_, standing)| standing.clone())
        };
        if let Some(known) = known {
            return known;
        }
        let found = self.fetcher.exchanger(host).await;
        let mut standings = self.standings.lock().unwrap_or_else(PoisonError::into_inner);
        standings.insert(host.to_owned(), (Instant::now(), found.clone()));
        found
    }
}

/// The hosts that every authoritative name server names in MX.
async fn exchangers(authorities: &Authorities, domain: &str) -> Exchangers {
    let Ok(name) = name_of(domain) else { return Exchangers::default() };
    let answers =
        join_all(authorities.servers.iter().map(|server| ask(*server, &name, RecordType::MX))).await;
    let mut found = Exchangers { complete: !answers.is_empty(), ..Exchangers::default() };
    for answer in answers {
        let code = answer.as_ref().map(|answer| answer.metadata.response_code);
        if !matches!(code, Ok(ResponseCode::NoError | ResponseCode::NXDomain)) {
            found.complete = false;
        }
        for record in answer.iter().flat_map(|answer| &answer.answers) {
            let RData::MX(mx) = &record.data else { continue };
            let host = mx.exchange.to_ascii().trim_end_matches('.').to_ascii_lowercase();
            // A single dot says that no mail is taken (RFC 7505).
            if !host.is_empty() {
                let longest = found.named.entry(host).or_default();
                *longest = record.ttl.max(*longest);
            }
        }
    }
    found
}

impl Context {
    /// What follows for a domain's policy from what is remembered and seen; nothing for one that never had any.
    pub(crate) async fn plan_policy(
        &self,
        domain: &MailDomain,
        authorities: &Authorities,
        memory: Option<&Memory>,
        seen: &[(Record, Observation)],
    ) -> Option<Plan> {
        let spec = &domain.spec;
        let declared = declared_policy(spec);
        if declared.is_none() && memory.is_none() {
            return None;
        }
        let hosts: Vec<String> =
            spec.mx.iter().map(|mx| mx.host.trim_end_matches('.').to_ascii_lowercase()).collect();
        let enforces = declared.as_ref().is_some_and(|policy| policy.mode == mta_sts::Mode::Enforce);
        let looked_at: &[String] = if enforces { &hosts } else { &[] };
        let (texts, exchangers, standing, record) = tokio::join!(
            self.witness.texts(&spec.domain),
            exchangers(authorities, &spec.domain),
            self.witness.standings(looked_at),
            self.policy_record_seen(domain, authorities, memory, seen),
        );
        let sight = Sight { now: Timestamp::now(), texts, record, exchangers, standing };
        let settle = self.witness.config.settle;
        let wanted = Wanted { policy: declared.as_ref(), hosts: &hosts, settle, ttl: ttl_seconds(spec) };
        plan(memory, &wanted, &sight)
    }

    /// Whether the TXT record is as it should be; before there is anything to remember, whether there is none.
    async fn policy_record_seen(
        &self,
        domain: &MailDomain,
        authorities: &Authorities,
        memory: Option<&Memory>,
        seen: &[(Record, Observation)],
    ) -> Seen {
        if Purpose::MtaSts.policy(&domain.spec) == RecordPolicy::Ignore {
            return Seen::Yes;
        }
        let Some(record) = policy_record(&domain.spec, memory) else { return Seen::No };
        let state = match seen.iter().find(|(one, _)| *one == record) {
            Some((_, observation)) => observation.state,
            None => self.observer.look(authorities, &record).await.state,
        };
        match state {
            RecordState::Verified => Seen::Yes,
            RecordState::Unknown => Seen::Unknown,
            _ => Seen::No,
        }
    }

    /// Writes down what is to be remembered from now on, and tells what is new. Nothing is forgotten here.
    pub(crate) async fn remember(
        &self,
        domain: &MailDomain,
        before: Option<&Memory>,
        after: Option<&Memory>,
    ) -> Result<(), Error> {
        let Some(memory) = after.filter(|after| Some(*after) != before) else { return Ok(()) };
        MemoryStore::new(&self.client, domain).write(memory).await?;
        let told = |version: &Option<Version>| {
            version.as_ref().map(|version| format!("{} (mode {})", version.id, version.policy.mode.name()))
        };
        let (served, announced) = (told(&memory.served), told(&memory.announced));
        if let Some(policy) = served.filter(|_| before.is_none_or(|before| before.served != memory.served)) {
            self.tell(domain, "PolicyChanged", format!("the policy {policy} is to be served")).await;
        }
        if let Some(policy) =
            announced.filter(|_| before.is_none_or(|before| before.announced != memory.announced))
        {
            self.tell(
                domain,
                "PolicyAnnounced",
                format!("the policy {policy} was seen, its id is published"),
            )
            .await;
        }
        if memory.withdrawn && before.is_none_or(|before| !before.withdrawn) {
            self.tell(
                domain,
                "PolicyWithdrawn",
                "senders have forgotten the policy, its record goes".to_owned(),
            )
            .await;
        }
        Ok(())
    }

    /// Warns that senders may go on with a policy that nobody will serve any more.
    pub(crate) async fn warn_of_senders(&self, domain: &MailDomain, memory: Option<&Memory>) {
        let now = Timestamp::now();
        if let Some(until) = memory.and_then(|memory| memory.binds_until(now)) {
            let text = format!(
                "senders may keep to the policy, and deliver to no other hosts, until {until}; \
                 next time leave mtaSts out, and wait for that before the MailDomain goes"
            );
            self.warn(domain, "PolicyRemembered", text).await;
        }
    }

    /// Warns, once, of what a person has to look after.
    pub(crate) async fn warn_of_policy(&self, domain: &MailDomain, verdict: &Verdict) {
        let (_, reason, text) = verdict.told();
        let conditions =
            domain.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let before = conditions.iter().find(|one| one.type_ == MTA_STS_READY);
        let reason = format!("{reason:?}");
        if verdict.needs_somebody() && before.is_none_or(|before| before.reason != reason) {
            self.warn(domain, &reason, text.to_owned()).await;
        }
    }
}

/// The condition that tells of the policy.
pub(crate) const MTA_STS_READY: &str = "MTASTSReady";

impl Verdict {
    /// As a condition: its status, its reason and its message.
    pub(crate) fn told(&self) -> (&'static str, Reason, &str) {
        match self {
            Self::Served(text) => ("True", Reason::PolicyServed, text),
            Self::Unreachable(text) => ("False", Reason::PolicyUnreachable, text),
            Self::Mismatch(text) => ("False", Reason::PolicyMismatch, text),
            Self::Waiting(text) => ("False", Reason::WaitingForPropagation, text),
            Self::Unknown(text) => ("Unknown", Reason::LookupFailed, text),
            Self::NotCovered(text) => ("False", Reason::MXNotCovered, text),
            Self::EnforceHeld(text) => ("False", Reason::EnforceHeldBack, text),
            Self::MxHeld(text) => ("False", Reason::MXHeldBack, text),
            Self::Certificate(text) => ("False", Reason::CertificateInvalid, text),
            Self::Withdrawing(text) => ("False", Reason::Withdrawing, text),
        }
    }

    fn needs_somebody(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_) | Self::NotCovered(_) | Self::EnforceHeld(_) | Self::Certificate(_)
        )
    }
}
