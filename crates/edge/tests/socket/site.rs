//! One edge with its listeners, and the domains it hosts.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail, ensure};
use domains::{Domains, SecretsWanted, load_folder};
use edge::config::{Kind, Limits, Listener};
use edge::{Config, Deps};
use proto::Disposition;
use tempfile::TempDir;
use testkit::corpus;
use testkit::smtp::Client;
use tls::{ServerTls, ServerTlsConfig};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::services::{FakeDelivery, FakeVerifier, Says};

const DOMAIN: &str = "apiVersion: mail.packetboat.dev/v1alpha1
kind: MailDomain
metadata: {name: here, namespace: mail}
spec:
  domain: here.test
  inbound:
    recipients: {addresses: [alice, bob]}
    route: {maildir: {path: mail}}
    maxMessageBytes: 20000
  submission: {usersSecretRef: {name: users}}
---
apiVersion: mail.packetboat.dev/v1alpha1
kind: MailDomain
metadata: {name: strict, namespace: mail}
spec:
  domain: strict.test
  inbound:
    recipients: {mode: AcceptAll}
    route: {maildir: {path: mail}}
    requireTLS: true
---
apiVersion: mail.packetboat.dev/v1alpha1
kind: MailDomain
metadata: {name: asked, namespace: mail}
spec:
  domain: asked.test
  inbound:
    recipients: {mode: Callout}
    route: {lmtp: {address: \"127.0.0.1:1\"}}
---
apiVersion: mail.packetboat.dev/v1alpha1
kind: MailDomain
metadata: {name: open, namespace: mail}
spec:
  domain: open.test
  inbound:
    recipients: {mode: AcceptAll}
    route: {maildir: {path: mail}}
";

pub(crate) const PASSWORD: &str = "open sesame";

pub(crate) struct Site {
    pub(crate) mx: SocketAddr,
    pub(crate) submission: SocketAddr,
    /// Like `mx`, behind a proxy on this machine.
    pub(crate) proxied: SocketAddr,
    /// Like `mx`, behind a proxy elsewhere.
    pub(crate) proxied_elsewhere: SocketAddr,
    pub(crate) stop: CancellationToken,
    pub(crate) verifier: Arc<FakeVerifier>,
    pub(crate) delivery: Arc<FakeDelivery>,
    _folder: TempDir,
    _stop: DropGuard,
}

impl Site {
    pub(crate) async fn start() -> Result<Self> {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(adjust: impl FnOnce(&mut Limits)) -> Result<Self> {
        // Whoever was first has installed it.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("domains.yaml"), DOMAIN)?;
        let secret = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: users, namespace: mail}}\nstringData: {{alice: \"{}\"}}\n",
            corpus::password_hash(PASSWORD)?
        );
        std::fs::write(folder.path().join("users.yaml"), secret)?;
        let wanted = SecretsWanted { submission_users: true, signing_keys: false };
        let domains = Domains::fixed(load_folder(folder.path(), wanted)?);
        let verifier = Arc::new(FakeVerifier {
            says: Mutex::new(Says::Verdict(Disposition::Deliver, None)),
            ends: Mutex::default(),
            signed: Mutex::default(),
        });
        let delivery = Arc::new(FakeDelivery::default());
        let mut limits = Limits::default();
        adjust(&mut limits);
        let listener = |name: &str, kind| Listener {
            name: name.to_owned(),
            kind,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            implicit_tls: false,
            proxies: Vec::new(),
        };
        let behind = |network: &str| -> Result<Listener> {
            Ok(Listener { proxies: vec![network.parse()?], ..listener(network, Kind::Mx) })
        };
        let config = Config {
            hostname: "mx.test".to_owned(),
            listeners: vec![
                listener("mx", Kind::Mx),
                listener("submission", Kind::Submission),
                behind("127.0.0.0/8")?,
                behind("192.0.2.0/24")?,
            ],
            limits,
        };
        let tls = ServerTls::load(&ServerTlsConfig::default(), folder.path(), "mx.test")?;
        let deps = Deps { domains, verifier: verifier.clone(), delivery: delivery.clone(), tls };
        let edge = edge::build(config, deps).await?;
        let addresses: Vec<SocketAddr> = edge.addresses().into_iter().map(|(_, address)| address).collect();
        let [mx, submission, proxied, proxied_elsewhere] = addresses[..] else { bail!("{addresses:?}") };
        let stop = CancellationToken::new();
        tokio::spawn(edge.run(stop.clone()));
        let _stop = stop.clone().drop_guard();
        Ok(Self {
            mx,
            submission,
            proxied,
            proxied_elsewhere,
            stop,
            verifier,
            delivery,
            _folder: folder,
            _stop,
        })
    }

    /// A greeted session at the `mx` listener.
    pub(crate) async fn client(&self) -> Result<Client> {
        let mut client = Client::connect(self.mx).await?;
        client.expect(250, "EHLO client.test").await?;
        Ok(client)
    }

    /// A session that waits for content: 354 was said.
    pub(crate) async fn in_data(&self) -> Result<Client> {
        let mut client = self.client().await?;
        client.expect(250, "MAIL FROM:<a@there.test>").await?;
        client.expect(250, "RCPT TO:<alice@here.test>").await?;
        client.expect(354, "DATA").await?;
        Ok(client)
    }

    pub(crate) fn stored(&self) -> Vec<crate::services::Stored> {
        self.delivery.stored.lock().unwrap().clone()
    }

    /// The one message that was stored.
    pub(crate) fn only_stored(&self) -> Result<crate::services::Stored> {
        let mut stored = self.stored();
        ensure!(stored.len() == 1, "{} messages were stored", stored.len());
        stored.pop().context("none")
    }
}
