//! Reads a queued message's content piece by piece, so that a long one is never whole in memory.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use message::QueueId;
use queue::{Leased, Queue, QueueError};

/// A cursor over one message's content. Each transfer makes its own.
pub struct ContentReader {
    queue: Arc<dyn Queue>,
    id: QueueId,
    ready: VecDeque<Bytes>,
    inline_pending: bool,
    next_part: u32,
    parts: u32,
}

impl ContentReader {
    /// A cursor at the start of a leased message's content.
    #[must_use]
    pub fn new(queue: Arc<dyn Queue>, leased: &Leased) -> Self {
        let ready = leased.inline.iter().flat_map(|content| content.slices().iter().cloned()).collect();
        Self {
            queue,
            id: leased.message.id,
            ready,
            inline_pending: leased.inline.is_none(),
            next_part: 0,
            parts: leased.message.parts,
        }
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn next(&mut self) -> Result<Option<Bytes>, QueueError> {
        if let Some(slice) = self.ready.pop_front() {
            return Ok(Some(slice));
        }
        if self.inline_pending {
            self.inline_pending = false;
            let inline = self.queue.inline_content(self.id).await?;
            if !inline.is_empty() {
                return Ok(Some(inline));
            }
        }
        if self.next_part == self.parts {
            return Ok(None);
        }
        let part = self.queue.part(self.id, self.next_part).await?;
        self.next_part += 1;
        Ok(Some(part))
    }
}
