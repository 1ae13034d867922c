//! `packetboat trace`: asks where traces are kept for the way of a message, and prints it as a tree.

mod client;
mod tree;

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use message::QueueId;

use crate::command::{Output, TraceArguments};
use crate::settings;
use client::Client;
use tree::Trace;

/// Services of ours have this in front of the name of their role.
const OURS: &str = "packetboat-";
/// The clocks of processes differ by less.
const SKEW_MICROS: u64 = 60_000_000;

/// Runs the command.
pub(crate) fn run(arguments: &TraceArguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    let traces = runtime.block_on(find(arguments))?;
    match arguments.output {
        Output::Table => print!("{}", tree::text(&traces)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&tree::json(&arguments.id, &traces))?),
    }
    Ok(())
}

/// The traces that tell of the message, the first first.
async fn find(arguments: &TraceArguments) -> Result<Vec<Trace>> {
    let id = QueueId::from_str(arguments.id.trim()).context("the id is that of the 250 reply")?;
    let client = Client::new(&endpoint(arguments)?)?;
    let since = id.millis().saturating_mul(1000).saturating_sub(SKEW_MICROS);
    let mut found: BTreeMap<String, Trace> = BTreeMap::new();
    for service in client.services().await?.into_iter().filter(|name| name.starts_with(OURS)) {
        for trace in client.traces(&service, id.as_str(), since).await? {
            found.insert(trace.id.clone(), trace);
        }
    }
    if found.is_empty() {
        bail!(
            "no trace of {id} is known there: it may not have been sampled (telemetry.sample_ratio), not have \
             arrived yet, or be forgotten by now"
        );
    }
    let mut traces: Vec<Trace> = found.into_values().collect();
    traces.sort_by_key(Trace::started);
    Ok(traces)
}

fn endpoint(arguments: &TraceArguments) -> Result<String> {
    if let Some(endpoint) = &arguments.endpoint {
        return Ok(endpoint.clone());
    }
    let missing =
        "say where traces are kept: --endpoint http://jaeger:16686, or telemetry.query in --config FILE";
    let file = arguments.config.as_deref().context(missing)?;
    settings::trace_endpoint(file).context("the settings cannot be used")?.context(missing)
}
