//! Sign: whether a user may send the message as it is, what is missing from it and what must not go
//! out with it, and its signatures.

use std::sync::Arc;

use auth::{Scanned, SignError, Signer, Validity, forged_results};
use bytes::Bytes;
use jiff::tz::TimeZone;
use message::author::{AuthorError, author, mailboxes_of};
use message::header::{HeaderError, Limits};
use message::{Cut, Header};
use proto::{ErrorCode, ServiceError, SignBegin, SignResponse};
use smtp::Mailbox;

use crate::collect::Collected;
use crate::config::Unsigned;
use crate::disposition::{Verdict, reply};
use crate::evaluate::proto_cut;
use crate::service::VerifierService;

/// Fields that say who sends, beside `From` (RFC 5322 §3.6.2, §3.6.6).
const SENDERS: [&str; 3] = ["Sender", "Resent-From", "Resent-Sender"];
/// Fields that are for the sender's eyes only (RFC 5322 §3.6.3, §3.6.6).
const BLIND: [&str; 2] = ["Bcc", "Resent-Bcc"];

/// A message as it will be sent.
struct Outgoing {
    scanned: Scanned,
    /// What the caller puts in front, split into fields.
    prepended: Header,
    /// Fields that were missing, each ended by CRLF.
    added: Header,
    cuts: Vec<Cut>,
}

impl Outgoing {
    /// Its fields from the top, with their line ends.
    fn fields(&self) -> Vec<(&[u8], &[u8])> {
        let kept = self.scanned.header().fields().filter(|field| !self.cuts.contains(&field.cut()));
        let all = self.prepended.fields().chain(self.added.fields()).chain(kept);
        all.map(|field| (field.raw_name(), field.raw_value())).collect()
    }

    fn sign(&self, signers: &[Arc<Signer>], validity: Validity) -> Result<String, SignError> {
        let fields = self.fields();
        signers.iter().map(|signer| signer.sign(&fields, &self.scanned, validity)).collect()
    }
}

impl VerifierService {
    /// Checks, completes and signs a message that is whole.
    pub(crate) async fn submit(
        &self,
        begin: SignBegin,
        collected: Collected,
    ) -> Result<SignResponse, ServiceError> {
        let scanned = match &collected.scanned {
            Ok(scanned) => scanned.clone(),
            Err(oversize) => return Ok(refuse(Verdict::reject(oversize.reply()))),
        };
        let writer = match entitled(scanned.header(), &begin) {
            Ok(writer) => writer,
            Err(verdict) => return Ok(refuse(verdict)),
        };
        let signers = match self.signers_for(&writer, &begin) {
            Ok(signers) => signers,
            Err(verdict) => return Ok(refuse(verdict)),
        };
        let invalid = |error: HeaderError| ServiceError::new(ErrorCode::InvalidArgument, error.to_string());
        let outgoing = Outgoing {
            prepended: Header::split(begin.prepend.clone(), Limits::default()).map_err(invalid)?,
            added: self.missing_fields(scanned.header(), &begin.queue_id, &writer).map_err(invalid)?,
            cuts: self.cuts(scanned.header()),
            scanned,
        };
        let validity = Validity::starting_now(self.config.signature_lifetime);
        // An RSA signature takes about a millisecond: too long for a thread that serves connections.
        let signed = tokio::task::spawn_blocking(move || {
            let signatures = outgoing.sign(&signers, validity)?;
            Ok::<_, SignError>((signatures, signers.len(), outgoing))
        });
        let (signatures, count, outgoing) = signed
            .await
            .map_err(|error| ServiceError::new(ErrorCode::Internal, error.to_string()))?
            .map_err(|error| ServiceError::new(ErrorCode::Internal, error.to_string()))?;
        metrics::counter!("packetboat_verifier_signatures_total").increment(count as u64);
        let span = tracing::Span::current();
        span.record("mail.signatures", count).record("mail.domain", writer.domain_name());
        tracing::info!(queue_id = begin.queue_id, signatures = count, "message signed");
        let prepend = [signatures.as_bytes(), &begin.prepend, outgoing.added.section()].concat();
        Ok(SignResponse {
            disposition: proto::Disposition::Deliver.into(),
            reply: None,
            prepend: prepend.into(),
            cuts: outgoing.cuts.iter().map(proto_cut).collect(),
        })
    }

    /// The signers of the author's domain; a refusal when there are none and the message must not go
    /// out unsigned.
    fn signers_for(&self, writer: &Mailbox, begin: &SignBegin) -> Result<Vec<Arc<Signer>>, Verdict> {
        let index = self.domains.current();
        let name = writer.domain_name().unwrap_or_default();
        let hosted = index.hosted(name);
        let signers = hosted.map(|domain| self.signers.of(domain)).unwrap_or_default();
        let has_keys = hosted.is_some_and(|domain| !domain.signing_keys.is_empty());
        // A bounce must not be lost for want of a key; a key that is there and broken is a fault.
        let may_go_unsigned = !has_keys && (begin.user.is_empty() || self.config.unsigned == Unsigned::Allow);
        if !signers.is_empty() || may_go_unsigned {
            return Ok(signers);
        }
        tracing::error!(
            queue_id = begin.queue_id,
            domain = name,
            "no usable DKIM key: give the MailDomain a signing key, or set verifier.unsigned to allow"
        );
        metrics::counter!("packetboat_verifier_unsigned_refused_total").increment(1);
        Err(Verdict::defer(reply(
            451,
            "4.7.5",
            format!(
                "No DKIM key of {name} is ready to sign the message; try again later, or ask your postmaster"
            ),
        )))
    }

