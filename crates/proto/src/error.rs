//! One table of errors for all calls. The code decides; the text is for logs.

use tonic::{Code, Status};

/// What kind of failure; each stands for one [`tonic::Code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The service, or something it needs, cannot be reached: try again later (SMTP 451).
    Unavailable,
    /// The deadline passed: try again later (SMTP 451).
    DeadlineExceeded,
    /// A limit of the service was reached: try again later (SMTP 452).
    ResourceExhausted,
    /// The stream ended before its last frame.
    Aborted,
    /// The frames break the contract: a fault in the caller.
    InvalidArgument,
    /// A fault in the service.
    Internal,
}

/// A failed call.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ServiceError {
    /// What kind of failure.
    pub code: ErrorCode,
    /// For logs: with the cause, never shown to an SMTP client.
    pub message: String,
}

impl ServiceError {
    /// An error of a kind.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

const TABLE: [(ErrorCode, Code); 6] = [
    (ErrorCode::Unavailable, Code::Unavailable),
    (ErrorCode::DeadlineExceeded, Code::DeadlineExceeded),
    (ErrorCode::ResourceExhausted, Code::ResourceExhausted),
    (ErrorCode::Aborted, Code::Aborted),
    (ErrorCode::InvalidArgument, Code::InvalidArgument),
    (ErrorCode::Internal, Code::Internal),
];

impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        let code = TABLE.iter().find(|(ours, _)| *ours == error.code).map_or(Code::Internal, |row| row.1);
        Self::new(code, error.message)
    }
}

impl From<Status> for ServiceError {
    fn from(status: Status) -> Self {
        let code = TABLE
            .iter()
            .find(|(_, theirs)| *theirs == status.code())
            .map_or(ErrorCode::Unavailable, |row| row.0);
        Self::new(code, status.message())
    }
}
