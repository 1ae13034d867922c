//! Whether a service that others run can be reached.

use std::sync::Arc;

use admin::Check;
use async_trait::async_trait;
use tokio::net::{TcpStream, lookup_host};

/// A service behind these endpoints, of which one is enough. How long a try may take is for who asks.
pub(super) struct Reach {
    endpoints: Vec<String>,
}

impl Reach {
    /// A check by this name.
    pub(super) fn check(name: &str, endpoints: &[String]) -> (String, Arc<dyn Check>) {
        (name.to_owned(), Arc::new(Self { endpoints: endpoints.to_vec() }))
    }
}

#[async_trait]
impl Check for Reach {
    async fn check(&self) -> Result<(), String> {
        let mut last = "no endpoint is set".to_owned();
        for endpoint in &self.endpoints {
            match connect(endpoint).await {
                Ok(()) => return Ok(()),
                Err(error) => last = format!("{endpoint} cannot be reached: {error}"),
            }
        }
        Err(last)
    }
}

async fn connect(endpoint: &str) -> std::io::Result<()> {
    let uri: hyper::Uri = endpoint.parse().map_err(std::io::Error::other)?;
    let (host, port) = (uri.host().unwrap_or_default(), uri.port_u16().unwrap_or_default());
    let mut failure = std::io::Error::other("the name has no address");
    for address in lookup_host((host.trim_matches(['[', ']']), port)).await? {
        match TcpStream::connect(address).await {
            Ok(_) => return Ok(()),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}
