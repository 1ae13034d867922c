//! What can go wrong in delivery, and what its callers are told.

use proto::{ErrorCode, ServiceError};
use queue::QueueError;

/// Why the service cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// A setting has a value that cannot be used.
    #[error("the delivery setting {setting} cannot be used: it {why}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// Why a message was not accepted. Nothing is stored then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcceptError {
    /// The stream ended before its commit.
    #[error("the stream ended before its commit")]
    Abandoned,
    /// No frame came in time.
    #[error("no frame came in time")]
    FrameTimeout,
    /// The frames break the contract.
    #[error("{0}")]
    Contract(String),
    /// The message is longer than the limit.
    #[error("the message is longer than {0} octets")]
    TooLong(u64),
    /// The memory for messages in flight is taken.
    #[error("the memory for messages being accepted is taken")]
    NoMemory,
    /// The queue did not take it.
    #[error("the queue did not take the message")]
    Queue(#[from] QueueError),
}

impl AcceptError {
    pub(crate) fn contract(what: impl Into<String>) -> Self {
        Self::Contract(what.into())
    }

    fn code(&self) -> ErrorCode {
        match self {
            Self::Abandoned => ErrorCode::Aborted,
            Self::FrameTimeout => ErrorCode::DeadlineExceeded,
            Self::Contract(_) => ErrorCode::InvalidArgument,
            Self::TooLong(_) | Self::NoMemory => ErrorCode::ResourceExhausted,
            Self::Queue(
                QueueError::Unavailable { .. } | QueueError::NotDurable(_) | QueueError::Mismatch(_),
            ) => ErrorCode::Unavailable,
            Self::Queue(_) => ErrorCode::Internal,
        }
    }
}

impl From<AcceptError> for ServiceError {
    fn from(error: AcceptError) -> Self {
        Self::new(error.code(), with_causes(&error))
    }
}

/// An error with its causes, for logs.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
