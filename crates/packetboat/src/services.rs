//! What runs in this process, from start to an orderly end.
//!
//! The services of a role stop one after the other, in the order in which they were started, each within
//! a bounded time: first what takes mail in, last what tells about the process.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures::future::select_all;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::settings::Role;

/// What every service of a process shares.
#[derive(Clone)]
pub(crate) struct Process {
    /// What it does.
    pub(crate) role: Role,
    /// The process's metrics.
    pub(crate) metrics: telemetry::Metrics,
    /// Cancelled when the process begins to drain: from then on it is not ready.
    pub(crate) draining: CancellationToken,
    /// Cancelled when all services have stopped: ends what watches files and addresses.
    pub(crate) background: CancellationToken,
}

struct Service {
    name: &'static str,
    stop: CancellationToken,
    /// How long it may take to stop.
    limit: Duration,
    task: JoinHandle<Result<()>>,
}

/// The running services of a role.
pub(crate) struct Services {
    process: Process,
    running: Vec<Service>,
}

impl Services {
    pub(crate) fn new(process: &Process) -> Self {
        Self { process: process.clone(), running: Vec::new() }
    }

    /// Starts a service. It must end within `limit` after its token is cancelled, and not before.
    pub(crate) fn start<F>(
        &mut self,
        name: &'static str,
        limit: Duration,
        service: impl FnOnce(CancellationToken) -> F,
    ) where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let task = tokio::spawn(service(stop.clone()));
        self.running.push(Service { name, stop, limit, task });
    }

    /// Runs until `shutdown`, or until a service ends by itself, which is an error; then drains.
    ///
    /// # Errors
    /// With the first failure of a service. The others have been stopped in order all the same.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> Result<()> {
        let tasks = self.running.iter_mut().map(|service| &mut service.task);
        let ended = tokio::select! {
            () = shutdown.cancelled() => None,
            (outcome, index, _) = select_all(tasks) => Some((outcome, index)),
        };
        let mut failure = None;
        if let Some((outcome, index)) = ended {
            let service = self.running.remove(index);
            let error = match outcome {
                Ok(Ok(())) => anyhow!("{} has ended by itself", service.name),
                Ok(Err(error)) => error.context(format!("{} failed", service.name)),
                Err(error) => anyhow!(error).context(format!("{} failed", service.name)),
            };
            tracing::error!(service = service.name, error = %crate::report::one_line(&error), "service ended, the others are stopped");
            failure = Some(error);
        }
        let drained = self.drain().await;
        failure.map_or(drained, Err)
    }

    async fn drain(self) -> Result<()> {
        tracing::info!("draining");
        self.process.draining.cancel();
        let mut outcome = Ok(());
        for mut service in self.running {
            service.stop.cancel();
            match timeout(service.limit, &mut service.task).await {
                Ok(ended) => {
                    let ended = ended.map_err(|error| anyhow!(error)).and_then(|ended| ended);
                    outcome = outcome
                        .and(ended.with_context(|| format!("{} failed while it stopped", service.name)));
                    tracing::debug!(service = service.name, "stopped");
                }
                Err(_) => {
                    service.task.abort();
                    tracing::warn!(
                        service = service.name,
                        limit = ?service.limit,
                        "service did not stop in time and was cut off"
                    );
                }
            }
        }
        self.process.background.cancel();
        outcome
    }
}
