//! Connections, scripts, and what is asked of the server at the start.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use message::QueueId;
use redis::{FromRedisValue, Script, ScriptInvocation};
use tokio::time::timeout;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::config::Config;
use super::link::Link;
use crate::QueueError;

/// Connections to the server; each carries many calls at a time.
const CONNECTIONS: usize = 4;
/// Replicas acknowledge a change within this.
const REPLICAS_WITHIN: Duration = Duration::from_secs(1);
/// The oldest server whose commands are used.
const OLDEST: (u32, u32) = (7, 0);

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
}

/// How many scripts there are.
const SCRIPTS: usize = 17;

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
    ]
}

/// The shard of a message. It depends on the time in its id alone, so that a bounce, whose id keeps
/// the time of the message it is about, lies in the same shard and can be accepted in the same step.
pub(super) fn shard_of(id: QueueId, shards: usize) -> usize {
    usize::try_from(id.spread() % shards as u64).unwrap_or_default()
}

/// The shard of something that is known by name alone (FNV-1a).
pub(super) fn shard_of_name(name: &str, shards: usize) -> usize {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    usize::try_from(hash % shards as u64).unwrap_or_default()
}

/// The server.
pub(super) struct Client {
    connections: Vec<Link>,
    /// For calls that wait for replicas: they hold up what follows them on their connection.
    waiting: Vec<Link>,
    turn: AtomicUsize,
    scripts: [Script; SCRIPTS],
    tags: Vec<String>,
    replicas: u32,
    patience: Duration,
    /// Without its password.
    shown: String,
}

impl Client {
    pub(super) async fn connect(config: &Config) -> Result<Self, QueueError> {
        let shown = config.shown();
        let connecting = || format!("connecting to Redis at {shown} (queue.redis)");
        if config.replicas > 0 && !config.cluster.is_empty() {
            return Err(QueueError::NotDurable(
                "queue.redis.replicas cannot be asked for over a Cluster: have its servers refuse writes with \
                 min-replicas-to-write"
                    .to_owned(),
            ));
        }
        let waiting = if config.replicas > 0 { CONNECTIONS } else { 0 };
        let mut connections = Vec::with_capacity(CONNECTIONS + waiting);
        for _ in 0..CONNECTIONS + waiting {
            let connected = timeout(config.connect_timeout * 2, Link::connect(config))
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
            tags: (0..config.shards.clamp(1, 1024)).map(|shard| format!("{{q:{shard}}}")).collect(),
            replicas: config.replicas,
            patience: config.response_timeout + config.connect_timeout,
            shown,
        };
        client.require_durable(config.require_durable).await?;
        Ok(client)
    }

    pub(super) fn shards(&self) -> usize {
        self.tags.len()
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
        let answer = self.within(doing, call.invoke_async(&mut connection)).await?;
        // WAIT is about the changes of its own connection.
        let mut wait = redis::cmd("WAIT");
        wait.arg(self.replicas).arg(REPLICAS_WITHIN.as_millis() as u64);
        let replicated = match self.within(doing, wait.query_async::<u32>(&mut connection)).await {
            Ok(holding) if holding >= self.replicas => Ok(()),
            Ok(holding) => {
                let cause = format!("{holding} of {} replicas have it (queue.redis.replicas)", self.replicas);
                Err(QueueError::Unavailable { doing: self.doing(doing), cause: cause.into() })
            }
            Err(error) => Err(error),
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
    async fn ask_primaries<T: FromRedisValue>(
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

    /// Asks the server how it keeps what it answers for.
    async fn require_durable(&self, required: bool) -> Result<(), QueueError> {
        let mut faults = Vec::new();
        let mut info = redis::cmd("INFO");
        info.arg("server");
        for info in self.ask_primaries::<String>("asking for the version", &info).await? {
            let version =
                info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or_default();
            if !new_enough(version) {
                return Err(QueueError::NotDurable(format!(
                    "Redis at {} is {version:?}, {}.{} or newer is needed",
                    self.shown, OLDEST.0, OLDEST.1
                )));
            }
        }
        let mut ask = redis::cmd("CONFIG");
        ask.arg("GET").arg("appendonly").arg("appendfsync").arg("maxmemory-policy");
        match self.ask_primaries::<HashMap<String, String>>("asking for the settings", &ask).await {
            Ok(all) => {
                let wanted =
                    [("appendonly", "yes"), ("appendfsync", "always"), ("maxmemory-policy", "noeviction")];
                for settings in all {
                    for (name, value) in wanted {
                        let found = settings.get(name).map_or("unknown", String::as_str);
                        if found != value {
                            faults.push(format!("{name} is {found}, set it to {value}"));
                        }
                    }
                }
            }
            Err(error) => faults.push(format!("its settings cannot be read, allow CONFIG GET: {error}")),
        }
        faults.dedup();
        if faults.is_empty() {
            return Ok(());
        }
        let faults = format!("Redis at {}: {}", self.shown, faults.join("; "));
        if required {
            return Err(QueueError::NotDurable(format!(
                "{faults}; or accept the loss with queue.redis.require_durable: false"
            )));
        }
        tracing::warn!(faults, "mail that was answered for can be lost");
        Ok(())
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

fn new_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= OLDEST
}

fn failed(doing: String, error: redis::RedisError) -> QueueError {
    QueueError::Unavailable { doing, cause: Box::new(error) }
}
