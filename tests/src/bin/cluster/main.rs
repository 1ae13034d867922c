//! `make cluster-test`: the chart on a real cluster, as it is installed, used and shaken.
//!
//! KUBECONFIG names the cluster: one that `scripts/cluster-node` has raised, or any other that is not in use
//! and whose pods reach this machine. docs/cluster-test.md has the settings.

mod events;
mod guide;
mod kube;
mod load;
mod place;
mod release;
mod scenes;
mod test;
mod world;

use std::process::ExitCode;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::kube::kubectl;
use crate::place::{MAIL, Place, SECOND, WORLD};
use crate::test::Test;

#[tokio::main]
async fn main() -> ExitCode {
    let place = match Place::find().await {
        Ok(place) => place,
        Err(error) => {
            println!("cluster: FAILED {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = tokio::select! {
        outcome = all(place) => outcome,
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

/// Everything, or the events that EVENT names; whether all was as it should be.
async fn all(place: Place) -> Result<bool> {
    let test = &mut Test::prepare(place).await?;
    let only = std::env::var("EVENT").ok().filter(|text| !text.is_empty());
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only.split(',').any(|one| one == name));
    if only.as_deref() != Some("install-guide") {
        test.release.install().await.context("installing the chart")?;
        scenes::declare_domains(test).await.context("declaring domains")?;
        println!("cluster: installed, and the domains are ready");
    }
    if wanted("mail-in") {
        scenes::mail_in(test).await.context("mail in")?;
    }
    if wanted("mail-out") {
        scenes::mail_out(test).await.context("mail out")?;
    }
    let mut good = true;
    for event in events::EVENTS {
        // Spans go to Jaeger since the upgrade.
        if wanted(event.0) || (event.0 == "upgrade" && wanted("trace")) {
            good &= events::under_load(event, test).await.with_context(|| event.0.to_owned())?;
        }
    }
    if wanted("trace") {
        scenes::trace(test).await.context("trace")?;
    }
    if wanted("deletion-policies") {
        scenes::deletion_policies(test).await.context("deletion-policies")?;
    }
    if wanted("uninstall") {
        scenes::uninstall(test).await.context("uninstall")?;
    }
    if wanted("install-guide") {
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
