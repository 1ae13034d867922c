//! Several real Redis servers that belong together: a Cluster of six, or three Sentinels over a primary and its
//! replicas.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tokio::process::Command;

use crate::child::Child;
use crate::{net, wait};

const START: Duration = Duration::from_secs(60);

/// One server or Sentinel of a group.
struct Member {
    folder: TempDir,
    address: SocketAddr,
    child: Child,
}

impl Member {
    async fn start(program: &str, address: SocketAddr, arguments: &[&str]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("packetboat-redis-").tempdir()?;
        let mut command = Command::new("redis-server");
        if program == "sentinel" {
            let file = folder.path().join("sentinel.conf");
            std::fs::write(&file, arguments.join("\n"))?;
            command.arg(file).arg("--sentinel");
        } else {
            command
                .args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", ""])
                .args(["--appendonly", "yes", "--appendfsync", "always", "--daemonize", "no"])
                .args(["--repl-diskless-sync-delay", "0"])
                .arg("--dir")
                .arg(folder.path())
                .args(arguments);
        }
        let child = Child::spawn(program, command, &folder.path().join("redis.log"))?;
        let member = Self { folder, address, child };
        let answers = async || cli(address, &["PING"]).await.is_ok_and(|answer| answer.trim() == "PONG");
        wait::until_true("a Redis server to answer", START, answers).await.with_context(|| member.log())?;
        Ok(member)
    }

    fn log(&self) -> String {
        format!("{}: {}", self.folder.path().display(), self.child.log())
    }
}

async fn cli(address: SocketAddr, arguments: &[&str]) -> Result<String> {
    let port = address.port().to_string();
    let run = Command::new("redis-cli").args(["-h", "127.0.0.1", "-p", &port]).args(arguments).output();
    let output = tokio::time::timeout(START, run).await.context("redis-cli hangs")??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "redis-cli {arguments:?}: {text}");
    Ok(text)
}

/// Whether a server is a primary, or a replica that has what its primary has.
async fn follows(address: SocketAddr) -> bool {
    let told = cli(address, &["INFO", "replication"]).await.unwrap_or_default();
    told.contains("role:master") || told.contains("master_link_status:up")
}

/// A port that is free, as is the one ten thousand above it, where the bus of a Cluster listens.
fn address_with_bus() -> Result<SocketAddr> {
    for _ in 0..200 {
        let address = net::free_address()?;
        let bus = address.port().checked_add(10_000);
        if bus.is_some_and(|bus| std::net::TcpListener::bind(("127.0.0.1", bus)).is_ok()) {
            return Ok(address);
        }
    }
    bail!("found no free pair of ports in 200 tries")
}

/// Cuts a primary off from its replicas, and then ends it as a power cut would: what it answered for meanwhile, it
/// alone had. `meanwhile` is what happens between the two.
async fn end_apart(
    primary: &mut Member,
    replicas: &[&Member],
    meanwhile: impl Future<Output = Result<()>>,
) -> Result<()> {
    for replica in replicas {
        replica.child.freeze()?;
    }
    // What is on its way to a replica that stands still would be read by it later.
    cli(primary.address, &["CLIENT", "KILL", "TYPE", "replica"]).await?;
    let outcome = meanwhile.await;
    let ended = primary.child.kill9().await;
    for replica in replicas {
        replica.child.thaw()?;
    }
    outcome.and(ended)
}

/// A Redis Cluster of three primaries with a replica each; it ends when this is dropped.
pub struct RedisCluster {
    members: Vec<Member>,
}

impl RedisCluster {
    /// Starts it, and waits until every slot is served.
    pub async fn start() -> Result<Self> {
        let mut members = Vec::new();
        for _ in 0..6 {
            let cluster = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"];
            members.push(Member::start("redis", address_with_bus()?, &cluster).await?);
        }
        let addresses: Vec<String> = members.iter().map(|member| member.address.to_string()).collect();
        let mut create = vec!["--cluster", "create"];
        create.extend(addresses.iter().map(String::as_str));
        create.extend(["--cluster-replicas", "1", "--cluster-yes"]);
        let first = members[0].address;
        cli(first, &create).await?;
        let cluster = Self { members };
        cluster.wait_until_whole().await?;
        Ok(cluster)
    }

    /// Waits until every server that is left says that all slots are served.
    pub async fn wait_until_whole(&self) -> Result<()> {
        let whole = async || {
            for member in &self.members {
                let info = cli(member.address, &["CLUSTER", "INFO"]).await.unwrap_or_default();
                let served = info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384");
                if !served || !follows(member.address).await {
                    return false;
                }
            }
            true
        };
        wait::until_true("the Cluster to be whole", START, whole).await
    }

