//! A real BIND: a primary that takes dynamic updates signed by TSIG, and a secondary that follows it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tempfile::TempDir;
use tokio::net::UdpSocket;
use tokio::process::Command;

use crate::child::Child;
use crate::{net, wait};

const START: Duration = Duration::from_secs(20);
/// The name of the key that may update the zone.
pub const KEY_NAME: &str = "update-key";
/// Its secret, as `tsig-keygen` would print it.
pub const SECRET: &str = "c2l4dGVlbiBvY3RldHMgb2YgYSBzZWNyZXQga2V5IQ==";

/// One server and its folder.
struct Server {
    folder: TempDir,
    address: SocketAddr,
    child: Option<Child>,
}

/// How the secondary serves its zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// As it should.
    Well,
    /// It refuses every question (REFUSED).
    Refusing,
    /// It has lost the zone and fails (SERVFAIL).
    Failing,
}

/// Two authoritative servers of one zone; both end when this is dropped.
pub struct Bind {
    zone: String,
    primary: Server,
    secondary: Server,
    /// Seconds by which the secondary lags; without it the primary tells it of each change.
    lag: Option<u32>,
    /// Further settings of the zone at the primary.
    policy: &'static str,
}

impl Server {
    fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("packetboat-bind-").tempdir()?;
        Ok(Self { folder, address: net::free_address()?, child: None })
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    async fn start(&mut self, zone: &str) -> Result<()> {
        self.launch(async |address| {
            let answer = dig(address, &["SOA", zone]).await;
            answer.is_ok_and(|answer| !answer.trim().is_empty())
        })
        .await
    }

    async fn launch(&mut self, is_up: impl AsyncFn(SocketAddr) -> bool) -> Result<()> {
        let mut command = Command::new("named");
        command.args(["-g", "-4", "-n", "1", "-c"]).arg(self.path("named.conf"));
        let mut child = Child::spawn("named", command, &self.path("named.log"))?;
        wait::until("BIND to answer", START, async || {
            if let Err(ended) = child.check_alive() {
                return Some(Err(ended));
            }
            is_up(self.address).await.then_some(Ok(()))
        })
        .await??;
        self.child = Some(child);
        Ok(())
    }

    async fn stop(&mut self) -> Result<()> {
        match self.child.take() {
            Some(mut child) => child.kill9().await,
            None => Ok(()),
        }
    }
}

fn write_config(server: &Server, zone: &str, role: &str) -> Result<()> {
    let folder = server.folder.path().display();
    let port = server.address.port();
    let text = format!(
        "options {{ directory \"{folder}\"; pid-file \"{folder}/named.pid\"; session-keyfile \"{folder}/session.key\";\n\
         listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion no; dnssec-validation no;\n\
         allow-transfer {{ 127.0.0.1; }}; allow-query {{ any; }}; minimal-responses yes; }};\n\
         key \"{KEY_NAME}\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n\
         controls {{ }};\n\
         zone \"{zone}\" {{ {role} }};\n"
    );
    std::fs::write(server.path("named.conf"), text).context("writing named.conf")
}

impl Bind {
    /// Starts both with a zone of these further lines; its negative time to live is `negative_ttl` seconds.
    pub async fn start(zone: &str, negative_ttl: u32, lines: &str) -> Result<Self> {
        Self::launch(zone, negative_ttl, lines, None, "").await
    }

    /// The same, with a zone that the primary signs.
    pub async fn start_signed(zone: &str, negative_ttl: u32, lines: &str) -> Result<Self> {
        let policy = "dnssec-policy default; key-directory \".\";";
        let this = Self::launch(zone, negative_ttl, lines, None, policy).await?;
        wait::until_true("the zone to be signed", START, async || {
            let signed = async |server| dig(server, &["+dnssec", "SOA", zone]).await.unwrap_or_default();
            signed(this.primary()).await.contains("SOA ") && signed(this.secondary()).await.contains("SOA ")
        })
        .await?;
        Ok(this)
    }

