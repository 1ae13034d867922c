//! What can go wrong while a domain is reconciled.

use crate::keypair::KeyPairError;
use crate::observe::AuthoritiesError;
use crate::update::UpdateError;

/// Why a reconciliation did not come to its end. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Kubernetes API failed or refused.
    #[error("{doing} failed")]
    Kube {
        /// What was attempted.
        doing: &'static str,
        /// What the API said.
        #[source]
        cause: Box<kube::Error>,
    },
    /// What is there of a kind is not known yet.
    #[error("the Kubernetes API has not told of {0} yet; may this service account list and watch them?")]
    NotTold(String),
    /// A key cannot be made or read.
    #[error(transparent)]
    KeyPair(#[from] KeyPairError),
    /// It is not known who is authoritative.
    #[error(transparent)]
    Authorities(#[from] AuthoritiesError),
    /// Records were not published.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// The authorities that are trusted cannot be read.
    #[error("the authorities of operator.mta_sts.fetch cannot be used")]
    Trust(#[from] tls::TlsError),
    /// No client of the Kubernetes API can be made.
    #[error("the Kubernetes API cannot be found: no KUBECONFIG, and no service account in this pod")]
    NoConfig(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    pub(crate) fn kube(doing: &'static str) -> impl Fn(kube::Error) -> Self {
        move |cause| Self::Kube { doing, cause: Box::new(cause) }
    }

    /// A label for metrics.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::Kube { .. } | Self::NotTold(_) | Self::NoConfig(_) => "kubernetes",
            Self::KeyPair(_) => "key",
            Self::Authorities(_) => "dns",
            Self::Update(_) => "update",
            Self::Trust(_) => "tls",
        }
    }
}
