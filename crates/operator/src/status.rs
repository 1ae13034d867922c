//! What a reconciliation found, as conditions. Pure.

use domains::types::{
    Dkim, DkimStatus, DnsMode, KeyStatus, MailDomain, MailDomainStatus, MtaStsStatus, RecordPolicy,
    RecordState, RecordStatus, Stage,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::observe::Observation;
use crate::policy::{Memory, Verdict};
use crate::record::{Purpose, Record};
use crate::signed::Security;
use crate::store::StoredKey;
use crate::tlsa::PinState;
use crate::witness::MTA_STS_READY;

/// Why a condition is as it is: a closed list, explained in `docs/maildomain.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Accepted,
    InvalidSpec,
    CredentialsMissing,
    ProviderNotFound,
    ProviderNotAllowed,
    ExternalDNSNotInstalled,
    Claimed,
    Conflict,
    OwnershipProven,
    ChallengeMissing,
    KeyActive,
    NotWanted,
    NoActiveKey,
    WaitingForPropagation,
    ActiveKeyDrifted,
    Published,
    PublishFailed,
    NotObserved,
    Contested,
    NotManaged,
    Verified,
    Missing,
    Drifted,
    CertificateMissing,
    NoHost,
    NoDNSSEC,
    KeyMismatch,
    RecordConflict,
    DNSActionRequired,
    LookupFailed,
    PolicyServed,
    PolicyUnreachable,
    PolicyMismatch,
    MXNotCovered,
    MXHeldBack,
    EnforceHeldBack,
    CertificateInvalid,
    Withdrawing,
    Ready,
    Suspended,
    Progressing,
    Done,
}

/// A condition to be.
pub(crate) struct Finding {
    kind: &'static str,
    status: &'static str,
    reason: Reason,
    message: String,
}

fn finding(kind: &'static str, holds: bool, reason: Reason, message: impl Into<String>) -> Finding {
    Finding { kind, status: if holds { "True" } else { "False" }, reason, message: message.into() }
}

/// All that a reconciliation found.
#[derive(Default)]
pub(crate) struct Findings {
    /// Why the spec cannot be worked with.
    pub(crate) refused: Option<(Option<Reason>, String)>,
    /// Another MailDomain has the domain.
    pub(crate) conflict: bool,
    pub(crate) suspended: bool,
    pub(crate) keys: Vec<StoredKey>,
    /// Every record that should be, with what was seen of it.
    pub(crate) records: Vec<(Record, Observation)>,
    /// How TLSA records stand, where they are asked for.
    pub(crate) tlsa: Option<PinState>,
    /// The record that proves ownership, where that is asked for.
    pub(crate) proof: Option<(Record, Observation)>,
    /// The MTA-STS policy; nothing where it was not looked at, or there never was one.
    pub(crate) policy: Option<PolicyFinding>,
    /// Why it could not be looked.
    pub(crate) lookup_failed: Option<String>,
    /// Why it could not be published.
    pub(crate) publish_failed: Option<(Reason, String)>,
}

/// Whether keys are made; else those that were brought along sign.
pub(crate) fn has_keys_made(dkim: &Dkim) -> bool {
    dkim.imported.is_empty() || dkim.rotation.enabled
}

/// What is so about the MTA-STS policy.
pub(crate) struct PolicyFinding {
    /// What is remembered of it; nothing once it is withdrawn.
    pub(crate) memory: Option<Memory>,
    /// Nothing where it could not be looked.
    pub(crate) verdict: Option<Verdict>,
}

impl Findings {
    pub(crate) fn refuse(reason: Reason, message: impl Into<String>) -> Self {
        Self { refused: Some((Some(reason), message.into())), ..Self::default() }
    }

    /// Whether name servers, or whoever publishes, do not do what they are asked.
    pub(crate) fn is_in_trouble(&self) -> bool {
        let failed = matches!(self.publish_failed, Some((Reason::PublishFailed, _)));
        failed || self.lookup_failed.is_some()
    }

