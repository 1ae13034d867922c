//! Connections, scripts, and what is asked of the server at the start.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use redis::aio::ConnectionLike;
use redis::{
    Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, Script, ScriptInvocation, ServerErrorKind, Value,
};
use tokio::time::error::Elapsed;
use tokio::time::{sleep, timeout};
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::config::{Config, TlsConfig};
use super::durability::Durability;
use super::gather::Gathering;
use super::layout::{Layout, MOST_SHARDS};
use super::leasing::Away;
use super::link::Link;
use super::replicas::{self, Holding, Lent, Replicas};
use super::withdraw::Withdrawals;
use crate::QueueError;

/// Connections to the server; each carries many calls at a time.
const CONNECTIONS: usize = 4;

const NO_SCRIPT: ErrorKind = ErrorKind::Server(ServerErrorKind::NoScript);

/// The scripts.
#[derive(Clone, Copy)]
pub(super) enum Call {
    Change,
    Lease,
    Operate,
    Show,
    List,
    Depth,
    Suspend,
    Policy,
    Sharers,
    Events,
    Passed,
    Verbs,
    Audit,
    Layout,
    Inherit,
}

/// How many scripts there are.
const SCRIPTS: usize = 15;

macro_rules! script {
    ($file:literal) => {
        script!("", $file)
    };
    ($first:literal, $file:literal) => {
        Script::new(concat!($first, include_str!("prelude.lua"), "enter(KEYS[1])\n", include_str!($file)))
    };
}

/// A script that a server whose memory is full lets through: with what it writes, mail goes away.
macro_rules! draining {
    ($file:literal) => {
        script!("#!lua flags=allow-oom\n", $file)
    };
}

/// The scripts, in the order of [`Call`].
fn scripts() -> [Script; SCRIPTS] {
    // It turns to its shards by itself, and to a server that is full.
    let changing = Script::new(concat!(include_str!("prelude.lua"), include_str!("change.lua")));
    [
        changing,
        draining!("lease.lua"),
        draining!("operate.lua"),
        script!("show.lua"),
        script!("list.lua"),
        script!("depth.lua"),
        draining!("suspend.lua"),
        script!("policy.lua"),
        draining!("sharers.lua"),
        script!("events.lua"),
        draining!("passed.lua"),
        script!("verbs.lua"),
        script!("audit.lua"),
        draining!("layout.lua"),
        script!("inherit.lua"),
    ]
}

/// The server.
pub(super) struct Client {
    connections: Vec<Link>,
    turn: AtomicUsize,
    scripts: [Script; SCRIPTS],
    tags: Vec<String>,
    pub(super) layout: Layout,
    pub(super) gathering: Gathering,
    /// Whether the server keeps what it answers for.
    pub(super) durability: Durability,
    pub(super) replicas: Replicas,
    replicas_sync: bool,
    pub(super) withdrawals: Withdrawals,
    pub(super) away: Away,
    pub(super) patience: Duration,
    /// Without its password.
    pub(super) shown: String,
}

/// How long after a connection that failed the next is tried, at the start.
const START_PAUSE: Duration = Duration::from_millis(500);

/// Whether what is so now may soon be otherwise: the server is away, or not ready yet.
fn may_pass(error: &QueueError) -> bool {
    let QueueError::Unavailable { cause, .. } = error else { return false };
    match cause.downcast_ref::<RedisError>() {
        Some(error) => {
            error.is_io_error()
                || error.is_cluster_error()
                || matches!(
                    error.kind(),
                    ErrorKind::ClusterConnectionNotFound
                        | ErrorKind::MasterNameNotFoundBySentinel
                        | ErrorKind::Server(ServerErrorKind::BusyLoading | ServerErrorKind::MasterDown)
                )
        }
        None => cause.is::<Elapsed>(),
    }
}

fn tell_of_waiting(error: &QueueError, left: Duration) {
    let error = error as &dyn std::error::Error;
    tracing::warn!(
        error,
        "Redis does not answer yet, it is tried again for {left:.0?} (queue.redis.startup_timeout)"
    );
}

