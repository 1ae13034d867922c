//! `make demo`: real mail in and out of one Packetboat, told message by message.
//!
//! Around one `packetboat all` with its embedded queue stand a DNS server with a small Internet in
//! it, a Postfix that sends as a remote server does, a Postfix that receives as one does, and
//! `swaks` as attacker and as a user's mail program. The exit code is 0 only when every message ended
//! as it should.

use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use packetboat_tests::world::{
    ARRIVAL, BANK, DEAD, FRIEND, HOSTED, LOGIN, PASSWORD, REMOTE, SHOP, World, at,
};
use testkit::corpus::{Message, header_of};
use testkit::dkim;
use testkit::postfix::{self, Postfix};
use testkit::process::{Packetboat, Settings};
use tokio::process::Command;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("\n✗ the demo could not go on: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<bool> {
    let stage = Stage::set().await?;
    stage.introduce();
    let mut outcomes = Outcomes::default();

    outcomes.tell(
        "An honest message from friend.test, sent by a Postfix.",
        "friend.test signs its mail and lists 127.0.0.1 in SPF; Postfix connects to our port for mail from other servers.",
        honest(&stage).await,
    );
    outcomes.tell(
        "A forged message that claims to be from bank.test.",
        "swaks sends it from an address that bank.test does not list; bank.test publishes p=reject.",
        forged(&stage).await,
    );
    outcomes.tell(
        "A doubtful message that claims to be from shop.test.",
        "The same trick, but shop.test publishes p=quarantine.",
        quarantined(&stage).await,
    );
    outcomes.tell(
        "A message to somebody we do not have.",
        "swaks asks for nobody@packetboat.test.",
        unknown_recipient(&stage).await,
    );
    outcomes.tell(
        "Alice writes to carol@remote.test.",
        "swaks logs in as Alice under TLS; remote.test is a Postfix found by its MX record.",
        submitted(&stage).await,
    );
    outcomes.tell(
        "Alice writes to a domain that does not exist.",
        "dead.test is not in DNS; Alice has to hear about it.",
        dead_domain(&stage).await,
    );
    outcomes.tell(
        "Alice writes to somebody whom remote.test does not know.",
        "The remote Postfix refuses the recipient; Alice has to hear that too.",
        refused_by_remote(&stage).await,
    );
    Ok(outcomes.close())
}

/// Everybody on stage. Fields that only have to stay alive begin with `_`.
struct Stage {
    world: World,
    settings: Settings,
    _packetboat: Packetboat,
    sender: Postfix,
    receiver: Postfix,
}

impl Stage {
    async fn set() -> Result<Self> {
        println!("Starting a DNS server, two Postfix instances and packetboat …");
        let world = World::new().await?;
        let receiver = postfix::Settings::receiver("mx.remote.test", &[&at("carol", REMOTE)]);
        let receiver = Postfix::start(&receiver).await.context("starting the receiving Postfix")?;
        let port = receiver.address().port();
        let (settings, packetboat) = world.start_all(|settings| settings.outbound_port = port).await?;
        let sender = postfix::Settings::sender("mail.friend.test", settings.mx);
        let sender = Postfix::start(&sender).await.context("starting the sending Postfix")?;
        Ok(Self { world, settings, _packetboat: packetboat, sender, receiver })
    }

    fn introduce(&self) {
        println!(
            "  packetboat all   mail from servers at {}, from users at {}",
            self.settings.mx, self.settings.submission
        );
        println!("  hosted here      packetboat.test, with the users alice and bob");
        println!("  sending Postfix  mail.friend.test at {}", self.sender.address());
        println!("  other Postfix    mx.remote.test at {}", self.receiver.address());
    }
}

/// Counts what went right and tells it.
#[derive(Default)]
struct Outcomes {
    right: usize,
    wrong: usize,
}

impl Outcomes {
    fn tell(&mut self, title: &str, story: &str, outcome: Result<Vec<String>>) {
        println!("\n{}. {title}\n   {story}", self.right + self.wrong + 1);
        match outcome {
            Ok(lines) => {
                self.right += 1;
                for line in lines {
                    println!("   ✓ {line}");
                }
            }
            Err(error) => {
                self.wrong += 1;
                println!("   ✗ {error:#}");
            }
        }
    }

    fn close(&self) -> bool {
        match self.wrong {
            0 => println!("\n✓ all {} messages ended as they should", self.right),
            wrong => println!("\n✗ {wrong} of {} messages did not end as they should", self.right + wrong),
        }
        self.wrong == 0
    }
}

async fn honest(stage: &Stage) -> Result<Vec<String>> {
    let message = stage.world.friendly_message("demo-honest").await?;
    stage.sender.submit(&at("dave", FRIEND), &[&at("alice", HOSTED)], &message).await?;
    let arrived = stage.world.mailbox("alice").wait_for("demo-honest", ARRIVAL).await?;
    let results = header_of(&arrived, "Authentication-Results").context("no Authentication-Results")?;
    for method in ["spf=pass", "dkim=pass", "dmarc=pass"] {
        ensure!(results.contains(method), "{method} is missing in: {results}");
    }
    let received = header_of(&arrived, "Received").context("no Received")?;
    Ok(vec![
        "it lies in Alice's mailbox".to_owned(),
        format!("Authentication-Results: {results}"),
        format!("Received: {received}"),
    ])
}