    /// The status that follows. Times of conditions that stay as they are stay, too.
    pub(crate) fn status(&self, domain: &MailDomain, now: Timestamp) -> MailDomainStatus {
        let findings = self.conditions(domain);
        let before = domain.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let generation = domain.metadata.generation;
        let conditions = findings.into_iter().map(|found| {
            let same = before.iter().find(|one| one.type_ == found.kind && one.status == found.status);
            Condition {
                last_transition_time: same.map_or(Time(now), |one| one.last_transition_time.clone()),
                message: found.message,
                observed_generation: generation,
                reason: format!("{:?}", found.reason),
                status: found.status.to_owned(),
                type_: found.kind.to_owned(),
            }
        });
        MailDomainStatus {
            observed_generation: generation,
            conditions: conditions.collect(),
            ownership_proven_at: self.ownership_proven_at(domain, now),
            dkim: self.dkim(domain),
            mta_sts: self.mta_sts(domain),
            records: self.records.iter().map(|(record, seen)| record_status(record, seen)).collect(),
        }
    }

    /// What is served goes on being served while nothing else is known.
    fn mta_sts(&self, domain: &MailDomain) -> Option<MtaStsStatus> {
        let before = domain.status.as_ref().and_then(|status| status.mta_sts.clone());
        let Some(finding) = &self.policy else { return before.filter(|_| !self.conflict) };
        let memory = finding.memory.as_ref()?;
        let served = memory.served.as_ref()?;
        Some(MtaStsStatus {
            policy: served.policy.to_string(),
            policy_id: served.id.clone(),
            announced_id: memory.announced.as_ref().map(|announced| announced.id.clone()),
            remembered_until: memory.remembered_until.map(|time| time.to_string()),
        })
    }

    /// Whether senders see the policy as it should be; nothing where there is none.
    fn mta_sts_ready(&self, domain: &MailDomain) -> Option<Finding> {
        let Some(verdict) = self.policy.as_ref().and_then(|finding| finding.verdict.as_ref()) else {
            let known = self.policy.as_ref().is_some_and(|finding| finding.memory.is_some());
            let text = "it could not be looked at the policy";
            return (known || domain.spec.mta_sts.is_some()).then(|| Finding {
                kind: MTA_STS_READY,
                status: "Unknown",
                reason: Reason::LookupFailed,
                message: text.to_owned(),
            });
        };
        let (status, reason, text) = verdict.told();
        Some(Finding { kind: MTA_STS_READY, status, reason, message: text.to_owned() })
    }

    fn dkim(&self, domain: &MailDomain) -> Option<DkimStatus> {
        let dkim = domain.spec.dkim.as_ref()?;
        let active = self.keys.iter().filter(|stored| stored.key.stage == Stage::Active);
        let oldest = active.clone().map(|stored| stored.key.since).min();
        let interval = SignedDuration::try_from(dkim.rotation.interval).ok();
        let next = oldest.zip(interval).and_then(|(since, interval)| since.checked_add(interval).ok());
        let next = next.filter(|_| dkim.rotation.enabled);
        let key = |stored: &StoredKey| KeyStatus {
            selector: stored.key.selector.clone(),
            algorithm: stored.key.algorithm,
            stage: stored.key.stage,
            stage_since: stored.key.since.to_string(),
            secret_name: stored.version.as_ref().map(|_| stored.object.clone()),
        };
        Some(DkimStatus {
            active_selectors: active.map(|stored| stored.key.selector.clone()).collect(),
            next_rotation: next.map(|time| time.to_string()),
            keys: self.keys.iter().map(key).collect(),
        })
    }

