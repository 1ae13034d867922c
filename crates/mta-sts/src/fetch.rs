//! Fetches the policy of a domain as a sender does (RFC 8461 §3.3): one URL, made from the domain alone; no
//! redirects, no proxies, a deadline, 64 KiB, and an address that is none of this machine.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use dns::{AddressError, AddressPolicy, Resolver};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::header::{CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tls::{TlsError, TrustedTls};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::{POLICY_PATH, Policy, PolicyError, policy_host};

/// The largest policy that is read, in octets (RFC 8461 §3.3).
const MAX_POLICY: usize = 64 * 1024;

/// Settings of whoever fetches policies, and looks at mail exchangers.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FetchConfig {
    /// PEM file of authorities that are trusted beside the system's.
    pub authorities: Option<PathBuf>,
    /// One fetch, from looking the name up to the last octet, may take so long; so may a look at a mail exchanger.
    /// Default 20 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub timeout: Duration,
    /// The port of policy hosts. Default 443.
    pub https_port: u16,
    /// The port of mail exchangers. Default 25.
    pub smtp_port: u16,
    /// Addresses of this machine may be connected to. Default no.
    pub allow_loopback: bool,
    /// Our name in EHLO; the settings' `hostname`.
    #[serde(skip)]
    pub ehlo: String,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            authorities: None,
            timeout: Duration::from_secs(20),
            https_port: 443,
            smtp_port: 25,
            allow_loopback: false,
            ehlo: "localhost".to_owned(),
        }
    }
}

/// Why there is no policy to be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The policy host has no address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Nobody answers there.
    #[error("{address} cannot be connected to")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The handshake failed, most often for the certificate.
    #[error("the TLS handshake with {host} at {address} failed")]
    Handshake {
        /// The host.
        host: String,
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// What comes back is no HTTP.
    #[error("{0} does not answer as a web server does")]
    Http(SocketAddr, #[source] hyper::Error),
    /// It was not all there in time.
    #[error("{host} has not answered within {} s", limit.as_secs_f32())]
    Deadline {
        /// The host.
        host: String,
        /// The limit.
        limit: Duration,
    },
    /// Another answer than the policy; a redirect, say, which senders must not follow.
    #[error("{host} answers {status}")]
    Status {
        /// The host.
        host: String,
        /// What it answers.
        status: StatusCode,
    },
    /// The text is of another type.
    #[error("its type is {0:?}, and not text/plain")]
    MediaType(String),
    /// The text is too long.
    #[error("it is longer than {MAX_POLICY} octets")]
    TooLong,
    /// The text is no policy.
    #[error("what is served is no policy: {0}")]
    Policy(#[from] PolicyError),
}

impl FetchError {
    /// Whether the certificate is what is wrong.
    #[must_use]
    pub fn is_certificate(&self) -> bool {
        matches!(self, Self::Handshake { cause, .. } if is_certificate(cause))
    }
}

/// Whether a handshake failed for the server's certificate.
pub(crate) fn is_certificate(error: &io::Error) -> bool {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
}

/// Fetches policies. Cheap to clone.
#[derive(Clone)]
pub struct Fetcher {
    pub(crate) resolver: Resolver,
    pub(crate) tls: TrustedTls,
    pub(crate) config: FetchConfig,
}

impl Fetcher {
    /// Reads the authorities: call it at start.
    ///
    /// # Errors
    /// When their file cannot be used.
    pub fn new(resolver: Resolver, config: FetchConfig) -> Result<Self, TlsError> {
        let tls = TrustedTls::load(config.authorities.as_deref())?;
        Ok(Self { resolver, tls, config })
    }

    /// The policy of a domain, as the first address of its policy host that can be connected to tells it; and
    /// its text.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn fetch(&self, domain: &str) -> Result<(Policy, String), FetchError> {
        self.within(domain, async {
            let mut last = None;
            for address in self.addresses(domain).await? {
                match self.text_at(address, domain).await {
                    Err(error @ FetchError::Connect { .. }) => last = Some(error),
                    told => {
                        let text = told?;
                        return Ok((text.parse()?, text));
                    }
                }
            }
            Err(last.unwrap_or_else(|| nobody(domain)))
        })
        .await
    }

    /// The texts that a domain's policy host serves, each of its addresses asked by itself: a sender may come to
    /// any of them.
    ///
    /// # Errors
    /// When any of them does not serve a text. See [`FetchError`].
    pub async fn texts(&self, domain: &str) -> Result<Vec<String>, FetchError> {
        self.within(domain, async {
            let mut texts = Vec::new();
            for address in self.addresses(domain).await? {
                texts.push(self.text_at(address, domain).await?);
            }
            if texts.is_empty() { Err(nobody(domain)) } else { Ok(texts) }
        })
        .await
    }

    async fn within<T>(
        &self,
        domain: &str,
        work: impl Future<Output = Result<T, FetchError>>,
    ) -> Result<T, FetchError> {
        let limit = self.config.timeout;
        let late = |_| FetchError::Deadline { host: policy_host(domain), limit };
        timeout(limit, work).await.map_err(late)?
    }

    async fn addresses(&self, domain: &str) -> Result<Vec<IpAddr>, AddressError> {
        let policy = AddressPolicy { allow_loopback: self.config.allow_loopback };
        self.resolver.addresses(&policy_host(domain), policy).await
    }

    async fn text_at(&self, address: IpAddr, domain: &str) -> Result<String, FetchError> {
        let (host, address) = (policy_host(domain), SocketAddr::new(address, self.config.https_port));
        let stream =
            TcpStream::connect(address).await.map_err(|cause| FetchError::Connect { address, cause })?;
        let failed = |cause| FetchError::Handshake { host: host.clone(), address, cause };
        let stream = self.tls.connect(&host, stream).await.map_err(failed)?;
        let garbled = |error| FetchError::Http(address, error);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(garbled)?;
        let request = Request::get(POLICY_PATH)
            .header(HOST, &host)
            .header(USER_AGENT, concat!("packetboat/", env!("CARGO_PKG_VERSION")))
            .body(Empty::<Bytes>::new());
        // The parts are a fixed path and a host name that has been looked up.
        let Ok(request) = request else { return Err(nobody(domain)) };
        let exchange = async {
            let response = sender.send_request(request).await.map_err(garbled)?;
            text_of(response, &host, address).await
        };
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            text = exchange.as_mut() => text,
            // It ends when the server closes; what it has said by then counts.
            _ = connection => exchange.await,
        }
    }
}

fn nobody(domain: &str) -> FetchError {
    FetchError::Address(AddressError::NoAddress { host: policy_host(domain) })
}

async fn text_of(
    response: Response<hyper::body::Incoming>,
    host: &str,
    address: SocketAddr,
) -> Result<String, FetchError> {
    let status = response.status();
    if status != StatusCode::OK {
        return Err(FetchError::Status { host: host.to_owned(), status });
    }
    let media_type =
        response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("text/plain") {
        return Err(FetchError::MediaType(media_type.chars().take(80).collect()));
    }
    let body = Limited::new(response.into_body(), MAX_POLICY).collect().await;
    let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
        Ok(error) => FetchError::Http(address, *error),
        Err(other) => {
            debug_assert!(other.is::<LengthLimitError>());
            FetchError::TooLong
        }
    })?;
    Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
}
