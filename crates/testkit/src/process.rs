//! The built `packetboat` binary as processes of their own, and the configuration files they read.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::child::Child;
use crate::{net, wait};

/// How long a process may take to become ready, and to drain.
const PATIENCE: Duration = Duration::from_secs(60);

/// The path of the `packetboat` binary.
///
/// `PACKETBOAT_BIN` names it; without that the binary is built once, so that a test never runs an old
/// one.
pub async fn binary() -> Result<&'static Path> {
    static BINARY: OnceCell<PathBuf> = OnceCell::const_new();
    Ok(BINARY.get_or_try_init(find_or_build).await?.as_path())
}

async fn find_or_build() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("PACKETBOAT_BIN") {
        return Ok(path.into());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--package", "packetboat", "--bin", "packetboat"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .await
        .context("starting cargo to build packetboat")?;
    ensure!(
        output.status.success(),
        "building packetboat failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // This program lies in target/debug or in target/debug/deps; the binary lies in target/debug.
    let here = std::env::current_exe()?;
    let found =
        here.ancestors().skip(1).take(2).map(|folder| folder.join("packetboat")).find(|path| path.exists());
    found.with_context(|| format!("no packetboat binary beside {here:?}"))
}

/// The part a process plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everything in one process.
    All,
    /// SMTP in.
    Edge,
    /// SPF, DKIM, DMARC, ARC and signing.
    Verifier,
    /// Queue and SMTP out.
    Delivery,
    /// Keys and DNS records.
    Operator,
    /// MTA-STS policies.
    MtaSts,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Edge => "edge",
            Self::Verifier => "verifier",
            Self::Delivery => "delivery",
            Self::Operator => "operator",
            Self::MtaSts => "mta-sts",
        }
    }
}

/// The settings of one process that tests vary. Every address is chosen in [`Site::settings`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// The part the process plays.
    pub role: Role,
    /// EHLO name and authserv-id.
    pub hostname: String,
    /// Where the process keeps its data, relative to the site's folder.
    pub data_dir: String,
    /// The DNS server asked.
    pub dns: SocketAddr,
    /// The listener for mail from other servers.
    pub mx: SocketAddr,
    /// Another such listener, behind a proxy that speaks the PROXY protocol from 127.0.0.0/8.
    pub mx_proxied: SocketAddr,
    /// The submission listener with STARTTLS.
    pub submission: SocketAddr,
    /// The submission listener with implicit TLS.
    pub submissions: SocketAddr,
    /// Health, readiness, metrics and the queue API.
    pub admin: SocketAddr,
    /// The Redis URL of the queue; without it the queue is embedded.
    pub redis: Option<String>,
    /// Further keys of `queue.redis`, in flow style with a comma before each: `, replicas: 1`. With an empty URL they say
    /// where the servers are, too.
    pub redis_more: String,
    /// The URL of the object store in which contents lie; without it they are in the queue.
    pub spool: Option<String>,
    /// The port of remote servers.
    pub outbound_port: u16,
    /// Further keys of `outbound`, in flow style with a comma before each.
    pub outbound_more: String,
    /// The first retry comes after this.
    pub retry_initial: &'static str,
    /// Retries end after this.
    pub retry_max_age: &'static str,
    /// Where the edge and delivery find the verifier, and where it listens.
    pub verifier: SocketAddr,
    /// Where the edge finds delivery, and where it listens.
    pub delivery: SocketAddr,
    /// A folder of the site with `tls.crt`, `tls.key` and `ca.crt`: the services speak TLS with each other.
    pub peer: Option<String>,
    /// A kubeconfig: MailDomains come from that cluster, not from the site's folder.
    pub kubeconfig: Option<PathBuf>,
    /// The namespaces whose MailDomains count there; all when empty.
    pub namespaces: Vec<String>,
    /// Further top-level YAML lines.
    pub extra: String,
    /// Environment variables of the process.
    pub environment: Vec<(String, String)>,
    /// Another program than the one under test: that of another version.
    pub program: Option<PathBuf>,
}

impl Settings {
    async fn program(&self) -> Result<&Path> {
        match &self.program {
            Some(program) => Ok(program),
            None => binary().await,
        }
    }

