//! Verbs over many entries: jobs that go through the queue page by page, beside everything else. A job ends
//! with its process; every verb may be given again, so an unfinished job is started anew.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Json;
use futures::StreamExt;
use queue::{EntryId, ListFilter, Queue, QueueError, Target, Timestamp, Verb, VerbRecord};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Conditions, Failure, Order, Shared};

/// Jobs that run at once.
const RUNNING: usize = 4;
/// Jobs that are remembered after their end.
const REMEMBERED: usize = 100;
/// Entries of a page.
const PAGE: usize = 200;
/// Entries that are changed at once: few, so that mail has the store for itself.
const AT_ONCE: usize = 8;
/// Tries of a step, while the store cannot be used, and the wait before each.
const TRIES: u32 = 10;
const WAIT: Duration = Duration::from_millis(500);

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Stage {
    Running,
    Done,
    Cancelled,
    Failed,
}

/// A job as it is told.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Job {
    id: u64,
    verb: &'static str,
    /// The conditions, in words.
    entries: String,
    by: String,
    stage: Stage,
    /// Entries that met the conditions so far.
    found: u64,
    /// Those that the verb concerned.
    changed: u64,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Default)]
struct Table {
    last: u64,
    jobs: BTreeMap<u64, (Job, CancellationToken)>,
}

pub(super) struct Jobs {
    queue: Arc<dyn Queue>,
    table: Mutex<Table>,
}

impl Jobs {
    pub(super) fn new(queue: Arc<dyn Queue>) -> Self {
        Self { queue, table: Mutex::default() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut Job)) {
        if let Some((job, _)) = self.table().jobs.get_mut(&id) {
            change(job);
        }
    }

    fn find(&self, id: u64) -> Result<(Job, CancellationToken), Failure> {
        let found = self.table().jobs.get(&id).cloned();
        found.ok_or_else(|| Failure(StatusCode::NOT_FOUND, format!("there is no job {id} in this process")))
    }

    /// Makes a place for a job.
    fn open(&self, verb: &Verb, entries: String, by: &str) -> Result<(Job, CancellationToken), Failure> {
        let mut table = self.table();
        let running = table.jobs.values().filter(|(job, _)| job.stage == Stage::Running).count();
        if running >= RUNNING {
            let text = format!("{running} jobs are running already: wait for one of them, or cancel it");
            return Err(Failure(StatusCode::CONFLICT, text));
        }
        while table.jobs.len() >= REMEMBERED {
            let ended = table.jobs.iter().find(|(_, (job, _))| job.stage != Stage::Running);
            let Some(id) = ended.map(|(id, _)| *id) else { break };
            table.jobs.remove(&id);
        }
        table.last += 1;
        let job = Job {
            id: table.last,
            verb: verb.name(),
            entries,
            by: by.to_owned(),
            stage: Stage::Running,
            found: 0,
            changed: 0,
            error: None,
        };
        let cancelled = CancellationToken::new();
        table.jobs.insert(job.id, (job.clone(), cancelled.clone()));
        Ok((job, cancelled))
    }

    async fn run(&self, job: Job, filter: ListFilter, verb: Verb, cancelled: CancellationToken) {
        let outcome = self.go_through(job.id, filter, &verb, &cancelled).await;
        let stage = match &outcome {
            Err(_) => Stage::Failed,
            Ok(()) if cancelled.is_cancelled() => Stage::Cancelled,
            Ok(()) => Stage::Done,
        };
        let error = outcome.err().map(|error| error.to_string());
        let mut changed = 0;
        self.change(job.id, |job| {
            (job.stage, job.error) = (stage, error.clone());
            changed = job.changed;
        });
        tracing::info!(
            job = job.id,
            verb = job.verb,
            entries = job.entries,
            by = job.by,
            ?stage,
            changed,
            error,
            "job ended"
        );
        let record = record_of(&job, &verb, changed);
        if let Err(error) = patiently(|| self.queue.record(&record)).await {
            tracing::warn!(%error, "job cannot be written down");
        }
    }

