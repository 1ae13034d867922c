//! What is outside of a cluster under test: name servers, a mail store, a remote MX, and the tools to steer it.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use testkit::bind::{KEY_NAME, SECRET};
use testkit::child::Child;
use testkit::smtp::Sink;
use testkit::wait;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// The address of the world outside, and of everything in it.
pub const WORLD: &str = "10.200.0.1";
/// The address of the node.
pub const NODE: &str = "10.200.0.2";
/// The release and its namespace.
pub const NAMESPACE: &str = "mail";

/// All that pods ask of names outside is answered here: what is in none of the first three does not exist.
const ZONES: [(&str, &str); 5] = [
    ("packetboat.test", "mx IN A 10.200.0.2"),
    ("friend.test", "@ IN MX 10 mx\n@ IN TXT \"v=spf1 ip4:10.200.0.1 -all\"\nmx IN A 10.200.0.1"),
    ("remote.test", "@ IN MX 10 mx\nmx IN A 10.200.0.1"),
    ("test", ""),
    ("in-addr.arpa", ""),
];

/// Name server, mail store and remote MX.
pub struct Outside {
    /// Where the cluster hands mail over.
    pub store: Sink,
    /// The MX of `remote.test`.
    pub remote: Sink,
    _named: Child,
    _folder: TempDir,
}

impl Outside {
    /// Starts all of it.
    pub async fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("packetboat-outside-").tempdir()?;
        let named = start_named(folder.path()).await?;
        let at = |port: u16| -> Result<SocketAddr> { Ok(SocketAddr::new(WORLD.parse()?, port)) };
        let (store, remote) = (Sink::lmtp_at(at(24)?).await?, Sink::smtp_at(at(25)?).await?);
        Ok(Self { store, remote, _named: named, _folder: folder })
    }
}

async fn start_named(folder: &Path) -> Result<Child> {
    let place = folder.display();
    let mut config = format!(
        "options {{ directory \"{place}\"; pid-file \"{place}/pid\"; session-keyfile \"{place}/session.key\";\n\
         listen-on {{ {WORLD}; }}; listen-on-v6 {{ none; }}; recursion no; dnssec-validation no;\n\
         allow-query {{ any; }}; }};\ncontrols {{ }};\n\
         key \"{KEY_NAME}\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n"
    );
    for (zone, lines) in ZONES {
        let text = format!(
            "$ORIGIN {zone}.\n$TTL 5\n@ IN SOA ns hostmaster 1 60 60 86400 1\n@ IN NS ns\nns IN A {WORLD}\n{lines}\n"
        );
        std::fs::write(folder.join(zone), text)?;
        config.push_str(&format!(
            "zone \"{zone}\" {{ type primary; file \"{zone}\"; allow-update {{ key {KEY_NAME}; }}; }};\n"
        ));
    }
    std::fs::write(folder.join("named.conf"), config)?;
    let mut command = Command::new("named");
    command.args(["-g", "-4", "-n", "1", "-c"]).arg(folder.join("named.conf"));
    let child = Child::spawn("named", command, &folder.join("named.log"))?;
    let answers = async || dig("SOA", "packetboat.test").await.is_ok_and(|answer| !answer.trim().is_empty());
    wait::until_true("BIND to answer", Duration::from_secs(20), answers)
        .await
        .with_context(|| child.log())?;
    Ok(child)
}

/// What the name server answers.
pub async fn dig(kind: &str, name: &str) -> Result<String> {
    let server = format!("@{WORLD}");
    run("dig", &[&server, "+short", "+time=1", "+tries=1", kind, name], None, 10).await
}

/// Runs `kubectl` in the namespace of the release.
pub async fn kubectl(arguments: &[&str], seconds: u64) -> Result<String> {
    run("kubectl", &[&["-n", NAMESPACE], arguments].concat(), None, seconds).await
}

/// Applies YAML or JSON to the namespace of the release.
pub async fn apply(text: &str) -> Result<String> {
    run("kubectl", &["-n", NAMESPACE, "apply", "-f", "-"], Some(text), 30).await
}

/// Runs a program with a deadline; what it printed.
pub async fn run(program: &str, arguments: &[&str], input: Option<&str>, seconds: u64) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().with_context(|| format!("starting {program}"))?;
    let mut stdin = child.stdin.take().context("the program has no input")?;
    stdin.write_all(input.unwrap_or_default().as_bytes()).await?;
    drop(stdin);
    let ended = tokio::time::timeout(Duration::from_secs(seconds), child.wait_with_output()).await;
    let output = ended.with_context(|| format!("{program} {arguments:?} hangs"))??;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{program} {arguments:?}: {error}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
