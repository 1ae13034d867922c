//! Accepts and settles a second on the embedded backend: `cargo run --release -p queue --example throughput`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use message::{Content, Envelope, Origin, QueueId, Recipient, Standing};
use queue::embedded::EmbeddedQueue;
use queue::{LeaseRequest, MessageRecord, NewEntry, NewMessage, Next, NextHop, Queue, Settlement, Timestamp};

const SESSIONS: usize = 20;
const EACH: usize = 2000;
const OCTETS: usize = 4096;

fn message() -> anyhow::Result<NewMessage> {
    let address: smtp::Mailbox = "alice@example.com".parse()?;
    let inline = Content::from(bytes::Bytes::from(vec![b'x'; OCTETS]));
    let recipient = Recipient { address: address.clone(), original: None, standing: Standing::Pending };
    let envelope = Envelope {
        reverse_path: smtp::ReversePath::Null,
        recipients: vec![address],
        smtputf8: false,
        eight_bit: false,
        user: None,
        origin: Origin::Mx,
    };
    let record = MessageRecord {
        id: QueueId::generate(),
        envelope,
        size: inline.len(),
        inline_size: inline.len(),
        parts: 0,
        traceparent: None,
        quarantine: false,
        accepted_at: Timestamp::default(),
    };
    let entry = NewEntry {
        next_hop: NextHop("mx:example.com".to_owned()),
        recipients: vec![recipient],
        max_age: Duration::from_secs(3600),
    };
    Ok(NewMessage { record, inline, entries: vec![entry] })
}

async fn session(queue: Arc<EmbeddedQueue>) -> anyhow::Result<()> {
    for _ in 0..EACH {
        let lease = LeaseRequest {
            worker: "bench".into(),
            max: 1,
            duration: Duration::from_secs(60),
            except: Vec::new(),
        };
        for leased in queue.accept(message()?, Some(lease)).await?.leased {
            let recipients = leased.entry.recipients.clone();
            queue
                .settle(Settlement { lease: leased.lease, recipients, next: Next::Done, bounce: None })
                .await?;
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let queue = Arc::new(EmbeddedQueue::open(folder.path())?);
    for round in 1..=5 {
        let started = Instant::now();
        let sessions: Vec<_> = (0..SESSIONS).map(|_| tokio::spawn(session(Arc::clone(&queue)))).collect();
        for session in sessions {
            session.await??;
        }
        let rate = (SESSIONS * EACH) as f64 / started.elapsed().as_secs_f64();
        let size: u64 = walk(folder.path())?;
        println!(
            "round {round}: {rate:.0} messages accepted and settled a second; {} MiB on disk",
            size >> 20
        );
    }
    Ok(())
}

fn walk(folder: &std::path::Path) -> std::io::Result<u64> {
    let mut size = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        size += if entry.file_type()?.is_dir() { walk(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(size)
}
