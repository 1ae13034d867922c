//! The service: both calls, from their first frame to their response.

use async_trait::async_trait;
use auth::{Authenticator, Purpose};
use domains::Domains;
use proto::trace::call_failed;
use proto::{
    ErrorCode, Frames, ServiceError, SignResponse, Verifier, VerifyResponse, sign_request, verify_request,
};
use tokio::time::timeout;
use tracing::field::Empty;
use tracing::{Instrument, Span, info_span, record_all};

use crate::collect::{Memory, begin, collect};
use crate::config::Config;
use crate::disposition::name;
use crate::evaluate::Envelope;
use crate::signers::Signers;

/// Why the verifier could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// `authserv_id` is empty.
    #[error("the verifier needs a host name for Authentication-Results: set hostname")]
    NoHostName,
    /// The methods could not be set up.
    #[error("authentication cannot be set up")]
    Auth(#[from] auth::SetupError),
}

/// What the verifier needs.
pub struct Deps {
    /// Whose policy on DMARC is asked, and who signs. Loaded with signing keys.
    pub domains: Domains,
}

/// The verifier. It has no tasks of its own: each call does its work.
pub struct VerifierService {
    pub(crate) config: Config,
    pub(crate) domains: Domains,
    pub(crate) authenticator: Authenticator,
    pub(crate) signers: Signers,
    memory: Memory,
}

/// Sets the verifier up.
///
/// # Errors
/// When the host name is missing, or the system's name servers are wanted and cannot be read.
pub fn build(config: Config, deps: Deps) -> Result<VerifierService, BuildError> {
    if config.authserv_id.is_empty() {
        return Err(BuildError::NoHostName);
    }
    // That there were none is to be seen, too.
    metrics::counter!("packetboat_verifier_memory_exhausted_total").increment(0);
    metrics::counter!("packetboat_verifier_unsigned_refused_total").increment(0);
    Ok(VerifierService {
        authenticator: Authenticator::new(&config.auth)?,
        memory: Memory::new(config.max_held_octets),
        signers: Signers::default(),
        domains: deps.domains,
        config,
    })
}

#[async_trait]
impl Verifier for VerifierService {
    async fn verify(
        &self,
        mut frames: Frames<verify_request::Frame>,
    ) -> Result<VerifyResponse, ServiceError> {
        let span = info_span!(
            "verify",
            otel.kind = "server",
            otel.status_code = Empty,
            rpc.method = "packetboat.v1.Verifier/Verify",
            error.type = Empty,
            mail.queue_id = Empty,
            mail.auth.iprev.result = Empty,
            mail.disposition = Empty
        );
        let work = async {
            let envelope = Envelope::try_from(begin(&mut frames, &self.config).await?)?;
            Span::current().record("mail.queue_id", &envelope.queue_id);
            let (client, collected) = tokio::try_join!(
                async { Ok(self.authenticator.check_client(&envelope.client).await) },
                collect(&mut frames, Purpose::Verify, &self.config, &self.memory),
            )?;
            let iprev = client.iprev.result;
            let work = self.evaluate(&envelope, client, collected);
            let response = timeout(self.config.deadline, work).await.map_err(|_| late())?;
            record_all!(
                Span::current(),
                mail.auth.iprev.result = iprev.as_str(),
                mail.disposition = name(response.disposition())
            );
            Ok(response)
        };
        work.instrument(span.clone()).await.inspect_err(|error| call_failed(&span, error))
    }

    async fn sign(&self, mut frames: Frames<sign_request::Frame>) -> Result<SignResponse, ServiceError> {
        let span = info_span!(
            "sign",
            otel.kind = "server",
            otel.status_code = Empty,
            rpc.method = "packetboat.v1.Verifier/Sign",
            error.type = Empty,
            mail.queue_id = Empty,
            mail.domain = Empty,
            mail.signatures = Empty,
            mail.disposition = Empty
        );
        let work = async {
            let begin = begin(&mut frames, &self.config).await?;
            Span::current().record("mail.queue_id", &begin.queue_id);
            let collected = collect(&mut frames, Purpose::Sign, &self.config, &self.memory).await?;
            let work = self.submit(begin, collected);
            let response = timeout(self.config.deadline, work).await.map_err(|_| late())??;
            Span::current().record("mail.disposition", name(response.disposition()));
            Ok(response)
        };
        work.instrument(span.clone()).await.inspect_err(|error| call_failed(&span, error))
    }
}

fn late() -> ServiceError {
    ServiceError::new(ErrorCode::DeadlineExceeded, "the deadline of the verifier passed")
}
