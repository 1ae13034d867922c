//! A real OpenTelemetry collector that hands on what it takes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::child::Child;
use crate::{net, wait};

const FETCH: Duration = Duration::from_secs(400);
const START: Duration = Duration::from_secs(30);

/// The running collector; it ends when this is dropped.
pub struct Rotel {
    address: std::net::SocketAddr,
    child: Child,
    _folder: TempDir,
}

impl Rotel {
    /// Starts it; what it takes goes on to the OTLP receiver at `onward` (`http://…`).
    pub async fn start(onward: &str) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/rotel");
        let found =
            tokio::time::timeout(FETCH, Command::new(script).output()).await.context("fetching")??;
        ensure!(found.status.success(), "scripts/rotel: {}", String::from_utf8_lossy(&found.stderr));
        let folder = tempfile::Builder::new().prefix("packetboat-rotel-").tempdir()?;
        let (address, unused) = (net::free_address()?, net::free_address()?);
        let mut command = Command::new(String::from_utf8(found.stdout)?.trim());
        command.arg("start").args(["--exporter", "otlp"]);
        command.args(["--otlp-exporter-endpoint", onward]);
        command.args(["--otlp-grpc-endpoint", &address.to_string()]);
        command.args(["--otlp-http-endpoint", &unused.to_string()]);
        for (option, file) in [("--pid-file", "pid"), ("--log-file", "log")] {
            command.arg(option).arg(folder.path().join(file));
        }
        let child = Child::spawn("rotel", command, &folder.path().join("rotel.log"))?;
        let mut collector = Self { address, child, _folder: folder };
        wait::until("the collector to listen", START, async || {
            if let Err(ended) = collector.child.check_alive() {
                return Some(Err(ended));
            }
            TcpStream::connect(address).await.is_ok().then_some(Ok(()))
        })
        .await??;
        Ok(collector)
    }

    /// `http://…` for configurations.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        self.child.log()
    }
}
