//! What roles are put together from.

use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::Duration;

use admin::{Admin, Check};
use anyhow::{Context, Result, ensure};
use delivery::outbound::Outbound;
use delivery::{DeliveryService, Deps};
use domains::{Domains, SecretsWanted, ServedPolicy, watch_cluster, watch_folder};
use mta_sts::{Policies, PolicyServer};
use operator::record::declared_policy;
use proto::client::Peers;
use proto::server::GrpcServer;
use proto::{Delivery, Verifier};
use queue::Queue;
use queue::embedded::EmbeddedQueue;
use queue::redis::RedisQueue;
use queue::spool::{Index, SpooledQueue};
use tls::{PeerRole, PeerTls, ServerTls};

use crate::services::Process;
use crate::settings::{Backend, DomainSource, Settings, Wire};

/// How long calls in flight may go on when a gRPC server stops.
pub(super) const GRPC_LIMIT: Duration = Duration::from_secs(30);
/// How long requests in flight may go on when the admin server stops.
pub(super) const ADMIN_LIMIT: Duration = Duration::from_secs(2);
/// What a service gets beyond the drain time of its own settings.
const MARGIN: Duration = Duration::from_secs(10);

/// How long a service may take to stop that drains for so long by itself.
pub(super) fn limit(drain: Duration) -> Duration {
    drain + MARGIN
}

/// The hosted domains, followed while they change.
pub(super) async fn domains(
    settings: &Settings,
    wanted: SecretsWanted,
    process: &Process,
) -> Result<Domains> {
    let shutdown = process.background.clone();
    let context = "the MailDomains cannot be used (domains)";
    match &settings.domains {
        DomainSource::Folder(folder) => watch_folder(folder, wanted, shutdown).await.context(context),
        DomainSource::Kubernetes(namespaces) => {
            let require_ownership = settings.operator.require_ownership;
            watch_cluster(namespaces, wanted, require_ownership, shutdown).await.context(context)
        }
    }
}

/// The queue, ready for use.
pub(super) async fn open_queue(settings: &Settings) -> Result<Arc<dyn Queue>> {
    match settings.queue.backend {
        Backend::Embedded => {
            make_data_dir(settings)?;
            let folder = settings.data_dir.join("queue");
            let shown = folder.display().to_string();
            let opened = tokio::task::spawn_blocking(move || EmbeddedQueue::open(&folder)).await?;
            let queue = opened.with_context(|| {
                format!("the queue in {shown} cannot be opened; only one process may use it (data_dir)")
            })?;
            Ok(Arc::new(queue))
        }
        Backend::Redis => {
            let index: Arc<dyn Index> = Arc::new(connect_index(settings).await?);
            match &settings.queue.spool {
                Some(spool) => {
                    let queue = SpooledQueue::open(index, spool).await;
                    Ok(Arc::new(queue.context("the queue cannot be used with its spool (queue.spool)")?))
                }
                None => {
                    let spooled = index.mark().await.context("the queue cannot be used")?.is_some();
                    ensure!(
                        !spooled,
                        "the messages of this queue lie in an object store: name it in queue.spool"
                    );
                    Ok(index)
                }
            }
        }
    }
}

/// The queue in Redis, without its spool.
pub(crate) async fn connect_index(settings: &Settings) -> Result<RedisQueue> {
    RedisQueue::connect(&settings.queue.redis).await.context("the queue cannot be used")
}

/// Makes the data folder. What lies in it is mail: nobody else may read it.
fn make_data_dir(settings: &Settings) -> Result<()> {
    let folder = &settings.data_dir;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot make the data folder {} (data_dir)", folder.display()))
}

/// The delivery service; it accepts from now on.
pub(super) fn delivery(
    settings: &Settings,
    queue: &Arc<dyn Queue>,
    domains: &Domains,
    verifier: &Arc<dyn Verifier>,
) -> Result<Arc<DeliveryService>> {
    let resolver = dns::Resolver::new(settings.dns.clone()).context("the resolver cannot be set up")?;
    let tls = tls::ClientTls::opportunistic(&settings.outbound_tls).context("TLS cannot be set up")?;
    let deps = Deps {
        queue: Arc::clone(queue),
        domains: domains.clone(),
        outbound: Outbound::new(settings.outbound.clone(), resolver, tls),
        verifier: Arc::clone(verifier),
    };
    delivery::build(settings.delivery.clone(), deps).context("delivery cannot be set up")
}