    /// The same, with a secondary that looks for changes by itself alone, every `lag` seconds.
    pub async fn lagging(zone: &str, negative_ttl: u32, lines: &str, lag: u32) -> Result<Self> {
        Self::launch(zone, negative_ttl, lines, Some(lag), "").await
    }

    async fn launch(
        zone: &str,
        negative_ttl: u32,
        lines: &str,
        lag: Option<u32>,
        policy: &'static str,
    ) -> Result<Self> {
        let (primary, secondary) = (Server::new()?, Server::new()?);
        let text = format!(
            "$ORIGIN {zone}.\n$TTL 60\n@ {negative_ttl} IN SOA ns1 hostmaster 1 60 60 86400 {negative_ttl}\n\
             @ IN NS ns1\n@ IN NS ns2\nns1 IN A 127.0.0.1\nns2 IN A 127.0.0.1\nmx IN A 127.0.0.1\n{lines}\n"
        );
        std::fs::write(primary.path("zone"), text)?;
        let mut this = Self { zone: zone.to_owned(), primary, secondary, lag, policy };
        this.write_primary(&format!("key {KEY_NAME}"))?;
        this.write_secondary(Serving::Well)?;
        this.start_primary().await?;
        this.start_secondary().await?;
        Ok(this)
    }

    fn write_primary(&self, updaters: &str) -> Result<()> {
        let follower = self.secondary.address.port();
        let notify = match self.lag {
            None => format!("notify explicit; also-notify {{ 127.0.0.1 port {follower}; }};"),
            Some(_) => "notify no;".to_owned(),
        };
        let role =
            format!("type primary; file \"zone\"; allow-update {{ {updaters}; }}; {notify} {}", self.policy);
        write_config(&self.primary, &self.zone, &role)
    }

    fn write_secondary(&self, serving: Serving) -> Result<()> {
        let leader = match serving {
            Serving::Failing => 1,
            _ => self.primary.address.port(),
        };
        let (file, queries) = match serving {
            Serving::Well => ("copy", "any"),
            Serving::Refusing => ("copy", "none"),
            Serving::Failing => ("lost", "any"),
        };
        let (least, most) = self.lag.map_or((1, 2), |lag| (lag, lag));
        let role = format!(
            "type secondary; file \"{file}\"; primaries {{ 127.0.0.1 port {leader}; }}; allow-query {{ {queries}; }}; \
             allow-notify {{ 127.0.0.1; }}; min-refresh-time {least}; max-refresh-time {most}; \
             min-retry-time {least}; max-retry-time {most};"
        );
        write_config(&self.secondary, &self.zone, &role)
    }

    /// Starts the secondary anew, to serve in this way.
    pub async fn secondary_serves(&mut self, serving: Serving) -> Result<()> {
        self.secondary.stop().await?;
        self.write_secondary(serving)?;
        if serving == Serving::Well {
            return self.start_secondary().await;
        }
        // It answers, though not with what it is asked for.
        self.secondary.launch(async |address| dig(address, &["SOA", "."]).await.is_ok()).await
    }

    /// Starts the primary anew: it takes updates with the key, or none.
    pub async fn primary_takes_updates(&mut self, takes: bool) -> Result<()> {
        self.primary.stop().await?;
        let key = format!("key {KEY_NAME}");
        self.write_primary(if takes { key.as_str() } else { "none" })?;
        self.start_primary().await
    }