    fn conditions(&self, domain: &MailDomain) -> Vec<Finding> {
        let accepted = match &self.refused {
            Some((reason, message)) => {
                finding("Accepted", false, reason.unwrap_or(Reason::InvalidSpec), message.clone())
            }
            None => finding("Accepted", true, Reason::Accepted, "the spec can be worked with"),
        };
        let claimed = match self.conflict {
            true => finding("DomainClaimed", false, Reason::Conflict, "an older MailDomain has this domain"),
            false => finding("DomainClaimed", true, Reason::Claimed, "the domain is this object's"),
        };
        let (dkim, published, verified) =
            (self.dkim_ready(domain), self.published(domain), self.verified(domain));
        let is = |found: &Finding| found.status == "True";
        let proven = self.proven();
        let needed = [Some(&accepted), Some(&claimed), proven.as_ref(), Some(&dkim)];
        let cause = needed.into_iter().flatten().find(|found| !is(found));
        let ready = cause.is_none();
        let reason = cause.map_or(Reason::Ready, |found| found.reason);
        let message = cause.map_or_else(
            || "mail can be taken and signed".to_owned(),
            |found| format!("{}: {}", found.kind, found.message),
        );
        let waiting = !ready && matches!(dkim.reason, Reason::WaitingForPropagation | Reason::NoActiveKey);
        let unproven = proven.as_ref().is_some_and(|found| found.reason == Reason::ChallengeMissing);
        let contested = matches!(self.publish_failed, Some((Reason::Contested, _)));
        let by_hand = verified.reason == Reason::DNSActionRequired && !is(&dkim);
        let stalled =
            self.suspended || self.conflict || self.refused.is_some() || by_hand || contested || unproven;
        let stall = match (self.suspended, by_hand) {
            (true, _) => Reason::Suspended,
            _ if unproven => Reason::ChallengeMissing,
            (_, true) => Reason::DNSActionRequired,
            _ if contested => Reason::Contested,
            _ if stalled => reason,
            _ => Reason::Progressing,
        };
        let reconciling = !stalled && (waiting || !is(&published));
        let busy = if reconciling { Reason::Progressing } else { Reason::Done };
        let last = [
            finding("Reconciling", reconciling, busy, ""),
            finding("Stalled", stalled, stall, ""),
            finding("Ready", ready, reason, message),
        ];
        let found = [accepted, claimed].into_iter().chain(proven).chain([dkim, published, verified]);
        found.chain(self.tlsa_ready(domain)).chain(self.mta_sts_ready(domain)).chain(last).collect()
    }

    /// Whether ownership is proven; nothing where that is not asked for.
    fn proven(&self) -> Option<Finding> {
        const KIND: &str = "OwnershipVerified";
        let (record, seen) = self.proof.as_ref()?;
        Some(match seen.state {
            RecordState::Verified => {
                finding(KIND, true, Reason::OwnershipProven, "the TXT record that was asked for is there")
            }
            RecordState::Unknown => Finding {
                kind: KIND,
                status: "Unknown",
                reason: Reason::LookupFailed,
                message: format!("a name server does not answer for {} TXT", record.name),
            },
            _ => {
                let text = format!("publish: {}", record.zone_lines().join(" and "));
                finding(KIND, false, Reason::ChallengeMissing, text)
            }
        })
    }

    /// Once seen, it counts for as long as there is this MailDomain, whose domain never changes.
    fn ownership_proven_at(&self, domain: &MailDomain, now: Timestamp) -> Option<String> {
        let before = domain.status.as_ref().and_then(|status| status.ownership_proven_at.clone());
        let seen = self.proof.as_ref().is_some_and(|(_, seen)| seen.state == RecordState::Verified);
        before.or_else(|| seen.then(|| now.to_string()))
    }

