//! A real Postfix in folders of its own: the mail system that Packetboat's neighbours run.
//!
//! Each instance has its own configuration, queue, data and mailboxes below a temporary folder and
//! listens on a free loopback port, so it neither needs nor disturbs the system's Postfix. Postfix
//! insists on being started by root, and on the owners of its folders.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::maildir::Maildir;
use crate::{net, wait};

/// How long Postfix may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(30);
/// The owner of mailboxes: `nobody`.
const MAILBOX_OWNER: u32 = 65_534;

/// The services of `master.cf`, none of them in a chroot.
const SERVICES: &str = "
pickup    unix  n       -       n       1       1       pickup
cleanup   unix  n       -       n       -       0       cleanup
qmgr      unix  n       -       n       1       1       qmgr
tlsmgr    unix  -       -       n       1000?   1       tlsmgr
rewrite   unix  -       -       n       -       -       trivial-rewrite
bounce    unix  -       -       n       -       0       bounce
defer     unix  -       -       n       -       0       bounce
trace     unix  -       -       n       -       0       bounce
verify    unix  -       -       n       -       1       verify
flush     unix  n       -       n       1000?   0       flush
proxymap  unix  -       -       n       -       -       proxymap
proxywrite unix -       -       n       -       1       proxymap
smtp      unix  -       -       n       -       -       smtp
relay     unix  -       -       n       -       -       smtp
showq     unix  n       -       n       -       -       showq
error     unix  -       -       n       -       -       error
retry     unix  -       -       n       -       -       error
discard   unix  -       -       n       -       -       discard
virtual   unix  -       n       n       -       -       virtual
anvil     unix  -       -       n       -       1       anvil
scache    unix  -       -       n       -       1       scache
postlog   unix-dgram n  -       n       -       1       postlogd
";

/// What an instance is for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name it gives in EHLO and as the domain of its own mail.
    pub hostname: String,
    /// Where it sends what is not for its mailboxes. Without it, such mail is refused.
    pub relayhost: Option<SocketAddr>,
    /// The addresses it has mailboxes for.
    pub mailboxes: Vec<String>,
    /// Further lines of `main.cf`; they win over those made here.
    pub extra: Vec<(String, String)>,
}

impl Settings {
    /// A server that sends all mail to `relayhost`.
    pub fn sender(hostname: &str, relayhost: SocketAddr) -> Self {
        Self {
            hostname: hostname.to_owned(),
            relayhost: Some(relayhost),
            mailboxes: Vec::new(),
            extra: Vec::new(),
        }
    }

    /// A server that receives mail for these addresses.
    pub fn receiver(hostname: &str, mailboxes: &[&str]) -> Self {
        let mailboxes = mailboxes.iter().map(|address| (*address).to_owned()).collect();
        Self { hostname: hostname.to_owned(), relayhost: None, mailboxes, extra: Vec::new() }
    }

    /// Adds a line to `main.cf`.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.extra.push((key.to_owned(), value.to_owned()));
        self
    }

    fn main_cf(&self, folder: &Path) -> String {
        let folder = folder.display();
        let mut text = format!(
            "compatibility_level = 3.6\n\
             queue_directory = {folder}/queue\n\
             data_directory = {folder}/data\n\
             maillog_file = {folder}/log/mail.log\n\
             maillog_file_prefixes = {folder}\n\
             myhostname = {}\n\
             mydestination =\n\
             mynetworks = 127.0.0.0/8\n\
             inet_interfaces = 127.0.0.1\n\
             inet_protocols = ipv4\n\
             alias_maps =\n\
             alias_database =\n\
             local_transport = error:no local mail here\n\
             smtpd_peername_lookup = no\n\
             smtpd_tls_security_level = may\n\
             smtpd_tls_cert_file = {folder}/config/cert.pem\n\
             smtpd_tls_key_file = {folder}/config/key.pem\n\
             smtpd_tls_received_header = yes\n\
             smtp_tls_security_level = may\n\
             minimal_backoff_time = 2s\n\
             maximal_backoff_time = 5s\n\
             queue_run_delay = 2s\n\
             bounce_queue_lifetime = 1h\n",
            self.hostname
        );
        match self.relayhost {
            Some(next) => {
                let _ = writeln!(text, "relayhost = [{}]:{}", next.ip(), next.port());
            }
            None => text.push_str("default_transport = error:this server only receives\n"),
        }
        if !self.mailboxes.is_empty() {
            let domains = self.mailboxes.iter().filter_map(|address| address.rsplit('@').next());
            let mut domains: Vec<&str> = domains.collect();
            domains.sort_unstable();
            domains.dedup();
            let boxes = self.mailboxes.iter().map(|address| format!("{{{address} = {address}/}}"));
            let boxes: Vec<String> = boxes.collect();
            let _ = write!(
                text,
                "virtual_mailbox_domains = {}\nvirtual_mailbox_base = {folder}/mail\n\
                 virtual_mailbox_maps = inline:{{ {} }}\nvirtual_mailbox_limit = 0\n\
                 virtual_uid_maps = static:{MAILBOX_OWNER}\nvirtual_gid_maps = static:{MAILBOX_OWNER}\n",
                domains.join(" "),
                boxes.join(", ")
            );
        }
        for (key, value) in &self.extra {
            let _ = writeln!(text, "{key} = {value}");
        }
        text
    }
}

/// A running instance; it is stopped when this is dropped.
pub struct Postfix {
    folder: TempDir,
    address: SocketAddr,
}

