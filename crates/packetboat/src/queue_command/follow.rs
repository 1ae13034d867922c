//! The audit, and the events as they come.

use std::time::Duration;

use anyhow::{Result, bail};
use queue::{AuditPage, Events};
use tokio::time::sleep;

use super::client::Client;
use super::{Account, escaped, print, print_json, understood};
use crate::command::Output;

/// How often events are asked for, once there are none.
const EVERY: Duration = Duration::from_millis(500);
/// Events of one answer, in each shard.
const EVENTS: usize = 500;

/// Goes through the whole queue, then looks at its account.
pub(super) async fn audit(client: &Client, output: Output) -> Result<()> {
    let (mut cursor, mut checked, mut odd) = (None::<String>, 0, Vec::new());
    loop {
        let at = cursor.as_deref().map(|cursor| format!("?cursor={}", escaped(cursor))).unwrap_or_default();
        let page: AuditPage = understood(client.get(&format!("audit{at}")).await?)?;
        checked += page.checked;
        odd.extend(page.odd);
        match page.next {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    let account = client.get("account").await?;
    let unaccounted = understood::<Account>(account.clone())?.unaccounted;
    match output {
        Output::Json => {
            print_json(&serde_json::json!({ "checked": checked, "odd": odd, "account": account }))?;
        }
        Output::Table => print::audit(checked, &odd, unaccounted),
    }
    if !odd.is_empty() || unaccounted != 0 {
        bail!("the queue does not agree with itself: keep the store as it is, and report this");
    }
    Ok(())
}

/// Prints events, and lets the queue drop what was printed.
pub(super) async fn events(
    client: &Client,
    reader: &str,
    once: bool,
    forget: bool,
    output: Output,
) -> Result<()> {
    let reader = escaped(reader);
    if forget {
        client.delete(&format!("events?reader={reader}")).await?;
        println!("nothing is kept for this reader any more");
        return Ok(());
    }
    loop {
        let told: Events = understood(client.get(&format!("events?reader={reader}&limit={EVENTS}")).await?)?;
        if told.lost {
            eprintln!("some events were dropped: this reader was away for too long");
        }
        for event in &told.events {
            match output {
                Output::Json => println!("{}", serde_json::to_string(event)?),
                Output::Table => print::event(event),
            }
        }
        let cursor = escaped(&told.cursor);
        client.post(&format!("events/passed?reader={reader}&cursor={cursor}")).await?;
        if told.events.is_empty() {
            if once {
                return Ok(());
            }
            sleep(EVERY).await;
        }
    }
}
