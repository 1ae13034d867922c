//! Messages, and sessions that put them through a queue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use message::{Content, Envelope, Origin, QueueId, Recipient, Standing};
use queue::{
    Closing, LeaseRequest, Leased, MessageRecord, NewEntry, NewMessage, Next, NextHop, Queue, Settlement,
    Timestamp,
};

/// A message of so many octets, with one entry.
pub(crate) fn message(octets: usize, next_hop: &str) -> anyhow::Result<NewMessage> {
    let address: smtp::Mailbox = "alice@example.com".parse()?;
    let inline = Content::from(bytes::Bytes::from(vec![b'x'; octets]));
    let recipient =
        Recipient { address: address.clone(), original: None, standing: Standing::Pending, attempt: None };
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
        next_hop: NextHop(next_hop.to_owned()),
        tenant: queue::Tenant::default(),
        recipients: vec![recipient],
        max_age: Duration::from_secs(3600),
    };
    Ok(NewMessage { record, inline, entries: vec![entry] })
}

/// How a worker of this measurement leases.
pub(crate) fn request(max: usize) -> LeaseRequest {
    LeaseRequest {
        worker: "measure".into(),
        max,
        duration: Duration::from_secs(600),
        except: Vec::new(),
        except_pools: Vec::new(),
    }
}

/// The end of an entry.
pub(crate) fn delivered(leased: &Leased) -> Settlement {
    Settlement {
        lease: leased.lease,
        recipients: leased.entry.recipients.clone(),
        next: Next::Done(Closing::Delivered),
        bounce: None,
    }
}

/// `sessions` tasks accept `each` messages, leased at once, and settle them. Messages a second.
pub(crate) async fn accept_and_settle(
    queue: &Arc<dyn Queue>,
    sessions: usize,
    each: usize,
    octets: usize,
) -> anyhow::Result<f64> {
    let started = Instant::now();
    let session = |queue: Arc<dyn Queue>| async move {
        for _ in 0..each {
            let message = message(octets, "mx:example.com")?;
            for leased in queue.accept(message, Some(request(1))).await?.leased {
                queue.settle(delivered(&leased)).await?;
            }
        }
        anyhow::Ok(())
    };
    let tasks: Vec<_> = (0..sessions).map(|_| tokio::spawn(session(Arc::clone(queue)))).collect();
    for task in tasks {
        task.await??;
    }
    Ok((sessions * each) as f64 / started.elapsed().as_secs_f64())
}
