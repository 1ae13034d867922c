//! Starts a role, and ends it in order when the process is told to.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use telemetry::{LogFormat, Telemetry};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::report;
use crate::roles;
use crate::services::Process;
use crate::settings::{Role, Settings};

/// How long tasks that nobody waits for get at the very end.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// Runs a role until SIGTERM or SIGINT, or until it fails.
pub(crate) fn role(role: Role, file: &Path) -> Result<()> {
    let settings = Settings::load(file).context("the settings cannot be used")?;
    settings.require(role).context("the settings do not suffice")?;
    protect().context("the process cannot be set up")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    let outcome = runtime.block_on(live(role, &settings));
    runtime.shutdown_timeout(LAST_WAIT);
    outcome
}

/// Keeps private keys out of core dumps, and lets the process have as many connections as it may.
fn protect() -> std::io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(())
}

async fn live(role: Role, settings: &Settings) -> Result<()> {
    let telemetry =
        Telemetry::install(&settings.telemetry, role.name()).context("telemetry cannot be set up")?;
    let shutdown = CancellationToken::new();
    let signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(listen(signals, shutdown.clone()));
    let process = Process {
        role,
        metrics: telemetry.metrics.clone(),
        draining: CancellationToken::new(),
        background: CancellationToken::new(),
    };
    tracing::info!(%role, version = env!("CARGO_PKG_VERSION"), hostname = settings.hostname, "starting");
    let outcome = run(role, settings, &process, shutdown).await;
    match &outcome {
        Ok(()) => tracing::info!(%role, "ended in order"),
        // Programs that read the log would not find what is printed for people.
        Err(error) if settings.telemetry.log_format == LogFormat::Json => {
            tracing::error!(%role, error = report::one_line(error), "ended by a failure");
        }
        Err(_) => {}
    }
    // It waits for the collector, which must not keep the runtime's threads from their work.
    let flushed = tokio::task::spawn_blocking(move || telemetry.shutdown());
    let _ = flushed.await;
    outcome
}

async fn run(role: Role, settings: &Settings, process: &Process, shutdown: CancellationToken) -> Result<()> {
    let building = roles::build(role, settings, process);
    match shutdown.run_until_cancelled(building).await {
        Some(services) => {
            let services = services.with_context(|| format!("the role {role} cannot start"))?;
            tracing::info!(%role, "started");
            services.run(shutdown).await
        }
        None => Ok(()),
    }
}

/// The first signal begins the drain, the second ends the process where it stands.
async fn listen(signals: (Signal, Signal), shutdown: CancellationToken) {
    let (mut terminate, mut interrupt) = signals;
    loop {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        if shutdown.is_cancelled() {
            eprintln!("packetboat: a second signal came, leaving at once");
            std::process::exit(1);
        }
        tracing::info!(signal = name, "told to stop");
        shutdown.cancel();
    }
}