    /// The texts of a name at a server, each joined; none where the name has none.
    ///
    /// # Errors
    /// When the server does not answer, or with an error.
    pub async fn texts(&self, server: SocketAddr, name: &str) -> Result<Vec<String>> {
        texts(server, name).await
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

    /// Ends the primary; its zone stays.
    pub async fn stop_primary(&mut self) -> Result<()> {
        self.primary.stop().await
    }

    /// Starts the primary again.
    pub async fn start_primary(&mut self) -> Result<()> {
        let zone = self.zone.clone();
        self.primary.start(&zone).await
    }

    /// Ends the secondary.
    pub async fn stop_secondary(&mut self) -> Result<()> {
        self.secondary.stop().await
    }

    /// Starts the secondary again.
    pub async fn start_secondary(&mut self) -> Result<()> {
        let zone = self.zone.clone();
        self.secondary.start(&zone).await
    }

    /// What a server answers, a line a record, in the form of zone files; texts as they are split.
    pub async fn answer(&self, server: SocketAddr, kind: &str, name: &str) -> Result<String> {
        dig(server, &[kind, name]).await
    }

    /// The DS record of the zone's key, for the zone above.
    pub async fn delegation_signer(&self) -> Result<String> {
        let keys = dig(self.primary.address, &["DNSKEY", &self.zone]).await?;
        let lines: String = keys.lines().map(|key| format!("{}. 300 IN DNSKEY {key}\n", self.zone)).collect();
        let file = self.primary.path("dnskeys");
        std::fs::write(&file, lines)?;
        run("dnssec-dsfromkey", &["-2", "-T", "300", "-f", &file.to_string_lossy(), &self.zone]).await
    }

    /// What the primary has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.primary.child.as_ref().map(Child::log).unwrap_or_default()
    }

    /// Changes the zone by hand, with the commands of `nsupdate`.
    pub async fn by_hand(&self, commands: &str) -> Result<()> {
        let server = format!(
            "server 127.0.0.1 {}\nzone {}\n{commands}\nsend\n",
            self.primary.address.port(),
            self.zone
        );
        let file = self.primary.path("commands");
        std::fs::write(&file, server)?;
        let key = format!("hmac-sha256:{KEY_NAME}:{SECRET}");
        run("nsupdate", &["-y", &key, &file.to_string_lossy()]).await.map(drop)
    }

    /// The octets of the key's secret.
    pub fn secret() -> Vec<u8> {
        base64::engine::general_purpose::STANDARD.decode(SECRET).unwrap_or_default()
    }
}

/// The texts of a name at a server, each joined from its strings.
///
/// # Errors
/// When the server does not answer within a second, or with an error.
pub async fn texts(server: SocketAddr, name: &str) -> Result<Vec<String>> {
    let mut question = Message::query();
    let mut query = Query::new();
    let mut asked = Name::from_ascii(name)?;
    asked.set_fqdn(true);
    query.set_name(asked).set_query_type(RecordType::TXT);
    question.add_query(query);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    question.set_edns(edns);
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(server).await?;
    socket.send(&question.to_vec()?).await?;
    let mut octets = vec![0; 4096];
    let length = tokio::time::timeout(Duration::from_secs(1), socket.recv(&mut octets)).await;
    let answer = Message::from_vec(&octets[..length.context("no answer")??])?;
    let code = answer.metadata.response_code;
    ensure!(matches!(code, ResponseCode::NoError | ResponseCode::NXDomain), "{server} says {code}");
    let texts = answer.answers.iter().filter_map(|record| match &record.data {
        RData::TXT(txt) => {
            let octets: Vec<u8> = txt.txt_data.iter().flat_map(|string| string.iter().copied()).collect();
            Some(String::from_utf8_lossy(&octets).into_owned())
        }
        _ => None,
    });
    Ok(texts.collect())
}

async fn dig(server: SocketAddr, question: &[&str]) -> Result<String> {
    let port = server.port().to_string();
    let common = ["@127.0.0.1", "-p", port.as_str(), "+short", "+norecurse", "+time=1", "+tries=1"];
    run("dig", &[&common, question].concat()).await
}

async fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = tokio::time::timeout(START, Command::new(program).args(arguments).output())
        .await
        .with_context(|| format!("{program} hangs"))?
        .with_context(|| format!("starting {program}"))?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{program} {arguments:?}: {error}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
