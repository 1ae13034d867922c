//! A witness of the keys of a domain: it follows their Secrets by watch, asks every name server all the time, and
//! notes whatever must not be. It knows of the operator only what can be seen from outside.
//!
//! - Of each algorithm, once a key signs, one always does.
//! - A key signs only when every name server has shown its record for the time required.
//! - The record of a key that signs, or did a short time ago, is at every name server.
//! - A private key goes only when it is revoked: by a person, or no sooner than after the time for which it retires.
//! - No stage is left out, and no selector is used twice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testkit::bind::texts;
use testkit::kubernetes::program;
use testkit::wait;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::estate::DOMAIN;

/// How often name servers are asked.
const PAUSE: Duration = Duration::from_millis(100);
/// By how much events may be late.
const LATE: Duration = Duration::from_millis(700);

/// What the MailDomain asks for.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// `rotation.minPropagation`.
    pub min_propagation: Duration,
    /// `rotation.retireAfter`.
    pub retire_after: Duration,
}

/// What is known of one key.
#[derive(Clone, Debug)]
struct Life {
    uid: String,
    algorithm: String,
    stage: String,
    /// When it came to its stage.
    since: Instant,
    /// The last time a name server did not show its record.
    not_shown: Instant,
    /// When it ceased to sign; nothing where it was revoked while it did, as a person asks for.
    silent_since: Option<Instant>,
}

#[derive(Default)]
struct State {
    keys: BTreeMap<String, Life>,
    /// Selectors that there were, by the UID of their Secrets.
    used: BTreeMap<String, String>,
    /// Algorithms that have signed.
    signed: BTreeSet<String>,
    /// Private keys, as they stand in their Secrets (base64).
    private: BTreeSet<String>,
    stages: Vec<String>,
    violations: Vec<String>,
    /// A test is about to break something: what follows from that is no violation.
    pardon: bool,
}

/// The witness; it stops looking when this is dropped.
pub struct Witness {
    state: Arc<Mutex<State>>,
    _stop: DropGuard,
}

