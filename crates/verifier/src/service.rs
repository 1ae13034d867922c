//! The service: both calls, from their first frame to their response.

use async_trait::async_trait;
use auth::{Authenticator, Purpose};
use domains::Domains;
use proto::{
    ErrorCode, Frames, ServiceError, SignResponse, Verifier, VerifyResponse, sign_request, verify_request,
};
use tokio::time::timeout;

use crate::collect::{Memory, begin, collect};
use crate::config::Config;
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
        let envelope = Envelope::try_from(begin(&mut frames, &self.config).await?)?;
        let (client, collected) = tokio::try_join!(
            async { Ok(self.authenticator.check_client(&envelope.client).await) },
            collect(&mut frames, Purpose::Verify, &self.config, &self.memory),
        )?;
        let work = self.evaluate(&envelope, client, collected);
        timeout(self.config.deadline, work).await.map_err(|_| late())
    }

    async fn sign(&self, mut frames: Frames<sign_request::Frame>) -> Result<SignResponse, ServiceError> {
        let begin = begin(&mut frames, &self.config).await?;
        let collected = collect(&mut frames, Purpose::Sign, &self.config, &self.memory).await?;
        timeout(self.config.deadline, self.submit(begin, collected)).await.map_err(|_| late())?
    }
}

fn late() -> ServiceError {
    ServiceError::new(ErrorCode::DeadlineExceeded, "the deadline of the verifier passed")
}
