//! All methods together.

use message::author::author;

use crate::arc::{self, ArcCheck};
use crate::client::{self, Client, ClientCheck};
use crate::config::Config;
use crate::content::Scanned;
use crate::dkim::{self, DkimCheck};
use crate::dmarc::{self, DmarcCheck};
use crate::dns::Dns;
use crate::error::SetupError;

/// Authenticates messages. One serves all of them, with one cache of what the DNS said.
pub struct Authenticator {
    dns: Dns,
    max_signatures: usize,
}

/// What is known of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    /// Of who sent it.
    pub client: ClientCheck,
    /// Of its signatures, the uppermost first; empty when there are none.
    pub dkim: Vec<DkimCheck>,
    /// Of its chain of custody.
    pub arc: ArcCheck,
    /// Of its author's domain.
    pub dmarc: DmarcCheck,
}

impl Authenticator {
    /// An authenticator of these settings. It looks nothing up yet.
    ///
    /// # Errors
    /// When the system's name servers are wanted and cannot be read.
    pub fn new(config: &Config) -> Result<Self, SetupError> {
        let max_signatures = config.max_signatures;
        Ok(Self { dns: Dns::new(config)?, max_signatures })
    }

    /// Checks who sends: SPF and iprev, at once. It ends within the deadlines of the settings; what
    /// the DNS did not answer by then is a temporary error.
    pub async fn check_client(&self, client: &Client) -> ClientCheck {
        let client = Client { ip: client.ip.to_canonical(), ..client.clone() };
        let (spf, iprev) = tokio::join!(client::spf(&self.dns, &client), client::iprev(&self.dns, client.ip));
        ClientCheck { spf, iprev }
    }

    /// Checks what the message claims: DKIM and ARC, then DMARC. It ends within the deadlines of the
    /// settings; what the DNS did not answer by then is a temporary error.
    pub async fn verify(&self, client: ClientCheck, scanned: &Scanned) -> Verification {
        let (dkim, arc) = tokio::join!(
            dkim::verify(&self.dns, scanned, self.max_signatures),
            arc::verify(&self.dns, scanned)
        );
        let draw = rand::random_range(0..100);
        let dmarc = dmarc::verify(&self.dns, author(scanned.header()), &client.spf, &dkim, draw).await;
        Verification { client, dkim, arc, dmarc }
    }
}
