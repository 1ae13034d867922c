//! A real Kubernetes API: `etcd` and `kube-apiserver` on loopback, without nodes or controllers. Objects are
//! stored, validated, watched and authorised; what controllers would do (garbage collection, namespaces that
//! go away, pods) does not happen.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::process::Command;

use crate::child::Child;
use crate::{net, wait};

const START: Duration = Duration::from_secs(60);
/// The first build of the API server takes minutes.
const BUILD: Duration = Duration::from_secs(30 * 60);
/// The token of the user who may do everything.
const ADMIN: &str = "admin-token-of-a-test";

/// An API server with its store; both end when this is dropped.
pub struct ApiServer {
    folder: TempDir,
    address: SocketAddr,
    etcd_address: SocketAddr,
    etcd: Option<Child>,
    server: Option<Child>,
}

impl ApiServer {
    /// Starts both, and waits until the API is ready.
    pub async fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("packetboat-kube-").tempdir()?;
        write_keys(folder.path())?;
        std::fs::write(folder.path().join("tokens"), format!("{ADMIN},admin,1,system:masters\n"))?;
        let mut this = Self {
            folder,
            address: net::free_address()?,
            etcd_address: net::free_address()?,
            etcd: None,
            server: None,
        };
        this.start_etcd()?;
        this.restart().await?;
        Ok(this)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start_etcd(&mut self) -> Result<()> {
        let peers = format!("http://{}", net::free_address()?);
        let clients = format!("http://{}", self.etcd_address);
        let mut command = Command::new("etcd");
        command
            .arg("--data-dir")
            .arg(self.path("etcd"))
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}"), "--unsafe-no-fsync"]);
        self.etcd = Some(Child::spawn("etcd", command, &self.path("etcd.log"))?);
        Ok(())
    }

    /// Starts the API server, on its old port and with what it had stored. One that runs is ended first.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        let program = program("kube-apiserver").await?;
        let mut command = Command::new(program);
        let file = |flag: &str, name: &str| format!("--{flag}={}", self.path(name).display());
        command
            .arg(format!("--etcd-servers=http://{}", self.etcd_address))
            .args([format!("--secure-port={}", self.address.port()), "--bind-address=127.0.0.1".to_owned()])
            .args(["--advertise-address=127.0.0.1", "--service-cluster-ip-range=10.96.0.0/16"])
            .args([file("tls-cert-file", "server.pem"), file("tls-private-key-file", "server-key.pem")])
            .args([file("token-auth-file", "tokens"), "--authorization-mode=RBAC".to_owned()])
            .args([file("service-account-key-file", "accounts-public.pem")])
            .args([file("service-account-signing-key-file", "accounts.pem")])
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .args(["--endpoint-reconciler-type=none", "--profiling=false"]);
        let mut child = Child::spawn("kube-apiserver", command, &self.path("apiserver.log"))?;
        wait::until("the Kubernetes API to be ready", START, async || {
            if let Err(ended) = child.check_alive() {
                return Some(Err(ended));
            }
            self.kubectl(&["get", "--raw", "/readyz"], None).await.is_ok().then_some(Ok(()))
        })
        .await??;
        self.server = Some(child);
        Ok(())
    }

    /// Ends the API server; what is stored stays.
    pub async fn stop(&mut self) -> Result<()> {
        match self.server.take() {
            Some(mut child) => child.kill9().await,
            None => Ok(()),
        }
    }

    /// Where the API is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process of the API server; none while it is ended.
    #[must_use]
    pub fn child(&self) -> Option<&Child> {
        self.server.as_ref()
    }

    /// A kubeconfig for the user who may do everything, in namespace `default`.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        self.kubeconfig_with_token("admin", ADMIN)
    }

    /// A kubeconfig with a token, in a file of that name.
    pub fn kubeconfig_with_token(&self, name: &str, token: &str) -> Result<PathBuf> {
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://{}", self.address),
                "certificate-authority": self.path("ca.pem"),
            }}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            "current-context": "test",
        });
        let file = self.path(&format!("kubeconfig-{name}"));
        std::fs::write(&file, config.to_string())?;
        Ok(file)
    }

    /// A kubeconfig of a service account, which must exist.
    pub async fn kubeconfig_of(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        let token = self.kubectl(&["create", "token", account, "--namespace", namespace], None).await?;
        self.kubeconfig_with_token(&format!("{namespace}-{account}"), token.trim())
    }

    /// Runs `kubectl` as the user who may do everything, with `input` on its standard input; what it printed.
    ///
    /// # Errors
    /// When it fails: with what it said.
    pub async fn kubectl(&self, arguments: &[&str], input: Option<&str>) -> Result<String> {
        kubectl(&self.kubeconfig()?, arguments, input).await
    }

    /// The values of a Secret.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<BTreeMap<String, String>> {
        let text = self.kubectl(&["-n", namespace, "get", "secret", name, "-o", "json"], None).await?;
        let secret: serde_json::Value = serde_json::from_str(&text)?;
        let data = secret["data"].as_object().cloned().unwrap_or_default();
        let decoded = |(key, value): (String, serde_json::Value)| {
            let octets = STANDARD.decode(value.as_str().unwrap_or_default())?;
            Ok((key, String::from_utf8(octets)?))
        };
        data.into_iter().map(decoded).collect()
    }

    /// Applies YAML.
    pub async fn apply(&self, yaml: &str) -> Result<String> {
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", "-"], Some(yaml)).await
    }

    /// Applies CustomResourceDefinitions, and waits until objects of their kinds are taken.
    pub async fn define(&self, crds: &str) -> Result<()> {
        self.apply(crds).await?;
        self.kubectl(&["wait", "--for=condition=Established", "-f", "-"], Some(crds)).await.map(drop)
    }
}

