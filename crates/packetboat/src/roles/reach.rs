//! Whether a service that others run can be reached, and is the one it should be.

use std::sync::Arc;

use admin::Check;
use async_trait::async_trait;
use tls::{PeerRole, PeerTls};
use tokio::net::{TcpStream, lookup_host};

/// A service behind these endpoints, of which one is enough. How long a try may take is for who asks.
pub(super) struct Reach {
    service: PeerRole,
    endpoints: Vec<String>,
    tls: Option<PeerTls>,
}

impl Reach {
    /// A check by the name of the service.
    pub(super) fn check(
        service: PeerRole,
        endpoints: &[String],
        tls: Option<&PeerTls>,
    ) -> (String, Arc<dyn Check>) {
        let check = Self { service, endpoints: endpoints.to_vec(), tls: tls.cloned() };
        (service.name().to_owned(), Arc::new(check))
    }

    async fn connect(&self, endpoint: &str) -> std::io::Result<()> {
        let uri: hyper::Uri = endpoint.parse().map_err(std::io::Error::other)?;
        let (host, port) = (uri.host().unwrap_or_default(), uri.port_u16().unwrap_or_default());
        let mut failure = std::io::Error::other("the name has no address");
        for address in lookup_host((host.trim_matches(['[', ']']), port)).await? {
            let connecting = async {
                let stream = TcpStream::connect(address).await?;
                if let Some(tls) = &self.tls {
                    tls.connect(stream, self.service).await?;
                }
                Ok(())
            };
            match connecting.await {
                Ok(()) => return Ok(()),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

#[async_trait]
impl Check for Reach {
    async fn check(&self) -> Result<(), String> {
        let mut last = "no endpoint is set".to_owned();
        for endpoint in &self.endpoints {
            match self.connect(endpoint).await {
                Ok(()) => return Ok(()),
                Err(error) => last = format!("{endpoint} cannot be reached: {error}"),
            }
        }
        Err(last)
    }
}