    /// The configuration file.
    pub fn yaml(&self) -> String {
        let mut yaml = format!(
            "hostname: {}\ndata_dir: {}\ndns: {{servers: [\"{}\"]}}\nadmin: {{address: \"{}\"}}\n",
            self.hostname, self.data_dir, self.dns, self.admin
        );
        match &self.kubeconfig {
            Some(_) if !self.namespaces.is_empty() => {
                let names = self.namespaces.join(", ");
                let _ = writeln!(yaml, "domains: {{kubernetes: {{namespaces: [{names}]}}}}");
            }
            Some(_) => yaml.push_str("domains: {kubernetes: {}}\n"),
            None => yaml.push_str("domains: {folder: domains}\n"),
        }
        if matches!(self.role, Role::All | Role::Edge) {
            let _ = write!(
                yaml,
                "listeners:\n\
                 \x20 - {{name: mx, kind: mx, address: \"{}\"}}\n\
                 \x20 - {{name: mx-proxied, kind: mx, address: \"{}\", proxy_protocol: {{trusted: [\"127.0.0.0/8\"]}}}}\n\
                 \x20 - {{name: submission, kind: submission, address: \"{}\"}}\n\
                 \x20 - {{name: submissions, kind: submission, address: \"{}\", tls: implicit}}\n",
                self.mx, self.mx_proxied, self.submission, self.submissions
            );
        }
        if matches!(self.role, Role::All | Role::Delivery) {
            match &self.redis {
                Some(url) => {
                    let at = if url.is_empty() { String::new() } else { format!(", url: \"{url}\"") };
                    let keys = format!("{at}{}", self.redis_more);
                    let keys = keys.trim_start_matches(", ");
                    let _ = writeln!(yaml, "queue:\n  backend: redis\n  redis: {{{keys}}}");
                    if let Some(spool) = &self.spool {
                        let _ = writeln!(yaml, "  spool: {{object_store: {{url: \"{spool}\"}}}}");
                    }
                }
                None => yaml.push_str("queue: {backend: embedded}\n"),
            }
            let _ = writeln!(
                yaml,
                "outbound: {{port: {}, allow_loopback: true, retry: {{initial: {}, max_interval: 2s, max_age: {}}}{}}}",
                self.outbound_port, self.retry_initial, self.retry_max_age, self.outbound_more
            );
        }
        let scheme = if self.peer.is_some() { "https" } else { "http" };
        let (verifier, delivery) = (self.verifier, self.delivery);
        yaml.push_str(&match self.role {
            Role::All | Role::Operator | Role::MtaSts => String::new(),
            Role::Edge => format!(
                "verifier: {{endpoint: \"{scheme}://{verifier}\"}}\ndelivery: {{endpoint: \"{scheme}://{delivery}\"}}\n"
            ),
            Role::Verifier => format!("verifier: {{listen: \"{verifier}\"}}\n"),
            Role::Delivery => format!(
                "verifier: {{endpoint: \"{scheme}://{verifier}\"}}\ndelivery: {{listen: \"{delivery}\"}}\n"
            ),
        });
        if let Some(folder) = &self.peer {
            let _ = writeln!(
                yaml,
                "tls: {{peer: {{certificate: {folder}/tls.crt, key: {folder}/tls.key, authority: {folder}/ca.crt, reload_interval: 100ms}}}}"
            );
        }
        yaml.push_str(&self.extra);
        yaml
    }
}

/// A folder with configurations, MailDomains and data of processes that belong together.
pub struct Site {
    folder: TempDir,
    dns: SocketAddr,
}

impl Site {
    /// An empty site whose processes ask the DNS server at `dns`.
    pub fn new(dns: SocketAddr) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("packetboat-site-").tempdir()?;
        std::fs::create_dir(folder.path().join("domains"))?;
        Ok(Self { folder, dns })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file at a path relative to the site, all at once, so that a watcher sees no half of it.
    pub fn write(&self, path: &str, text: &str) -> Result<PathBuf> {
        let target = self.path().join(path);
        let draft = self.path().join("draft");
        std::fs::write(&draft, text)?;
        std::fs::rename(&draft, &target).with_context(|| format!("writing {target:?}"))?;
        Ok(target)
    }

    /// Writes the MailDomain of `domain`; `spec` is the YAML below `spec:` without its first level of
    /// indentation and without `domain`.
    pub fn domain(&self, domain: &str, spec: &str) -> Result<()> {
        let name = domain.replace('.', "-");
        let mut text = format!(
            "apiVersion: mail.packetboat.dev/v1alpha1\nkind: MailDomain\nmetadata: {{name: {name}, namespace: mail}}\nspec:\n  domain: {domain}\n"
        );
        for line in spec.lines() {
            let _ = writeln!(text, "  {line}");
        }
        self.write(&format!("domains/{name}.yaml"), &text).map(drop)
    }

