//! A queue in memory, until the embedded backend is there.
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use message::{Content, QueueId};
use queue::*;

#[derive(Default)]
pub(crate) struct Memory(Mutex<State>);
#[derive(Default)]
struct State {
    parts: HashMap<(QueueId, u32), Bytes>,
    messages: HashMap<QueueId, (Arc<MessageRecord>, Content)>,
    entries: HashMap<EntryId, Entry>,
    seen: std::collections::HashSet<QueueId>,
}
fn now() -> Timestamp {
    Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64)
}
impl State {
    fn leased(&self, e: &Entry) -> Leased {
        let (m, c) = &self.messages[&e.id.message];
        Leased {
            lease: Lease { entry: e.id, epoch: e.epoch },
            entry: e.clone(),
            message: m.clone(),
            inline: (m.parts == 0).then(|| c.clone()),
            now: now(),
        }
    }
    fn accept(&mut self, m: NewMessage, lease: Option<LeaseRequest>) -> Accepted {
        if !self.seen.insert(m.record.id) {
            return Accepted { fresh: false, leased: vec![] };
        }
        let mut record = m.record;
        record.accepted_at = now();
        let id = record.id;
        self.messages.insert(id, (Arc::new(record), m.inline));
        let lease = lease.filter(|l| l.max >= m.entries.len());
        let mut leased = vec![];
        for (n, e) in m.entries.into_iter().enumerate() {
            let eid = EntryId { message: id, number: n as u32 };
            let entry = Entry {
                id: eid,
                next_hop: e.next_hop,
                recipients: e.recipients,
                state: if lease.is_some() { EntryState::Leased } else { EntryState::Queued },
                epoch: lease.is_some() as u64,
                attempts: 0,
                due: lease.as_ref().map_or(now(), |l| now().after(l.duration)),
                expires: now().after(e.max_age),
                last_error: None,
                worker: None,
            };
            if lease.is_some() {
                leased.push(self.leased(&entry));
            }
            self.entries.insert(eid, entry);
        }
        Accepted { fresh: true, leased }
    }
    fn held(&mut self, l: &Lease) -> Result<&mut Entry, QueueError> {
        self.entries
            .get_mut(&l.entry)
            .filter(|e| e.epoch == l.epoch && e.state == EntryState::Leased)
            .ok_or(QueueError::StaleLease)
    }
}
#[async_trait]
impl Queue for Memory {
    async fn stage(&self, id: QueueId, number: u32, octets: Bytes) -> Result<(), QueueError> {
        self.0.lock().unwrap().parts.insert((id, number), octets);
        Ok(())
    }
    async fn accept(&self, m: NewMessage, l: Option<LeaseRequest>) -> Result<Accepted, QueueError> {
        Ok(self.0.lock().unwrap().accept(m, l))
    }
    async fn lease(&self, r: LeaseRequest) -> Result<Vec<Leased>, QueueError> {
        let mut s = self.0.lock().unwrap();
        let mut due: Vec<EntryId> = s
            .entries
            .values()
            .filter(|e| e.due <= now() && !r.except.contains(&e.next_hop))
            .map(|e| e.id)
            .collect();
        due.sort_by_key(|id| s.entries[id].due);
        due.truncate(r.max);
        Ok(due
            .into_iter()
            .map(|id| {
                let e = s.entries.get_mut(&id).unwrap();
                e.epoch += 1;
                e.state = EntryState::Leased;
                e.due = now().after(r.duration);
                let e = e.clone();
                s.leased(&e)
            })
            .collect())
    }
    async fn renew(&self, l: &Lease, d: Duration) -> Result<(), QueueError> {
        self.0.lock().unwrap().held(l)?.due = now().after(d);
        Ok(())
    }
    async fn hand_back(&self, l: &Lease) -> Result<(), QueueError> {
        if let Ok(e) = self.0.lock().unwrap().held(l) {
            e.state = EntryState::Queued;
            e.due = now();
        }
        Ok(())
    }
    async fn settle(&self, x: Settlement) -> Result<(), QueueError> {
        let mut s = self.0.lock().unwrap();
        let e = s.held(&x.lease)?;
        e.recipients = x.recipients;
        e.attempts += 1;
        match x.next {
            Next::Retry { after, error } => {
                e.state = EntryState::Queued;
                e.due = now().after(after);
                e.last_error = Some(error);
            }
            Next::Done => {
                let id = e.id;
                s.entries.remove(&id);
            }
        }
        if let Some(b) = x.bounce {
            s.accept(b, None);
        }
        Ok(())
    }
    async fn inline_content(&self, id: QueueId) -> Result<Bytes, QueueError> {
        self.0.lock().unwrap().messages.get(&id).map(|m| m.1.to_bytes()).ok_or(QueueError::Gone(id))
    }
    async fn part(&self, id: QueueId, n: u32) -> Result<Bytes, QueueError> {
        self.0.lock().unwrap().parts.get(&(id, n)).cloned().ok_or(QueueError::Gone(id))
    }
    async fn wait(&self, _: Duration) {
        tokio::time::sleep(Duration::from_millis(10)).await
    }
    async fn depth(&self) -> Result<Depth, QueueError> {
        Ok(Depth::default())
    }
    async fn list(&self, _: ListFilter) -> Result<Page, QueueError> {
        let s = self.0.lock().unwrap();
        Ok(Page {
            entries: s
                .entries
                .values()
                .map(|e| (e.clone(), (*s.messages[&e.id.message].0).clone()))
                .collect(),
            next: None,
        })
    }
    async fn show(&self, id: QueueId) -> Result<Option<(MessageRecord, Vec<Entry>)>, QueueError> {
        let s = self.0.lock().unwrap();
        Ok(s.messages
            .get(&id)
            .map(|m| ((*m.0).clone(), s.entries.values().filter(|e| e.id.message == id).cloned().collect())))
    }
    async fn retry_now(&self, _: QueueId) -> Result<u64, QueueError> {
        Ok(0)
    }
    async fn remove(&self, _: QueueId) -> Result<u64, QueueError> {
        Ok(0)
    }
    async fn check(&self) -> Result<(), QueueError> {
        Ok(())
    }
}