    fn dkim_ready(&self, domain: &MailDomain) -> Finding {
        const KIND: &str = "DKIMReady";
        let Some(dkim) = &domain.spec.dkim else {
            return finding(KIND, true, Reason::NotWanted, "the spec asks for no signatures");
        };
        if !has_keys_made(dkim) {
            return finding(KIND, true, Reason::KeyActive, "the imported keys sign");
        }
        let active: Vec<&StoredKey> =
            self.keys.iter().filter(|stored| stored.key.stage == Stage::Active).collect();
        let drifted = |stored: &&&StoredKey| stored.key.missed > 0;
        if let Some(drifted) = active.iter().find(drifted) {
            let text = format!("the record of the selector {} is not as it should be", drifted.key.selector);
            return finding(KIND, false, Reason::ActiveKeyDrifted, text);
        }
        if !active.is_empty() {
            let selectors: Vec<&str> = active.iter().map(|stored| stored.key.selector.as_str()).collect();
            return finding(KIND, true, Reason::KeyActive, format!("{} sign", selectors.join(", ")));
        }
        match self.keys.iter().find(|stored| stored.key.stage < Stage::Active) {
            Some(coming) => {
                let text = format!("the key {} is {}", coming.key.selector, coming.key.stage.name());
                finding(KIND, false, Reason::WaitingForPropagation, text)
            }
            None => finding(KIND, false, Reason::NoActiveKey, "no key signs"),
        }
    }

    /// What a person is to publish of one kind.
    fn to_publish(&self, domain: &MailDomain, purpose: Purpose) -> String {
        let wanted = self.records.iter().filter(|(record, seen)| {
            record.purpose == purpose && seen.state != RecordState::Verified && is_by_hand(domain, record)
        });
        let (gone, wanted): (Vec<_>, Vec<_>) = wanted.partition(|(record, _)| record.values.is_empty());
        if let (Some((record, _)), true) = (gone.first(), wanted.is_empty()) {
            return format!("remove: {} {}", record.name, record.record_type());
        }
        let lines: Vec<String> = wanted.iter().flat_map(|(record, _)| record.zone_lines()).collect();
        format!("publish: {}", lines.join(" and "))
    }

    /// How TLSA records stand; nothing where they are not asked for.
    fn tlsa_ready(&self, domain: &MailDomain) -> Option<Finding> {
        const KIND: &str = "TLSAReady";
        let unknown = |message: String| Finding {
            kind: KIND,
            status: "Unknown",
            reason: Reason::LookupFailed,
            message,
        };
        let (current, security, outside) = match self.tlsa.as_ref()? {
            PinState::NoCertificate(why) => {
                return Some(finding(KIND, false, Reason::CertificateMissing, why.clone()));
            }
            PinState::NoHost => {
                let text = "no host of mx lies below the domain: their TLSA records are for whoever has the domain they lie in";
                return Some(finding(KIND, false, Reason::NoHost, text));
            }
            PinState::Pinned { current, security, outside } => (current, security, outside),
        };
        let records = self.records.iter().filter(|(record, _)| record.purpose == Purpose::Tlsa);
        let wrong = |(record, seen): &(Record, Observation)| match seen.state {
            RecordState::Unknown => {
                Some(unknown(format!("a name server does not answer for {} TLSA", record.name)))
            }
            _ if record.values.is_empty() || seen.shown.contains(current) => None,
            RecordState::Missing if is_by_hand(domain, record) => {
                let text = self.to_publish(domain, Purpose::Tlsa);
                Some(finding(KIND, false, Reason::DNSActionRequired, text))
            }
            RecordState::Missing => {
                Some(finding(KIND, false, Reason::Missing, format!("{} TLSA is not there", record.name)))
            }
            RecordState::Verified => None,
            _ => {
                let text = format!(
                    "{} TLSA says {}, which is not the key of the certificate: who checks it sends no mail",
                    record.name,
                    seen.observed.join(" and ")
                );
                Some(finding(KIND, false, Reason::KeyMismatch, text))
            }
        };
        if let Some(wrong) = records.clone().find_map(wrong) {
            return Some(wrong);
        }
        Some(match security {
            Security::Unknown(why) => unknown(why.clone()),
            Security::Unsigned(why) => finding(KIND, false, Reason::NoDNSSEC, why.clone()),
            Security::Signed => {
                let mut text = format!("the keys of {} hosts are pinned", records.count());
                if !outside.is_empty() {
                    text.push_str(&format!("; not below the domain: {}", outside.join(", ")));
                }
                finding(KIND, true, Reason::Verified, text)
            }
        })
    }