/// The edge, listening.
pub(super) async fn edge(
    settings: &Settings,
    domains: Domains,
    verifier: Arc<dyn Verifier>,
    delivery: Arc<dyn Delivery>,
) -> Result<edge::Edge> {
    make_data_dir(settings)?;
    let tls = ServerTls::load(&settings.tls, &settings.data_dir, &settings.hostname)
        .context("TLS of the listeners cannot be set up")?;
    let config = edge::Config {
        hostname: settings.hostname.clone(),
        listeners: settings.listeners.clone(),
        limits: settings.edge.clone(),
    };
    let deps = edge::Deps { domains, verifier, delivery, tls };
    let edge = edge::build(config, deps).await.context("the edge cannot be set up")?;
    for (listener, address) in edge.addresses() {
        tracing::info!(listener, %address, "listening");
    }
    Ok(edge)
}

/// What the server of policies shows; nothing where it serves plain HTTP.
pub(crate) fn policy_tls(settings: &Settings) -> Result<Option<ServerTls>> {
    let config = &settings.mta_sts;
    if config.plain {
        return Ok(None);
    }
    let loaded = match config.certificates.as_slice() {
        [] => ServerTls::load(&settings.tls, &settings.data_dir, &settings.hostname),
        files => ServerTls::of(files, &settings.tls, "policies"),
    };
    loaded.map(Some).context("TLS of the policies cannot be set up")
}

/// The server of MTA-STS policies, listening.
pub(super) async fn policy_server(settings: &Settings, domains: &Domains) -> Result<PolicyServer> {
    if settings.mta_sts.certificates.is_empty()
        && settings.tls.certificate.is_none()
        && !settings.mta_sts.plain
    {
        make_data_dir(settings)?;
        tracing::warn!(
            "senders take no policy under the self-signed certificate: set mta_sts.certificates, or \
             mta_sts.plain behind an ingress"
        );
    }
    let tls = policy_tls(settings)?;
    let domains = domains.clone();
    let policies: Policies = Arc::new(move |domain| {
        let index = domains.current();
        let hosted = index.hosted(domain)?;
        match &hosted.policy {
            ServedPolicy::Told(policy) => policy.clone(),
            ServedPolicy::Declared => declared_policy(&hosted.spec).map(|policy| policy.to_string()),
        }
    });
    let server = PolicyServer::bind(settings.mta_sts.clone(), policies, tls).await;
    let server = server.context("the server of MTA-STS policies cannot start")?;
    tracing::info!(setting = "mta_sts.listen", address = %server.address()?, "listening");
    Ok(server)
}

/// The certificates between services, where they are set.
pub(crate) fn peer_tls(settings: &Settings, role: PeerRole) -> Result<Option<PeerTls>> {
    let load = |config| PeerTls::load(config, role).context("TLS between services cannot be set up");
    settings.peer_tls.as_ref().map(load).transpose()
}

/// The way to a service in other processes.
pub(super) async fn peers(
    wire: &Wire,
    service: PeerRole,
    tls: Option<&PeerTls>,
    process: &Process,
) -> Result<Peers> {
    Peers::watch(&wire.endpoints, service, tls.cloned(), wire.connection_age, process.background.clone())
        .await
        .with_context(|| format!("the service at {} cannot be used", wire.endpoints.join(", ")))
}

/// A bound gRPC server, at the address of this setting.
pub(super) async fn grpc_server(key: &str, wire: &Wire, tls: Option<PeerTls>) -> Result<GrpcServer> {
    let address = wire.listen.with_context(|| format!("{key} is missing"))?;
    let closed = tls.is_some();
    if !closed && !address.ip().is_loopback() {
        tracing::warn!(
            %address,
            setting = key,
            "whoever reaches this address can use the service: set tls.peer, or close the network to others"
        );
    }
    let server = GrpcServer::bind(&address.to_string(), tls, wire.connection_age)
        .await
        .with_context(|| format!("the gRPC server of {key} cannot start"))?;
    tracing::info!(setting = key, address = %server.address()?, tls = closed, "listening");
    Ok(server)
}

/// The bound admin server.
pub(super) async fn admin(
    settings: &Settings,
    process: &Process,
    queue: Option<Arc<dyn Queue>>,
    checks: Vec<(String, Arc<dyn Check>)>,
) -> Result<Admin> {
    let deps = admin::Deps {
        role: process.role.name(),
        metrics: process.metrics.clone(),
        queue,
        checks,
        draining: process.draining.clone(),
    };
    let admin = Admin::bind(settings.admin, deps).await.context("the admin server cannot start")?;
    tracing::info!(address = %admin.address()?, "admin listening");
    Ok(admin)
}