    /// URLs of all servers.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(|member| format!("redis://{}", member.address)).collect()
    }

    /// Ends a primary as a power cut would; its replica takes over.
    pub async fn kill_a_primary(&mut self) -> Result<()> {
        for at in 0..self.members.len() {
            let role = cli(self.members[at].address, &["ROLE"]).await?;
            if role.starts_with("master") {
                self.members.remove(at).child.kill9().await?;
                return Ok(());
            }
        }
        bail!("there is no primary")
    }

    /// Ends a primary that its replica has lost touch with; the replica takes over.
    pub async fn kill_a_primary_apart(&mut self, meanwhile: impl Future<Output = Result<()>>) -> Result<()> {
        for at in 0..self.members.len() {
            let id = cli(self.members[at].address, &["CLUSTER", "MYID"]).await?;
            let replicas = cli(self.members[at].address, &["CLUSTER", "REPLICAS", id.trim()]).await;
            // A replica has none, and says so.
            let Ok(told) = replicas else { continue };
            let mut primary = self.members.remove(at);
            let is_replica = |member: &&Member| told.contains(&member.address.to_string());
            let replicas: Vec<&Member> = self.members.iter().filter(is_replica).collect();
            if replicas.is_empty() {
                self.members.insert(at, primary);
                continue;
            }
            return end_apart(&mut primary, &replicas, meanwhile).await;
        }
        bail!("there is no primary with a replica")
    }
}

/// A primary with two replicas, and three Sentinels over them; all end when this is dropped.
pub struct RedisSentinels {
    servers: Vec<Member>,
    sentinels: Vec<Member>,
}

impl RedisSentinels {
    /// The name under which the Sentinels know the primary.
    pub const MASTER: &'static str = "mail";

    /// Starts all, and waits until the Sentinels know each other and the replicas.
    pub async fn start() -> Result<Self> {
        let mut servers = vec![Member::start("redis", net::free_address()?, &[]).await?];
        let port = servers[0].address.port().to_string();
        for _ in 0..2 {
            let of = ["--replicaof", "127.0.0.1", port.as_str()];
            servers.push(Member::start("redis", net::free_address()?, &of).await?);
        }
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            let address = net::free_address()?;
            let lines = [
                format!("port {}", address.port()),
                "bind 127.0.0.1".to_owned(),
                format!("sentinel monitor {} 127.0.0.1 {port} 2", Self::MASTER),
                format!("sentinel down-after-milliseconds {} 1000", Self::MASTER),
                format!("sentinel failover-timeout {} 5000", Self::MASTER),
            ];
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            sentinels.push(Member::start("sentinel", address, &lines).await?);
        }
        let group = Self { servers, sentinels };
        let ready = async || {
            for sentinel in &group.sentinels {
                let told =
                    cli(sentinel.address, &["SENTINEL", "MASTER", Self::MASTER]).await.unwrap_or_default();
                let value =
                    |name: &str| told.lines().skip_while(|line| *line != name).nth(1).map(str::to_owned);
                if value("num-slaves").as_deref() != Some("2")
                    || value("num-other-sentinels").as_deref() != Some("2")
                {
                    return false;
                }
            }
            for server in &group.servers {
                if !follows(server.address).await {
                    return false;
                }
            }
            true
        };
        wait::until_true("the Sentinels to know each other", START, ready).await?;
        Ok(group)
    }

    /// URLs of the Sentinels.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.sentinels.iter().map(|sentinel| format!("redis://{}", sentinel.address)).collect()
    }

    /// Ends the primary as a power cut would; the Sentinels choose another.
    pub async fn kill_the_primary(&mut self) -> Result<()> {
        for at in 0..self.servers.len() {
            if cli(self.servers[at].address, &["ROLE"]).await?.starts_with("master") {
                self.servers.remove(at).child.kill9().await?;
                return Ok(());
            }
        }
        bail!("there is no primary")
    }

    /// Ends the primary, after its replicas have lost touch with it; the Sentinels choose one of them.
    pub async fn kill_the_primary_apart(
        &mut self,
        meanwhile: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        for at in 0..self.servers.len() {
            if cli(self.servers[at].address, &["ROLE"]).await?.starts_with("master") {
                let mut primary = self.servers.remove(at);
                let replicas: Vec<&Member> = self.servers.iter().collect();
                return end_apart(&mut primary, &replicas, meanwhile).await;
            }
        }
        bail!("there is no primary")
    }
}
