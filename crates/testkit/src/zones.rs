//! A real BIND with many zones: a primary that takes dynamic updates, a secondary that follows it, and how much
//! both have been asked.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::bind::{KEY_NAME, SECRET, texts};
use crate::child::Child;
use crate::process::http_get;
use crate::{net, wait};

/// How long it may take to load, or to transfer, all zones.
const START: Duration = Duration::from_secs(120);

/// Two servers; both end when this is dropped.
pub struct Zones {
    primary: Server,
    secondary: Server,
}

struct Server {
    folder: TempDir,
    address: SocketAddr,
    statistics: SocketAddr,
    child: Option<Child>,
}

impl Server {
    fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("packetboat-zones-").tempdir()?;
        let (address, statistics) = (net::free_address()?, net::free_address()?);
        Ok(Self { folder, address, statistics, child: None })
    }

    fn configure(&self, zones: &[String], role: impl Fn(&str) -> String) -> Result<()> {
        let folder = self.folder.path().display();
        let (port, statistics) = (self.address.port(), self.statistics.port());
        let mut text = format!(
            "options {{ directory \"{folder}\"; pid-file \"{folder}/named.pid\"; session-keyfile \"{folder}/session.key\";\n\
             listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion no; dnssec-validation no;\n\
             allow-transfer {{ 127.0.0.1; }}; allow-query {{ any; }}; minimal-responses yes; notify-rate 2000;\n\
             startup-notify-rate 2000; serial-query-rate 2000; transfers-in 100; transfers-out 100; transfers-per-ns 100; }};\n\
             key \"{KEY_NAME}\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n\
             statistics-channels {{ inet 127.0.0.1 port {statistics} allow {{ 127.0.0.1; }}; }};\n\
             controls {{ }};\n"
        );
        for zone in zones {
            text.push_str(&format!("zone \"{zone}\" {{ {} }};\n", role(zone)));
        }
        std::fs::write(self.folder.path().join("named.conf"), text).context("writing named.conf")
    }

    async fn start(&mut self, last: &str) -> Result<()> {
        let mut command = Command::new("named");
        command.args(["-g", "-4", "-c"]).arg(self.folder.path().join("named.conf"));
        let mut child = Child::spawn("named", command, &self.folder.path().join("named.log"))?;
        wait::until("BIND to have all zones", START, async || {
            if let Err(ended) = child.check_alive() {
                return Some(Err(ended));
            }
            texts(self.address, last).await.is_ok_and(|texts| !texts.is_empty()).then_some(Ok(()))
        })
        .await??;
        self.child = Some(child);
        Ok(())
    }

    async fn statistics(&self) -> Result<Value> {
        let (_, body) = http_get(self.statistics, "/json/v1/server").await?;
        serde_json::from_str(&body).context("reading BIND's statistics")
    }
}

impl Zones {
    /// Starts both; each zone has the text `there` at its apex.
    ///
    /// # Errors
    /// When BIND does not start, or does not have the last zone in time.
    pub async fn start(zones: &[String]) -> Result<Self> {
        let (mut primary, mut secondary) = (Server::new()?, Server::new()?);
        let last = zones.last().context("no zones")?;
        for zone in zones {
            let text = format!(
                "$ORIGIN {zone}.\n$TTL 60\n@ 5 IN SOA ns1 hostmaster 1 3600 3600 86400 5\n\
                 @ IN NS ns1\n@ IN NS ns2\nns1 IN A 127.0.0.1\nns2 IN A 127.0.0.1\n@ IN TXT \"there\"\n"
            );
            std::fs::write(primary.folder.path().join(format!("{zone}.zone")), text)?;
        }
        let follower = secondary.address.port();
        primary.configure(zones, |zone| {
            format!(
                "type primary; file \"{zone}.zone\"; allow-update {{ key {KEY_NAME}; }}; notify explicit; \
                 also-notify {{ 127.0.0.1 port {follower}; }};"
            )
        })?;
        let leader = primary.address.port();
        secondary.configure(zones, |zone| {
            format!(
                "type secondary; file \"{zone}.copy\"; primaries {{ 127.0.0.1 port {leader}; }}; \
                 allow-notify {{ 127.0.0.1; }}; min-refresh-time 3600;"
            )
        })?;
        primary.start(last).await?;
        secondary.start(last).await?;
        Ok(Self { primary, secondary })
    }

    /// Where the primary listens.
    #[must_use]
    pub fn primary(&self) -> SocketAddr {
        self.primary.address
    }

    /// Where the secondary listens.
    #[must_use]
    pub fn secondary(&self) -> SocketAddr {
        self.secondary.address
    }

    /// How many questions and updates both have been sent so far, those of the secondary itself among them.
    ///
    /// # Errors
    /// When BIND does not tell.
    pub async fn asked(&self) -> Result<(u64, u64)> {
        let (mut questions, mut updates) = (0, 0);
        for server in [&self.primary, &self.secondary] {
            let statistics = server.statistics().await?;
            questions += statistics["opcodes"]["QUERY"].as_u64().unwrap_or(0);
            updates += statistics["opcodes"]["UPDATE"].as_u64().unwrap_or(0);
        }
        Ok((questions, updates))
    }
}
