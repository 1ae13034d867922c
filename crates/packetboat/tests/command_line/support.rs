//! A folder with a configuration, and the program run on it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long anything may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const DOMAIN: &str = "\
apiVersion: mail.packetboat.dev/v1alpha1
kind: MailDomain
metadata: {name: a, namespace: mail}
spec:
  domain: a.example
  inbound: {recipients: {mode: AcceptAll}, route: {maildir: {path: mail}}}
";

/// What the program said.
pub(crate) struct Said {
    pub(crate) success: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A folder of files.
pub(crate) struct Site(TempDir);

impl Site {
    /// With one domain.
    pub(crate) fn new() -> Self {
        let site = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(site.path().join("domains")).unwrap();
        site.write("domains/a.yaml", DOMAIN);
        site
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A configuration with these lines more than a host name and the domains.
    pub(crate) fn config(&self, name: &str, lines: &str) -> PathBuf {
        self.write(name, &format!("hostname: mx.a.example\ndomains: {{folder: domains}}\n{lines}"))
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Said {
        let output = self.command(arguments).output().unwrap();
        Said {
            success: output.status.success(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Starts a role with this configuration.
    pub(crate) fn start(&self, role: &str, config: &Path, admin: SocketAddr) -> Running {
        let log = self.path().join(format!("{role}.log"));
        let mut command = self.command(&[role, "--config"]);
        command.arg(config).stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
        Running { child: command.spawn().unwrap(), admin, log }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_packetboat"));
        command.args(arguments).current_dir(self.path()).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PACKETBOAT_") {
                command.env_remove(name);
            }
        }
        command
    }
}

/// A role at work; killed when dropped.
pub(crate) struct Running {
    child: Child,
    pub(crate) admin: SocketAddr,
    log: PathBuf,
}

impl Running {
    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until `/readyz` answers with this status; gives the text that came with it.
    pub(crate) fn wait_for_readiness(&mut self, wanted: u16) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match get(self.admin, "/readyz") {
                Some((status, text)) if status == wanted => return text,
                other => assert!(Instant::now() < deadline, "no {wanted} but {other:?}: {}", self.log()),
            }
            assert!(self.child.try_wait().unwrap().is_none(), "{}", self.log());
            park_timeout(Duration::from_millis(50));
        }
    }

    /// Waits for the end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end: {}", self.log());
            park_timeout(Duration::from_millis(20));
        }
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address that nobody listens on.
pub(crate) fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// One HTTP GET: status and body.
fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}
