//! Scripted peers over real sockets, and transfers to offer to them.
#![allow(dead_code, unreachable_pub)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use delivery::content::ContentReader;
use delivery::outbound::{Ledger, Outbound, OutboundConfig, PoolConfig, Protocol, Timeouts};
use delivery::transfer::{RecipientOutcome, Transfer};
use dns::{DnsConfig, Resolver};
use message::{Content, Envelope, Failure, Origin, QueueId, Recipient};
use queue::{
    Accepted, Depth, Entry, EntryId, EntryState, Lease, LeaseRequest, Leased, ListFilter, MessageRecord,
    NewMessage, NextHop, Page, Queue, QueueError, Settlement, Timestamp,
};
use tls::{ClientTls, ClientTlsConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Longer than any test should wait for anything.
const PATIENCE: Duration = Duration::from_secs(10);

/// One step of a peer's part in a dialogue.
#[derive(Debug, Clone)]
pub enum Step {
    /// Sends this, as it is.
    Say(&'static str),
    /// Expects exactly this line (without CRLF).
    Hear(&'static str),
    /// Expects exactly this, all in one read.
    HearAtOnce(&'static str),
    /// Reads up to the final dot, and expects this, stuffed as it is.
    Content(&'static str),
    /// Expects the connection to be closed, with or without a QUIT.
    Closed,
    /// Waits until the client closes, saying nothing.
    Hang,
    /// Resets or closes the connection.
    Drop,
}

pub use Step::{Closed, Content as HearContent, Drop as Hangup, Hang, Hear, HearAtOnce, Say};

/// The opening of a session by a peer that offers these keywords (each line as in a reply to EHLO).
pub fn opening(keywords: &'static str) -> Vec<Step> {
    vec![Say("220 peer.test ESMTP\r\n"), Hear("EHLO mx.us.test"), Say(keywords)]
}

pub const PLAIN: &str = "250 peer.test\r\n";
pub const PIPELINING: &str =
    "250-peer.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE 1000000\r\n";
pub const STARTTLS: &str = "250-peer.test\r\n250-PIPELINING\r\n250 STARTTLS\r\n";

/// A peer that plays one script after the other, one a connection.
pub struct Peer {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Peer {
    pub async fn start(scripts: Vec<Vec<Step>>) -> Self {
        Self::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), scripts).await
    }

    pub async fn bind(address: SocketAddr, scripts: Vec<Vec<Step>>) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let task = tokio::spawn(async move {
            for (number, script) in scripts.into_iter().enumerate() {
                let accepted = timeout(PATIENCE, listener.accept()).await;
                let (stream, _) =
                    accepted.unwrap_or_else(|_| panic!("no connection {number}")).expect("accept");
                Talk { stream, received: Vec::new() }.play(script).await;
            }
        });
        Self { address, task }
    }

    /// Waits for the end of the scripts; panics where the client did not keep to them.
    pub async fn finish(self) {
        timeout(PATIENCE, self.task).await.expect("scripts played to their end").expect("scripts kept to");
    }
}

struct Talk {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Talk {
    async fn play(mut self, script: Vec<Step>) {
        for step in script {
            match step {
                Say(text) => self.stream.write_all(text.as_bytes()).await.expect("send"),
                Hear(line) => assert_eq!(self.up_to("\r\n").await, format!("{line}\r\n")),
                HearAtOnce(text) => {
                    assert!(self.more().await, "connection closed before {text:?}");
                    assert_eq!(String::from_utf8(std::mem::take(&mut self.received)).expect("text"), text);
                }
                HearContent(text) => assert_eq!(self.up_to("\r\n.\r\n").await, text),
                Closed => {
                    while self.more().await {}
                    let rest = String::from_utf8_lossy(&self.received);
                    assert!(rest.is_empty() || rest == "QUIT\r\n", "unexpected {rest:?}");
                }
                Hang => while self.more().await {},
                Hangup => return,
            }
        }
    }

    async fn up_to(&mut self, end: &str) -> String {
        loop {
            let text = String::from_utf8_lossy(&self.received).into_owned();
            if let Some(at) = text.find(end) {
                let rest = self.received.split_off(at + end.len());
                return String::from_utf8(std::mem::replace(&mut self.received, rest)).expect("text");
            }
            assert!(self.more().await, "connection closed before {end:?}, after {text:?}");
        }
    }

    /// Reads once; false at the end of the connection.
    async fn more(&mut self) -> bool {
        self.received.reserve(64 * 1024);
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.received)).await;
        read.expect("something from the client").unwrap_or(0) > 0
    }
}

/// Settings with short waits, for peers on loopback.
pub fn config(port: u16) -> OutboundConfig {
    let short = Duration::from_millis(300);
    OutboundConfig {
        hostname: "mx.us.test".to_owned(),
        port,
        allow_loopback: true,
        timeouts: Timeouts {
            greeting: short,
            command: short,
            mail: short,
            rcpt: short,
            data: short,
            data_block: short,
            data_end: short,
            quit: Duration::from_millis(50),
            ..Timeouts::default()
        },
        ..OutboundConfig::default()
    }
}

/// The settings without a pool: every connection ends with its message.
pub fn unpooled(port: u16) -> OutboundConfig {
    OutboundConfig { pool: PoolConfig { max_idle: 0, ..PoolConfig::default() }, ..config(port) }
}

/// A transport whose name server is nobody, or a test's.
pub fn outbound(config: OutboundConfig, name_server: Option<SocketAddr>) -> Outbound {
    let servers = vec![name_server.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)))];
    let dns = DnsConfig { servers, deadline: Duration::from_secs(2), ..DnsConfig::default() };
    let tls = ClientTls::opportunistic(&ClientTlsConfig::default()).expect("client TLS");
    Outbound::new(config, Resolver::new(dns).expect("resolver"), tls)
}

