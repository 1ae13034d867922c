//! Connections, scripts, and what is asked of the server at the start.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::{FromRedisValue, Script, ScriptInvocation, Value};
use tokio::time::timeout;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::config::{Config, TlsConfig};
use super::durability::Durability;
use super::layout::{Layout, MOST_SHARDS};
use super::link::Link;
use crate::QueueError;

/// Connections to the server; each carries many calls at a time.
const CONNECTIONS: usize = 4;
/// Replicas acknowledge a change within this.
const REPLICAS_WITHIN: Duration = Duration::from_secs(1);

/// The scripts.
#[derive(Clone, Copy)]
pub(super) enum Call {
    Accept,
    Lease,
    Renew,
    Doubt,
    HandBack,
    Settle,
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
const SCRIPTS: usize = 19;

macro_rules! script {
    ($file:literal) => {
        Script::new(concat!(include_str!("prelude.lua"), include_str!($file)))
    };
}

/// The scripts, in the order of [`Call`].
fn scripts() -> [Script; SCRIPTS] {
    [
        script!("accept.lua"),
        script!("lease.lua"),
        script!("renew.lua"),
        script!("doubt.lua"),
        script!("hand_back.lua"),
        script!("settle.lua"),
        script!("operate.lua"),
        script!("show.lua"),
        script!("list.lua"),
        script!("depth.lua"),
        script!("suspend.lua"),
        script!("policy.lua"),
        script!("sharers.lua"),
        script!("events.lua"),
        script!("passed.lua"),
        script!("verbs.lua"),
        script!("audit.lua"),
        script!("layout.lua"),
        script!("inherit.lua"),
    ]
}

/// The server.
pub(super) struct Client {
    connections: Vec<Link>,
    /// For calls that wait for replicas: they hold up what follows them on their connection.
    waiting: Vec<Link>,
    turn: AtomicUsize,
    scripts: [Script; SCRIPTS],
    tags: Vec<String>,
    pub(super) layout: Layout,
    /// Whether the server keeps what it answers for.
    pub(super) durability: Durability,
    replicas: u32,
    replicas_sync: bool,
    patience: Duration,
    /// Without its password.
    pub(super) shown: String,
}

impl Client {
    pub(super) async fn connect(config: &Config) -> Result<Self, QueueError> {
        let shown = config.shown();
        let connecting = || format!("connecting to Redis at {shown} (queue.redis)");
        let waiting = if config.replicas > 0 { CONNECTIONS } else { 0 };
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
            waiting,
            turn: AtomicUsize::new(0),
            scripts: scripts(),
            tags: (0..MOST_SHARDS).map(|shard| format!("{{q:{shard}}}")).collect(),
            layout: Layout::unread(config.wanted_shards()),
            durability: Durability::default(),
            replicas: config.replicas,
            replicas_sync: config.replicas_sync,
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

    /// Runs a script whose change has to be on `replicas` replicas. The second part of the answer says
    /// whether it is; the first is the script's own, and has happened either way.
    pub(super) async fn run_replicated<T: FromRedisValue>(
        &self,
        doing: &str,
        call: ScriptInvocation<'_>,
    ) -> Result<(T, Result<(), QueueError>), QueueError> {
        if self.replicas == 0 {
            return Ok((self.run(doing, call).await?, Ok(())));
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut connection = self.waiting[turn % self.waiting.len()].clone();
        // One after the other over one connection: a wait is about the changes of its own connection.
        let synced = self.replicas_sync && self.durability.can_wait_for_disks();
        let mut wait = redis::cmd(if synced { "WAITAOF" } else { "WAIT" });
        if synced {
            wait.arg(0);
        }
        wait.arg(self.replicas).arg(REPLICAS_WITHIN.as_millis() as u64);
        let mut pipe = redis::pipe();
        pipe.invoke_script(&call).add_command(wait);
        let mut told = self.within(doing, connection.req_packed_commands(&pipe, 0, 2)).await?;
        if matches!(told.first(), Some(Value::ServerError(error)) if error.code() == "NOSCRIPT") {
            self.within(doing, call.load_async(&mut connection)).await?;
            told = self.within(doing, connection.req_packed_commands(&pipe, 0, 2)).await?;
        }
        let mut told = told.into_iter().map(Value::extract_error);
        let (answer, holding) =
            (told.next().unwrap_or(Ok(Value::Nil)), told.next().unwrap_or(Ok(Value::Nil)));
        let read = |error: redis::ParsingError| failed(self.doing(doing), error.into());
        let answer = answer.map_err(|error| failed(self.doing(doing), error))?;
        let answer = T::from_redis_value(answer).map_err(read)?;
        let holding = match holding {
            Ok(Value::Array(mut counts)) => Ok(counts.pop().unwrap_or(Value::Nil)),
            other => other,
        };
        let replicated = match holding.and_then(|value| Ok(u32::from_redis_value(value)?)) {
            Ok(holding) if holding >= self.replicas => Ok(()),
            Ok(holding) => {
                let how = if synced { "have synced it" } else { "have it" };
                let cause = format!("{holding} of {} replicas {how} (queue.redis.replicas)", self.replicas);
                Err(QueueError::Unavailable { doing: self.doing(doing), cause: cause.into() })
            }
            Err(error) => Err(failed(self.doing(doing), error)),
        };
        Ok((answer, replicated))
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

    fn doing(&self, doing: &str) -> String {
        format!("{doing} in Redis at {}", self.shown)
    }

    async fn within<T>(
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

fn failed(doing: String, error: redis::RedisError) -> QueueError {
    QueueError::Unavailable { doing, cause: Box::new(error) }
}
