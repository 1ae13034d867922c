//! The sections of the file, one after the other.

use std::net::SocketAddr;
use std::path::{Path as FilePath, PathBuf};

use domains::Namespaces;
use edge::config::{Kind, Listener};
use edge::proxy::Network;
use serde::Deserialize;
use tls::PeerTlsConfig;

use super::document::{Node, Path};
use super::reader::{Reader, section};
use super::{ADMIN, DomainSource, Settings, Wire};

/// The keys of `verifier` and `delivery` that say how the service is reached.
const WIRE: &[&str] = &["endpoint", "endpoints", "listen", "connection_age"];
/// The same for delivery, with a key whose place is elsewhere.
const DELIVERY: &[&str] = &["endpoint", "endpoints", "listen", "connection_age", "retry"];

/// How long a connection between services lives unless told otherwise.
const CONNECTION_AGE: std::time::Duration = std::time::Duration::from_secs(300);

/// A message may be on its way into the queue for this long, and must not be taken for an orphan.
const SHORTEST_ORPHAN_AGE: std::time::Duration = std::time::Duration::from_secs(3600);

/// Where the queue is kept.
#[derive(Debug, Clone, Default)]
pub(crate) struct QueueSettings {
    /// What keeps it.
    pub(crate) backend: Backend,
    /// The server, for the backend `redis`.
    pub(crate) redis: queue::redis::Config,
    /// Where the contents of messages lie, when not in the queue itself.
    pub(crate) spool: Option<queue::spool::Config>,
}

