//! `packetboat queue`: asks the admin API of a running process.

mod bulk;
mod client;
mod follow;
mod print;
mod rebuild;

use anyhow::{Context, Result};
use queue::{Entry, Ledger, MessageRecord};
use serde::Deserialize;
use serde_json::Value as Json;

use crate::command::{Conditions, List, Output, Queue, State, Verb, Which};
use crate::settings;
use client::Client;

/// A page of the listing.
#[derive(Debug, Deserialize)]
struct Page {
    entries: Vec<Listed>,
}

/// An entry with its message.
#[derive(Debug, Deserialize)]
struct Listed {
    #[serde(flatten)]
    entry: Entry,
    message: MessageRecord,
}

/// A message with its entries.
#[derive(Debug, Deserialize)]
struct Shown {
    message: MessageRecord,
    entries: Vec<Entry>,
}

/// How many entries a verb moved.
#[derive(Debug, Deserialize)]
struct Moved {
    entries: u64,
}

/// Whether anything has changed.
#[derive(Debug, Deserialize)]
struct Changed {
    #[serde(default)]
    changed: bool,
}

/// What is suspended.
#[derive(Debug, Deserialize)]
struct Suspensions {
    suspensions: Vec<queue::Suspension>,
}

/// What operators have done.
#[derive(Debug, Deserialize)]
struct Verbs {
    verbs: Vec<queue::VerbRecord>,
}

/// The account of the queue.
#[derive(Debug, Deserialize)]
struct Account {
    #[serde(flatten)]
    ledger: Ledger,
    unaccounted: i64,
}

/// Runs one command.
pub(crate) fn run(arguments: &Queue) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    runtime.block_on(dispatch(arguments))
}

async fn dispatch(arguments: &Queue) -> Result<()> {
    if let Verb::Rebuild { merge } = arguments.verb {
        return rebuild::run(arguments.config.as_deref(), merge).await;
    }
    let client = Client::new(address(arguments)?);
    let output = arguments.output;
    match &arguments.verb {
        Verb::List(list) => list_entries(&client, list, output).await,
        Verb::Show { id } => {
            let answer = client.get(&format!("messages/{}", escaped(id))).await?;
            show(answer, output, print::message)
        }
        Verb::Retry { id } => {
            let answer = client.post(&verb_path(id, "retry", None)).await?;
            show(answer, output, |moved: Moved| match moved.entries {
                0 => println!("no entry of {id} was waiting: a worker has it"),
                entries => println!("{entries} of the entries of {id} are due now"),
            })
        }
        Verb::Hold { id, why } => {
            let answer = client.post(&verb_path(id, "hold", why.as_deref())).await?;
            show(answer, output, |moved: Moved| {
                println!(
                    "{} of the entries of {id} are held; one that is being tried is, unless it succeeds",
                    moved.entries
                )
            })
        }
        Verb::Release { id } => {
            let answer = client.post(&verb_path(id, "release", None)).await?;
            show(answer, output, |moved: Moved| match moved.entries {
                0 => println!("no entry of {id} was held"),
                entries => println!("{entries} of the entries of {id} are due now"),
            })
        }
        Verb::Bounce { id, why } => {
            let answer = client.post(&verb_path(id, "bounce", why.as_deref())).await?;
            show(answer, output, |moved: Moved| {
                println!("{} of the entries of {id} are given up: the sender is told", moved.entries)
            })
        }
        Verb::Bulk(bulk) => bulk::run(&client, bulk, output).await,
        Verb::Suspend { which, why } => {
            let answer = client.post(&suspension_path(which, why.as_deref())).await?;
            show(answer, output, |_: Changed| println!("{} is suspended", named(which)))
        }
        Verb::Resume { which } => {
            let answer = client.delete(&suspension_path(which, None)).await?;
            show(answer, output, |changed: Changed| match changed.changed {
                true => println!("{} goes on", named(which)),
                false => println!("{} was not suspended", named(which)),
            })
        }
        Verb::Suspensions => show(client.get("suspensions").await?, output, print::suspensions),
        Verb::Account => show(client.get("account").await?, output, print::account),
        Verb::Audit => follow::audit(&client, output).await,
        Verb::Verbs { limit } => {
            show(client.get(&format!("verbs?limit={limit}")).await?, output, print::verbs)
        }
        Verb::Events { reader, once, forget } => {
            follow::events(&client, reader, *once, *forget, output).await
        }
        // Answered above: there is no process to ask.
        Verb::Rebuild { .. } => Ok(()),
        Verb::Remove { id } => {
            let answer = client.delete(&format!("messages/{}?by={}", escaped(id), escaped(&by()))).await?;
            show(answer, output, |moved: Moved| {
                println!("{id} is removed, with its {} entries", moved.entries)
            })
        }
    }
}

fn verb_path(id: &str, verb: &str, why: Option<&str>) -> String {
    format!("messages/{}/{verb}?{}", escaped(id), order(why))
}

