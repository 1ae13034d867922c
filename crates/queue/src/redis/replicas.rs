//! Calls that count only once enough replicas have what they changed.
//!
//! A wait holds up whatever follows it on its connection, and what follows may be given up in the meantime and be made
//! all the same. So each connection is lent to one call at a time, and what waits for one has not been sent.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::{Cmd, FromRedisValue, RedisError, RedisResult, Script, Value};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::link::Link;

/// Connections for calls that wait.
pub(super) const CONNECTIONS: usize = 8;
/// Replicas acknowledge a change within this.
const WITHIN: Duration = Duration::from_secs(1);

/// Whether enough replicas have what a call changed.
#[derive(Clone)]
pub(super) enum Holding {
    Enough,
    /// Too few, in words.
    TooFew(String),
    Unknown(RedisError),
}

/// How many are waited for, and over which connections.
pub(super) struct Replicas {
    wanted: u32,
    links: Mutex<Vec<Link>>,
    free: Semaphore,
}

/// A connection that nobody else waits on.
pub(super) struct Lent<'a> {
    replicas: &'a Replicas,
    link: Link,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.replicas.links().push(self.link.clone());
    }
}

impl Replicas {
    /// Without connections where none is waited for.
    pub(super) fn new(wanted: u32, links: Vec<Link>) -> Self {
        Self { wanted, free: Semaphore::new(links.len()), links: Mutex::new(links) }
    }

    pub(super) fn wanted(&self) -> u32 {
        self.wanted
    }

    fn links(&self) -> MutexGuard<'_, Vec<Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection for one call.
    pub(super) async fn borrow(&self) -> Lent<'_> {
        if let Ok(permit) = self.free.acquire().await
            && let Some(link) = self.links().pop()
        {
            return Lent { replicas: self, link, _permit: permit };
        }
        // The semaphore is never closed, and counts the links. Were it otherwise, whoever waits would be told that it was
        // not in time, and never that replicas have what they do not.
        std::future::pending().await
    }
}

impl Lent<'_> {
    /// Makes a call of this script, and says whether enough replicas have what it changed; `synced` to their disks.
    pub(super) async fn evaluate(
        &mut self,
        script: &Script,
        call: &Cmd,
        synced: bool,
    ) -> RedisResult<(Value, Holding)> {
        let wanted = self.replicas.wanted;
        let link = &mut self.link;
        // One after the other over one connection: a wait is about the changes of its own connection.
        let mut wait = redis::cmd(if synced { "WAITAOF" } else { "WAIT" });
        if synced {
            wait.arg(0);
        }
        wait.arg(wanted).arg(WITHIN.as_millis() as u64);
        let mut pipe = redis::pipe();
        pipe.add_command(call.clone()).add_command(wait);
        let mut told = link.req_packed_commands(&pipe, 0, 2).await?;
        if matches!(told.first(), Some(Value::ServerError(error)) if error.code() == "NOSCRIPT") {
            script.load_async(link).await?;
            told = link.req_packed_commands(&pipe, 0, 2).await?;
        }
        let mut told = told.into_iter().map(Value::extract_error);
        let answer = told.next().unwrap_or(Ok(Value::Nil))?;
        Ok((answer, holding(told.next().unwrap_or(Ok(Value::Nil)), wanted, synced)))
    }
}

fn holding(told: RedisResult<Value>, wanted: u32, synced: bool) -> Holding {
    let count = told.map(|told| match told {
        Value::Array(mut counts) => counts.pop().unwrap_or(Value::Nil),
        other => other,
    });
    match count.and_then(|count| Ok(u32::from_redis_value(count)?)) {
        Ok(count) if count >= wanted => Holding::Enough,
        Ok(count) => {
            let how = if synced { "have synced it" } else { "have it" };
            Holding::TooFew(format!("{count} of {wanted} replicas {how} (queue.redis.replicas)"))
        }
        Err(error) => Holding::Unknown(error),
    }
}
