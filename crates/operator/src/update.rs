//! Dynamic update (RFC 2136) over TCP, signed by TSIG (RFC 8945): one message for all that changes, with
//! prerequisites that hold only if nothing has changed since it was looked at. What belongs to others at the
//! same name is left as it is.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::tsig::TsigAlgorithm;
use hickory_proto::rr::rdata::{CNAME, MX, TLSA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record as DnsRecord, RecordType, TSigner};
use secrecy::{ExposeSecret, SecretSlice};

use crate::exchange::{ExchangeError, ask, over_tcp};
use crate::observe::{name_of, type_of, value};
use crate::record::{Purpose, Record, txt_strings};

/// How far the clocks of both sides may differ, in seconds (RFC 8945 §10).
const FUDGE: u16 = 300;
/// The name, below the domain, of the record that says whose the records are.
pub(crate) const OWNER_LABEL: &str = "_packetboat";

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The server is not there.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// The server refuses: the key may not change this zone, or the server is not its primary.
    #[error(
        "the name server refuses the update of {zone}: {code}; may the key {key} update this zone there?"
    )]
    Refused {
        /// The zone.
        zone: String,
        /// What it said.
        code: ResponseCode,
        /// The name of the key.
        key: String,
    },
    /// Somebody changed a record between look and update: look again.
    #[error("the records of {0} changed while they were being updated")]
    Changed(String),
    /// The records belong to another operator or cluster.
    #[error(
        "the records of {0} belong to another Packetboat: the TXT record {OWNER_LABEL}.{0} says so; remove it there to take them over"
    )]
    Owned(String),
    /// The message cannot be made, or signed, or the answer's signature is wrong.
    #[error("the update of {zone} failed: {why}")]
    Protocol {
        /// The zone.
        zone: String,
        /// What is wrong.
        why: String,
    },
    /// The key cannot be used.
    #[error("the TSIG key cannot be used: {0}")]
    Key(String),
}

/// Publishes at one primary.
pub struct Rfc2136 {
    server: SocketAddr,
    key_name: String,
    signer: TSigner,
    /// Who owns the records that this one writes.
    owner: String,
}

/// A record set as it is to be, and whether it is to be there at all.
#[derive(Debug, Clone)]
pub struct Change<'a> {
    /// The record set.
    pub record: &'a Record,
    /// It is to go.
    pub remove: bool,
}

impl Rfc2136 {
    /// `algorithm` is `hmac-sha256` or stronger; `owner` names this operator's object, and stands in DNS.
    ///
    /// # Errors
    /// [`UpdateError::Key`] for a weaker algorithm or a name that is none.
    pub fn new(
        server: SocketAddr,
        key_name: &str,
        algorithm: &str,
        secret: &SecretSlice<u8>,
        owner: String,
    ) -> Result<Self, UpdateError> {
        let algorithm = match algorithm.to_ascii_lowercase().as_str() {
            "hmac-sha256" => TsigAlgorithm::HmacSha256,
            "hmac-sha384" => TsigAlgorithm::HmacSha384,
            "hmac-sha512" => TsigAlgorithm::HmacSha512,
            other => {
                return Err(UpdateError::Key(format!(
                    "{other:?} is none of hmac-sha256, hmac-sha384, hmac-sha512"
                )));
            }
        };
        let name = name_of(key_name).map_err(|_| UpdateError::Key(format!("{key_name:?} is no name")))?;
        let signer = TSigner::new(secret.expose_secret().to_vec(), algorithm, name, FUDGE)
            .map_err(|error| UpdateError::Key(error.to_string()))?;
        Ok(Self { server, key_name: key_name.to_owned(), signer, owner })
    }

    /// Makes the zone say what the changes say, where it does not yet. True when anything was changed.
    ///
    /// # Errors
    /// See [`UpdateError`]; nothing has changed then.
    pub async fn apply(&self, zone: &str, domain: &str, changes: &[Change<'_>]) -> Result<bool, UpdateError> {
        let failed = |why: String| UpdateError::Protocol { zone: zone.to_owned(), why };
        let origin = name_of(zone).map_err(|error| failed(error.to_string()))?;
        let mut update = Update::new(origin);
        for change in changes {
            let (name, kind) = (name_of(&change.record.name), type_of(change.record.purpose));
            let name = name.map_err(|error| failed(error.to_string()))?;
            let current = self.current(&name, kind).await?;
            update.change(&name, kind, &current, change);
        }
        if update.is_empty() {
            return Ok(false);
        }
        self.claim(domain, &mut update, changes.iter().all(|change| change.remove)).await?;
        self.send(zone, update.message).await?;
        Ok(true)
    }

    /// The record set that the primary has now.
    async fn current(&self, name: &Name, kind: RecordType) -> Result<Vec<DnsRecord>, UpdateError> {
        let answer = ask(self.server, name, kind).await?;
        match answer.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => {}
            code => {
                let (zone, key) = (name.to_ascii(), self.key_name.clone());
                return Err(UpdateError::Refused { zone, code, key });
            }
        }
        let own = |record: &DnsRecord| record.name == *name && record.record_type() == kind;
        Ok(answer.answers.into_iter().filter(own).collect())
    }

