//! A real `redis-server` that writes every change to disk before it answers.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::child::Child;
use crate::{net, wait};

const START: Duration = Duration::from_secs(20);

/// A Redis server on loopback with a folder of its own; it ends when this is dropped.
pub struct RedisServer {
    folder: TempDir,
    address: SocketAddr,
    child: Option<Child>,
    program: Vec<OsString>,
    arguments: Vec<String>,
}

impl RedisServer {
    /// Starts a server with `appendonly yes` and `appendfsync always`, and waits until it answers.
    pub async fn start() -> Result<Self> {
        Self::start_as(["redis-server"], &[]).await
    }

    /// The same with another program, or one that starts it (`strace … redis-server`), and further arguments.
    pub async fn start_as<P: Into<OsString>>(
        program: impl IntoIterator<Item = P>,
        arguments: &[&str],
    ) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("packetboat-redis-").tempdir()?;
        Self::start_in(folder, program, arguments).await
    }

    /// The same with its data in this folder.
    pub async fn start_in<P: Into<OsString>>(
        folder: TempDir,
        program: impl IntoIterator<Item = P>,
        arguments: &[&str],
    ) -> Result<Self> {
        let program: Vec<OsString> = program.into_iter().map(Into::into).collect();
        let arguments = arguments.iter().map(|one| (*one).to_owned()).collect();
        let mut server = Self { folder, address: net::free_address()?, child: None, program, arguments };
        server.restart().await?;
        Ok(server)
    }

    /// From the next start on, this program and these arguments.
    pub fn run_as<P: Into<OsString>>(&mut self, program: impl IntoIterator<Item = P>, arguments: &[&str]) {
        self.program = program.into_iter().map(Into::into).collect();
        self.arguments = arguments.iter().map(|one| (*one).to_owned()).collect();
    }

    /// Where the server keeps its data.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `redis://…` for configurations.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts the server on its old port and data, and waits until it has loaded them. A server that
    /// still runs is ended first.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        let (program, leading) = self.program.split_first().context("a program is named")?;
        let mut command = Command::new(program);
        command
            .args(leading)
            .args(["--bind", "127.0.0.1", "--port", &self.address.port().to_string(), "--daemonize", "no"])
            .args(["--appendonly", "yes", "--appendfsync", "always", "--save", ""])
            .arg("--dir")
            .arg(self.folder.path())
            .args(&self.arguments);
        let mut child = Child::spawn("redis-server", command, &self.folder.path().join("redis.log"))?;
        wait::until("redis to answer", START, async || {
            if let Err(ended) = child.check_alive() {
                return Some(Err(ended));
            }
            ping(self.address).await.then_some(Ok(()))
        })
        .await??;
        self.child = Some(child);
        Ok(())
    }

    /// Ends the server as a power cut would.
    pub async fn kill9(&mut self) -> Result<()> {
        match self.child.take() {
            Some(mut child) => child.kill9().await,
            None => Ok(()),
        }
    }

    /// Deletes what the server has on its disk. It must have been ended.
    pub fn lose_data(&self) -> Result<()> {
        anyhow::ensure!(self.child.is_none(), "the server still runs");
        for entry in std::fs::read_dir(self.folder.path())? {
            let path = entry?.path();
            if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
        }
        Ok(())
    }

    /// The server's process; none while it is ended.
    pub fn child(&self) -> Option<&Child> {
        self.child.as_ref()
    }

    /// Waits until the server has ended by itself.
    pub async fn wait_for_end(&mut self, limit: Duration) -> Result<()> {
        match &mut self.child {
            Some(child) => child.wait(limit).await.map(|_| ()),
            None => Ok(()),
        }
    }

    /// Changes a setting of the running server.
    pub async fn set(&self, name: &str, value: &str) -> Result<()> {
        let mut stream = TcpStream::connect(self.address).await?;
        stream.write_all(format!("CONFIG SET {name} {value}\r\n").as_bytes()).await?;
        let mut answer = [0; 3];
        timeout(START, stream.read_exact(&mut answer)).await??;
        anyhow::ensure!(&answer == b"+OK", "CONFIG SET {name} {value} was refused");
        Ok(())
    }

    /// Runs one command on the server, behind everybody's back; what `redis-cli` prints.
    pub async fn command(&self, words: &[&str]) -> Result<String> {
        let port = self.address.port().to_string();
        let run = Command::new("redis-cli").args(["-p", &port]).args(words).kill_on_drop(true).output();
        let output = timeout(START, run).await.context("redis-cli hangs")??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        anyhow::ensure!(output.status.success(), "redis-cli {words:?}: {text}");
        Ok(text)
    }

    /// Ends the server in order.
    pub async fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        // One that has ended by itself cannot be told to.
        if child.check_alive().is_err() {
            return Ok(());
        }
        child.terminate(START).await.map(|_| ())
    }
}

/// Whether the server answers commands, if only with the demand to log in; while it loads its data it does not yet.
async fn ping(address: SocketAddr) -> bool {
    let attempt = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"PING\r\n").await?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await?;
        std::io::Result::Ok([b"+PONG", b"-NOAU"].contains(&&answer))
    };
    matches!(timeout(Duration::from_secs(1), attempt).await, Ok(Ok(true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn comes_back_after_a_power_cut() {
        let mut server = RedisServer::start().await.unwrap();
        server.kill9().await.unwrap();
        assert!(!ping(server.address()).await);
        server.restart().await.unwrap();
        assert!(ping(server.address()).await);
        server.stop().await.unwrap();
    }
}