    fn published(&self, domain: &MailDomain) -> Finding {
        const KIND: &str = "DNSPublished";
        match (&self.publish_failed, mode(domain)) {
            (Some((reason, why)), _) => finding(KIND, false, *reason, why.clone()),
            (None, DnsMode::Manual) if !is_delegated(domain) => {
                finding(KIND, true, Reason::NotManaged, "a person publishes: see status.records")
            }
            (None, DnsMode::ExternalDNS) => {
                finding(KIND, true, Reason::Published, "the DNSEndpoint objects are as they should be")
            }
            (None, _) => finding(KIND, true, Reason::Published, "the name servers have been told"),
        }
    }

    fn verified(&self, domain: &MailDomain) -> Finding {
        const KIND: &str = "DNSVerified";
        let unknown = |message: String| Finding {
            kind: KIND,
            status: "Unknown",
            reason: Reason::LookupFailed,
            message,
        };
        if let Some(why) = &self.lookup_failed {
            return unknown(why.clone());
        }
        let bad = self.records.iter().find(|(_, seen)| seen.state != RecordState::Verified);
        let Some((record, seen)) = bad else {
            return finding(
                KIND,
                true,
                Reason::Verified,
                "every authoritative name server shows every record",
            );
        };
        let what = format!("{} {}", record.name, record.record_type());
        let by_hand = is_by_hand(domain, record);
        let there = seen.observed.join(" and ");
        match seen.state {
            RecordState::Unknown => unknown(format!("a name server does not answer for {what}")),
            RecordState::Conflict => {
                finding(KIND, false, Reason::RecordConflict, format!("{what}: {there} stand there; one may"))
            }
            _ if by_hand => {
                let text = match record.values.is_empty() {
                    true => format!("remove: {what}"),
                    false => self.to_publish(domain, record.purpose),
                };
                finding(KIND, false, Reason::DNSActionRequired, text)
            }
            RecordState::Missing => finding(KIND, false, Reason::Missing, format!("{what} is not there")),
            RecordState::Drifted | RecordState::Verified => {
                finding(KIND, false, Reason::Drifted, format!("{what} says {there}"))
            }
        }
    }
}

pub(crate) fn mode(domain: &MailDomain) -> DnsMode {
    domain.spec.dns.as_ref().map(|dns| dns.mode).unwrap_or_default()
}

/// Whether the selectors lead into another zone.
fn is_delegated(domain: &MailDomain) -> bool {
    domain.spec.dkim.as_ref().and_then(Dkim::delegated).is_some()
}

/// Whether a person is to publish a record.
fn is_by_hand(domain: &MailDomain, record: &Record) -> bool {
    let elsewhere = is_delegated(domain) && record.purpose == Purpose::Dkim;
    record.purpose.policy(&domain.spec) == RecordPolicy::Verify
        || (mode(domain) == DnsMode::Manual && !elsewhere)
}

fn record_status(record: &Record, seen: &Observation) -> RecordStatus {
    RecordStatus {
        purpose: record.purpose.key().to_owned(),
        name: record.name.clone(),
        record_type: record.record_type().to_owned(),
        zone_lines: record.zone_lines(),
        state: seen.state,
        observed: seen.observed.clone(),
    }
}

/// The selector of a key's record, wherever it lies.
pub(crate) fn selector_of(record: &Record) -> Option<&str> {
    record.name.split('.').next().filter(|_| record.purpose == Purpose::Dkim)
}
