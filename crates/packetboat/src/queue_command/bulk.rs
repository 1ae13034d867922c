//! A job over many entries, and its progress.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::Deserialize;
use tokio::time::sleep;

use super::client::Client;
use super::{conditions, order, print_json, understood};
use crate::command::{Bulk, Output};

/// How often the job is asked after.
const EVERY: Duration = Duration::from_millis(300);

#[derive(Debug, Deserialize)]
struct Job {
    id: u64,
    stage: String,
    found: u64,
    changed: u64,
    error: Option<String>,
}

/// Starts the job and waits for its end. Interrupted, it leaves the job running.
pub(super) async fn run(client: &Client, bulk: &Bulk, output: Output) -> Result<()> {
    let verb = bulk.verb.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let all = if bulk.all { "&all=true" } else { "" };
    let path =
        format!("jobs?verb={verb}{all}&{}{}", order(bulk.why.as_deref()), conditions(&bulk.conditions));
    let mut answer = client.post(&path).await?;
    let shows = output == Output::Table && std::io::stderr().is_terminal();
    loop {
        let job: Job = understood(answer.clone())?;
        if shows {
            eprint!("\rjob {}: {} entries found, {} changed ", job.id, job.found, job.changed);
            let _ = std::io::stderr().flush();
        }
        if job.stage != "running" {
            if shows {
                eprintln!();
            }
            match output {
                Output::Json => print_json(&answer)?,
                Output::Table => {
                    println!("{}: {} entries found, {} changed", job.stage, job.found, job.changed)
                }
            }
            match job.error {
                Some(error) => bail!("the job ended early: {error}"),
                None => return Ok(()),
            }
        }
        sleep(EVERY).await;
        answer = client.get(&format!("jobs/{}", job.id)).await?;
    }
}