    /// Adds to the update that the records are ours, and stay so; or, with the last of them, no more.
    async fn claim(&self, domain: &str, update: &mut Update, releasing: bool) -> Result<(), UpdateError> {
        let name = name_of(&format!("{OWNER_LABEL}.{domain}"))
            .map_err(|error| UpdateError::Key(error.to_string()))?;
        let text = format!("packetboat owner={}", self.owner);
        let current = self.current(&name, RecordType::TXT).await?;
        if current.iter().any(|record| value(&record.data).as_deref() != Some(&text)) {
            return Err(UpdateError::Owned(domain.to_owned()));
        }
        update.require(&name, RecordType::TXT, &current);
        match (releasing, current.first()) {
            (true, Some(record)) => update.delete(record),
            (false, None) => update.add(&name, 300, txt(&text)),
            _ => {}
        }
        Ok(())
    }

    async fn send(&self, zone: &str, mut message: Message) -> Result<(), UpdateError> {
        let failed = |why: String| UpdateError::Protocol { zone: zone.to_owned(), why };
        let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default();
        let verifier = message.finalize(&self.signer, now).map_err(|error| failed(error.to_string()))?;
        let octets = message.to_vec().map_err(|error| failed(error.to_string()))?;
        let answer = over_tcp(self.server, &octets).await?;
        let told = Message::from_vec(&answer).map_err(|error| failed(error.to_string()))?;
        let code = told.metadata.response_code;
        let signed = verifier.is_some_and(|mut verifier| verifier.verify(&answer).is_ok());
        match code {
            // A refusal need not be signed: a server that does not know the key cannot (RFC 8945 §5.3.2).
            ResponseCode::NoError if signed => Ok(()),
            ResponseCode::NoError => Err(failed("the answer's signature is wrong, or missing".to_owned())),
            ResponseCode::NXRRSet
            | ResponseCode::YXRRSet
            | ResponseCode::NXDomain
            | ResponseCode::YXDomain => Err(UpdateError::Changed(zone.to_owned())),
            code => {
                let key = self.key_name.clone();
                Err(UpdateError::Refused { zone: zone.to_owned(), code, key })
            }
        }
    }
}

fn txt(text: &str) -> RData {
    let strings: Vec<Vec<u8>> = txt_strings(text);
    RData::TXT(TXT::from_bytes(strings.iter().map(Vec::as_slice).collect()))
}

fn data(purpose: Purpose, value: &str) -> Option<RData> {
    match purpose {
        Purpose::Mx => {
            let (preference, host) = value.split_once(' ')?;
            Some(RData::MX(MX::new(preference.parse().ok()?, name_of(host).ok()?)))
        }
        Purpose::DkimCname => Some(RData::CNAME(CNAME(name_of(value).ok()?))),
        Purpose::Tlsa => tlsa(value),
        _ => Some(txt(value)),
    }
}

fn tlsa(value: &str) -> Option<RData> {
    let mut parts = value.split(' ');
    let mut number = || parts.next()?.parse::<u8>().ok();
    let (usage, selector, matching) = (number()?, number()?, number()?);
    let digits = parts.next()?.as_bytes();
    let octet = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let digest: Option<Vec<u8>> = digits.chunks(2).map(octet).collect();
    Some(RData::TLSA(TLSA::new(usage.into(), selector.into(), matching.into(), digest?)))
}

/// An update being put together (RFC 2136 §2).
struct Update {
    message: Message,
}

impl Update {
    fn new(zone: Name) -> Self {
        let mut message = Message::query();
        message.metadata.op_code = OpCode::Update;
        message.metadata.recursion_desired = false;
        let mut query = Query::new();
        query.set_name(zone).set_query_class(DNSClass::IN).set_query_type(RecordType::SOA);
        message.add_query(query);
        Self { message }
    }

    fn is_empty(&self) -> bool {
        self.message.authorities.is_empty()
    }

    /// Adds what a change needs; nothing where the zone is as it should be.
    fn change(&mut self, name: &Name, kind: RecordType, current: &[DnsRecord], change: &Change<'_>) {
        let purpose = change.record.purpose;
        let ours = |record: &&DnsRecord| value(&record.data).is_some_and(|value| purpose.is_one(&value));
        let present: BTreeSet<String> =
            current.iter().filter(ours).filter_map(|record| value(&record.data)).collect();
        let wanted: BTreeSet<String> = match change.remove {
            true => BTreeSet::new(),
            false => change.record.values.iter().cloned().collect(),
        };
        if present == wanted {
            return;
        }
        self.require(name, kind, current);
        for record in current.iter().filter(ours) {
            if value(&record.data).is_some_and(|value| !wanted.contains(&value)) {
                self.delete(record);
            }
        }
        for value in wanted.difference(&present) {
            if let Some(data) = data(purpose, value) {
                self.add(name, change.record.ttl, data);
            }
        }
    }

    /// The record set must be just this (RFC 2136 §2.4.2), or absent (§2.4.3).
    fn require(&mut self, name: &Name, kind: RecordType, current: &[DnsRecord]) {
        if current.is_empty() {
            let mut absent = DnsRecord::update0(name.clone(), 0, kind);
            absent.dns_class = DNSClass::NONE;
            self.message.add_answer(absent);
        }
        for record in current {
            let mut present = record.clone();
            present.ttl = 0;
            self.message.add_answer(present);
        }
    }

    /// One record goes (RFC 2136 §2.5.4).
    fn delete(&mut self, record: &DnsRecord) {
        let mut gone = record.clone();
        gone.ttl = 0;
        gone.dns_class = DNSClass::NONE;
        self.message.add_authority(gone);
    }

    /// One record comes (RFC 2136 §2.5.1).
    fn add(&mut self, name: &Name, ttl: u32, data: RData) {
        self.message.add_authority(DnsRecord::from_rdata(name.clone(), ttl, data));
    }
}
