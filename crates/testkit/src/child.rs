//! A child process whose words are kept, ended when the value is dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::time::timeout;

use crate::wait;

/// A running program of which tests see the output and to which they send signals.
pub struct Child {
    name: String,
    child: tokio::process::Child,
    pid: u32,
    log: PathBuf,
}

impl Child {
    /// Starts `command`; what it prints is appended to `log`. `name` appears in errors.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let open = || {
            File::options().create(true).append(true).open(log).with_context(|| format!("opening {log:?}"))
        };
        command.stdin(Stdio::null()).stdout(open()?).stderr(open()?).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        let pid = child.id().with_context(|| format!("{name} ended at once"))?;
        Ok(Self { name: name.to_owned(), child, pid, log: log.to_owned() })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Everything the process has printed so far, and those before it with the same log.
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|octets| String::from_utf8_lossy(&octets).into_owned())
            .unwrap_or_default()
    }

    /// Fails, with the log, when the process has ended by itself.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(anyhow!("{} ended with {status}; it printed:\n{}", self.name, self.log())),
        }
    }

    /// Ends the process as a power cut would (SIGKILL), and waits until it is gone.
    pub async fn kill9(&mut self) -> Result<()> {
        self.child.kill().await.with_context(|| format!("killing {}", self.name))
    }

    /// Asks the process to end (SIGTERM) without waiting.
    pub fn signal_terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Stops the process where it stands (SIGSTOP), as a machine that hangs does.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets a frozen process go on.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).context("reading a process id")?;
        kill_process(pid, signal).with_context(|| format!("sending {signal:?} to {}", self.name))
    }

    /// Waits until the process has ended by itself, at most `limit`.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let status = timeout(limit, self.child.wait()).await;
        Ok(status.map_err(|_| {
            anyhow!("{} was still running after {limit:?}; log:\n{}", self.name, self.log())
        })??)
    }

    /// Asks the process to end (SIGTERM) and waits until it has, at most `limit`.
    pub async fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal_terminate()?;
        self.wait(limit).await
    }

    /// Waits until `text` stands in the log.
    pub async fn wait_for_log(&self, text: &str, limit: Duration) -> Result<()> {
        let what = format!("{text:?} in the log of {}", self.name);
        wait::until_true(&what, limit, async || self.log().contains(text)).await
    }

    /// The memory that the process had resident at most, in octets: `VmHWM` without the pages of its program
    /// (`RssFile`), which the system drops when it needs them. A program built for debugging has many.
    pub fn peak_memory(&self) -> Result<u64> {
        Ok(self.status_value("VmHWM:")?.saturating_sub(self.status_value("RssFile:")?))
    }

    /// The memory the process has resident now, in octets (`VmRSS`).
    pub fn memory(&self) -> Result<u64> {
        self.status_value("VmRSS:")
    }

    fn status_value(&self, key: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix(key)).context("no such memory figure")?;
        let kibibytes: u64 =
            line.trim().trim_end_matches(" kB").trim().parse().context("reading a memory figure")?;
        Ok(kibibytes * 1024)
    }
}
