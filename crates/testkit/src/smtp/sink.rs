//! An SMTP or LMTP server that keeps what it is sent and answers as a test tells it to.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Stream, tls, unstuff};
use crate::wait;

/// A place in the conversation where the server's answer can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// The greeting on connection.
    Greeting,
    /// EHLO, HELO or LHLO.
    Hello,
    /// MAIL FROM.
    Mail,
    /// RCPT TO.
    Rcpt,
    /// DATA.
    Data,
    /// The ending dot.
    Dot,
}

/// A message the server took.
#[derive(Clone, Debug)]
pub struct Received {
    /// The reverse-path, without angle brackets.
    pub from: String,
    /// The parameters of MAIL.
    pub parameters: String,
    /// The recipients that were accepted.
    pub to: Vec<String>,
    /// The message as sent, without dot-stuffing.
    pub message: String,
    /// Whether it came over TLS.
    pub tls: bool,
    /// The address that it came from.
    pub peer: IpAddr,
    /// The name that the client gave.
    pub hello: String,
}

#[derive(Default)]
struct Script {
    replies: HashMap<Verb, String>,
    rcpt_replies: HashMap<String, String>,
    dot_replies: HashMap<String, String>,
    delays: HashMap<Verb, Duration>,
    drops_after_dot: usize,
    received: Vec<Received>,
    connections: usize,
    transactions: usize,
    /// Messages being sent now, and the most there were at once, by the address that they come from.
    sending: HashMap<IpAddr, (usize, usize)>,
}

struct Shared {
    script: Mutex<Script>,
    tls: TlsAcceptor,
    lmtp: bool,
}

