//! What senders see of a domain's MTA-STS policy, looked at all the time from outside: the TXT record and MX at
//! every name server by `dig`, and the policy by `curl`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::estate::DOMAIN;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// One program may take so long.
const LIMIT: Duration = Duration::from_secs(10);

/// A policy as it was served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// The whole text.
    pub text: String,
    /// Its mode.
    pub mode: String,
    /// The hosts that it names.
    pub mx: BTreeSet<String>,
}

impl Served {
    fn read(text: String) -> Self {
        let values = |name: &str| -> Vec<String> {
            let of = |line: &str| line.strip_prefix(name).map(|value| value.trim().to_owned());
            text.lines().filter_map(of).collect()
        };
        let mode = values("mode:").into_iter().next().unwrap_or_default();
        Self { mode, mx: values("mx:").into_iter().collect(), text }
    }

    /// Whether an id goes with it: its first characters are those of the text's SHA-256.
    #[must_use]
    pub fn is_told_by(&self, id: &str) -> bool {
        let digest = Sha256::digest(self.text.as_bytes());
        let begins: String = digest.iter().take(8).map(|octet| format!("{octet:02x}")).collect();
        id.starts_with(&begins)
    }
}

/// One look.
#[derive(Debug, Clone)]
pub struct Look {
    /// When.
    pub at: Instant,
    /// The ids that name servers tell; one that tells none is not here.
    pub ids: BTreeSet<String>,
    /// How many name servers tell an id.
    pub telling: usize,
    /// The hosts that any name server names.
    pub mx: BTreeSet<String>,
    /// What is served; nothing when nobody answers, or not with a policy.
    pub served: Option<Served>,
}

/// Looks until it is dropped, and remembers.
pub struct Senders {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    looks: Vec<Look>,
    served: Vec<Served>,
    wrong: Option<String>,
}

struct Eyes {
    servers: Vec<SocketAddr>,
    web: SocketAddr,
    authority: PathBuf,
}

impl Senders {
    /// Begins to look: at these name servers, and at the policy host there under this authority.
    #[must_use]
    pub fn look(servers: &[SocketAddr], web: SocketAddr, authority: &Path) -> Self {
        let eyes = Eyes { servers: servers.to_vec(), web, authority: authority.to_owned() };
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let notes = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                let look = eyes.look().await;
                note(&notes, look);
                sleep(PAUSE).await;
            }
        });
        Self { seen, task }
    }

    fn seen<T>(&self, of: impl FnOnce(&Seen) -> T) -> T {
        of(&self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The last look.
    #[must_use]
    pub fn last(&self) -> Option<Look> {
        self.seen(|seen| seen.looks.last().cloned())
    }

    /// Every policy that was served, in the order in which they came.
    #[must_use]
    pub fn served(&self) -> Vec<Served> {
        self.seen(|seen| seen.served.clone())
    }

    /// The last look of which something holds.
    #[must_use]
    pub fn last_of(&self, holds: impl Fn(&Look) -> bool) -> Option<Look> {
        self.seen(|seen| seen.looks.iter().rev().find(|look| holds(look)).cloned())
    }

    /// Fails when anything was ever seen that must not be.
    pub fn check(&self) -> Result<()> {
        match self.seen(|seen| seen.wrong.clone()) {
            Some(wrong) => bail!(wrong),
            None => Ok(()),
        }
    }
}

impl Drop for Senders {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn note(seen: &Mutex<Seen>, look: Result<Look>) {
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    match look {
        Ok(look) => seen.note(look),
        Err(error) => _ = seen.wrong.get_or_insert(format!("{error:#}")),
    }
}

impl Seen {
    fn note(&mut self, look: Look) {
        if let Some(served) = &look.served
            && self.served.last() != Some(served)
        {
            self.served.push(served.clone());
        }
        if let Err(wrong) = self.judge(&look) {
            self.wrong.get_or_insert(format!("{wrong:#}; {look:#?}"));
        }
        self.looks.push(look);
    }

    fn judge(&self, look: &Look) -> Result<()> {
        for id in &look.ids {
            // The record was looked at before the policy: what it tells has to be there by now.
            ensure!(
                self.served.iter().any(|served| served.is_told_by(id)),
                "the id {id} is shown before its policy"
            );
            ensure!(look.served.is_some(), "an id is shown, and nothing is served");
        }
        if let Some(served) = look.served.as_ref().filter(|served| served.mode == "enforce") {
            let forbidden: Vec<&String> = look.mx.difference(&served.mx).collect();
            ensure!(forbidden.is_empty(), "the enforced policy forbids {forbidden:?}, which MX names");
        }
        Ok(())
    }
}

impl Eyes {
    async fn look(&self) -> Result<Look> {
        let at = Instant::now();
        let (mut ids, mut telling, mut mx) = (BTreeSet::new(), 0, BTreeSet::new());
        for server in &self.servers {
            let told = dig(*server, "TXT", &format!("_mta-sts.{DOMAIN}")).await?;
            let of = |line: &str| line.split("id=").nth(1)?.split(';').next().map(str::to_owned);
            let told: Vec<String> = told.lines().filter_map(of).collect();
            telling += usize::from(!told.is_empty());
            ids.extend(told);
            let told = dig(*server, "MX", DOMAIN).await?;
            mx.extend(
                told.lines()
                    .filter_map(|line| line.split(' ').nth(1))
                    .map(|host| host.trim_end_matches('.').to_owned()),
            );
        }
        Ok(Look { at, ids, telling, mx, served: self.policy().await? })
    }

    async fn policy(&self) -> Result<Option<Served>> {
        let (host, port) = (format!("mta-sts.{DOMAIN}"), self.web.port());
        let resolve = format!("{host}:{port}:{}", self.web.ip());
        let url = format!("https://{host}:{port}/.well-known/mta-sts.txt");
        let mut command = Command::new("curl");
        command.args(["--silent", "--fail", "--max-time", "5", "--resolve", &resolve, "--cacert"]);
        command.arg(&self.authority).arg(url).kill_on_drop(true);
        let output =
            timeout(LIMIT, command.output()).await.context("curl hangs")?.context("starting curl")?;
        let text = String::from_utf8(output.stdout).context("reading what curl printed")?;
        Ok(output.status.success().then(|| Served::read(text)))
    }
}

async fn dig(server: SocketAddr, kind: &str, name: &str) -> Result<String> {
    let (at, port) = (format!("@{}", server.ip()), server.port().to_string());
    let mut command = Command::new("dig");
    command
        .args([&at, "-p", &port, "+short", "+norecurse", "+time=2", "+tries=2", kind, name])
        .kill_on_drop(true);
    let output = timeout(LIMIT, command.output()).await.context("dig hangs")?.context("starting dig")?;
    ensure!(output.status.success(), "dig {kind} {name}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).context("reading what dig printed")
}