/// Offers that are not broken off, each with a ledger of its own. The outcomes come in the order of the recipients.
pub trait Offers {
    async fn to_domain(&self, domain: &str, transfer: &Transfer) -> Vec<RecipientOutcome>;
    async fn to_host(&self, address: &str, protocol: Protocol, transfer: &Transfer) -> Vec<RecipientOutcome>;
}

impl Offers for Outbound {
    async fn to_domain(&self, domain: &str, transfer: &Transfer) -> Vec<RecipientOutcome> {
        let mut ledger = Ledger::new(transfer.recipients.len());
        self.offer_to_domain(domain, transfer, &mut ledger).await;
        ledger.finish()
    }

    async fn to_host(&self, address: &str, protocol: Protocol, transfer: &Transfer) -> Vec<RecipientOutcome> {
        let mut ledger = Ledger::new(transfer.recipients.len());
        self.offer_to_host(address, protocol, transfer, &mut ledger).await;
        ledger.finish()
    }
}

pub const MESSAGE: &str = "Subject: test\r\n\r\nHello.\r\n.dot\r\n";
/// As it goes over the wire.
pub const STUFFED: &str = "Subject: test\r\n\r\nHello.\r\n..dot\r\n.\r\n";

/// [`MESSAGE`] in two slices, for these recipients.
pub fn transfer(recipients: &[&str]) -> Transfer {
    let (front, back) = MESSAGE.split_at(20);
    transfer_of(&[front, back], recipients)
}

pub fn transfer_of(slices: &[&str], recipients: &[&str]) -> Transfer {
    let mut content = Content::new();
    slices.iter().for_each(|slice| content.push(Bytes::copy_from_slice(slice.as_bytes())));
    let size = content.len();
    let leased = leased(content);
    Transfer {
        pool: None,
        id: leased.message.id,
        reverse_path: "sender@us.test".parse().expect("an address"),
        recipients: recipients.iter().map(|address| address.parse().expect("an address")).collect(),
        smtputf8: false,
        eight_bit: false,
        size,
        before_end: Box::new(|_| Box::pin(async { Ok(()) })),
        content: Box::new(move || ContentReader::new(Arc::new(NoQueue), &leased)),
    }
}

/// A transfer whose lease is gone before the end of the message.
pub fn stale_transfer(recipients: &[&str]) -> Transfer {
    let mut whole = transfer(recipients);
    whole.before_end = Box::new(|_| Box::pin(async { Err(QueueError::StaleLease) }));
    whole
}

/// A transfer whose content ends in an error of the store.
pub fn unreadable_transfer(recipients: &[&str]) -> Transfer {
    let mut whole = transfer(recipients);
    let mut leased = leased(Content::from(Bytes::from_static(b"Subject: test\r\n")));
    Arc::make_mut(&mut leased.message).parts = 1;
    whole.content = Box::new(move || ContentReader::new(Arc::new(NoQueue), &leased));
    whole
}

fn leased(content: Content) -> Leased {
    let id = QueueId::generate();
    let envelope = Envelope {
        reverse_path: "sender@us.test".parse().expect("an address"),
        recipients: Vec::new(),
        smtputf8: false,
        eight_bit: false,
        user: None,
        origin: Origin::Submission,
    };
    let record = MessageRecord {
        id,
        envelope,
        size: content.len(),
        inline_size: content.len(),
        parts: 0,
        traceparent: None,
        quarantine: false,
        accepted_at: Timestamp(0),
    };
    let entry = Entry {
        id: EntryId { message: id, number: 0 },
        next_hop: NextHop("mx:example.test".to_owned()),
        tenant: queue::Tenant::default(),
        recipients: Vec::<Recipient>::new(),
        state: EntryState::Leased,
        epoch: 1,
        attempts: 0,
        due: Timestamp(0),
        expires: Timestamp(1),
        last_error: None,
        worker: None,
        held: None,
        doomed: None,
        doubt: None,
    };
    let lease = Lease { entry: entry.id, epoch: 1 };
    Leased { lease, entry, message: Arc::new(record), inline: Some(content), now: Timestamp(0) }
}