    /// Writes a Secret with these keys and values.
    pub fn secret(&self, name: &str, data: &[(&str, &str)]) -> Result<()> {
        let mut text = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: mail}}\nstringData:\n"
        );
        for (key, value) in data {
            let _ = writeln!(text, "  {key}: {}", serde_json::Value::from(*value));
        }
        self.write(&format!("domains/secret-{name}.yaml"), &text).map(drop)
    }

    /// Settings for a process of this site with free addresses and retries fit for tests.
    pub fn settings(&self, role: Role) -> Result<Settings> {
        Ok(Settings {
            role,
            hostname: "mx.packetboat.test".to_owned(),
            data_dir: format!("data-{}", role.name()),
            dns: self.dns,
            mx: net::free_address()?,
            mx_proxied: net::free_address()?,
            submission: net::free_address()?,
            submissions: net::free_address()?,
            admin: net::free_address()?,
            redis: None,
            redis_more: String::new(),
            outbound_more: String::new(),
            spool: None,
            outbound_port: 25,
            retry_initial: "1s",
            retry_max_age: "120s",
            verifier: net::free_address()?,
            delivery: net::free_address()?,
            peer: None,
            kubeconfig: None,
            namespaces: Vec::new(),
            extra: String::new(),
            environment: Vec::new(),
            program: None,
        })
    }

    /// Starts a process and waits until it says that it is ready.
    pub async fn start(&self, settings: &Settings) -> Result<Packetboat> {
        let mut process = self.launch(settings).await?;
        process.wait_until_ready().await?;
        Ok(process)
    }

    /// Starts a process and does not wait.
    pub async fn launch(&self, settings: &Settings) -> Result<Packetboat> {
        let name = format!("{}-{}", settings.role.name(), settings.admin.port());
        let config = self.write(&format!("{name}.yaml"), &settings.yaml())?;
        let mut command = Command::new(settings.program().await?);
        command.arg(settings.role.name()).arg("--config").arg(config);
        command.envs(settings.environment.iter().map(|(name, value)| (name, value)));
        if let Some(kubeconfig) = &settings.kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        let child = Child::spawn(&name, command, &self.path().join(format!("{name}.log")))?;
        Ok(Packetboat { child, admin: settings.admin })
    }

    /// Runs the command line tool with these arguments and then `--config` with the file of
    /// `settings`, and gives what it printed.
    pub async fn run(&self, settings: &Settings, arguments: &[&str]) -> Result<Output> {
        let config = self.write(&format!("run-{}.yaml", settings.admin.port()), &settings.yaml())?;
        let mut command = Command::new(settings.program().await?);
        command.args(arguments).arg("--config").arg(config).stdin(Stdio::null()).kill_on_drop(true);
        timeout(PATIENCE, command.output())
            .await
            .with_context(|| format!("{arguments:?} took too long"))?
            .context("running packetboat")
    }
}

/// A running process; it is killed when this is dropped.
pub struct Packetboat {
    child: Child,
    admin: SocketAddr,
}

impl Packetboat {
    /// The process.
    pub fn child(&self) -> &Child {
        &self.child
    }

    /// What the process has logged.
    pub fn log(&self) -> String {
        self.child.log()
    }

    /// Waits until `/readyz` answers 200.
    pub async fn wait_until_ready(&mut self) -> Result<()> {
        wait::until("packetboat to become ready", PATIENCE, async || {
            if let Err(ended) = self.child.check_alive() {
                return Some(Err(ended));
            }
            let ready = matches!(http_get(self.admin, "/readyz").await, Ok((200, _)));
            ready.then_some(Ok(()))
        })
        .await
        .with_context(|| format!("its log:\n{}", self.child.log()))?
    }

    /// Asks the admin listener for `path`: status and body.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        http_get(self.admin, path).await
    }

    /// The sum over all label sets of the metric `name` in `/metrics`; 0 when it is not there.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let (status, body) = self.get("/metrics").await?;
        ensure!(status == 200, "/metrics answered {status}");
        let values = body.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (key, value) = line.rsplit_once(' ')?;
            let key = key.split_once('{').map_or(key, |(key, _)| key);
            (key == name).then(|| value.parse::<f64>().ok()).flatten()
        });
        Ok(values.sum())
    }

    /// Ends the process as a power cut would.
    pub async fn kill9(&mut self) -> Result<()> {
        self.child.kill9().await
    }

    /// Sends SIGTERM without waiting.
    pub fn signal_terminate(&self) -> Result<()> {
        self.child.signal_terminate()
    }

    /// Waits for the process to end by itself.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.child.wait(limit).await
    }

    /// Sends SIGTERM and waits for the end.
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        self.child.terminate(PATIENCE).await
    }
}

/// One HTTP/1.0 GET: status and body.
pub async fn http_get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = timeout(Duration::from_secs(10), exchange).await.context("no HTTP answer in time")??;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP header")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no HTTP status")?;
    Ok((status, body.to_owned()))
}
