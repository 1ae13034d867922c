//! `packetboat probe`: sends a message through a cluster, and takes it at the other end.
//!
//! The other end is an LMTP listener of this command: a MailDomain routes the recipient's mail to it. What is
//! refused is tried again until the time is over, since a MailDomain takes a moment to be known everywhere; so does the
//! address of the listener.

mod client;
mod sink;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use message::QueueId;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use crate::command::Probe;

/// Between two tries.
const PAUSE: Duration = Duration::from_secs(1);
/// A message that has not arrived after so long is followed by another.
const PATIENCE: Duration = Duration::from_secs(10);
/// Messages that have come and were not looked at.
const WAITING: usize = 16;

/// Runs the command.
pub(crate) fn run(arguments: &Probe) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    runtime.block_on(probe(arguments))
}

async fn probe(arguments: &Probe) -> Result<()> {
    let started = Instant::now();
    let deadline = started + arguments.timeout;
    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("cannot listen on {} (--listen)", arguments.listen))?;
    let (arrivals, mut arrived) = mpsc::channel(WAITING);
    let sink = tokio::spawn(sink::serve(listener, arrivals));
    let id = QueueId::generate().to_string();
    let message = message(&arguments.to, &id);
    let text = loop {
        send(arguments, &message, started, deadline).await?;
        let until = deadline.min(Instant::now() + PATIENCE);
        match timeout_at(until, arrival(&mut arrived, &id)).await {
            Ok(text) => break text?,
            // The address of this listener may not have been known yet: that message waits for its next attempt.
            Err(_) if until < deadline => println!("not arrived yet: sending another"),
            Err(_) => bail!(
                "the message was accepted, and did not arrive within {:?}: see packetboat queue list",
                arguments.timeout
            ),
        }
    };
    sink.abort();
    println!("arrived after {:.1} s", started.elapsed().as_secs_f64());
    for line in text.lines().take_while(|line| !line.is_empty()) {
        println!("  {line}");
    }
    Ok(())
}

/// The message with this id.
async fn arrival(arrived: &mut mpsc::Receiver<String>, id: &str) -> Result<String> {
    while let Some(text) = arrived.recv().await {
        if text.contains(id) {
            return Ok(text);
        }
    }
    bail!("the listener has ended")
}

/// Sends until it is accepted.
async fn send(arguments: &Probe, message: &str, started: Instant, deadline: Instant) -> Result<()> {
    let mut last = String::new();
    loop {
        let attempt = client::send(&arguments.smtp, &arguments.from, &arguments.to, message);
        let outcome = timeout_at(deadline, attempt).await;
        let outcome = outcome.unwrap_or_else(|_| bail!("no answer within {:?}", arguments.timeout));
        match outcome {
            Ok(reply) => {
                println!("accepted after {:.1} s: {reply}", started.elapsed().as_secs_f64());
                return Ok(());
            }
            Err(error) => {
                let told = format!("{error:#}");
                if told != last {
                    println!("not accepted yet: {told}");
                    last = told;
                }
            }
        }
        if Instant::now() + PAUSE >= deadline {
            bail!("{} did not accept the message within {:?}: {last}", arguments.smtp, arguments.timeout);
        }
        sleep(PAUSE).await;
    }
}

fn message(to: &str, id: &str) -> String {
    let date = jiff::Zoned::now().strftime("%a, %d %b %Y %H:%M:%S %z");
    format!(
        "From: <{to}>\r\nTo: <{to}>\r\nDate: {date}\r\nMessage-ID: <{id}@packetboat-probe.invalid>\r\n\
         Subject: Packetboat probe {id}\r\n\r\nA probe.\r\n"
    )
}