/// The outcomes, each on one line: `delivered`, or `deferred`/`failed` with status and text.
pub fn summary(outcomes: &[RecipientOutcome]) -> Vec<String> {
    let told = |word: &str, failure: &Failure| format!("{word} {}: {}", failure.status, failure.text);
    let line = |outcome: &RecipientOutcome| match outcome {
        RecipientOutcome::Delivered { reply, .. } => format!("delivered: {reply}"),
        RecipientOutcome::Deferred(failure) => told("deferred", failure),
        RecipientOutcome::Failed(failure) => told("failed", failure),
    };
    outcomes.iter().map(line).collect()
}

/// A loopback address other than 127.0.0.1, at the same port.
pub fn neighbour(address: SocketAddr, last: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::from([127, 0, 0, last]), address.port())
}

/// A store that never answers: transfers here carry their content inline.
struct NoQueue;

fn unavailable<T>() -> Result<T, QueueError> {
    Err(QueueError::NotDurable("there is no store in this test".to_owned()))
}

#[async_trait]
impl Queue for NoQueue {
    async fn stage(&self, _: QueueId, _: u32, _: Bytes) -> Result<(), QueueError> {
        unavailable()
    }
    async fn accept(&self, _: NewMessage, _: Option<LeaseRequest>) -> Result<Accepted, QueueError> {
        unavailable()
    }
    async fn lease(&self, _: LeaseRequest) -> Result<Vec<Leased>, QueueError> {
        unavailable()
    }
    async fn renew(&self, _: &Lease, _: Duration) -> Result<(), QueueError> {
        unavailable()
    }
    async fn doubt(&self, _: &Lease, _: &str) -> Result<(), QueueError> {
        unavailable()
    }
    async fn hand_back(&self, _: &Lease) -> Result<(), QueueError> {
        unavailable()
    }
    async fn settle(&self, _: Settlement) -> Result<(), QueueError> {
        unavailable()
    }
    async fn inline_content(&self, _: QueueId) -> Result<Bytes, QueueError> {
        unavailable()
    }
    async fn part(&self, _: QueueId, _: u32) -> Result<Bytes, QueueError> {
        unavailable()
    }
    async fn wait(&self, _: Duration) {}
    async fn depth(&self) -> Result<Depth, QueueError> {
        unavailable()
    }
    async fn list(&self, _: ListFilter) -> Result<Page, QueueError> {
        unavailable()
    }
    async fn show(&self, _: QueueId) -> Result<Option<(MessageRecord, Vec<Entry>)>, QueueError> {
        unavailable()
    }
    async fn operate(&self, _: queue::Target, _: &queue::Verb, _: &str) -> Result<u64, QueueError> {
        unavailable()
    }
    async fn verbs(&self, _: usize) -> Result<Vec<queue::VerbRecord>, QueueError> {
        unavailable()
    }
    async fn record(&self, _: &queue::VerbRecord) -> Result<(), QueueError> {
        unavailable()
    }
    async fn suspend(&self, _: &queue::Scope, _: &str, _: &str) -> Result<(), QueueError> {
        unavailable()
    }
    async fn resume(&self, _: &queue::Scope, _: &str) -> Result<bool, QueueError> {
        unavailable()
    }
    async fn suspensions(&self) -> Result<Vec<queue::Suspension>, QueueError> {
        unavailable()
    }
    async fn set_policy(&self, _: &queue::Policy) -> Result<(), QueueError> {
        unavailable()
    }
    async fn sharers(&self, _: &queue::Scope, _: &str, _: Duration) -> Result<(usize, usize), QueueError> {
        unavailable()
    }
    async fn events(&self, _: &str, _: usize) -> Result<queue::Events, QueueError> {
        unavailable()
    }
    async fn passed(&self, _: &str, _: &str) -> Result<(), QueueError> {
        unavailable()
    }
    async fn forget_reader(&self, _: &str) -> Result<(), QueueError> {
        unavailable()
    }
    async fn audit(&self, _: Option<&str>) -> Result<queue::AuditPage, QueueError> {
        unavailable()
    }

    async fn ledger(&self) -> Result<queue::Ledger, QueueError> {
        unavailable()
    }
    async fn check(&self) -> Result<(), QueueError> {
        unavailable()
    }
}
