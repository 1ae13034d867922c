//! All methods together.

use message::author::author;
use tracing::field::Empty;
use tracing::{Instrument, Span, info_span, record_all};

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
        let spf = async {
            let check = client::spf(&self.dns, &client).await;
            record_all!(
                Span::current(),
                mail.auth.spf.result = check.result.as_str(),
                mail.domain = check.domain.as_deref()
            );
            check
        };
        let (spf, iprev) = tokio::join!(
            spf.instrument(info_span!("spf", mail.domain = Empty, mail.auth.spf.result = Empty)),
            client::iprev(&self.dns, client.ip),
        );
        ClientCheck { spf, iprev }
    }

    /// Checks what the message claims: DKIM and ARC, then DMARC. It ends within the deadlines of the
    /// settings; what the DNS did not answer by then is a temporary error.
    pub async fn verify(&self, client: ClientCheck, scanned: &Scanned) -> Verification {
        let (dkim, arc) = tokio::join!(self.verify_dkim(scanned), self.verify_arc(scanned));
        let draw = rand::random_range(0..100);
        let span = info_span!("dmarc", mail.domain = Empty, mail.auth.dmarc.result = Empty);
        let dmarc = dmarc::verify(&self.dns, author(scanned.header()), &client.spf, &dkim, draw);
        let dmarc = dmarc.instrument(span.clone()).await;
        record_all!(
            span,
            mail.auth.dmarc.result = dmarc.result.as_str(),
            mail.domain = dmarc.domain.as_deref()
        );
        Verification { client, dkim, arc, dmarc }
    }

    async fn verify_dkim(&self, scanned: &Scanned) -> Vec<DkimCheck> {
        if scanned.header().named("DKIM-Signature").next().is_none() {
            return Vec::new();
        }
        let span = info_span!(
            "dkim",
            mail.auth.dkim.signatures = Empty,
            mail.auth.dkim.result = Empty,
            mail.domain = Empty
        );
        let checks = dkim::verify(&self.dns, scanned, self.max_signatures).instrument(span.clone()).await;
        let telling = checks.iter().find(|check| check.vouches()).or(checks.first());
        record_all!(
            span,
            mail.auth.dkim.signatures = checks.len(),
            mail.auth.dkim.result = telling.map_or("none", |check| check.result.as_str()),
            mail.domain = telling.map(|check| check.domain.as_str())
        );
        checks
    }

    async fn verify_arc(&self, scanned: &Scanned) -> ArcCheck {
        if scanned.header().named("ARC-Seal").next().is_none() {
            return arc::verify(&self.dns, scanned).await;
        }
        let span = info_span!("arc", mail.auth.arc.sets = Empty, mail.auth.arc.result = Empty);
        let check = arc::verify(&self.dns, scanned).instrument(span.clone()).await;
        record_all!(span, mail.auth.arc.sets = check.sets, mail.auth.arc.result = check.result.as_str());
        check
    }
}