/// Who asks, and why.
fn order(why: Option<&str>) -> String {
    let why = why.map(|why| format!("&why={}", escaped(why))).unwrap_or_default();
    format!("by={}{why}", escaped(&by()))
}

/// Who runs this command: written down with what it does, trusted for nothing.
fn by() -> String {
    let names = ["SUDO_USER", "USER", "LOGNAME"];
    names.iter().find_map(|name| std::env::var(name).ok().filter(|name| !name.is_empty())).unwrap_or_default()
}

fn suspension_path(which: &Which, why: Option<&str>) -> String {
    let scope = match (&which.next_hop, &which.tenant, &which.pool) {
        (Some(next_hop), _, _) => format!("next_hop={}", escaped(next_hop)),
        (None, Some(tenant), _) => format!("tenant={}", escaped(tenant)),
        (None, None, pool) => format!("pool={}", escaped(pool.as_deref().unwrap_or_default())),
    };
    format!("suspensions?{scope}&{}", order(why))
}

fn named(which: &Which) -> String {
    match (&which.next_hop, &which.tenant, &which.pool) {
        (Some(next_hop), _, _) => format!("next hop {next_hop}"),
        (None, Some(tenant), _) => format!("tenant {tenant}"),
        (None, None, pool) => format!("source pool {}", pool.as_deref().unwrap_or_default()),
    }
}

/// Where the process answers.
fn address(arguments: &Queue) -> Result<std::net::SocketAddr> {
    let mut address = match (arguments.admin, &arguments.config) {
        (Some(address), _) => address,
        (None, Some(file)) => {
            settings::admin_address(file).context("the address of the process cannot be found")?
        }
        (None, None) => anyhow::bail!(
            "say which process is meant: --config FILE with its configuration file, or --admin ADDRESS"
        ),
    };
    // Who listens everywhere listens here.
    if address.ip().is_unspecified() {
        let here =
            if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
        address.set_ip(here);
    }
    Ok(address)
}

async fn list_entries(client: &Client, list: &List, output: Output) -> Result<()> {
    let mut cursor = list.cursor.clone();
    let mut first = true;
    loop {
        let answer = client.get(&format!("entries?{}", query(list, cursor.as_deref()))).await?;
        let next = answer.get("next").and_then(Json::as_str).map(str::to_owned);
        match output {
            Output::Json => print_json(&answer)?,
            Output::Table => {
                let page: Page = understood(answer)?;
                print::listing(&page.entries, first, next.is_none());
            }
        }
        first = false;
        match (next, list.all) {
            (Some(next), true) => cursor = Some(next),
            (Some(next), false) => {
                if output == Output::Table {
                    println!("\nThere are more: go on with --cursor {next}, or list them with --all.");
                }
                return Ok(());
            }
            (None, _) => return Ok(()),
        }
    }
}

fn query(list: &List, cursor: Option<&str>) -> String {
    let mut query = format!("limit={}{}", list.limit, conditions(&list.conditions));
    if let Some(cursor) = cursor {
        query.push_str(&format!("&cursor={}", escaped(cursor)));
    }
    query
}

/// Conditions as the API takes them, each behind a `&`.
fn conditions(conditions: &Conditions) -> String {
    let state = conditions.state.map(|state| match state {
        State::Queued => "queued",
        State::Leased => "leased",
        State::Held => "held",
    });
    let age = conditions.older_than.map(|age| age.as_secs().to_string());
    let given = [
        ("next_hop", conditions.next_hop.as_deref()),
        ("tenant", conditions.tenant.as_deref()),
        ("pool", conditions.pool.as_deref()),
        ("domain", conditions.domain.as_deref()),
        ("state", state),
        ("older_than", age.as_deref()),
    ];
    let given = given.iter().filter_map(|(name, value)| Some(format!("&{name}={}", escaped((*value)?))));
    given.collect()
}

/// Percent-encoding (RFC 3986 §2.1) of all that is not unreserved.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(byte.into()),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

fn show<T: serde::de::DeserializeOwned>(answer: Json, output: Output, print: impl FnOnce(T)) -> Result<()> {
    match output {
        Output::Json => print_json(&answer)?,
        Output::Table => print(understood(answer)?),
    }
    Ok(())
}

fn understood<T: serde::de::DeserializeOwned>(answer: Json) -> Result<T> {
    serde_json::from_value(answer)
        .context("the answer cannot be understood: the process may be of another version than this command")
}

fn print_json(answer: &Json) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(answer)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_escaped() {
        let list = List {
            conditions: Conditions {
                next_hop: Some("mx:a b&c".to_owned()),
                tenant: None,
                pool: None,
                domain: None,
                state: Some(State::Queued),
                older_than: Some(std::time::Duration::from_secs(90)),
            },
            limit: 5,
            cursor: None,
            all: false,
        };
        assert_eq!(
            query(&list, Some("x/1")),
            "limit=5&next_hop=mx%3Aa%20b%26c&state=queued&older_than=90&cursor=x%2F1"
        );
    }
}
