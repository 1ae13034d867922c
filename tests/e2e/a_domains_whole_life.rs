//! A domain's whole life, while a user sends mail without a pause: declared, keys made and published, seen at both
//! name servers (one of them late), signing; rotated by schedule, revoked, deleted with each policy. Edge, verifier,
//! delivery and operator are processes of their own with the chart's service accounts. Each message is verified by
//! dkimpy with what both name servers say, when it arrives and again after the keys have changed.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use packetboat_tests::accounts;
use packetboat_tests::estate::{DOMAIN, Estate, STEP};
use packetboat_tests::witness::{Times, Witness};
use packetboat_tests::world::{PASSWORD, REMOTE, at, submit_as};
use testkit::bind::SECRET;
use testkit::corpus::{Message, header_of, password_hash};
use testkit::dkim::{Judge, Signature};
use testkit::process::{Packetboat, Role, Settings};
use testkit::redis::RedisServer;
use testkit::smtp::Sink;
use testkit::wait;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Seconds by which the secondary lags.
const LAG: u32 = 3;
const TIMES: Times = Times { min_propagation: Duration::from_secs(3), retire_after: Duration::from_secs(20) };
/// A quarter of a year in half a minute.
const INTERVAL: &str = "30s";
/// Between two messages.
const PAUSE: Duration = Duration::from_millis(250);

const SPEC: &str = "\
\x20 inbound: {recipients: {mode: List, addresses: [alice]}, route: {maildir: {path: mail}}}
  submission: {usersSecretRef: {name: users}}
  dkim: {algorithms: [rsa-sha256, ed25519-sha256], rotation: {interval: INTERVAL, minPropagation: 3s, retireAfter: 20s, revokeFor: 5s}}
  mx: [{host: mx.example.test, preference: 10}]
  spf: {mechanisms: [mx], all: -all}
  dmarc: {policy: reject}
  tlsRpt: {rua: [\"mailto:t@example.test\"]}";

/// All processes of a small cluster.
struct Processes {
    edge: (Settings, Packetboat),
    verifier: Packetboat,
    delivery: Packetboat,
    operator: Packetboat,
    _redis: RedisServer,
}

impl Processes {
    async fn start(estate: &Estate, sink: &Sink) -> Result<Self> {
        let redis = RedisServer::start().await?;
        let base = estate.site.settings(Role::All)?;
        let settings = async |role: Role, account: &str| -> Result<Settings> {
            let mut settings = estate.site.settings(role)?;
            settings.kubeconfig = Some(accounts::kubeconfig(&estate.api, account).await?);
            settings.namespaces = vec![accounts::NAMESPACE.to_owned()];
            settings.redis = Some(redis.url());
            settings.outbound_port = sink.address().port();
            (settings.verifier, settings.delivery) = (base.verifier, base.delivery);
            Ok(settings)
        };
        let verifier = estate.site.start(&settings(Role::Verifier, "verifier").await?).await?;
        let delivery = estate.site.start(&settings(Role::Delivery, "delivery").await?).await?;
        let edge = settings(Role::Edge, "edge").await?;
        let edge_process = estate.site.start(&edge).await?;
        let mut operator = settings(Role::Operator, "operator").await?;
        let (lease, namespace) = (accounts::LEASE, accounts::NAMESPACE);
        operator.extra =
            format!("operator: {{lease_duration: 5s, lease_name: {lease}, lease_namespace: {namespace}}}\n");
        let operator = estate.site.start(&operator).await?;
        Ok(Self { edge: (edge, edge_process), verifier, delivery, operator, _redis: redis })
    }

    fn logs(&self) -> String {
        let all = [&self.edge.1, &self.verifier, &self.delivery, &self.operator];
        all.map(Packetboat::log).concat()
    }
}

/// Alice sends without a pause.
struct Stream {
    stop: CancellationToken,
    task: JoinHandle<Result<usize>>,
}

impl Stream {
    fn start(edge: &Settings, name: &str) -> Self {
        let (stop, edge, name) = (CancellationToken::new(), edge.clone(), name.to_owned());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut sent = 0;
            while !stopped.is_cancelled() {
                submit(&edge, &format!("{name}-{sent}")).await.with_context(|| format!("message {sent}"))?;
                sent += 1;
                sleep(PAUSE).await;
            }
            Ok(sent)
        });
        Self { stop, task }
    }

    /// Ends it; how many messages there were, each accepted.
    async fn end(self) -> Result<usize> {
        self.stop.cancel();
        self.task.await?
    }
}