impl Postfix {
    /// Starts an instance and waits until it answers.
    pub async fn start(settings: &Settings) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("packetboat-postfix-").tempdir()?;
        let address = net::free_address()?;
        prepare(folder.path(), address, settings)?;
        let instance = Self { folder, address };
        instance.control(&["start"]).await?;
        wait::until_true("postfix to answer", PATIENCE, async || TcpStream::connect(address).await.is_ok())
            .await?;
        Ok(instance)
    }

    /// Where its SMTP server listens. It relays for loopback clients.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Hands a message in with its `sendmail` program.
    pub async fn submit(&self, from: &str, to: &[&str], message: &str) -> Result<()> {
        let mut child = Command::new("/usr/sbin/sendmail")
            .arg("-C")
            .arg(self.config())
            .args(["-i", "-f", from, "--"])
            .args(to)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting sendmail")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(message.as_bytes()).await?;
        }
        let output = child.wait_with_output().await?;
        ensure!(output.status.success(), "sendmail: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// The mailbox of one of its addresses.
    pub fn mailbox(&self, address: &str) -> Maildir {
        Maildir::at(self.folder.path().join("mail").join(address))
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log/mail.log")).unwrap_or_default()
    }

    /// Waits until `text` stands in its log.
    pub async fn wait_for_log(&self, text: &str, limit: Duration) -> Result<()> {
        wait::until_true(&format!("{text:?} in the log of postfix"), limit, async || {
            self.log().contains(text)
        })
        .await
    }

    /// How many messages are in its queue.
    pub fn queue_length(&self) -> Result<usize> {
        let queues = ["maildrop", "incoming", "active", "deferred"];
        queues.iter().map(|queue| count_files(&self.folder.path().join("queue").join(queue))).sum()
    }

    /// Stops the instance in order.
    pub async fn stop(&self) -> Result<()> {
        self.control(&["stop"]).await
    }

    fn config(&self) -> std::path::PathBuf {
        self.folder.path().join("config")
    }

    async fn control(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new("/usr/sbin/postfix");
        command.arg("-c").arg(self.config()).args(arguments).stdin(Stdio::null());
        // The daemons inherit these streams and keep them open, so they cannot be pipes.
        let report = self.folder.path().join("log/control.log");
        let file = std::fs::File::options().create(true).append(true).open(&report)?;
        command.stdout(file.try_clone()?).stderr(file);
        let status =
            tokio::time::timeout(PATIENCE, command.status()).await.context("postfix took too long")?;
        let status = status.context("starting postfix (package postfix)")?;
        let printed = std::fs::read_to_string(&report).unwrap_or_default();
        ensure!(status.success(), "postfix {arguments:?} failed with {status}:\n{printed}\n{}", self.log());
        Ok(())
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        // The master ends its daemons with itself, as `postfix stop` has it do.
        let pid = std::fs::read_to_string(self.folder.path().join("queue/pid/master.pid"));
        let pid = pid.ok().and_then(|text| text.trim().parse().ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

fn prepare(folder: &Path, address: SocketAddr, settings: &Settings) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "postfix can only be started by root");
    // The daemons run as other users and have to get at their folders.
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
    for name in ["config", "queue", "data", "log", "mail"] {
        std::fs::create_dir(folder.join(name))?;
    }
    let postfix = user_id("postfix")?;
    chown(folder.join("data"), Some(postfix), None).context("giving postfix its data folder")?;
    chown(folder.join("mail"), Some(MAILBOX_OWNER), Some(MAILBOX_OWNER))
        .context("giving the mailboxes away")?;

    let identity =
        rcgen::generate_simple_self_signed([settings.hostname.clone()]).context("making a certificate")?;
    std::fs::write(folder.join("config/cert.pem"), identity.cert.pem())?;
    std::fs::write(folder.join("config/key.pem"), identity.signing_key.serialize_pem())?;
    std::fs::write(folder.join("config/main.cf"), settings.main_cf(folder))?;
    let port = address.port();
    let master = format!("127.0.0.1:{port} inet n - n - - smtpd{SERVICES}");
    std::fs::write(folder.join("config/master.cf"), master)?;
    Ok(())
}

fn user_id(user: &str) -> Result<u32> {
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    let mut users = passwd.lines().map(|line| line.split(':'));
    let id = users.find_map(|mut fields| (fields.next() == Some(user)).then(|| fields.nth(1)).flatten());
    id.and_then(|id| id.parse().ok()).with_context(|| format!("no user {user} (package postfix)"))
}

/// Files below a queue folder; Postfix spreads long queues over sub-folders.
fn count_files(folder: &Path) -> Result<usize> {
    let mut count = 0;
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(0) };
    for entry in entries {
        let Ok(entry) = entry else { continue };
        let Ok(kind) = entry.file_type() else { continue };
        count += if kind.is_dir() { count_files(&entry.path())? } else { 1 };
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Message;

    #[tokio::test]
    async fn one_postfix_sends_to_another() {
        let receiver =
            Postfix::start(&Settings::receiver("mx.remote.test", &["carol@remote.test"])).await.unwrap();
        let sender = Postfix::start(&Settings::sender("mail.sender.test", receiver.address())).await.unwrap();
        let message = Message::new("dave@sender.test", "carol@remote.test", "postfix-1").text();
        sender.submit("dave@sender.test", &["carol@remote.test"], &message).await.unwrap();
        let arrived = receiver.mailbox("carol@remote.test").wait_for("postfix-1", PATIENCE).await.unwrap();
        assert!(arrived.contains("Return-Path: <dave@sender.test>"), "{arrived}");
        assert!(arrived.contains("mail.sender.test"), "{arrived}");
        wait::until_true("an empty queue", PATIENCE, async || sender.queue_length().unwrap() == 0)
            .await
            .unwrap();
        sender.stop().await.unwrap();
    }
}
