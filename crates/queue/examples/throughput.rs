//! Accepts and settles a second: `cargo run --release -p queue --example throughput -- embedded|redis`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use message::{Content, Envelope, Origin, QueueId, Recipient, Standing};
use queue::embedded::EmbeddedQueue;
use queue::redis::{Config, RedisQueue};
use queue::{
    Closing, LeaseRequest, MessageRecord, NewEntry, NewMessage, Next, NextHop, Queue, Settlement, Timestamp,
};

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
        tenant: queue::Tenant::default(),
        recipients: vec![recipient],
        max_age: Duration::from_secs(3600),
    };
    Ok(NewMessage { record, inline, entries: vec![entry] })
}

async fn session(queue: Arc<dyn Queue>) -> anyhow::Result<()> {
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
                .settle(Settlement {
                    lease: leased.lease,
                    recipients,
                    next: Next::Done(Closing::Delivered),
                    bounce: None,
                })
                .await?;
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let backend = std::env::args().nth(1).unwrap_or_else(|| "embedded".to_owned());
    let folder = tempfile::tempdir()?;
    let server = testkit::redis::RedisServer::start().await?;
    let queue: Arc<dyn Queue> = match backend.as_str() {
        "embedded" => Arc::new(EmbeddedQueue::open(folder.path())?),
        "redis" => {
            Arc::new(RedisQueue::connect(&Config { url: Some(server.url()), ..Config::default() }).await?)
        }
        other => anyhow::bail!("{other:?} is no backend: write embedded or redis"),
    };
    for round in 1..=5 {
        let started = Instant::now();
        let sessions: Vec<_> = (0..SESSIONS).map(|_| tokio::spawn(session(Arc::clone(&queue)))).collect();
        for session in sessions {
            session.await??;
        }
        let rate = (SESSIONS * EACH) as f64 / started.elapsed().as_secs_f64();
        println!("{backend}, round {round}: {rate:.0} messages accepted and settled a second");
    }
    Ok(())
}
