//! A delivery service with a queue, domains and peers of its own.

mod counts;
mod faults;
mod signer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use delivery::outbound::{Outbound, OutboundConfig, PoolConfig};
use delivery::{Config, DeliveryService, Deps};
use message::QueueId;
use proto::accept_request::Frame;
use proto::{AcceptBegin, AcceptResponse, Commit, Delivery, Disposition, Envelope, ServiceError};
use queue::embedded::EmbeddedQueue;
use queue::{Entry, ListFilter, Queue};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use testkit::dns::DnsServer;
use testkit::maildir::Maildir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) use counts::Counts;
pub(crate) use faults::Faulty;
pub(crate) use signer::Signer;

/// How long a test waits for what should happen at once.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// What a test sets up before it starts a [`Site`].
pub(crate) struct Plan {
    pub(crate) config: Config,
    pub(crate) outbound: OutboundConfig,
    /// The MailDomains, as the YAML of their specs.
    pub(crate) domains: Vec<String>,
    /// The zone that the site's name server answers from.
    pub(crate) zone: String,
    pub(crate) signer: Signer,
}

/// A running delivery service.
pub(crate) struct Site {
    pub(crate) service: Arc<DeliveryService>,
    pub(crate) queue: Arc<Faulty>,
    folder: TempDir,
    _dns: DnsServer,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
    /// Builds the service, over the same queue.
    build: Box<dyn Fn() -> Result<Arc<DeliveryService>>>,
}

/// A message on its way into a site; a test may change what is wrong with it.
#[derive(Clone)]
pub(crate) struct Mail {
    pub(crate) id: QueueId,
    pub(crate) from: String,
    pub(crate) to: Vec<String>,
    pub(crate) content: Bytes,
    pub(crate) commit: Commit,
    /// The client has declared `BODY=8BITMIME SMTPUTF8`.
    pub(crate) declared_eight_bit: bool,
}

impl Default for Plan {
    fn default() -> Self {
        let mut config = Config { hostname: "mx.example.com".into(), ..Config::default() };
        config.retry.initial = Duration::from_millis(200);
        config.dispatch.poll = Duration::from_millis(100);
        config.dispatch.drain = Duration::from_millis(300);
        let outbound = OutboundConfig {
            hostname: "mx.example.com".into(),
            allow_loopback: true,
            pool: PoolConfig::default(),
            ..OutboundConfig::default()
        };
        Self { config, outbound, domains: Vec::new(), zone: String::new(), signer: Signer::default() }
    }
}

impl Plan {
    /// Hosts a domain by Maildir.
    pub(crate) fn maildir(mut self, domain: &str) -> Self {
        self.domains.push(format!(
            "domain: {domain}\ninbound: {{recipients: {{mode: AcceptAll}}, route: {{maildir: {{path: mail}}}}}}"
        ));
        self
    }

    /// Makes two peers at one port the mail exchangers of a domain, in this order.
    pub(crate) fn exchangers(self, domain: &str, peers: [std::net::SocketAddr; 2]) -> Self {
        let [first, second] = peers;
        let mut plan = self.exchanger(domain, first);
        let ip = second.ip();
        plan.zone.push_str(&format!("{domain}. 60 IN MX 20 mx2.{domain}.\nmx2.{domain}. 60 IN A {ip}\n"));
        plan
    }

    /// Hosts a domain behind an SMTP or LMTP server.
    pub(crate) fn behind(mut self, domain: &str, protocol: &str, server: std::net::SocketAddr) -> Self {
        self.domains.push(format!(
            "domain: {domain}\ninbound: {{recipients: {{mode: AcceptAll}}, route: {{{protocol}: {{address: \"{server}\"}}}}}}"
        ));
        self
    }

    /// Makes a peer the mail exchanger of a domain.
    pub(crate) fn exchanger(mut self, domain: &str, server: std::net::SocketAddr) -> Self {
        self.outbound.port = server.port();
        self.zone
            .push_str(&format!("{domain}. 60 IN MX 10 mx.{domain}.\nmx.{domain}. 60 IN A {}\n", server.ip()));
        self
    }

    pub(crate) async fn start(self) -> Result<Site> {
        let folder = tempfile::tempdir()?;
        let dns = DnsServer::start(&self.zone).await?;
        let mut config = self.config;
        config.base_folder = folder.path().to_owned();
        let shutdown = CancellationToken::new();
        let queue = EmbeddedQueue::open(&folder.path().join("queue"))?;
        let queue = Arc::new(Faulty::new(Arc::new(queue)));
        let resolver =
            dns::Resolver::new(dns::DnsConfig { servers: vec![dns.address()], ..Default::default() })?;
        let tls = tls::ClientTls::opportunistic(&Default::default())?;
        let domains = load(folder.path(), &self.domains, &shutdown).await?;
        let outbound = Outbound::new(self.outbound, resolver, tls);
        let (verifier, kept) = (Arc::new(self.signer), queue.clone());
        let build = move || {
            let (queue, verifier) = (kept.clone(), verifier.clone());
            let deps = Deps { queue, domains: domains.clone(), outbound: outbound.clone(), verifier };
            Ok(delivery::build(config.clone(), deps)?)
        };
        let service = build()?;
        let running = run(&service, &shutdown);
        Ok(Site { service, queue, folder, _dns: dns, shutdown, running, build: Box::new(build) })
    }
}