/// The running server; it stops when this is dropped.
pub struct Sink {
    address: SocketAddr,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

impl Sink {
    /// Starts an SMTP server on a free loopback port.
    pub async fn smtp() -> Result<Self> {
        Self::start(false, (Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// Starts an SMTP server at this address.
    pub async fn smtp_at(address: SocketAddr) -> Result<Self> {
        Self::start(false, address).await
    }

    /// Starts an LMTP server (RFC 2033) on a free loopback port: one reply a recipient after the dot.
    pub async fn lmtp() -> Result<Self> {
        Self::start(true, (Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// Starts an LMTP server at this address.
    pub async fn lmtp_at(address: SocketAddr) -> Result<Self> {
        Self::start(true, address).await
    }

    async fn start(lmtp: bool, address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await.context("binding the sink")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { script: Mutex::default(), tls: tls::acceptor("sink.test")?, lmtp });
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(serve(listener, shared.clone())));
        Ok(Self { address, shared, _stop: stop.drop_guard() })
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers `verb` with this line ("450 4.2.0 later") from now on.
    pub fn reply(&self, verb: Verb, line: &str) {
        self.shared.script().replies.insert(verb, line.to_owned());
    }

    /// Answers RCPT for this recipient with this line from now on.
    pub fn reply_to_recipient(&self, recipient: &str, line: &str) {
        self.shared.script().rcpt_replies.insert(recipient.to_owned(), line.to_owned());
    }

    /// Answers the dot for this recipient with this line from now on (LMTP only).
    pub fn reply_to_recipient_at_dot(&self, recipient: &str, line: &str) {
        self.shared.script().dot_replies.insert(recipient.to_owned(), line.to_owned());
    }

    /// Waits this long before it answers `verb` from now on.
    pub fn delay(&self, verb: Verb, delay: Duration) {
        self.shared.script().delays.insert(verb, delay);
    }

    /// Closes the next `count` connections after the dot without an answer. The message counts as
    /// received: the sender cannot know.
    pub fn drop_after_dot(&self, count: usize) {
        self.shared.script().drops_after_dot = count;
    }

    /// Answers everything positively and at once again.
    pub fn behave(&self) {
        let mut script = self.shared.script();
        *script = Script { received: std::mem::take(&mut script.received), ..Script::default() };
    }

    /// What was received so far.
    pub fn received(&self) -> Vec<Received> {
        self.shared.script().received.clone()
    }

    /// How many messages were received so far.
    pub fn count(&self) -> usize {
        self.shared.script().received.len()
    }

    /// How many transactions were begun.
    pub fn transactions(&self) -> usize {
        self.shared.script().transactions
    }

    /// How many messages an address has been sending at once, at most.
    pub fn at_once(&self, peer: IpAddr) -> usize {
        self.shared.script().sending.get(&peer).map_or(0, |(_, most)| *most)
    }

    /// How many connections there have been.
    pub fn connections(&self) -> usize {
        self.shared.script().connections
    }

    /// Waits until a message that contains `text` was received.
    pub async fn wait_for(&self, text: &str, limit: Duration) -> Result<Received> {
        let what = format!("a message with {text:?} at the SMTP sink");
        wait::until(&what, limit, async || {
            self.received().into_iter().find(|received| received.message.contains(text))
        })
        .await
    }
}

impl Script {
    fn begin(&mut self, peer: IpAddr) {
        let (now, most) = self.sending.entry(peer).or_default();
        *now += 1;
        *most = (*most).max(*now);
    }

    fn end(&mut self, peer: IpAddr) {
        if let Some((now, _)) = self.sending.get_mut(&peer) {
            *now -= 1;
        }
    }
}

impl Shared {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut sessions = JoinSet::new();
    loop {
        let Ok((stream, peer)) = listener.accept().await else { continue };
        shared.script().connections += 1;
        let session = Session {
            stream: Some(BufReader::new(Box::new(stream))),
            shared: shared.clone(),
            tls: false,
            peer: peer.ip(),
            hello: String::new(),
        };
        sessions.spawn(session.run());
        while sessions.try_join_next().is_some() {}
    }
}

struct Session {
    stream: Option<BufReader<Box<dyn Stream>>>,
    shared: Arc<Shared>,
    tls: bool,
    peer: IpAddr,
    hello: String,
}

/// The envelope while it is being told.
#[derive(Default)]
struct Envelope {
    from: String,
    parameters: String,
    to: Vec<String>,
}

impl Session {
    /// The whole conversation. An error is a client that went away or spoke nonsense; it ends the session.
    async fn run(mut self) -> Result<()> {
        if !self.answer(Verb::Greeting, "220 sink.test ESMTP").await? {
            return Ok(());
        }
        let mut envelope = Envelope::default();
        loop {
            let line = self.line().await?;
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            let verb = text.split(' ').next().unwrap_or_default().to_ascii_uppercase();
            match verb.as_str() {
                "EHLO" | "LHLO" => {
                    self.hello = text.split(' ').nth(1).unwrap_or_default().to_owned();
                    let starttls = if self.tls { "" } else { "250-STARTTLS\r\n" };
                    let keywords = format!(
                        "250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n{starttls}250 ENHANCEDSTATUSCODES"
                    );
                    self.answer(Verb::Hello, &keywords).await?;
                }
                "HELO" => drop(self.answer(Verb::Hello, "250 sink.test").await?),
                "STARTTLS" => self.starttls().await?,
                "MAIL" => {
                    self.shared.script().transactions += 1;
                    if self.answer(Verb::Mail, "250 2.1.0 Ok").await? {
                        let parameters = text.split_once("> ").map_or("", |(_, rest)| rest).to_owned();
                        envelope = Envelope { from: path(&text), parameters, to: Vec::new() };
                    }
                }
                "RCPT" => self.rcpt(path(&text), &mut envelope).await?,
                "DATA" if envelope.to.is_empty() => self.say("503 5.5.1 no recipients").await?,
                "DATA" => {
                    if self.answer(Verb::Data, "354 go on").await? {
                        self.shared.script().begin(self.peer);
                        let taken = self.content(std::mem::take(&mut envelope)).await;
                        self.shared.script().end(self.peer);
                        if !taken? {
                            return Ok(());
                        }
                    }
                }
                "RSET" => {
                    envelope = Envelope::default();
                    self.say("250 2.0.0 Ok").await?;
                }
                "NOOP" => self.say("250 2.0.0 Ok").await?,
                "QUIT" => return self.say("221 2.0.0 Bye").await,
                _ => self.say("500 5.5.2 what?").await?,
            }
        }
    }

    async fn rcpt(&mut self, recipient: String, envelope: &mut Envelope) -> Result<()> {
        let special = self.shared.script().rcpt_replies.get(&recipient).cloned();
        let taken = match special {
            Some(line) => {
                self.say(&line).await?;
                line.starts_with('2')
            }
            None => self.answer(Verb::Rcpt, "250 2.1.5 Ok").await?,
        };
        if taken {
            envelope.to.push(recipient);
        }
        Ok(())
    }

    /// Reads the message and answers the dot; false when the connection shall be dropped instead.
    async fn content(&mut self, envelope: Envelope) -> Result<bool> {
        let mut octets = Vec::new();
        loop {
            let line = self.line().await?;
            match unstuff(&line) {
                Some(line) => octets.extend_from_slice(line),
                None => break,
            }
        }
        let message = String::from_utf8_lossy(&octets).into_owned();
        let Envelope { from, parameters, to } = envelope;
        let lines: Vec<String> = {
            let script = self.shared.script();
            let usual = script.replies.get(&Verb::Dot).map_or("250 2.0.0 Ok: kept", String::as_str);
            let line_for = |recipient: &String| {
                script.dot_replies.get(recipient).map_or(usual, String::as_str).to_owned()
            };
            if self.shared.lmtp { to.iter().map(line_for).collect() } else { vec![usual.to_owned()] }
        };
        let kept = if self.shared.lmtp {
            to.into_iter()
                .zip(&lines)
                .filter(|(_, line)| line.starts_with('2'))
                .map(|(recipient, _)| recipient)
                .collect()
        } else if lines.iter().all(|line| line.starts_with('2')) {
            to
        } else {
            Vec::new()
        };
        let drop_now = {
            let mut script = self.shared.script();
            if !kept.is_empty() {
                let (peer, hello) = (self.peer, self.hello.clone());
                script.received.push(Received {
                    from,
                    parameters,
                    to: kept,
                    message,
                    tls: self.tls,
                    peer,
                    hello,
                });
            }
            let drop_now = script.drops_after_dot > 0;
            script.drops_after_dot = script.drops_after_dot.saturating_sub(1);
            drop_now
        };
        if drop_now {
            return Ok(false);
        }
        self.pause(Verb::Dot).await;
        for line in lines {
            self.say(&line).await?;
        }
        Ok(true)
    }

    async fn starttls(&mut self) -> Result<()> {
        self.say("220 2.0.0 go on").await?;
        let Some(stream) = self.stream.take() else { bail!("the connection is gone") };
        let secured = self.shared.tls.accept(stream.into_inner()).await?;
        self.stream = Some(BufReader::new(Box::new(secured)));
        self.tls = true;
        Ok(())
    }

    /// Answers as the script says, else `usual`; tells whether the answer was positive.
    async fn answer(&mut self, verb: Verb, usual: &str) -> Result<bool> {
        self.pause(verb).await;
        let line = self.shared.script().replies.get(&verb).cloned().unwrap_or_else(|| usual.to_owned());
        self.say(&line).await?;
        Ok(line.starts_with(['2', '3']))
    }

    async fn pause(&self, verb: Verb) {
        let delay = self.shared.script().delays.get(&verb).copied();
        if let Some(delay) = delay {
            sleep(delay).await;
        }
    }

    async fn say(&mut self, line: &str) -> Result<()> {
        let stream = self.stream.as_mut().context("the connection is gone")?;
        stream.write_all(format!("{line}\r\n").as_bytes()).await?;
        Ok(stream.flush().await?)
    }

    async fn line(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        let stream = self.stream.as_mut().context("the connection is gone")?;
        stream.read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            bail!("the client closed the connection");
        }
        Ok(line)
    }
}

/// What stands between the angle brackets.
fn path(command: &str) -> String {
    let inner = command.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    inner.map_or_else(String::new, |(path, _)| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::Client;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn client_and_sink_understand_each_other() {
        let sink = Sink::smtp().await.unwrap();
        let mut client = Client::connect(sink.address()).await.unwrap();
        client.expect(250, "EHLO client.test").await.unwrap();
        client.starttls().await.unwrap();
        let message = "Subject: dots\r\n\r\n.\r\n..two\r\nend\r\n";
        let reply = client.transaction("a@example.com", &["b@example.net"], message).await.unwrap();
        assert_eq!(reply.code, 250);
        let received = sink.wait_for("Subject: dots", PATIENCE).await.unwrap();
        assert_eq!((received.message.as_str(), received.tls), (message, true));
        assert_eq!(received.to, ["b@example.net"]);
    }

    #[tokio::test]
    async fn the_sink_answers_as_told() {
        let sink = Sink::lmtp().await.unwrap();
        sink.reply_to_recipient("full@example.net", "452 4.2.2 full");
        sink.reply_to_recipient_at_dot("bad@example.net", "550 5.7.1 no");
        let mut client = Client::connect(sink.address()).await.unwrap();
        client.expect(250, "LHLO client.test").await.unwrap();
        client.expect(250, "MAIL FROM:<a@example.com>").await.unwrap();
        client.expect(452, "RCPT TO:<full@example.net>").await.unwrap();
        client.expect(250, "RCPT TO:<bad@example.net>").await.unwrap();
        client.expect(250, "RCPT TO:<good@example.net>").await.unwrap();
        client.expect(354, "DATA").await.unwrap();
        assert_eq!(client.content("x: y\r\n\r\n").await.unwrap().code, 550);
        assert_eq!(client.reply().await.unwrap().code, 250);
        assert_eq!(sink.received()[0].to, ["good@example.net"]);
        sink.drop_after_dot(1);
        assert!(
            Client::deliver(sink.address(), "a@example.com", &["c@example.net"], "x: y\r\n\r\n")
                .await
                .is_err()
        );
        assert_eq!((sink.count(), sink.connections()), (2, 2));
    }
}
