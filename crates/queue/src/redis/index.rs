//! The queue as the index of a spool: which spool it is, and which messages are known.

use std::time::Duration;

use async_trait::async_trait;
use futures::future::try_join_all;
use message::QueueId;

use super::{RedisQueue, millis};
use crate::spool::Index;
use crate::{Queue, QueueError, Target, Verb};

/// Characters of an id that name the set in which it is remembered; see `prelude.lua`.
const SEEN_TIME: usize = 8;
/// Questions on their way at a time.
const AT_A_TIME: usize = 256;

#[async_trait]
impl Index for RedisQueue {
    async fn mark(&self) -> Result<Option<String>, QueueError> {
        let mut command = redis::cmd("GET");
        command.arg(self.client.key(0, "spool"));
        self.client.query("asking for the spool's mark", command).await
    }

    async fn set_mark(&self, mark: &str) -> Result<(), QueueError> {
        let mut command = redis::cmd("SET");
        command.arg(self.client.key(0, "spool")).arg(mark);
        self.client.query("setting the spool's mark", command).await
    }

    async fn known(&self, ids: &[QueueId]) -> Result<Vec<bool>, QueueError> {
        let mut known = Vec::with_capacity(ids.len());
        for some in ids.chunks(AT_A_TIME) {
            let ask = |id: &QueueId| {
                let mut command = redis::cmd("EXISTS");
                command.arg(self.client.key(self.shard_of(*id), &format!("m:{id}")));
                self.client.query::<bool>("looking for a message", command)
            };
            known.extend(try_join_all(some.iter().map(ask)).await?);
        }
        Ok(known)
    }

    async fn forget(&self, id: QueueId) -> Result<(), QueueError> {
        self.operate(Target::Message(id), &Verb::Remove, "").await?;
        let (shard, (time, random)) = (self.shard_of(id), id.as_str().split_at(SEEN_TIME));
        let mut command = redis::cmd("SREM");
        command.arg(self.client.key(shard, &format!("seen:{time}"))).arg(random);
        self.client.query::<()>("forgetting a message", command).await?;
        // How a version before wrote it down.
        let mut command = redis::cmd("DEL");
        command.arg(self.client.key(shard, &format!("seen:{id}")));
        self.client.query("forgetting a message", command).await
    }

    async fn turn(&self, lasts: Duration) -> Result<bool, QueueError> {
        let mut command = redis::cmd("SET");
        command.arg(self.client.key(0, "sweeping")).arg("1").arg("NX").arg("PX").arg(millis(lasts));
        let set: Option<String> = self.client.query("asking for the turn to sweep", command).await?;
        Ok(set.is_some())
    }
}
