//! An upgrade to this version, and the way back, with mail in the queue: each version reads what the other wrote.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::ledger::Ledger;
use testkit::maildir::Maildir;
use testkit::process::{Packetboat, Role, Settings};
use testkit::redis::RedisServer;
use testkit::wait;
use tokio::process::Command;
use tokio::time::timeout;

use super::{Outcome, SETTLED};
use crate::load::{Load, wait_for_balance_of};
use crate::world::{HOSTED, PLAIN, World, at};

/// Messages handed in under each version.
const EACH: usize = 100;
/// The version before may have to be built.
const BUILD: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_secs(60);
/// Mail for this user is held, and released at the end.
const HELD: &str = "held";

/// The program of the version before, which a script names and builds.
async fn version_before() -> Result<PathBuf> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/version-before");
    let output = timeout(BUILD, Command::new(script).kill_on_drop(true).output()).await??;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

/// One process with everything, of one version after the other, on one queue.
struct Ship {
    world: World,
    settings: Settings,
    before: PathBuf,
    process: Option<Packetboat>,
    ledger: Arc<Ledger>,
    handed_in: usize,
}

impl Ship {
    /// Ends the process in order, and starts one of the version before or of this one.
    async fn change(&mut self, before: bool) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            let status = process.terminate().await?;
            ensure!(status.success(), "it ended with {status}: {}", process.log());
        }
        self.settings.program = before.then(|| self.before.clone());
        self.process = Some(self.world.site.start(&self.settings).await.with_context(|| {
            format!("starting {} on this queue", if before { "the version before" } else { "this version" })
        })?);
        Ok(())
    }

    /// Hands messages in: they are deferred, since the next hop is not there. Holds those for [`HELD`], and sees
    /// the account balance.
    async fn hand_in(&mut self) -> Result<()> {
        for (user, messages) in [("alice", EACH), (HELD, EACH / 10)] {
            let load = Load {
                messages,
                first: self.handed_in,
                ..Load::of_500(&[self.settings.mx], &at("dave", PLAIN), &at(user, HOSTED))
            };
            self.handed_in += messages;
            load.start(&self.ledger).finish().await?;
        }
        let process = self.process.as_ref().context("it runs")?;
        wait::until_true("all mail to be deferred", SOON, async || {
            let listed = process.get("/api/v1/queue/entries?limit=1000").await;
            listed.is_ok_and(|(_, body)| body.matches("\"last_error\"").count() >= self.handed_in)
        })
        .await?;
        let listed = process.get("/api/v1/queue/entries?limit=1000").await?.1;
        let listed: serde_json::Value = serde_json::from_str(&listed)?;
        let text = listed.to_string();
        ensure!(listed["entries"].as_array().map(Vec::len) == Some(self.handed_in), "{text}");
        for id in ids_for(&listed, HELD) {
            self.queue(&["hold", &id, "--why", "an upgrade"]).await?;
        }
        let told = self.queue(&["account"]).await?;
        ensure!(told.contains("accounted for."), "{told}");
        Ok(())
    }

    async fn queue(&self, arguments: &[&str]) -> Result<String> {
        let output = self.world.site.run(&self.settings, &[&["queue"], arguments].concat()).await?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "queue {arguments:?}: {error}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn open(&self, open: bool) -> Result<()> {
        let route = if open { "{maildir: {path: mail}}" } else { "{smtp: {address: \"127.0.0.1:1\"}}" };
        self.world.host("recipients: {mode: AcceptAll}", route)
    }
}

/// The ids of entries for one user.
fn ids_for(listed: &serde_json::Value, user: &str) -> Vec<String> {
    let entries = listed["entries"].as_array().map(Vec::as_slice).unwrap_or_default();
    let for_user = entries.iter().filter(|entry| entry.to_string().contains(&format!("{user}@{HOSTED}")));
    for_user.filter_map(|entry| entry["id"].as_str()).map(|id| id[..26.min(id.len())].to_owned()).collect()
}

/// Up, back, and up again, with messages handed in each time; all of them arrive, once.
pub async fn up_and_back(over_redis: bool) -> Result<Outcome> {
    let before = version_before().await?;
    let redis = if over_redis { Some(RedisServer::start().await?) } else { None };
    let world = World::new().await?;
    let mut settings = world.site.settings(Role::All)?;
    settings.redis = redis.as_ref().map(RedisServer::url);
    let mut ship =
        Ship { world, settings, before, process: None, ledger: Arc::new(Ledger::new()), handed_in: 0 };
    ship.open(false)?;
    for before in [true, false, true] {
        ship.change(before).await?;
        ship.hand_in().await?;
    }
    ship.change(false).await?;
    let held = ship.queue(&["list", "--state", HELD]).await?;
    ensure!(held.matches("an upgrade").count() == 3 * EACH / 10, "{held}");
    ship.open(true)?;
    ship.queue(&["bulk", "release", "--state", HELD]).await?;
    let accepted = ship.ledger.balance().accepted;
    // What was held lies in a mailbox of its own.
    let (mail, bounces) = (ship.world.site.path().join("mail").join(HOSTED), ship.world.mailbox("dave"));
    let mailboxes = ["alice", HELD].map(|user| Maildir::at(mail.join(user)));
    let mailboxes = [&mailboxes[0], &mailboxes[1]];
    let balance = wait_for_balance_of(&ship.ledger, &mailboxes, &bounces, SETTLED).await?;
    ensure!(balance.duplicates == 0, "{balance}");
    let told = ship.queue(&["account"]).await?;
    ensure!(told.contains("accounted for."), "{told}");
    let note = format!("{accepted} deferred or held by this version and the one before, settled by this one");
    Ok(Outcome { note, ..(balance, Duration::ZERO).into() })
}