impl Witness {
    /// Begins to look.
    ///
    /// # Errors
    /// When `kubectl` cannot be found.
    pub async fn start(kubeconfig: PathBuf, servers: Vec<SocketAddr>, times: Times) -> Result<Self> {
        let (state, stop) = (Arc::new(Mutex::new(State::default())), CancellationToken::new());
        let kubectl = program("kubectl").await?;
        for kind in ["secrets", "configmaps"] {
            let following = follow(kubectl.clone(), kubeconfig.clone(), kind, Arc::clone(&state), times);
            tokio::spawn(stop.clone().run_until_cancelled_owned(following));
        }
        let asking = ask(servers, Arc::clone(&state));
        tokio::spawn(stop.clone().run_until_cancelled_owned(asking));
        Ok(Self { state, _stop: stop.drop_guard() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Whatever must not be is pardoned from now on, or no more.
    pub fn pardon(&self, pardon: bool) {
        self.state().pardon = pardon;
    }

    /// Selectors in a stage now.
    #[must_use]
    pub fn in_stage(&self, stage: &str) -> Vec<String> {
        let state = self.state();
        state.keys.iter().filter(|(_, life)| life.stage == stage).map(|(name, _)| name.clone()).collect()
    }

    /// All selectors that there ever were.
    #[must_use]
    pub fn selectors(&self) -> BTreeSet<String> {
        self.state().used.keys().cloned().collect()
    }

    /// The private keys that there ever were, as their Secrets hold them.
    #[must_use]
    pub fn private_keys(&self) -> BTreeSet<String> {
        self.state().private.clone()
    }

    /// Waits until a key of which `which` holds, by its selector, is in a stage (`Gone` when nothing of it is left).
    ///
    /// # Errors
    /// When that does not happen in time, with what did.
    pub async fn wait_for(
        &self,
        stage: &str,
        limit: Duration,
        which: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let what = format!("a key to be {stage}");
        let found = wait::until(&what, limit, async || {
            let state = self.state();
            let is = |selector: &str| match state.keys.get(selector) {
                Some(life) => life.stage == stage,
                None => stage == "Gone",
            };
            state.used.keys().find(|selector| which(selector) && is(selector)).cloned()
        });
        let found = found.await;
        found.with_context(|| format!("seen so far:\n{}", self.story()))
    }

    /// All stages that keys came to, in their order.
    #[must_use]
    pub fn story(&self) -> String {
        self.state().stages.join("\n")
    }

    /// Fails if anything was that must not be.
    ///
    /// # Errors
    /// With all of it.
    pub fn judge(&self) -> Result<()> {
        let state = self.state();
        let found = state.violations.join("\n");
        ensure!(state.violations.is_empty(), "{found}\nthe story:\n{}", state.stages.join("\n"));
        Ok(())
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Follows the objects of a kind, whatever becomes of the API server.
async fn follow(
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    kind: &'static str,
    state: Arc<Mutex<State>>,
    times: Times,
) {
    loop {
        let _ = watch(&kubectl, &kubeconfig, kind, &state, times).await;
        sleep(PAUSE).await;
    }
}

async fn watch(
    kubectl: &PathBuf,
    kubeconfig: &PathBuf,
    kind: &str,
    state: &Mutex<State>,
    times: Times,
) -> Result<()> {
    let mut child = Command::new(kubectl)
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(["-n", "mail", "get", kind, "-l", "mail.packetboat.dev/dkim-selector"])
        .args(["--watch", "--output-watch-events", "-o", "json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("kubectl has no output")?).lines();
    while let Some(line) = lines.next_line().await? {
        let event: Value = serde_json::from_str(&line)?;
        lock(state).note(&event, times);
    }
    Ok(())
}

impl State {
    fn violation(&mut self, text: String) {
        if !self.pardon {
            self.violations.push(text);
        }
    }

    fn note(&mut self, event: &Value, times: Times) {
        let object = &event["object"];
        let (is_secret, is_gone) = (object["kind"] == "Secret", event["type"] == "DELETED");
        let meta = &object["metadata"];
        let annotation = |name: &str| {
            let value = &meta["annotations"][format!("mail.packetboat.dev/{name}")];
            value.as_str().unwrap_or_default().to_owned()
        };
        let selector = &meta["labels"]["mail.packetboat.dev/dkim-selector"];
        let selector = selector.as_str().unwrap_or_default().to_owned();
        let (uid, stage) = (meta["uid"].as_str().unwrap_or_default().to_owned(), annotation("stage"));
        if is_secret {
            self.private.extend(object["data"]["tls.key"].as_str().map(str::to_owned));
            let before = self.used.entry(selector.clone()).or_insert_with(|| uid.clone()).clone();
            if before != uid {
                self.violation(format!("the selector {selector} is used twice"));
            }
        }
        match (is_secret, is_gone) {
            (true, true) => self.private_key_is_gone(&selector, times),
            (false, true) => {
                self.stages.push(format!("{selector}: forgotten"));
                self.keys.remove(&selector);
            }
            _ => self.came_to(&selector, uid, annotation("algorithm"), stage, times),
        }
    }

    fn private_key_is_gone(&mut self, selector: &str, times: Times) {
        self.stages.push(format!("{selector}: the private key is gone"));
        let Some(life) = self.keys.get(selector).cloned() else { return };
        if life.stage != "Revoked" {
            self.keys.remove(selector);
            self.violation(format!("the private key of {selector} is gone while it is {}", life.stage));
        }
        let silent = life.silent_since.map(|since| since.elapsed());
        if silent.is_some_and(|silent| silent + LATE < times.retire_after) {
            self.violation(format!("the private key of {selector} is gone {silent:?} after it signed"));
        }
    }

    fn came_to(&mut self, selector: &str, uid: String, algorithm: String, stage: String, times: Times) {
        let now = Instant::now();
        let before = self.keys.get(selector).cloned();
        if before.as_ref().is_some_and(|life| life.stage == stage) {
            return;
        }
        self.stages.push(format!("{selector}: {stage}"));
        let from = before.as_ref().map_or("nothing", |life| life.stage.as_str());
        const STEPS: [(&str, &str); 9] = [
            ("nothing", "Generated"),
            ("Generated", "Publishing"),
            ("Publishing", "Propagating"),
            ("Propagating", "Publishing"),
            ("Propagating", "Active"),
            ("Active", "Retiring"),
            ("Active", "Revoked"),
            ("Retiring", "Revoked"),
            ("Retiring", "Active"),
        ];
        if !STEPS.contains(&(from, stage.as_str())) {
            self.violation(format!("{selector} comes from {from} to {stage}"));
        }
        let not_shown = before.as_ref().map_or(now, |life| life.not_shown);
        if stage == "Active" {
            self.signed.insert(algorithm.clone());
            let shown = now.duration_since(not_shown);
            if from == "Propagating" && shown < times.min_propagation {
                self.violation(format!("{selector} signs, and has been shown for {shown:?} at most"));
            }
        }
        let ceased = (from == "Active" && stage != "Revoked").then_some(now);
        let silent_since = ceased.or(before.as_ref().and_then(|life| life.silent_since));
        let life = Life { uid, algorithm: algorithm.clone(), stage, since: now, not_shown, silent_since };
        self.keys.insert(selector.to_owned(), life);
        let signs = |life: &Life| life.algorithm == algorithm && life.stage == "Active";
        if self.signed.contains(&algorithm) && !self.keys.values().any(signs) {
            self.violation(format!("nothing signs with {algorithm} any more"));
        }
    }
}

/// Whether a text publishes a key.
fn publishes(text: &str) -> bool {
    text.starts_with("v=DKIM1; k=") && !text.ends_with("p=")
}

/// Asks every name server for the record of every key, again and again.
async fn ask(servers: Vec<SocketAddr>, state: Arc<Mutex<State>>) {
    loop {
        let keys: Vec<(String, Life)> =
            lock(&state).keys.iter().map(|(name, life)| (name.clone(), life.clone())).collect();
        for (selector, life) in keys {
            let begun = Instant::now();
            let name = format!("{selector}._domainkey.{DOMAIN}");
            for server in &servers {
                // What does not answer says nothing.
                let Ok(shown) = texts(*server, &name).await else { continue };
                if matches!(shown.as_slice(), [one] if publishes(one)) {
                    continue;
                }
                let mut known = lock(&state);
                let Some(now) = known.keys.get_mut(&selector).filter(|now| now.uid == life.uid) else {
                    continue;
                };
                now.not_shown = begun;
                if now.since == life.since && ["Active", "Retiring"].contains(&life.stage.as_str()) {
                    let said = format!("{server} says {shown:?}");
                    tokio::spawn(suspect(Arc::clone(&state), selector.clone(), now.clone(), said));
                }
            }
        }
        sleep(PAUSE).await;
    }
}

/// A record that is needed is not there: a violation, unless an event explains it that comes a little later.
async fn suspect(state: Arc<Mutex<State>>, selector: String, life: Life, said: String) {
    sleep(LATE).await;
    let mut state = lock(&state);
    if state.keys.get(&selector).is_some_and(|now| now.since == life.since) {
        state.violation(format!("{selector} is {}, and {said}", life.stage));
    }
}