/// What keeps the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Backend {
    /// A folder of this machine.
    #[default]
    Embedded,
    /// A Redis server that several processes share.
    Redis,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListenerSettings {
    name: Option<String>,
    kind: Option<KindSetting>,
    address: Option<SocketAddr>,
    #[serde(default)]
    tls: TlsStart,
    proxy_protocol: Option<ProxyProtocol>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KindSetting {
    Mx,
    Submission,
}

/// A duration as people write it.
#[derive(Deserialize)]
struct Age(
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")] std::time::Duration,
);

/// When TLS begins.
#[derive(Default, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum TlsStart {
    #[default]
    Starttls,
    Implicit,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProxyProtocol {
    #[serde(default)]
    trusted: Vec<NetworkSetting>,
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct NetworkSetting(Network);

impl TryFrom<String> for NetworkSetting {
    type Error = edge::proxy::NetworkError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct DomainsSettings {
    folder: Option<PathBuf>,
    kubernetes: Option<KubernetesSettings>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct KubernetesSettings {
    namespace: Option<String>,
    namespaces: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct QueueSection {
    backend: Backend,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AdminSettings {
    address: Option<SocketAddr>,
}

/// Reads all sections. What is missing or wrong is noted, and its default taken instead.
pub(super) fn read(reader: &mut Reader, file: &FilePath) -> Settings {
    let base = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    let hostname = hostname(reader);
    let data_dir = reader.value::<PathBuf>(&Path::of("data_dir")).unwrap_or_else(|| "data".into());
    let domains = domains(reader, &base);
    let mut dns: dns::DnsConfig = reader.section(&section("dns", &[]));
    dns.trust_anchor = dns.trust_anchor.map(|path| base.join(path));
    let mut tls: tls::ServerTlsConfig = reader.section(&section("tls", &["peer"]));
    tls.certificate = tls.certificate.map(|path| base.join(path));
    tls.key = tls.key.map(|path| base.join(path));
    let mut outbound: delivery::outbound::OutboundConfig =
        reader.section(&section("outbound", &["retry", "tls"]));
    outbound.hostname.clone_from(&hostname);
    let mut operator: operator::Config = reader.section(&section("operator", &[]));
    operator.mta_sts.fetch.authorities = operator.mta_sts.fetch.authorities.map(|path| base.join(path));
    operator.mta_sts.fetch.ehlo.clone_from(&hostname);
    let mut mta_sts: mta_sts::ServerConfig = reader.section(&section("mta_sts", &[]));
    for files in &mut mta_sts.certificates {
        files.certificate = base.join(&files.certificate);
        files.key = base.join(&files.key);
    }
    let mut verifier: verifier::Config = reader.section(&section("verifier", WIRE));
    verifier.authserv_id.clone_from(&hostname);
    if verifier.auth.dns_servers.is_empty() {
        verifier.auth.dns_servers.clone_from(&dns.servers);
    }
    Settings {
        file: file.to_owned(),
        document: Node::default(),
        data_dir: base.join(data_dir),
        domains,
        dns,
        listeners: listeners(reader),
        edge: reader.section(&section("edge", &[])),
        tls,
        peer_tls: peer_tls(reader, &base),
        queue: queue(reader),
        outbound,
        outbound_tls: reader.section(&section("outbound.tls", &[])),
        verifier_wire: wire(reader, "verifier"),
        verifier,
        delivery_wire: wire(reader, "delivery"),
        delivery: delivery(reader, &hostname, base),
        operator,
        mta_sts,
        admin: admin(reader),
        telemetry: telemetry(reader),
        hostname,
    }
}

/// Logs, traces and metrics.
pub(super) fn telemetry(reader: &mut Reader) -> telemetry::Config {
    reader.section(&section("telemetry", &[]))
}

/// Where the admin server listens.
pub(super) fn admin(reader: &mut Reader) -> SocketAddr {
    reader.section::<AdminSettings>(&section("admin", &[])).address.unwrap_or(ADMIN)
}

fn hostname(reader: &mut Reader) -> String {
    let path = Path::of("hostname");
    let given = reader.value::<String>(&path);
    match given.as_deref().map(|name| (name, name.parse())) {
        Some((_, Ok(smtp::Domain::Name(name)))) => return name,
        Some((name, _)) => {
            reader.problem(&path, format!("{name:?} is not a host name such as mx.example.org"))
        }
        None if !reader.has(&path) => reader.problem(
            &path,
            "the key is missing: it is the name of this server to others, as in hostname: mx.example.org",
        ),
        None => {}
    }
    // Never used: a problem was noted.
    "localhost".to_owned()
}

fn domains(reader: &mut Reader, base: &FilePath) -> DomainSource {
    let path = Path::of("domains");
    let settings: DomainsSettings = reader.section(&section("domains", &[]));
    match (settings.folder, settings.kubernetes) {
        (Some(_), Some(_)) => {
            reader.problem(
                &path,
                "MailDomains come either from a folder or from Kubernetes: keep one of the two",
            );
        }
        (Some(folder), None) => return DomainSource::Folder(base.join(folder)),
        (None, Some(settings)) => return DomainSource::Kubernetes(namespaces(reader, settings)),
        (None, None)
            if !reader.has(&Path::of("domains.folder")) && !reader.has(&Path::of("domains.kubernetes")) =>
        {
            let text = "where MailDomains come from is missing: write domains: {folder: DIR}, or \
                domains: {kubernetes: {}} in a cluster";
            reader.problem(&path, text);
        }
        (None, None) => {}
    }
    DomainSource::Folder(PathBuf::new())
}

fn namespaces(reader: &mut Reader, settings: KubernetesSettings) -> Namespaces {
    let path = Path::of("domains.kubernetes.namespaces");
    match (settings.namespace, settings.namespaces) {
        (None, None) => Namespaces::All,
        (Some(one), None) => Namespaces::These(vec![one]),
        (Some(_), Some(_)) => {
            reader.problem(&path, "write namespace for one, or namespaces for several, not both");
            Namespaces::All
        }
        (None, Some(mut names)) => {
            if names.is_empty() {
                reader.problem(
                    &path,
                    "name at least one namespace, or leave the key out for all of the cluster",
                );
            }
            names.sort();
            names.dedup();
            Namespaces::These(names)
        }
    }
}

fn listeners(reader: &mut Reader) -> Vec<Listener> {
    let path = Path::of("listeners");
    let count = reader.list(&path);
    (0..count).filter_map(|index| listener(reader, &path.clone().index(index))).collect()
}

fn listener(reader: &mut Reader, path: &Path) -> Option<Listener> {
    let settings: ListenerSettings = reader.value(path)?;
    let missing = |reader: &mut Reader, key: &str, wanted: &str| {
        let at = path.clone().key(key);
        if !reader.has(&at) {
            reader.problem(&at, format!("the key is missing: {wanted}"));
        }
    };
    if settings.name.is_none() {
        missing(reader, "name", "give the listener a name for logs and metrics, as in name: mx");
    }
    if settings.kind.is_none() {
        missing(
            reader,
            "kind",
            "write kind: mx for mail from other servers, kind: submission for mail from users",
        );
    }
    if settings.address.is_none() {
        missing(reader, "address", "say where it listens, as in address: \"0.0.0.0:25\"");
    }
    let proxies = settings.proxy_protocol.map(|proxy| {
        if proxy.trusted.is_empty() && !reader.has(&path.clone().key("proxy_protocol").key("trusted")) {
            let text = "list the networks of the proxies, as in trusted: [\"10.0.0.0/8\"]: their word on the client's address is believed";
            reader.problem(&path.clone().key("proxy_protocol"), text);
        }
        proxy.trusted.into_iter().map(|NetworkSetting(network)| network).collect()
    });
    Some(Listener {
        name: settings.name?,
        kind: match settings.kind? {
            KindSetting::Mx => Kind::Mx,
            KindSetting::Submission => Kind::Submission,
        },
        address: settings.address?,
        implicit_tls: settings.tls == TlsStart::Implicit,
        proxies: proxies.unwrap_or_default(),
    })
}

fn peer_tls(reader: &mut Reader, base: &FilePath) -> Option<PeerTlsConfig> {
    let path = Path::of("tls.peer");
    let mut config: PeerTlsConfig = reader.value(&path)?;
    for key in ["certificate", "key", "authority"] {
        let at = path.clone().key(key);
        if !reader.has(&at) {
            reader.problem(
                &at,
                "the key is missing: TLS between services needs certificate, key and authority",
            );
        }
    }
    for file in [&mut config.certificate, &mut config.key, &mut config.authority] {
        *file = base.join(&*file);
    }
    Some(config)
}

fn queue(reader: &mut Reader) -> QueueSettings {
    let section_of_queue: QueueSection = reader.section(&section("queue", &["redis", "spool"]));
    let redis: queue::redis::Config = reader.section(&section("queue.redis", &[]));
    let spool = spool(reader, section_of_queue.backend);
    QueueSettings { backend: section_of_queue.backend, redis, spool }
}

/// `inline`, or an object store; that needs a queue which several processes can share.
fn spool(reader: &mut Reader, backend: Backend) -> Option<queue::spool::Config> {
    let path = Path::of("queue.spool");
    let object_store = Path::of("queue.spool.object_store");
    if !reader.has(&object_store) {
        if reader.has(&path) && reader.value::<serde_json::Value>(&path).is_none_or(|kind| kind != "inline") {
            reader.problem(
                &path,
                "write spool: inline, or spool: {object_store: {url: \"s3://bucket/prefix\"}}",
            );
        }
        return None;
    }
    let mut config: queue::spool::Config = reader.section(&section("queue.spool.object_store", &[]));
    if !["s3://", "gs://", "az://", "file:///"].iter().any(|scheme| config.url.starts_with(scheme)) {
        reader.problem(
            &object_store.clone().key("url"),
            "write s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///folder",
        );
    }
    if config.orphan_age < SHORTEST_ORPHAN_AGE {
        reader.problem(&object_store.key("orphan_age"), "it has to be 1h or longer");
    }
    if backend != Backend::Redis {
        reader.problem(&path, "an object store is for queue.backend: redis; the embedded queue is its own");
    }
    let clouds = ["AWS_", "GOOGLE_", "AZURE_"];
    let variables =
        std::env::vars_os().filter_map(|(name, value)| name.into_string().ok().zip(value.into_string().ok()));
    config.environment =
        variables.filter(|(name, _)| clouds.iter().any(|cloud| name.starts_with(cloud))).collect();
    Some(config)
}

fn wire(reader: &mut Reader, service: &str) -> Wire {
    let path = Path::of(service);
    let one = path.clone().key("endpoint");
    let several = path.clone().key("endpoints");
    if reader.has(&one) && reader.has(&several) {
        reader.problem(&several, "write endpoint for one, or endpoints for several, not both");
    }
    let mut endpoints: Vec<String> = reader.value(&several).unwrap_or_default();
    endpoints.extend(reader.value::<String>(&one));
    let age: Option<Age> = reader.value(&path.clone().key("connection_age"));
    let connection_age = age.map_or(CONNECTION_AGE, |Age(age)| age);
    Wire { endpoints, listen: reader.value(&path.key("listen")), connection_age }
}

fn delivery(reader: &mut Reader, hostname: &str, base: PathBuf) -> delivery::Config {
    let mut config: delivery::Config = reader.section(&section("delivery", DELIVERY));
    let misplaced = Path::of("delivery.retry");
    if reader.has(&misplaced) {
        reader.problem(&misplaced, "write this under outbound.retry");
    }
    config.retry = reader.section(&section("outbound.retry", &[]));
    config.hostname = hostname.to_owned();
    config.base_folder = base;
    config
}