fn run(service: &Arc<DeliveryService>, shutdown: &CancellationToken) -> JoinHandle<()> {
    let (service, shutdown) = (service.clone(), shutdown.clone());
    tokio::spawn(async move { service.run(shutdown).await })
}

async fn load(folder: &Path, specs: &[String], shutdown: &CancellationToken) -> Result<domains::Domains> {
    let folder = folder.join("domains");
    std::fs::create_dir(&folder)?;
    for (number, spec) in specs.iter().enumerate() {
        declare(&folder, number, spec)?;
    }
    let wanted = domains::SecretsWanted { submission_users: false, signing_keys: false };
    Ok(domains::watch_folder(&folder, wanted, shutdown.clone()).await?)
}

fn declare(folder: &Path, number: usize, spec: &str) -> std::io::Result<()> {
    let spec = spec.replace('\n', "\n  ");
    let resource = format!(
        "apiVersion: mail.packetboat.dev/v1alpha1\nkind: MailDomain\n\
         metadata: {{name: domain-{number}}}\nspec:\n  {spec}\n"
    );
    std::fs::write(folder.join(format!("{number}.yaml")), resource)
}

impl Site {
    pub(crate) async fn accept(&self, mail: &Mail) -> Result<AcceptResponse, ServiceError> {
        let (sender, frames) = mpsc::channel(8);
        let stream = async {
            for frame in mail.frames() {
                // The service refuses by going away.
                if sender.send(frame).await.is_err() {
                    break;
                }
            }
            drop(sender);
        };
        tokio::join!(stream, self.service.accept(frames)).1
    }

    /// Accepts a message that must be taken.
    pub(crate) async fn deliver(&self, from: &str, to: &[&str], text: &str) -> Result<Mail> {
        let mail = Mail::new(from, to, text);
        let accepted = self.accept(&mail).await.context("accepting")?;
        ensure!(accepted.fresh, "accepted before");
        Ok(mail)
    }

    pub(crate) fn maildir(&self, domain: &str, local_part: &str) -> Maildir {
        Maildir::at(self.folder.path().join("mail").join(domain).join(local_part))
    }

    pub(crate) async fn entries(&self) -> Result<Vec<Entry>> {
        let page = self.queue.list(ListFilter { limit: 1000, ..ListFilter::default() }).await?;
        Ok(page.entries.into_iter().map(|(entry, _)| entry).collect())
    }

    /// Declares the first domain anew.
    pub(crate) fn redeclare(&self, spec: &str) -> Result<()> {
        Ok(declare(&self.folder.path().join("domains"), 0, spec)?)
    }

    /// Waits until nothing is queued.
    pub(crate) async fn settled(&self) -> Result<()> {
        testkit::wait::until_true("an empty queue", SOON, async || {
            self.entries().await.is_ok_and(|entries| entries.is_empty())
        })
        .await
    }

    /// Shuts down and waits for the end.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        self.shutdown.cancel();
        tokio::time::timeout(SOON, &mut self.running).await.context("the service does not end")??;
        Ok(())
    }
}

impl Site {
    /// Starts a service over the queue that the one before has left. Domains are no longer followed.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        self.shutdown = CancellationToken::new();
        self.service = (self.build)()?;
        self.running = run(&self.service, &self.shutdown);
        Ok(())
    }

    /// The only entry there is.
    pub(crate) async fn entry(&self) -> Result<Entry> {
        let mut entries = self.entries().await?;
        ensure!(entries.len() == 1, "{entries:?}");
        entries.pop().context("no entry")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Mail {
    pub(crate) fn new(from: &str, to: &[&str], text: &str) -> Self {
        let content = format!("From: <{from}>\r\nSubject: {text}\r\nMessage-ID: <1@test>\r\n\r\n{text}\r\n");
        Self::of(from, to, content.into())
    }

    pub(crate) fn of(from: &str, to: &[&str], content: Bytes) -> Self {
        let commit = Commit {
            size: content.len() as u64,
            sha256: Bytes::copy_from_slice(&Sha256::digest(&content)),
            prepend: Bytes::new(),
            cuts: Vec::new(),
            disposition: Disposition::Deliver.into(),
        };
        let to = to.iter().map(|recipient| (*recipient).to_owned()).collect();
        Self {
            id: QueueId::generate(),
            from: from.to_owned(),
            to,
            content,
            commit,
            declared_eight_bit: false,
        }
    }

    pub(crate) fn begin(&self) -> Frame {
        Frame::Begin(AcceptBegin {
            queue_id: self.id.to_string(),
            envelope: Some(Envelope {
                reverse_path: self.from.clone(),
                forward_paths: self.to.clone(),
                smtputf8: self.declared_eight_bit,
                eight_bit: self.declared_eight_bit,
                user: String::new(),
                origin: proto::Origin::Mx.into(),
            }),
            declared_size: 0,
        })
    }

    fn frames(&self) -> Vec<Frame> {
        let mut frames = vec![self.begin()];
        let mut rest = self.content.clone();
        while !rest.is_empty() {
            frames.push(Frame::Chunk(rest.split_to(rest.len().min(proto::CHUNK_SIZE))));
        }
        frames.push(Frame::Commit(self.commit.clone()));
        frames
    }
}
