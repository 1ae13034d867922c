//! The receiver: as much of LMTP (RFC 2033) as a delivery service needs to hand a message over.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use smtp::{DataDecoder, DataEvent, EnhancedCode, LineDecoder, Reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// The largest message, in octets.
const MAX_MESSAGE: u64 = 1024 * 1024;
/// The longest line, in octets.
const MAX_LINE: usize = 4096;
/// A connection is ended after this.
const SESSION: Duration = Duration::from_secs(60);

/// Takes messages, one connection after the other, and passes them on.
pub(super) async fn serve(listener: TcpListener, arrivals: mpsc::Sender<String>) {
    loop {
        let session = match listener.accept().await {
            Ok((stream, _)) => timeout(SESSION, Session::new(stream).run(&arrivals)).await,
            Err(error) => Ok(Err(error)),
        };
        match session {
            Ok(Ok(())) => {}
            Ok(Err(error)) => println!("a connection to the listener failed: {error}"),
            Err(_) => println!("a connection to the listener took longer than {SESSION:?}"),
        }
    }
}

struct Session {
    stream: TcpStream,
    input: BytesMut,
    recipients: usize,
}

impl Session {
    fn new(stream: TcpStream) -> Self {
        Self { stream, input: BytesMut::new(), recipients: 0 }
    }

    async fn run(&mut self, arrivals: &mpsc::Sender<String>) -> io::Result<()> {
        let ok = || Reply::new(250, EnhancedCode(2, 0, 0), "Ok");
        self.say(&Reply::plain(220, "packetboat-probe.invalid LMTP")).await?;
        let mut lines = LineDecoder::default();
        loop {
            let line = loop {
                match lines.decode(&mut self.input, MAX_LINE) {
                    Ok(Some(line)) => break line,
                    Ok(None) => self.read().await?,
                    Err(error) => return Err(io::Error::other(error)),
                }
            };
            let verb = line.split(|octet| *octet == b' ').next().unwrap_or_default().to_ascii_uppercase();
            let reply = match verb.as_slice() {
                b"LHLO" | b"EHLO" | b"HELO" => {
                    let lines = ["packetboat-probe.invalid", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"];
                    Reply::multiline(250, lines.map(Into::into).to_vec())
                }
                b"RCPT" => {
                    self.recipients += 1;
                    ok()
                }
                b"MAIL" | b"RSET" => {
                    self.recipients = 0;
                    ok()
                }
                b"NOOP" => ok(),
                b"DATA" => {
                    self.data(arrivals).await?;
                    continue;
                }
                b"QUIT" => return self.say(&Reply::new(221, EnhancedCode(2, 0, 0), "Bye")).await,
                _ => Reply::new(502, EnhancedCode(5, 5, 1), "Not known here"),
            };
            self.say(&reply).await?;
        }
    }

    /// One reply for each recipient (RFC 2033 §4.2).
    async fn data(&mut self, arrivals: &mpsc::Sender<String>) -> io::Result<()> {
        self.say(&Reply::plain(354, "Go on")).await?;
        let mut decoder = DataDecoder::new(MAX_MESSAGE, MAX_LINE);
        let mut content = Vec::new();
        loop {
            match decoder.decode(&mut self.input) {
                Some(DataEvent::Chunk(chunk)) => content.extend_from_slice(&chunk),
                Some(DataEvent::End) => break,
                None => self.read().await?,
            }
        }
        let reply = match decoder.fault() {
            Some(fault) => Reply::new(554, EnhancedCode(5, 6, 0), fault.to_string()),
            None => Reply::new(250, EnhancedCode(2, 0, 0), "Taken"),
        };
        if reply.is_positive() {
            arrivals.send(String::from_utf8_lossy(&content).into_owned()).await.map_err(io::Error::other)?;
        }
        for _ in 0..std::mem::take(&mut self.recipients) {
            self.say(&reply).await?;
        }
        Ok(())
    }

    async fn read(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.input).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn say(&mut self, reply: &Reply) -> io::Result<()> {
        let mut output = BytesMut::new();
        reply.encode(&mut output);
        self.stream.write_all(&output).await
    }
}