/// Runs `kubectl` with a kubeconfig.
///
/// # Errors
/// When it fails: with what it said.
pub async fn kubectl(kubeconfig: &Path, arguments: &[&str], input: Option<&str>) -> Result<String> {
    use std::process::Stdio;
    use tokio::io::AsyncWriteExt;
    let program = program("kubectl").await?;
    let mut child = Command::new(program)
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(["--request-timeout", "20s"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting kubectl")?;
    let mut stdin = child.stdin.take().context("kubectl has no input")?;
    stdin.write_all(input.unwrap_or_default().as_bytes()).await?;
    drop(stdin);
    let output = tokio::time::timeout(START, child.wait_with_output()).await.context("kubectl hangs")??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

/// Where a tool is that `scripts/kube-tools` knows; it is built when it is not there.
///
/// # Errors
/// When it cannot be built.
pub async fn program(name: &str) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/kube-tools");
    let build = Command::new(script).arg(name).stderr(std::process::Stdio::inherit()).output();
    let output = tokio::time::timeout(BUILD, build).await.context("building Kubernetes tools")??;
    ensure!(output.status.success(), "scripts/kube-tools {name} failed");
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

/// A CA, a certificate of the server, and the key of service accounts' tokens.
fn write_keys(folder: &Path) -> Result<()> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(rcgen::DnType::CommonName, "packetboat-test");
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let names = ["127.0.0.1", "localhost", "kubernetes.default.svc"].map(str::to_owned);
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(names)?.signed_by(&key, &authority)?;
    std::fs::write(folder.join("ca.pem"), authority.pem())?;
    std::fs::write(folder.join("server.pem"), certificate.pem())?;
    std::fs::write(folder.join("server-key.pem"), key.serialize_pem())?;
    let accounts = KeyPair::generate()?;
    std::fs::write(folder.join("accounts.pem"), accounts.serialize_pem())?;
    std::fs::write(folder.join("accounts-public.pem"), accounts.public_key_pem())?;
    Ok(())
}