impl Client {
    /// Connects; a server that is away or loading is waited for until `startup_timeout`.
    pub(super) async fn start(config: &Config) -> Result<Self, QueueError> {
        let started = Instant::now();
        loop {
            match Self::connect(config).await {
                Err(error) if may_pass(&error) && started.elapsed() < config.startup_timeout => {
                    tell_of_waiting(&error, config.startup_timeout.saturating_sub(started.elapsed()));
                    sleep(START_PAUSE).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn connect(config: &Config) -> Result<Self, QueueError> {
        let shown = config.shown();
        let connecting = || format!("connecting to Redis at {shown} (queue.redis)");
        let waiting = if config.replicas > 0 { replicas::CONNECTIONS } else { 0 };
        let mut connections = Vec::with_capacity(CONNECTIONS + waiting);
        let certificates = config.tls.as_ref().map(TlsConfig::read).transpose()?;
        for _ in 0..CONNECTIONS + waiting {
            let connected = timeout(config.connect_timeout * 2, Link::connect(config, certificates.as_ref()))
                .await
                .map_err(|late| QueueError::Unavailable { doing: connecting(), cause: Box::new(late) })?;
            connections.push(connected.map_err(|error| failed(connecting(), error))?);
        }
        let waiting = connections.split_off(CONNECTIONS);
        let client = Self {
            connections,
            turn: AtomicUsize::new(0),
            scripts: scripts(),
            tags: (0..MOST_SHARDS).map(|shard| format!("{{q:{shard}}}")).collect(),
            layout: Layout::unread(config.wanted_shards()),
            gathering: Gathering::new(!config.cluster.is_empty(), config.limits()),
            durability: Durability::default(),
            replicas: Replicas::new(config.replicas, waiting),
            replicas_sync: config.replicas_sync,
            withdrawals: Withdrawals::default(),
            away: Away::default(),
            patience: config.response_timeout + config.connect_timeout,
            shown,
        };
        client.require_durable(config.require_durable).await?;
        client.read_layout(config.wanted_shards()).await?;
        if client.layout.shards() > config.wanted_shards() {
            tracing::info!(
                shards = client.layout.shards(),
                wanted = config.wanted_shards(),
                "the queue has more shards than queue.redis.shards; it keeps them"
            );
        }
        Ok(client)
    }

    /// A key of a shard.
    pub(super) fn key(&self, shard: usize, rest: &str) -> String {
        format!("{}:{rest}", self.tags[shard])
    }

    /// A script's call on a shard, to which arguments are added.
    pub(super) fn call(&self, shard: usize, call: Call) -> ScriptInvocation<'_> {
        self.scripts[call as usize].key(&self.tags[shard])
    }

    fn connection(&self) -> Link {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.connections[turn % self.connections.len()].clone()
    }

    /// Runs a script.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        doing: &str,
        call: ScriptInvocation<'_>,
    ) -> Result<T, QueueError> {
        let mut connection = self.connection();
        self.within(doing, call.invoke_async(&mut connection)).await
    }

    /// The tag of a shard's keys.
    pub(super) fn tag(&self, shard: usize) -> &str {
        &self.tags[shard]
    }

    /// The script of all changes by those who hold messages and leases.
    pub(super) fn changing(&self) -> &Script {
        &self.scripts[Call::Change as usize]
    }

    /// Makes a call of [`Client::changing`]. On a connection that was lent for it, it also says whether enough replicas
    /// have what it changed.
    pub(super) async fn evaluate(&self, call: &Cmd, lent: Option<Lent<'_>>) -> RedisResult<(Value, Holding)> {
        if let Some(mut lent) = lent {
            let synced = self.replicas_sync && self.durability.can_wait_for_disks();
            return lent.evaluate(self.changing(), call, synced).await;
        }
        let mut connection = self.connection();
        let mut told = connection.req_packed_command(call).await.and_then(Value::extract_error);
        if told.as_ref().is_err_and(|error| error.kind() == NO_SCRIPT) {
            self.changing().load_async(&mut connection).await?;
            told = connection.req_packed_command(call).await.and_then(Value::extract_error);
        }
        Ok((told?, Holding::Enough))
    }

    /// Runs one command.
    pub(super) async fn query<T: FromRedisValue>(
        &self,
        doing: &str,
        command: redis::Cmd,
    ) -> Result<T, QueueError> {
        let mut connection = self.connection();
        self.within(doing, command.query_async(&mut connection)).await
    }

    /// Runs one command on every primary.
    pub(super) async fn ask_primaries<T: FromRedisValue>(
        &self,
        doing: &str,
        command: &redis::Cmd,
    ) -> Result<Vec<T>, QueueError> {
        let mut connection = self.connection();
        let answers = self.within(doing, connection.ask_primaries(command)).await?;
        let parsed = answers.into_iter().map(T::from_redis_value).collect::<Result<_, _>>();
        parsed.map_err(|error| failed(self.doing(doing), error.into()))
    }

    pub(super) fn doing(&self, doing: &str) -> String {
        format!("{doing} in Redis at {}", self.shown)
    }

    pub(super) async fn within<T>(
        &self,
        doing: &str,
        work: impl Future<Output = redis::RedisResult<T>>,
    ) -> Result<T, QueueError> {
        let span = span(doing);
        let outcome = match timeout(self.patience, work.instrument(span.clone())).await {
            Ok(result) => result.map_err(|error| failed(self.doing(doing), error)),
            Err(late) => Err(QueueError::Unavailable { doing: self.doing(doing), cause: Box::new(late) }),
        };
        if outcome.is_err() {
            span.record("otel.status_code", "error").record("error.type", "unavailable");
        }
        outcome
    }
}

/// The span of an exchange with the server, within the work that needs it. What is asked again and again on
/// nobody's behalf has none.
fn span(doing: &str) -> Span {
    if Span::current().is_none() {
        return Span::none();
    }
    tracing::info_span!(
        "redis",
        otel.name = doing,
        otel.kind = "client",
        otel.status_code = Empty,
        db.system.name = "redis",
        db.query.summary = doing,
        error.type = Empty,
    )
}

pub(super) fn failed(doing: String, error: RedisError) -> QueueError {
    QueueError::Unavailable { doing, cause: Box::new(error) }
}
