//! An SMTP client that says what a test tells it to.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Stream, stuff, tls};

/// How long one reply may take, and one write.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to an SMTP server.
pub struct Client {
    // An option only so that STARTTLS can take the stream out and put another in.
    stream: Option<BufReader<Box<dyn Stream>>>,
    patience: Duration,
}

/// A reply of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The three digits.
    pub code: u16,
    /// The text of each line, without code and line end.
    pub lines: Vec<String>,
}

impl Reply {
    /// Whether the server took the command (2yz or 3yz).
    pub fn is_positive(&self) -> bool {
        (200..400).contains(&self.code)
    }

    /// Whether it is worth trying again later (4yz).
    pub fn is_temporary(&self) -> bool {
        (400..500).contains(&self.code)
    }

    /// All lines as one text.
    pub fn text(&self) -> String {
        self.lines.join("\n")
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.text())
    }
}

impl Client {
    /// Connects, and says and reads nothing yet.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream =
            timeout(PATIENCE, TcpStream::connect(address)).await.context("connecting took too long")?;
        let stream = stream.with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: Some(BufReader::new(Box::new(stream))), patience: PATIENCE })
    }

    /// Connects and reads the greeting, which must be positive.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let mut client = Self::open(address).await?;
        client.expect_reply(220).await?;
        Ok(client)
    }

    /// Connects with TLS from the first octet (RFC 8314) and reads the greeting.
    pub async fn connect_tls(address: SocketAddr) -> Result<Self> {
        let mut client = Self::open(address).await?;
        client.secure().await?;
        client.expect_reply(220).await?;
        Ok(client)
    }

    /// Waits for replies at most this long from now on.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sends octets as they are.
    pub async fn send_raw(&mut self, octets: &[u8]) -> Result<()> {
        let patience = self.patience;
        let stream = self.stream()?;
        let write = async {
            stream.write_all(octets).await?;
            stream.flush().await
        };
        timeout(patience, write).await.context("the server took no more octets")?.context("sending")
    }

    /// Reads one reply, of one or several lines.
    pub async fn reply(&mut self) -> Result<Reply> {
        let patience = self.patience;
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            let read = timeout(patience, self.stream()?.read_line(&mut line)).await;
            let length = read.context("no reply in time")?.context("reading a reply")?;
            ensure!(length > 0, "the server closed the connection");
            let line =
                line.strip_suffix("\r\n").with_context(|| format!("no CRLF ends the reply {line:?}"))?;
            let code = line.get(..3).and_then(|code| code.parse().ok());
            let code = code.with_context(|| format!("no code begins the reply {line:?}"))?;
            lines.push(line.get(4..).unwrap_or_default().to_owned());
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(Reply { code, lines });
            }
        }
    }

    /// Reads a reply that must have this code.
    pub async fn expect_reply(&mut self, code: u16) -> Result<Reply> {
        let reply = self.reply().await?;
        ensure!(reply.code == code, "wanted {code}, got: {reply}");
        Ok(reply)
    }

    /// Sends a line and reads the reply.
    pub async fn command(&mut self, line: &str) -> Result<Reply> {
        self.send_raw(format!("{line}\r\n").as_bytes()).await?;
        self.reply().await.with_context(|| format!("after {line:?}"))
    }

    /// Sends a line and reads a reply that must have this code.
    pub async fn expect(&mut self, code: u16, line: &str) -> Result<Reply> {
        let reply = self.command(line).await?;
        ensure!(reply.code == code, "after {line:?} wanted {code}, got: {reply}");
        Ok(reply)
    }

    /// Sends a message as the content of DATA with its ending dot, and reads the reply.
    pub async fn content(&mut self, message: &str) -> Result<Reply> {
        self.send_raw(&stuff(message)).await?;
        self.reply().await.context("after the ending dot")
    }

    /// Sends STARTTLS, does the handshake without looking at the certificate, and says EHLO again.
    pub async fn starttls(&mut self) -> Result<()> {
        self.expect(220, "STARTTLS").await?;
        self.secure().await?;
        self.expect(250, "EHLO client.test").await.map(drop)
    }

    /// Authenticates with AUTH PLAIN (RFC 4616) and gives the reply.
    pub async fn auth_plain(&mut self, user: &str, password: &str) -> Result<Reply> {
        self.command(&format!("AUTH PLAIN {}", STANDARD.encode(format!("\0{user}\0{password}")))).await
    }

    /// Authenticates with AUTH LOGIN and gives the last reply.
    pub async fn auth_login(&mut self, user: &str, password: &str) -> Result<Reply> {
        self.expect(334, "AUTH LOGIN").await?;
        self.expect(334, &STANDARD.encode(user)).await?;
        self.command(&STANDARD.encode(password)).await
    }

    /// One transaction: the reply to the ending dot, or the first one before it that was not positive.
    /// After a refused step the transaction is reset.
    pub async fn transaction(&mut self, from: &str, to: &[&str], message: &str) -> Result<Reply> {
        let mut steps = vec![format!("MAIL FROM:<{from}>")];
        steps.extend(to.iter().map(|recipient| format!("RCPT TO:<{recipient}>")));
        steps.push("DATA".to_owned());
        for step in steps {
            let reply = self.command(&step).await?;
            if !reply.is_positive() {
                // A 421 ends the session (RFC 5321 §3.8); there is nothing left to reset.
                if reply.code != 421 {
                    self.expect(250, "RSET").await?;
                }
                return Ok(reply);
            }
        }
        self.content(message).await
    }

    /// A whole session for one message: connect, EHLO, [`transaction`](Self::transaction), QUIT.
    pub async fn deliver(address: SocketAddr, from: &str, to: &[&str], message: &str) -> Result<Reply> {
        let mut client = Self::connect(address).await?;
        client.expect(250, "EHLO client.test").await?;
        let reply = client.transaction(from, to, message).await?;
        if reply.code != 421 {
            client.command("QUIT").await?;
        }
        Ok(reply)
    }

    /// Waits until the server closes the connection; what it says before is dropped.
    pub async fn wait_for_close(&mut self, limit: Duration) -> Result<()> {
        let stream = self.stream()?;
        let drain = async {
            loop {
                let length = match stream.fill_buf().await {
                    Ok([]) | Err(_) => return,
                    Ok(octets) => octets.len(),
                };
                stream.consume(length);
            }
        };
        timeout(limit, drain).await.with_context(|| format!("the server kept the connection for {limit:?}"))
    }

    /// Does the TLS handshake without looking at the certificate.
    pub async fn secure(&mut self) -> Result<()> {
        let Some(stream) = self.stream.take() else { bail!("the connection is gone") };
        let name = ServerName::try_from("server.test")?;
        let handshake = tls::connector()?.connect(name, stream.into_inner());
        let secured = timeout(self.patience, handshake).await.context("the TLS handshake took too long")?;
        self.stream = Some(BufReader::new(Box::new(secured.context("TLS handshake")?)));
        Ok(())
    }

    fn stream(&mut self) -> Result<&mut BufReader<Box<dyn Stream>>> {
        self.stream.as_mut().context("the connection is gone")
    }
}
