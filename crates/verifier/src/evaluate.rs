//! Verify: SPF and iprev while the message comes in, DKIM and ARC when it is whole, then DMARC, and
//! what follows from it.

use std::time::Instant;

use auth::{Client, ClientCheck, Verification, forged_results};
use domains::DomainIndex;
use domains::types::InboundDmarc;
use message::Cut;
use proto::{ErrorCode, ServiceError, VerifyBegin, VerifyResponse};
use smtp::Mailbox;

use crate::collect::Collected;
use crate::disposition::{Strictness, Verdict, decide, name};
use crate::service::VerifierService;

/// The first frame, read.
pub(crate) struct Envelope {
    pub(crate) queue_id: String,
    pub(crate) client: Client,
    pub(crate) recipients: Vec<Mailbox>,
    pub(crate) smtputf8: bool,
}

impl TryFrom<VerifyBegin> for Envelope {
    type Error = ServiceError;

    fn try_from(begin: VerifyBegin) -> Result<Self, ServiceError> {
        let invalid = |what| ServiceError::new(ErrorCode::InvalidArgument, format!("{what} cannot be read"));
        let recipients = begin.forward_paths.iter().map(|path| path.parse());
        Ok(Self {
            queue_id: begin.queue_id,
            client: Client {
                ip: begin.client_ip.parse().map_err(|_| invalid("client_ip"))?,
                helo: begin.helo,
                reverse_path: begin.reverse_path.parse().map_err(|_| invalid("reverse_path"))?,
            },
            recipients: recipients.collect::<Result<_, _>>().map_err(|_| invalid("forward_paths"))?,
            smtputf8: begin.smtputf8,
        })
    }
}

impl VerifierService {
    /// Judges a message that is whole, of a client that has been checked.
    pub(crate) async fn evaluate(
        &self,
        envelope: &Envelope,
        client: ClientCheck,
        collected: Collected,
    ) -> VerifyResponse {
        let started = Instant::now();
        let scanned = match &collected.scanned {
            Ok(scanned) => scanned,
            Err(oversize) => return respond(Verdict::reject(oversize.reply()), String::new(), &[]),
        };
        let verification = self.authenticator.verify(client, scanned).await;
        let strictness = strictness(&self.domains.current(), &envelope.recipients);
        let verdict = decide(&verification.dmarc, strictness, &self.config);
        record(envelope, &verification, &verdict, started);
        if verdict.reply.is_some() {
            return respond(verdict, String::new(), &[]);
        }
        let id = &self.config.authserv_id;
        let field = verification.render(id, envelope.smtputf8);
        respond(verdict, field, &forged_results(scanned.header(), id))
    }
}

/// How strict the domains of the recipients are. One that is not hosted any more counts as one with
/// the default settings, and so does an envelope without recipients.
fn strictness(index: &DomainIndex, recipients: &[Mailbox]) -> Strictness {
    let default = InboundDmarc::default();
    let hosted = |mailbox: &Mailbox| mailbox.domain_name().and_then(|name| index.hosted(name)).cloned();
    let found: Vec<_> = recipients.iter().map(hosted).collect();
    if found.is_empty() {
        return Strictness::of(std::iter::once(&default));
    }
    Strictness::of(found.iter().map(|domain| {
        domain.as_ref().and_then(|domain| domain.inbound()).map_or(&default, |inbound| &inbound.dmarc)
    }))
}

fn respond(verdict: Verdict, prepend: String, cuts: &[Cut]) -> VerifyResponse {
    VerifyResponse {
        disposition: verdict.disposition.into(),
        reply: verdict.reply,
        prepend: prepend.into(),
        cuts: cuts.iter().map(proto_cut).collect(),
    }
}

pub(crate) fn proto_cut(cut: &Cut) -> proto::Cut {
    proto::Cut { offset: cut.offset, length: cut.length }
}

fn record(envelope: &Envelope, verification: &Verification, verdict: &Verdict, started: Instant) {
    let dkim = verification.dkim.iter().find(|check| check.vouches()).or(verification.dkim.first());
    let results = [
        ("spf", verification.client.spf.result.as_str()),
        ("iprev", verification.client.iprev.result.as_str()),
        ("dkim", dkim.map_or("none", |check| check.result.as_str())),
        ("arc", verification.arc.result.as_str()),
        ("dmarc", verification.dmarc.result.as_str()),
    ];
    for (method, result) in results {
        metrics::counter!("packetboat_auth_results_total", "method" => method, "result" => result)
            .increment(1);
    }
    let disposition = name(verdict.disposition);
    metrics::counter!("packetboat_verifier_messages_total", "disposition" => disposition).increment(1);
    metrics::histogram!("packetboat_verifier_evaluation_duration_seconds").record(started.elapsed());
    tracing::info!(
        queue_id = envelope.queue_id,
        spf = results[0].1,
        iprev = results[1].1,
        dkim = results[2].1,
        arc = results[3].1,
        dmarc = results[4].1,
        policy = verification.dmarc.applied.as_str(),
        disposition,
        "message verified"
    );
}