async fn submit(edge: &Settings, id: &str) -> Result<()> {
    let (alice, carol) = (at("alice", DOMAIN), at("carol", REMOTE));
    let reply = submit_as(edge, &alice, &[&carol], &Message::new(&alice, &carol, id).text()).await?;
    ensure!(reply.code == 250, "{reply}");
    Ok(())
}

/// Verifies what arrives.
struct Court {
    judge: Judge,
    /// Messages of the sink that were judged already.
    judged: usize,
    /// Selectors that signed, in the order of their first message.
    selectors: Vec<String>,
}

impl Court {
    /// Judges what has arrived since: both signatures of each message verify with the keys of both name servers.
    async fn sit(&mut self, estate: &Estate, sink: &Sink) -> Result<()> {
        let received = sink.received();
        for message in &received[self.judged.min(received.len())..] {
            for signature in self.verify(estate, &message.message).await? {
                ensure!(signature.valid, "{signature:?}\n{}", message.message);
                if !self.selectors.contains(&signature.selector) {
                    self.selectors.push(signature.selector);
                }
            }
        }
        self.judged = received.len();
        Ok(())
    }

    /// What both name servers' keys say of a message: the signatures of the second, once both agree.
    async fn verify(&mut self, estate: &Estate, message: &str) -> Result<Vec<Signature>> {
        let primary = self.judge.verify(message, estate.bind.primary()).await?;
        let secondary = self.judge.verify(message, estate.bind.secondary()).await?;
        ensure!(primary == secondary, "the name servers do not agree: {primary:?}, {secondary:?}\n{message}");
        let algorithms: BTreeSet<&str> = primary.iter().map(|one| one.algorithm.as_str()).collect();
        ensure!(algorithms.len() == 2, "a signature is missing: {primary:?}\n{message}");
        ensure!(primary.iter().all(|one| one.domain == DOMAIN), "{primary:?}");
        Ok(primary)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn from_declaration_to_deletion_under_load() -> Result<()> {
    let estate = Estate::lagging(LAG).await?;
    let sink = Sink::smtp().await?;
    estate.dns.add("remote.test. 300 IN MX 10 mx.remote.test.\nmx.remote.test. 300 IN A 127.0.0.1\n")?;
    accounts::make(&estate.api, &["domains.usersSecrets={users}"]).await?;
    let user = format!("--from-literal=alice={}", password_hash(PASSWORD)?);
    estate.mail(&["create", "secret", "generic", "users", &user]).await?;
    let processes = Processes::start(&estate, &sink).await?;
    let witness = estate.witness(TIMES).await?;
    let mut court = Court { judge: Judge::start()?, judged: 0, selectors: Vec::new() };

    becomes_ready(&estate, &processes).await?;
    let stream = Stream::start(&processes.edge.0, "steady");
    is_rotated(&estate, &witness, &sink, &mut court).await?;
    is_revoked(&estate, &witness, &sink, &mut court).await?;
    let sent = stream.end().await?;
    let all = async || sink.count() >= sent;
    wait::until_true("all mail to arrive", STEP, all).await?;
    court.sit(&estate, &sink).await?;
    ensure!(sent >= 100, "only {sent} messages were sent");
    witness.judge()?;

    is_deleted_by_each_policy(&estate, &processes, &sink, &mut court).await?;
    nothing_secret_is_told(&estate, &witness, &processes.logs()).await
}

/// Declared: `kubectl` tells the whole story.
async fn becomes_ready(estate: &Estate, processes: &Processes) -> Result<()> {
    let yaml = estate.mail_domain(&SPEC.replace("INTERVAL", INTERVAL));
    let yaml = yaml.replace("    rfc2136:", "    records: {mx: Manage, spf: Manage}\n    rfc2136:");
    estate.api.apply(&yaml).await?;
    let command = ["wait", "--for=condition=Ready", "mdom/example", "--timeout=15s"];
    let waited = async || estate.mail(&command).await.is_ok();
    wait::until_true("kubectl wait to see it ready", STEP * 2, waited)
        .await
        .with_context(|| processes.operator.log())?;
    estate.wait_for("DNSVerified", "True", "Verified").await?;
    let active = estate.active().await?;
    let table = estate.mail(&["get", "mdom"]).await?;
    for word in ["DOMAIN", "READY", "DKIM", "DNS", "REASON", DOMAIN, "True", "RFC2136", &active[0]] {
        ensure!(table.contains(word), "{word} is not told: {table}");
    }
    let description = estate.mail(&["describe", "mdom", "example"]).await?;
    let stages = ["was made", "is Publishing", "is Propagating", "is Active"];
    let told: Vec<String> =
        active.iter().flat_map(|key| stages.map(|stage| format!("the key {key} {stage}"))).collect();
    let words =
        ["KeyGenerated", "KeyStage", "_dmarc.example.test", "Verified", "the spec can be worked with"];
    for word in words.into_iter().chain(told.iter().map(String::as_str)) {
        ensure!(description.contains(word), "{word} is not told: {description}");
    }
    // What signs is known to the verifier a moment later.
    let signs = async || submit(&processes.edge.0, "first").await.is_ok();
    wait::until_true("the first message to be taken", STEP, signs).await
}

/// By schedule: every message verifies, those that were signed just before, too.
async fn is_rotated(estate: &Estate, witness: &Witness, sink: &Sink, court: &mut Court) -> Result<()> {
    let first: Vec<String> = witness.in_stage("Active");
    ensure!(first.len() == 2, "{first:?}");
    let rotated = async || {
        if let Err(error) = court.sit(estate, sink).await {
            return Some(Err(error));
        }
        let seen = court.selectors.iter().filter(|selector| !first.contains(selector)).count();
        let silent = first.iter().all(|selector| witness.in_stage("Retiring").contains(selector));
        (seen >= 2 && silent).then_some(Ok(()))
    };
    wait::until("mail that is signed by other keys", STEP * 3, rotated)
        .await
        .with_context(|| witness.story())??;
    estate.patch("{\"spec\":{\"dkim\":{\"rotation\":{\"interval\":\"1h\"}}}}").await?;
    let mut of_former = 0;
    for message in sink.received() {
        let signatures = court.verify(estate, &message.message).await?;
        ensure!(signatures.iter().all(|one| one.valid), "signed before, and verified now: {signatures:?}");
        of_former += usize::from(signatures.iter().any(|one| first.contains(&one.selector)));
    }
    ensure!(of_former > 20, "{of_former} messages were signed by the former keys");
    witness.wait_for("Gone", STEP * 2, |selector| first.contains(&selector.to_owned())).await?;
    court.sit(estate, sink).await
}

/// Revoked: another key takes its place first, and what it signs is worth nothing any more.
async fn is_revoked(estate: &Estate, witness: &Witness, sink: &Sink, court: &mut Court) -> Result<()> {
    let bad = estate.active().await?.first().cloned().context("a key")?;
    court.sit(estate, sink).await?;
    estate.annotate(&format!("revoke={bad}")).await?;
    witness.wait_for("Revoked", STEP * 2, |selector| selector == bad).await?;
    let shown = async || {
        let record = estate.record("TXT", &format!("{bad}._domainkey.{DOMAIN}")).await;
        record.is_ok_and(|record| record.trim() == "\"v=DKIM1; p=\"")
    };
    wait::until_true("the revocation at both name servers", STEP, shown).await?;
    let from = sink.count();
    // Mail that is on its way still may be of before.
    let next = async || sink.count() >= from + 10;
    wait::until_true("more mail", STEP, next).await?;
    let received = sink.received();
    for message in received.iter().take(from + 5).skip(court.judged) {
        let signatures = court.verify(estate, &message.message).await?;
        ensure!(signatures.iter().any(|one| one.valid), "{signatures:?}");
    }
    for message in received.iter().skip(from + 5) {
        let signatures = court.verify(estate, &message.message).await?;
        ensure!(signatures.iter().all(|one| one.valid && one.selector != bad), "{signatures:?}");
    }
    let signed = received.iter().rev().find(|one| one.message.contains(&format!("s={bad};")));
    let signed = signed.context("a message of the revoked key")?;
    let verdict = court.judge.verify(&signed.message, estate.bind.primary()).await?;
    ensure!(verdict.iter().any(|one| one.selector == bad && !one.valid), "{verdict:?}");
    // What arrived in between was judged by its other signatures; from here on all count again.
    court.judged = received.len();
    estate.annotate("revoke-").await
}

/// Retained, keys and records stay, and the next object takes them over; deleted, they go, and nothing else.
async fn is_deleted_by_each_policy(
    estate: &Estate,
    processes: &Processes,
    sink: &Sink,
    court: &mut Court,
) -> Result<()> {
    let signing: BTreeSet<String> = estate.active().await?.into_iter().collect();
    estate.mail(&["delete", "mdom", "example", "--timeout=18s"]).await?;
    ensure!(estate.key_secrets().await?.len() >= 2, "the keys went with their domain");
    let refused = async || submit(&processes.edge.0, "nobody").await.is_err();
    wait::until_true("the domain to be gone at the edge", STEP, refused).await?;
    for selector in &signing {
        let record = estate.record("TXT", &format!("{selector}._domainkey.{DOMAIN}")).await?;
        ensure!(record.contains("v=DKIM1; k="), "a record is gone: {record}");
    }
    let owner = estate.bind.texts(estate.bind.primary(), &format!("_packetboat.{DOMAIN}")).await?;
    ensure!(owner.len() == 1, "{owner:?}");

    // The owner's record names the object that is gone: a person gives it away.
    estate.bind.by_hand(&format!("update delete _packetboat.{DOMAIN} TXT")).await?;
    let yaml = estate.mail_domain(&format!("{}\n  deletionPolicy: Delete", SPEC.replace("INTERVAL", "1h")));
    estate.api.apply(&yaml).await?;
    estate.wait_for("Ready", "True", "Ready").await?;
    let now: BTreeSet<String> = estate.active().await?.into_iter().collect();
    ensure!(now == signing, "the keys were not taken over: {now:?} for {signing:?}");
    let before = sink.count();
    let signs = async || submit(&processes.edge.0, "again").await.is_ok();
    wait::until_true("mail to be taken again", STEP, signs).await?;
    let arrived = async || sink.count() > before;
    wait::until_true("mail to arrive again", STEP, arrived).await?;
    court.sit(estate, sink).await?;

    estate.mail(&["delete", "mdom", "example", "--timeout=18s"]).await?;
    ensure!(estate.key_secrets().await?.is_empty(), "keys are left");
    let gone = async || {
        let mut left = 0;
        for name in signing
            .iter()
            .map(|selector| format!("{selector}._domainkey"))
            .chain(["_dmarc".to_owned(), "_packetboat".to_owned()])
        {
            left += estate.record("TXT", &format!("{name}.{DOMAIN}")).await.map_or(1, |record| record.len());
        }
        left == 0
    };
    wait::until_true("the records to go", STEP, gone).await?;
    let apex = estate.record("TXT", DOMAIN).await?;
    ensure!(apex.contains("google-site-verification=theirs"), "what belongs to others is gone: {apex}");
    let last = sink.received();
    ensure!(last.iter().all(|one| header_of(&one.message, "DKIM-Signature").is_some()));
    Ok(())
}

/// No private key and no TSIG secret is in any log, event, status or ConfigMap of it all.
async fn nothing_secret_is_told(estate: &Estate, witness: &Witness, logs: &str) -> Result<()> {
    let mut told = vec![("the logs", logs.to_owned())];
    for kind in ["events", "configmaps", "maildomains"] {
        told.push((kind, estate.api.kubectl(&["get", kind, "-A", "-o", "yaml"], None).await?));
    }
    let keys = witness.private_keys();
    ensure!(keys.len() >= 5, "{} private keys were seen", keys.len());
    for (place, text) in &told {
        ensure!(!text.contains("PRIVATE KEY"), "a private key is in {place}");
        ensure!(!text.contains(SECRET), "the TSIG secret is in {place}");
        for key in &keys {
            let pem = String::from_utf8(STANDARD.decode(key)?)?;
            // What comes first is the public key's, too, in RSA.
            let lines: Vec<&str> = pem.lines().filter(|line| !line.starts_with('-')).collect();
            let part = lines.iter().rev().find(|line| line.len() == 64).context("a private key")?;
            ensure!(!text.contains(part) && !text.contains(key), "part of a private key is in {place}");
        }
    }
    ensure!(!logs.contains("panicked"), "{logs}");
    Ok(())
}
