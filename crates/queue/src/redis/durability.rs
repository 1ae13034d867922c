//! Whether the server keeps what it answers for: asked at the start, and again and again, as a failover may
//! lead to a server that is set otherwise.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::client::Client;
use crate::QueueError;

/// The oldest server whose commands are used.
const OLDEST: (u32, u32) = (7, 0);
/// The first server that tells which replicas have synced a change (WAITAOF).
const WAITS_FOR_DISKS: (u32, u32) = (7, 2);
/// What a server must be set to.
const WANTED: [(&str, &str); 3] =
    [("appendonly", "yes"), ("appendfsync", "always"), ("maxmemory-policy", "noeviction")];

/// What the user `default` must be allowed, on or off: it is as this user that a server reads its log at the start, and
/// what scripts have written is left out, without a failure, where it may not.
const READS_ITS_LOG: [&[&str]; 4] = [
    &["SET", "{q:0}:clock", "1"],
    &["HSET", "{q:0}:e:0", "epoch", "1"],
    &["ZADD", "{q:0}:all", "0", "0"],
    &["UNLINK", "{q:0}:e:0"],
];

/// What was last found.
#[derive(Default)]
pub(super) struct Durability {
    /// Why nothing may be accepted.
    refused: Mutex<Option<String>>,
    /// What was warned of, to warn once.
    warned: Mutex<Option<String>>,
    waits_for_disks: AtomicBool,
}

impl Durability {
    /// Why the server must not be given mail, if it must not.
    pub(super) fn refusal(&self) -> Option<QueueError> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.clone().map(QueueError::NotDurable)
    }

    pub(super) fn can_wait_for_disks(&self) -> bool {
        self.waits_for_disks.load(Ordering::Relaxed)
    }
}

impl Client {
    /// Asks every primary how it keeps what it answers for.
    ///
    /// # Errors
    /// [`QueueError::NotDurable`], also for what is accepted from now on, when one does not as `required`;
    /// [`QueueError::Unavailable`] when one cannot be asked, which changes nothing.
    pub(super) async fn require_durable(&self, required: bool) -> Result<(), QueueError> {
        let mut info = redis::cmd("INFO");
        info.arg("server");
        let versions = self.ask_primaries::<String>("asking for the version", &info).await?;
        let versions: Vec<(u32, u32)> = versions.iter().map(|info| version(info)).collect();
        if let Some((major, minor)) = versions.iter().find(|found| **found < OLDEST) {
            let (least_major, least_minor) = OLDEST;
            let shown = &self.shown;
            return Err(self.refuse(format!(
                "Redis at {shown} is {major}.{minor}, {least_major}.{least_minor} or newer is needed"
            )));
        }
        let waits = versions.iter().all(|found| *found >= WAITS_FOR_DISKS);
        self.durability.waits_for_disks.store(waits, Ordering::Relaxed);
        let faults = self.faults().await?;
        if faults.is_empty() {
            *self.durability.refused.lock().unwrap_or_else(PoisonError::into_inner) = None;
            *self.durability.warned.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return Ok(());
        }
        let faults = format!("Redis at {}: {}", self.shown, faults.join("; "));
        if required {
            return Err(
                self.refuse(format!("{faults}; or accept the loss with queue.redis.require_durable: false"))
            );
        }
        let mut warned = self.durability.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.as_deref() != Some(&faults) {
            tracing::warn!(faults, "mail that was answered for can be lost");
            *warned = Some(faults);
        }
        Ok(())
    }

    fn refuse(&self, why: String) -> QueueError {
        let mut refused = self.durability.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.as_deref() != Some(&why) {
            tracing::error!(why, "nothing is accepted: the queue's server may lose it");
        }
        *refused = Some(why.clone());
        QueueError::NotDurable(why)
    }

    async fn faults(&self) -> Result<Vec<String>, QueueError> {
        let mut ask = redis::cmd("CONFIG");
        ask.arg("GET");
        for (name, _) in WANTED {
            ask.arg(name);
        }
        let all = match self.ask_primaries::<HashMap<String, String>>("asking for the settings", &ask).await {
            Ok(all) => all,
            Err(QueueError::Unavailable { cause, .. }) if is_refusal(cause.as_ref()) => {
                return Ok(vec![format!("its settings cannot be read, allow CONFIG GET: {cause}")]);
            }
            Err(away) => return Err(away),
        };
        let mut faults = Vec::new();
        for settings in all {
            for (name, value) in WANTED {
                let found = settings.get(name).map_or("unknown", String::as_str);
                if found != value {
                    faults.push(format!("{name} is {found}, set it to {value}"));
                }
            }
        }
        faults.extend(self.log_is_unread().await?);
        faults.dedup();
        Ok(faults)
    }

    /// Why a server would not read what scripts have written, if it would not.
    async fn log_is_unread(&self) -> Result<Option<String>, QueueError> {
        for command in READS_ITS_LOG {
            let mut ask = redis::cmd("ACL");
            ask.arg("DRYRUN").arg("default").arg(command);
            match self.ask_primaries::<String>("asking for rights", &ask).await {
                Ok(told) => {
                    if let Some(refusal) = told.iter().find(|told| *told != "OK") {
                        return Ok(Some(format!(
                            "at its next start it would drop what is in the queue, as it reads its log by the rights of \
                            the user default: give it \"user default off ~* &* +@all\" ({refusal})"
                        )));
                    }
                }
                Err(QueueError::Unavailable { cause, .. }) if is_refusal(cause.as_ref()) => {
                    return Ok(Some(format!(
                        "whether it reads its log by the rights of the user default cannot be asked, allow ACL DRYRUN: \
                        {cause}"
                    )));
                }
                Err(away) => return Err(away),
            }
        }
        Ok(None)
    }
}

/// Whether the server has answered, and not as asked.
fn is_refusal(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause
        .downcast_ref::<redis::RedisError>()
        .is_some_and(|error| !error.is_io_error() && !error.is_timeout() && !error.is_connection_dropped())
}

fn version(info: &str) -> (u32, u32) {
    let text = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or_default();
    let mut numbers = text.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(version("# Server\r\nredis_version:7.2.4\r\nos:Linux\r\n"), (7, 2));
        assert_eq!(version("nothing"), (0, 0));
    }
}
