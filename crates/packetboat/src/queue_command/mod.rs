//! `packetboat queue`: asks the admin API of a running process.

mod client;
mod print;

use anyhow::{Context, Result};
use queue::{Entry, EntryState, Ledger, MessageRecord};
use serde::Deserialize;
use serde_json::Value as Json;

use crate::command::{List, Output, Queue, State, Verb};
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
    let client = Client::new(address(arguments)?);
    let output = arguments.output;
    match &arguments.verb {
        Verb::List(list) => list_entries(&client, list, output).await,
        Verb::Show { id } => {
            let answer = client.get(&format!("messages/{}", escaped(id))).await?;
            show(answer, output, print::message)
        }
        Verb::Retry { id } => {
            let answer = client.post(&format!("messages/{}/retry", escaped(id))).await?;
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
        Verb::Account => show(client.get("account").await?, output, print::account),
        Verb::Remove { id } => {
            let answer = client.delete(&format!("messages/{}", escaped(id))).await?;
            show(answer, output, |moved: Moved| {
                println!("{id} is removed, with its {} entries", moved.entries)
            })
        }
    }
}

fn verb_path(id: &str, verb: &str, why: Option<&str>) -> String {
    let why = why.map(|why| format!("?why={}", escaped(why))).unwrap_or_default();
    format!("messages/{}/{verb}{why}", escaped(id))
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
    let state = list.state.map(|state| match state {
        State::Queued => EntryState::Queued,
        State::Leased => EntryState::Leased,
        State::Held => EntryState::Held,
    });
    let state = state.map(|state| match state {
        EntryState::Queued => "queued",
        EntryState::Leased => "leased",
        EntryState::Held => "held",
    });
    let given = [("next_hop", list.next_hop.as_deref()), ("state", state), ("cursor", cursor)];
    let mut query = format!("limit={}", list.limit);
    for (name, value) in given {
        if let Some(value) = value {
            query.push_str(&format!("&{name}={}", escaped(value)));
        }
    }
    query
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
            next_hop: Some("mx:a b&c".to_owned()),
            state: Some(State::Queued),
            limit: 5,
            cursor: None,
            all: false,
        };
        assert_eq!(query(&list, Some("x/1")), "limit=5&next_hop=mx%3Aa%20b%26c&state=queued&cursor=x%2F1");
    }
}