    async fn go_through(
        &self,
        id: u64,
        mut filter: ListFilter,
        verb: &Verb,
        cancelled: &CancellationToken,
    ) -> Result<(), QueueError> {
        let (began, age) = (Instant::now(), filter.older_than.unwrap_or_default());
        while !cancelled.is_cancelled() {
            // What comes while the job runs is none of its business, or it might never end.
            filter.older_than = Some(age + began.elapsed());
            let page = patiently(|| self.queue.list(filter.clone())).await?;
            let entries: Vec<EntryId> = page.entries.iter().map(|(entry, _)| entry.id).collect();
            self.change(id, |job| job.found += entries.len() as u64);
            let operate = |entry| patiently(move || self.queue.operate(Target::Entry(entry), verb, ""));
            let mut changes = futures::stream::iter(entries).map(operate).buffer_unordered(AT_ONCE);
            while let Some(changed) = changes.next().await {
                let changed = changed?;
                self.change(id, |job| job.changed += changed);
            }
            filter.cursor = page.next;
            if filter.cursor.is_none() {
                break;
            }
        }
        Ok(())
    }
}

fn record_of(job: &Job, verb: &Verb, entries: u64) -> VerbRecord {
    VerbRecord {
        at: Timestamp::default(),
        by: job.by.clone(),
        verb: verb.name().to_owned(),
        target: job.entries.clone(),
        why: verb.why().to_owned(),
        entries,
    }
}

/// Does something again while the store cannot be used, for a while.
async fn patiently<T, F>(mut step: impl FnMut() -> F) -> Result<T, QueueError>
where
    F: Future<Output = Result<T, QueueError>>,
{
    let mut tries = 1;
    loop {
        match step().await {
            Err(QueueError::Unavailable { .. }) if tries < TRIES => tries += 1,
            outcome => return outcome,
        }
        sleep(WAIT).await;
    }
}

/// The conditions in words, as records have them.
fn described(conditions: &Conditions) -> String {
    let state = conditions.state.and_then(|state| serde_json::to_value(state).ok());
    let state = state.as_ref().and_then(|state| state.as_str()).map(str::to_owned);
    let age = conditions.older_than.map(|seconds| format!("{seconds}s"));
    let given = [
        ("next_hop", conditions.next_hop.as_ref()),
        ("tenant", conditions.tenant.as_ref()),
        ("pool", conditions.pool.as_ref()),
        ("domain", conditions.domain.as_ref()),
        ("state", state.as_ref()),
        ("older_than", age.as_ref()),
    ];
    let given = given.iter().filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?)));
    let told: Vec<String> = given.collect();
    if told.is_empty() { "all".to_owned() } else { told.join(" ") }
}

#[derive(Deserialize)]
pub(super) struct Start {
    verb: String,
    /// Every entry is meant: needed where no condition is given.
    #[serde(default)]
    all: bool,
}

pub(super) async fn start(
    State(shared): State<Shared>,
    Query(start): Query<Start>,
    Query(conditions): Query<Conditions>,
    Query(order): Query<Order>,
) -> Result<Json<Job>, Failure> {
    let verb = order.verb(&start.verb)?;
    let entries = described(&conditions);
    if entries == "all" && !start.all {
        let text = "no condition is given: say all=true when every entry is meant".to_owned();
        return Err(Failure(StatusCode::BAD_REQUEST, text));
    }
    let (job, cancelled) = shared.jobs.open(&verb, entries, order.by())?;
    tracing::info!(job = job.id, verb = job.verb, entries = job.entries, by = job.by, "job started");
    let (jobs, filter, begun) = (Arc::clone(&shared.jobs), conditions.filter(None, PAGE), job.clone());
    tokio::spawn(async move { jobs.run(begun, filter, verb, cancelled).await });
    Ok(Json(job))
}

#[derive(Serialize)]
pub(super) struct Listed {
    jobs: Vec<Job>,
}

pub(super) async fn list(State(shared): State<Shared>) -> Json<Listed> {
    Json(Listed { jobs: shared.jobs.table().jobs.values().map(|(job, _)| job.clone()).collect() })
}

pub(super) async fn show(State(shared): State<Shared>, Path(id): Path<u64>) -> Result<Json<Job>, Failure> {
    Ok(Json(shared.jobs.find(id)?.0))
}

pub(super) async fn cancel(State(shared): State<Shared>, Path(id): Path<u64>) -> Result<Json<Job>, Failure> {
    let (job, cancelled) = shared.jobs.find(id)?;
    cancelled.cancel();
    Ok(Json(job))
}