    /// `Date` and `Message-ID`, where they are missing (RFC 6409 §8.1, §8.2).
    fn missing_fields(&self, header: &Header, id: &str, writer: &Mailbox) -> Result<Header, HeaderError> {
        let mut added = String::new();
        if header.named("Date").next().is_none() {
            let now = jiff::Timestamp::now().to_zoned(TimeZone::UTC);
            // It fails for years before 0 only.
            let date = jiff::fmt::rfc2822::to_string(&now).unwrap_or_default();
            added += &format!("Date: {date}\r\n");
        }
        if header.named("Message-ID").next().is_none() {
            let domain = writer.domain_name().unwrap_or(&self.config.authserv_id);
            added += &format!("Message-ID: <{id}@{domain}>\r\n");
        }
        Header::split(Bytes::from(added), Limits::default())
    }

    /// What must not go out: blind copies, and results that claim to be ours.
    fn cuts(&self, header: &Header) -> Vec<Cut> {
        let blind = |field: &message::Field<'_>| BLIND.iter().any(|name| field.is(name));
        let mut cuts: Vec<Cut> = header.fields().filter(blind).map(|field| field.cut()).collect();
        cuts.extend(forged_results(header, &self.config.authserv_id));
        cuts.sort_unstable_by_key(|cut| cut.offset);
        cuts
    }
}

fn refuse(verdict: Verdict) -> SignResponse {
    SignResponse {
        disposition: verdict.disposition.into(),
        reply: verdict.reply,
        prepend: Bytes::new(),
        cuts: Vec::new(),
    }
}

/// The author of the message, who is one that the user may write as. What Packetboat itself writes is
/// its own matter.
fn entitled(header: &Header, begin: &SignBegin) -> Result<Mailbox, Verdict> {
    let malformed = |error: &AuthorError| {
        let text = format!("The message cannot be sent: {error}; correct it and send it again");
        Verdict::reject(reply(550, "5.7.1", text))
    };
    let writer = author(header).map_err(|error| malformed(&error))?;
    if begin.user.is_empty() {
        return Ok(writer);
    }
    let check = |field: &str, mailbox: &Mailbox| {
        if begin.owned_addresses.iter().any(|owned| domains::owns(owned, mailbox)) {
            return Ok(());
        }
        let text = format!("You may not write as {mailbox}, which is in {field}; use an address of your own");
        Err(Verdict::reject(reply(550, "5.7.1", text)))
    };
    check("From", &writer)?;
    for field in SENDERS {
        match mailboxes_of(header, field) {
            Ok(mailboxes) => mailboxes.iter().try_for_each(|mailbox| check(field, mailbox))?,
            Err(AuthorError::Missing(_)) => {}
            Err(error) => return Err(malformed(&error)),
        }
    }
    Ok(writer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(fields: &str, user: &str) -> Result<String, u32> {
        let header = Header::split(Bytes::from(format!("{fields}\r\n\r\n")), Limits::default()).unwrap();
        let begin = SignBegin {
            user: user.to_owned(),
            owned_addresses: vec!["alice@ours.test".into(), "@whole.test".into()],
            ..SignBegin::default()
        };
        entitled(&header, &begin)
            .map(|writer| writer.to_string())
            .map_err(|verdict| verdict.reply.map_or(0, |reply| reply.code))
    }

    #[test]
    fn a_user_writes_as_an_own_address_only() {
        for (fields, expected) in [
            ("From: Alice <alice@ours.test>", Ok("alice@ours.test")),
            ("From: ALICE@ours.test", Ok("ALICE@ours.test")),
            ("From: anyone@whole.test", Ok("anyone@whole.test")),
            ("From: alice@ours.test\r\nSender: x@whole.test", Ok("alice@ours.test")),
            ("From: alice@ours.test\r\nResent-From: x@whole.test, alice@ours.test", Ok("alice@ours.test")),
            ("From: bob@ours.test", Err(550)),
            ("From: alice@sub.whole.test", Err(550)),
            ("From: alice@ours.test, bob@ours.test", Err(550)),
            ("From: alice@ours.test\r\nFrom: bob@ours.test", Err(550)),
            ("From: alice@ours.test\r\nFrom: alice@ours.test", Err(550)),
            ("From : alice@ours.test", Err(550)),
            ("From: bob@ours.test <alice@ours.test>", Err(550)),
            ("From: group: alice@ours.test;", Err(550)),
            ("From: alice@ours.test\r\nSender: bob@ours.test", Err(550)),
            ("From: alice@ours.test\r\nSender: alice@ours.test\r\nSender: bob@ours.test", Err(550)),
            ("From: alice@ours.test\r\nResent-From: bob@ours.test", Err(550)),
            ("From: alice@ours.test\r\nResent-Sender: bob@ours.test", Err(550)),
            ("From: alice@ours.test\r\nno field", Err(550)),
            ("To: alice@ours.test", Err(550)),
        ] {
            assert_eq!(verdict(fields, "alice@ours.test"), expected.map(str::to_owned), "{fields}");
        }
    }

    #[test]
    fn what_packetboat_writes_is_its_own_matter() {
        assert_eq!(verdict("From: mailer-daemon@mx.test", ""), Ok("mailer-daemon@mx.test".to_owned()));
        assert_eq!(verdict("From: a@mx.test\r\nFrom: b@mx.test", ""), Err(550));
    }
}
