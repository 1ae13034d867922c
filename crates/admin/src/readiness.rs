//! Ready means: mail can be taken now. A process that drains is not, nor one whose store is away or
//! whose services cannot be reached.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::State;
use axum::http::StatusCode;
use futures::future::join_all;
use queue::Queue;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long one check may take: probes give up soon themselves.
const DEADLINE: Duration = Duration::from_secs(2);
/// How long an answer holds, so that many probes cost no more than one.
const FRESH: Duration = Duration::from_secs(1);
/// How often the metric is told: probes may stay away.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Something that must be well before mail can be taken.
#[async_trait]
pub trait Check: Send + Sync + 'static {
    /// Fails with one line that says what is wrong. It is given up after two seconds.
    async fn check(&self) -> Result<(), String>;
}

/// The queue answers, and can be written.
pub(crate) struct QueueCheck(pub(crate) Arc<dyn Queue>);

#[async_trait]
impl Check for QueueCheck {
    async fn check(&self) -> Result<(), String> {
        self.0.check().await.map_err(|error| error.to_string())
    }
}

/// All checks, and what they last came to.
pub(crate) struct Readiness {
    role: &'static str,
    checks: Vec<(String, Arc<dyn Check>)>,
    draining: CancellationToken,
    last: Mutex<Option<(Instant, Vec<String>)>>,
}

impl Readiness {
    pub(crate) fn new(
        role: &'static str,
        checks: Vec<(String, Arc<dyn Check>)>,
        draining: CancellationToken,
    ) -> Self {
        Self { role, checks, draining, last: Mutex::new(None) }
    }

    /// Tells from time to time as a metric whether the process is ready.
    pub(crate) async fn tell(&self) -> Infallible {
        let ready = metrics::gauge!("packetboat_ready", "role" => self.role);
        let ends = self.draining.cancelled();
        let telling = async {
            loop {
                ready.set(if self.complaints().await.is_empty() { 1.0 } else { 0.0 });
                sleep(TOLD_EVERY).await;
            }
        };
        tokio::select! {
            never = telling => never,
            () = ends => {
                ready.set(0.0);
                pending().await
            }
        }
    }

    /// One line for each thing that is not well.
    async fn complaints(&self) -> Vec<String> {
        // Held while the checks run: whoever asks meanwhile waits for their outcome.
        let mut last = self.last.lock().await;
        if let Some((at, complaints)) = &*last
            && at.elapsed() < FRESH
        {
            return complaints.clone();
        }
        let run = |(name, check): &(String, Arc<dyn Check>)| {
            let (name, check) = (name.clone(), Arc::clone(check));
            async move {
                let outcome = timeout(DEADLINE, check.check()).await;
                let outcome =
                    outcome.unwrap_or_else(|_| Err(format!("no answer within {} s", DEADLINE.as_secs())));
                outcome.err().map(|text| format!("{name}: {text}"))
            }
        };
        let complaints: Vec<String> =
            join_all(self.checks.iter().map(run)).await.into_iter().flatten().collect();
        *last = Some((Instant::now(), complaints.clone()));
        complaints
    }
}

/// `GET /readyz`
pub(crate) async fn answer(State(readiness): State<Arc<Readiness>>) -> (StatusCode, String) {
    if readiness.draining.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned());
    }
    let complaints = readiness.complaints().await;
    if complaints.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, complaints.join("\n") + "\n")
    }
}
