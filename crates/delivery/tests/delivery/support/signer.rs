//! A verifier that signs by putting a field in front, or fails as told.

use async_trait::async_trait;
use bytes::Bytes;
use proto::{
    Disposition, ErrorCode, Frames, ServiceError, SignResponse, Verifier, VerifyResponse, sign_request,
    verify_request,
};

/// Signs; or, `unavailable`, does not.
#[derive(Default)]
pub(crate) struct Signer {
    pub(crate) unavailable: bool,
}

#[async_trait]
impl Verifier for Signer {
    async fn verify(&self, _: Frames<verify_request::Frame>) -> Result<VerifyResponse, ServiceError> {
        Err(ServiceError::new(ErrorCode::Internal, "delivery does not verify"))
    }

    async fn sign(&self, mut frames: Frames<sign_request::Frame>) -> Result<SignResponse, ServiceError> {
        let mut streamed = 0;
        while let Some(frame) = frames.recv().await {
            match frame {
                sign_request::Frame::Chunk(octets) => streamed += octets.len() as u64,
                sign_request::Frame::End(end) if end.size == streamed && !self.unavailable => {
                    return Ok(SignResponse {
                        disposition: Disposition::Deliver.into(),
                        reply: None,
                        prepend: Bytes::from_static(b"DKIM-Signature: v=1; by=test\r\n"),
                        cuts: Vec::new(),
                    });
                }
                _ => {}
            }
        }
        Err(ServiceError::new(ErrorCode::Unavailable, "no signature today"))
    }
}
