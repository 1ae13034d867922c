//! Whether anybody may believe what a zone says: it is signed (RFC 4034), and the zone above knows its key.

use std::time::Duration;

use hickory_proto::dnssec::rdata::{DNSKEY, DNSSECRData};
use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RData, RecordType};

use crate::exchange::ask_for_signatures;
use crate::observe::{Authorities, Observer, name_of};

/// Signatures that end so soon are as good as none.
const SOON: Duration = Duration::from_secs(60);

/// Whether a zone can be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Security {
    /// Every server signs, and the zone above has the key.
    Signed,
    /// No, and why.
    Unsigned(String),
    /// A server did not answer.
    Unknown(String),
}

impl Observer {
    /// Whether the TLSA records of a name in a zone can be believed.
    pub async fn security(&self, authorities: &Authorities, name: &str) -> Security {
        let zone = &authorities.zone;
        let (Ok(origin), Ok(name)) = (name_of(zone), name_of(name)) else {
            return Security::Unknown(format!("{name} is no name"));
        };
        let mut keys = Vec::new();
        for server in &authorities.servers {
            for (name, kind) in [(&origin, RecordType::DNSKEY), (&name, RecordType::TLSA)] {
                let answer = match ask_for_signatures(*server, name, kind).await {
                    Ok(answer) => answer,
                    Err(error) => return Security::Unknown(error.to_string()),
                };
                let found = answer.answers.iter().any(|record| record.record_type() == kind);
                if (found || kind == RecordType::DNSKEY) && !is_signed(&answer, kind) {
                    let text = format!(
                        "the zone {zone} is not signed: {server} answers for {name} {kind} without a \
                        signature that holds; sign it (in BIND: dnssec-policy default)"
                    );
                    return Security::Unsigned(text);
                }
                keys.extend(answer.answers.into_iter().filter_map(|record| match record.data {
                    RData::DNSSEC(DNSSECRData::DNSKEY(key)) => Some(key),
                    _ => None,
                }));
            }
        }
        self.trusted(zone, &origin, &keys).await
    }

    /// Whether the zone above knows one of the keys.
    async fn trusted(&self, zone: &str, origin: &Name, keys: &[DNSKEY]) -> Security {
        let signers = match self.resolver().delegation_signers(zone).await {
            Ok(signers) => signers,
            Err(error) => {
                return Security::Unknown(format!("the DS records of {zone} cannot be looked up: {error}"));
            }
        };
        let covered = signers.iter().any(|ds| keys.iter().any(|key| ds.covers(origin, key).unwrap_or(false)));
        match (signers.is_empty(), covered) {
            (_, true) => Security::Signed,
            (true, _) => Security::Unsigned(format!(
                "the zone {zone} is signed, but the zone above it has no DS record of it: give your registrar its key"
            )),
            (false, _) => Security::Unsigned(format!(
                "the DS record of {zone} in the zone above it is of none of its keys: give your registrar the present one"
            )),
        }
    }
}

/// Whether an answer has a signature over its records of this type that holds now.
fn is_signed(answer: &Message, kind: RecordType) -> bool {
    let now = u32::try_from(jiff::Timestamp::now().as_second()).unwrap_or(u32::MAX);
    let soon = now.saturating_add(u32::try_from(SOON.as_secs()).unwrap_or_default());
    answer.answers.iter().any(|record| match &record.data {
        RData::DNSSEC(DNSSECRData::RRSIG(signature)) => {
            let input = signature.input();
            let (from, until) = (input.sig_inception.get(), input.sig_expiration.get());
            input.type_covered == kind && from <= now && soon <= until
        }
        _ => false,
    })
}
