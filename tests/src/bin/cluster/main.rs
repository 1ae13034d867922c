//! `make cluster-test`: the chart on a real cluster, as it is installed, used and shaken.
//!
//! KUBECONFIG names the cluster: one that `scripts/cluster-node` has raised, or any other that is not in use
//! and whose pods reach this machine. docs/cluster-test.md has the settings.

mod events;
mod guide;
mod kube;
mod ledger;
mod load;
mod place;
mod queue;
mod release;
mod scenes;
mod test;
mod wanted;
mod world;

use std::process::ExitCode;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::kube::kubectl;
use crate::place::{MAIL, Place, SECOND, WORLD};
use crate::test::Test;
use crate::wanted::Wanted;

#[tokio::main]
async fn main() -> ExitCode {
    let wanted = match Wanted::find() {
        Ok(wanted) => wanted,
        Err(error) => return failed(&error),
    };
    // Whether EVENT names what there is: scripts/cluster-test wants to know before it makes an image and a node.
    if std::env::args().nth(1).as_deref() == Some("names") {
        return ExitCode::SUCCESS;
    }
    let place = match Place::find().await {
        Ok(place) => place,
        Err(error) => return failed(&error),
    };
    let outcome = tokio::select! {
        outcome = all(&wanted, place) => outcome,
        () = asked_to_end() => Err(anyhow::anyhow!("asked to end")),
    };
    if let Err(error) = &outcome {
        println!("cluster: FAILED {error:#}");
        tell_more().await;
    }
    if let Err(error) = place::clean().await {
        println!("cluster: something is left: {error:#}");
        return ExitCode::FAILURE;
    }
    if outcome.is_ok_and(|good| good) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    println!("cluster: FAILED {error:#}");
    ExitCode::FAILURE
}

/// What is wanted; whether all was as it should be.
async fn all(wanted: &Wanted, place: Place) -> Result<bool> {
    let test = &mut Test::prepare(place).await?;
    let installed = wanted.has_more_than("install-guide");
    if installed {
        test.release.install().await.context("installing the chart")?;
        scenes::declare_domains(test).await.context("declaring domains")?;
        println!("cluster: installed, and the domains are ready");
    }
    if wanted.has("mail-in") {
        scenes::mail_in(test).await.context("mail in")?;
    }
    if wanted.has("mail-out") {
        scenes::mail_out(test).await.context("mail out")?;
    }
    let mut good = true;
    for event in events::EVENTS {
        // Spans go to Jaeger since the upgrade.
        if wanted.has(event.0) || (event.0 == "upgrade" && wanted.has("trace")) {
            good &= events::under_load(event, test).await.with_context(|| event.0.to_owned())?;
        }
    }
    if wanted.has("trace") {
        scenes::trace(test).await.context("trace")?;
    }
    if wanted.has("deletion-policies") {
        scenes::deletion_policies(test).await.context("deletion-policies")?;
    }
    if installed {
        good &= ledger::close(test).await.context("ledger")?;
    }
    if wanted.has("uninstall") {
        scenes::uninstall(test).await.context("uninstall")?;
    }
    if wanted.has("install-guide") {
        guide::follow(test).await.context("docs/install.md")?;
    }
    Ok(good)
}

async fn asked_to_end() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// What somebody wants to see who looks for the reason.
async fn tell_more() {
    for about in [&["get", "pods", "-A", "-o", "wide"][..], &["get", "mdom", "-A"]] {
        println!("{}", kubectl(about, 20).await.unwrap_or_default());
    }
    for namespace in [MAIL, SECOND, WORLD] {
        let events = ["get", "events", "--sort-by=.lastTimestamp", "--field-selector=type=Warning"];
        let text = namespace.kubectl(&events, 20).await.unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        println!("{}", lines[lines.len().saturating_sub(20)..].join("\n"));
    }
}