async fn forged(stage: &Stage) -> Result<Vec<String>> {
    let said = swaks_from(stage, &at("support", BANK), &at("alice", HOSTED), "demo-forged").await?;
    let reply = line_with(&said, "550 5.7.1")?;
    let stored = stage.world.mailbox("alice").messages()?;
    let here = stored.iter().any(|message| String::from_utf8_lossy(message).contains("demo-forged"));
    ensure!(!here, "it was stored all the same");
    Ok(vec![format!("refused at the end of the message: {reply}"), "Alice never sees it".to_owned()])
}

async fn quarantined(stage: &Stage) -> Result<Vec<String>> {
    let said = swaks_from(stage, &at("offers", SHOP), &at("alice", HOSTED), "demo-junk").await?;
    let reply = line_with(&said, "queued as")?;
    let arrived = stage.world.mailbox("alice").junk().wait_for("demo-junk", ARRIVAL).await?;
    let results = header_of(&arrived, "Authentication-Results").context("no Authentication-Results")?;
    ensure!(results.contains("dmarc=fail"), "dmarc=fail is missing in: {results}");
    Ok(vec![
        format!("taken: {reply}"),
        "it lies in Alice's Junk folder".to_owned(),
        format!("Authentication-Results: {results}"),
    ])
}

async fn unknown_recipient(stage: &Stage) -> Result<Vec<String>> {
    let said = swaks_from(stage, &at("dave", FRIEND), &at("nobody", HOSTED), "demo-unknown").await?;
    let reply = line_with(&said, "550 5.1.1")?;
    Ok(vec![format!("refused before the message was sent: {reply}")])
}

async fn submitted(stage: &Stage) -> Result<Vec<String>> {
    let carol = at("carol", REMOTE);
    let said = swaks_as_alice(stage, &carol, "demo-signed").await?;
    let reply = line_with(&said, "queued as")?;
    let arrived = stage.receiver.mailbox(&carol).wait_for("demo-signed", ARRIVAL).await?;
    // Postfix stores lines that end in LF; DKIM is about the CRLF form.
    let wire = arrived.replace("\r\n", "\n").replace('\n', "\r\n");
    let signatures = dkim::verify(wire.as_bytes(), &stage.world.our_answers()).await?;
    ensure!(signatures.len() == 2, "two signatures were wanted: {signatures:?}");
    let mut lines =
        vec![format!("taken: {reply}"), "it lies in Carol's mailbox at the other Postfix".to_owned()];
    for signature in signatures {
        ensure!(signature.valid, "dkimpy says: {}", signature.error.unwrap_or_default());
        lines.push(format!(
            "dkimpy verifies the {} signature of {} (selector {})",
            signature.algorithm, signature.domain, signature.selector
        ));
    }
    Ok(lines)
}

async fn dead_domain(stage: &Stage) -> Result<Vec<String>> {
    let said = swaks_as_alice(stage, &at("nobody", DEAD), "demo-dead").await?;
    let reply = line_with(&said, "queued as")?;
    let bounce = stage.world.mailbox("alice").wait_for("demo-dead", ARRIVAL).await?;
    Ok([vec![format!("taken: {reply}")], bounce_lines(&bounce, "5.1.2")?].concat())
}

async fn refused_by_remote(stage: &Stage) -> Result<Vec<String>> {
    let said = swaks_as_alice(stage, &at("stranger", REMOTE), "demo-stranger").await?;
    let reply = line_with(&said, "queued as")?;
    let bounce = stage.world.mailbox("alice").wait_for("demo-stranger", ARRIVAL).await?;
    Ok([vec![format!("taken: {reply}")], bounce_lines(&bounce, "5.1.1")?].concat())
}

/// What a bounce says, if it is one with this status.
fn bounce_lines(bounce: &str, status: &str) -> Result<Vec<String>> {
    let subject = header_of(bounce, "Subject").unwrap_or_default();
    line_with(bounce, "Action: failed")?;
    let status = line_with(bounce, &format!("Status: {status}"))?;
    let diagnostic = line_with(bounce, "Diagnostic-Code:").unwrap_or_else(|_| status.clone());
    Ok(vec![format!("it came back to Alice as {subject:?}"), diagnostic])
}

/// The first line with `text`, without the marks that swaks puts in front.
fn line_with(said: &str, text: &str) -> Result<String> {
    let line = said.lines().find(|line| line.contains(text));
    let line = line.with_context(|| format!("{text:?} was not said; this was:\n{said}"))?;
    Ok(line.trim_start_matches(['<', '>', '~', '*', '-', ' ']).to_owned())
}

/// swaks as a server that connects to the listener for mail from other servers.
async fn swaks_from(stage: &Stage, from: &str, to: &str, id: &str) -> Result<String> {
    swaks(from, to, id, &["--server", &stage.settings.mx.to_string(), "--ehlo", "client.test"]).await
}

/// swaks as Alice's mail program.
async fn swaks_as_alice(stage: &Stage, to: &str, id: &str) -> Result<String> {
    let server = stage.settings.submission.to_string();
    let login = ["--tls", "--auth", "PLAIN", "--auth-user", LOGIN, "--auth-password", PASSWORD];
    swaks(&at("alice", HOSTED), to, id, &[&["--server", server.as_str()], login.as_slice()].concat()).await
}

/// Runs swaks with one message and gives the conversation. A refusal is no error here: some messages
/// have to be refused.
async fn swaks(from: &str, to: &str, id: &str, arguments: &[&str]) -> Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), Message::new(from, to, id).text())?;
    let mut command = Command::new("swaks");
    command.args(["--from", from, "--to", to, "--data"]).arg(format!("@{}", file.path().display()));
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(ARRIVAL, command.output()).await.context("swaks took too long")?;
    let output = output.context("starting swaks (package swaks)")?;
    Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}
