//! The sender: one SMTP transaction.

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use smtp::{Reply, ReplyDecoder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection, and what has come of a reply.
struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
    decoder: ReplyDecoder,
}

/// Sends a message, whose lines begin with no dot; what the server said to its end.
///
/// # Errors
/// When the server cannot be reached, or anything is refused.
pub(super) async fn send(server: &str, from: &str, to: &str, message: &str) -> Result<String> {
    let stream = TcpStream::connect(server).await.with_context(|| format!("cannot connect to {server}"))?;
    let mut connection = Connection { stream, buffer: BytesMut::new(), decoder: ReplyDecoder::default() };
    connection.reply("the greeting", 220).await?;
    connection.say("EHLO packetboat-probe.invalid", 250).await?;
    connection.say(&format!("MAIL FROM:<{from}>"), 250).await?;
    connection.say(&format!("RCPT TO:<{to}>"), 250).await?;
    connection.say("DATA", 354).await?;
    let reply = connection.say(&format!("{message}."), 250).await?;
    connection.say("QUIT", 221).await?;
    Ok(shown(&reply))
}

impl Connection {
    async fn say(&mut self, line: &str, wanted: u16) -> Result<Reply> {
        self.stream.write_all(format!("{line}\r\n").as_bytes()).await?;
        let verb = if line.contains('\n') { "the message" } else { line };
        self.reply(verb, wanted).await
    }

    async fn reply(&mut self, to: &str, wanted: u16) -> Result<Reply> {
        let reply = loop {
            if let Some(reply) = self.decoder.decode(&mut self.buffer)? {
                break reply;
            }
            let read = self.stream.read_buf(&mut self.buffer).await?;
            ensure!(read > 0, "the server closed the connection instead of answering {to}");
        };
        if reply.code != wanted {
            bail!("the server answers {to} with {}", shown(&reply));
        }
        Ok(reply)
    }
}

fn shown(reply: &Reply) -> String {
    let enhanced = reply.enhanced.map(|code| format!("{code} ")).unwrap_or_default();
    format!("{} {enhanced}{}", reply.code, reply.lines.join(" "))
}
