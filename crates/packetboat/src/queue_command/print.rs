//! The queue for people.

use std::time::Duration;

use comfy_table::{Table, presets};
use jiff::Timestamp as Time;
use message::{Envelope, Recipient, Standing};
use queue::{Entry, EntryState, Event, Oddity, Scope, Timestamp};

use super::{Account, Listed, Shown, Suspensions, Verbs};

/// Longest text in a column of the listing.
const MAX_COLUMN: usize = 60;

/// One page of entries. The header comes with the first only.
pub(super) fn listing(entries: &[Listed], first: bool, last: bool) {
    if entries.is_empty() {
        if first && last {
            println!("The queue is empty.");
        }
        return;
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if first {
        table.set_header(["MESSAGE", "FROM", "TO", "NEXT HOP", "STATE", "TRIES", "LAST ERROR"]);
    }
    for Listed { entry, message } in entries {
        table.add_row([
            message.id.to_string(),
            short(&sender(&message.envelope)),
            short(&addresses(&entry.recipients)),
            short(&entry.next_hop.to_string()),
            short(&state(entry)),
            entry.attempts.to_string(),
            short(entry.last_error.as_deref().unwrap_or_default()),
        ]);
    }
    println!("{}", trimmed(&table.to_string()));
}

/// A message with all its entries.
pub(super) fn message(shown: Shown) {
    let Shown { message, entries } = shown;
    println!("message    {}", message.id);
    println!("from       {}", plain(&sender(&message.envelope)));
    for recipient in &message.envelope.recipients {
        println!("to         {}", plain(&recipient.to_string()));
    }
    if let Some(user) = &message.envelope.user {
        println!("user       {}", plain(user));
    }
    println!("size       {} octets", message.size);
    println!("accepted   {}", moment(message.accepted_at));
    if message.quarantine {
        println!("quarantine yes: it goes to the junk folder");
    }
    for entry in &entries {
        println!("\nentry      {}", entry.id);
        println!("next hop   {}", plain(&entry.next_hop.to_string()));
        if !entry.tenant.0.is_empty() {
            println!("tenant     {}", plain(&entry.tenant.to_string()));
        }
        println!("state      {}", plain(&state(entry)));
        println!("tries      {}", entry.attempts);
        println!("given up   {}", moment(entry.expires));
        if let Some(error) = &entry.last_error {
            println!("last error {}", plain(error));
        }
        if let Some(doubt) = &entry.doubt {
            println!("in doubt   {} may have it, since {}", plain(&doubt.peer), moment(doubt.since));
        }
        for recipient in &entry.recipients {
            println!("recipient  {}", plain(&standing(recipient)));
        }
    }
}

/// What came of every entry that was accepted.
pub(super) fn account(account: Account) {
    let Account { ledger, unaccounted } = account;
    println!("accepted   {}", ledger.accepted);
    println!("delivered  {}", ledger.delivered);
    println!("bounced    {}", ledger.bounced);
    println!("expired    {}", ledger.expired);
    println!("removed    {}", ledger.removed);
    println!("queued     {}", ledger.queued);
    match unaccounted {
        0 => println!("Every entry is accounted for."),
        count => {
            println!("{count} entries are UNACCOUNTED FOR: this is a fault, keep the store and report it.")
        }
    }
}

/// What is suspended.
pub(super) fn suspensions(told: Suspensions) {
    if told.suspensions.is_empty() {
        println!("Nothing is suspended.");
        return;
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["SUSPENDED", "SINCE", "BY", "WHY"]);
    for one in told.suspensions {
        let scope = match &one.scope {
            Scope::NextHop(name) => format!("next hop {name}"),
            Scope::Tenant(name) => format!("tenant {name}"),
            Scope::Pool(name) => format!("source pool {name}"),
        };
        table.add_row([short(&scope), distance(one.since), short(&one.by), short(&one.why)]);
    }
    println!("{}", trimmed(&table.to_string()));
}

/// What operators have done.
pub(super) fn verbs(told: Verbs) {
    if told.verbs.is_empty() {
        println!("No operator has done anything yet.");
        return;
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["WHEN", "BY", "DID", "TO", "ENTRIES", "WHY"]);
    for one in told.verbs {
        let entries = one.entries.to_string();
        let row = [distance(one.at), short(&one.by), one.verb, short(&one.target), entries, short(&one.why)];
        table.add_row(row);
    }
    println!("{}", trimmed(&table.to_string()));
}

/// What an audit found.
pub(super) fn audit(checked: u64, odd: &[Oddity], unaccounted: i64) {
    println!("{checked} entries looked at.");
    for one in odd {
        println!("{}: {}", plain(&one.what), plain(&one.why));
    }
    match (odd.len(), unaccounted) {
        (0, 0) => println!("Nothing is odd, and every entry is accounted for."),
        (odd, count) => println!("{odd} odd, {count} entries unaccounted for."),
    }
}

/// One event.
pub(super) fn event(event: &Event) {
    let time = i64::try_from(event.at.0).ok().and_then(|millis| Time::from_millisecond(millis).ok());
    let time = time.map_or_else(|| "unknown".to_owned(), |time| format!("{time:.3}"));
    println!("{time} {} {:<9} {}", event.entry, event.kind.name(), plain(&event.detail));
}

/// The reverse-path; the null one as SMTP writes it.
fn sender(envelope: &Envelope) -> String {
    envelope.reverse_path.mailbox().map_or_else(|| "<>".to_owned(), ToString::to_string)
}

fn standing(recipient: &Recipient) -> String {
    let original =
        recipient.original.as_ref().map(|original| format!(" (for {original})")).unwrap_or_default();
    let standing = match &recipient.standing {
        Standing::Pending => "not tried yet".to_owned(),
        Standing::Delivered => "delivered".to_owned(),
        Standing::Deferred(failure) => format!("deferred: {}", told(failure)),
        Standing::Failed(failure) => format!("failed: {}", told(failure)),
    };
    format!("{}{original}: {standing}", recipient.address)
}

fn told(failure: &message::Failure) -> String {
    match (&failure.reply, &failure.remote_mta) {
        (Some(reply), Some(host)) => format!("{host} said {reply}"),
        (Some(reply), None) => reply.clone(),
        _ => format!("{} ({})", failure.text, failure.status),
    }
}

fn addresses(recipients: &[Recipient]) -> String {
    let open = recipients.iter().filter(|recipient| recipient.standing.is_open());
    let mut addresses: Vec<String> = open.map(|recipient| recipient.address.to_string()).collect();
    if addresses.len() > 1 {
        addresses[0] = format!("{} and {} more", addresses[0], addresses.len() - 1);
    }
    addresses.into_iter().next().unwrap_or_default()
}

fn state(entry: &Entry) -> String {
    match (entry.state, &entry.worker) {
        (EntryState::Held, _) => format!("held: {}", entry.held.as_deref().unwrap_or("no reason given")),
        (EntryState::Queued, _) if entry.doomed.is_some() => "to be returned".to_owned(),
        (EntryState::Queued, _) => format!("due {}", distance(entry.due)),
        (EntryState::Leased, Some(worker)) => format!("being tried by {worker}"),
        (EntryState::Leased, None) => "being tried".to_owned(),
    }
}

/// A moment, and how far it is from now.
fn moment(timestamp: Timestamp) -> String {
    let time = i64::try_from(timestamp.0).ok().and_then(|millis| Time::from_millisecond(millis).ok());
    let time = time.map_or_else(|| "unknown".to_owned(), |time| format!("{time:.0}"));
    format!("{time}, {}", distance(timestamp))
}

/// `in 5m` or `5m ago`.
fn distance(timestamp: Timestamp) -> String {
    let now = Timestamp(u64::try_from(Time::now().as_millisecond()).unwrap_or_default());
    let (ahead, behind) = (timestamp.since(now), now.since(timestamp));
    match (ahead.as_secs(), behind.as_secs()) {
        (0, 0) => "now".to_owned(),
        (0, _) => format!("{} ago", rough(behind)),
        (_, _) => format!("in {}", rough(ahead)),
    }
}

/// A duration in its largest unit of which there are two at least.
fn rough(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// What strangers' servers said may hold control characters, which a terminal obeys.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn short(text: &str) -> String {
    let text = plain(text);
    if text.chars().count() <= MAX_COLUMN {
        return text;
    }
    text.chars().take(MAX_COLUMN - 1).chain(['…']).collect()
}

fn trimmed(table: &str) -> String {
    table.lines().map(str::trim).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_do_not_command_the_terminal() {
        assert_eq!(short("450 \u{1b}[2J\r\nno"), "450  [2J  no");
        assert_eq!(short(&"x".repeat(100)).chars().count(), MAX_COLUMN);
    }

    #[test]
    fn durations_are_rough() {
        for (seconds, text) in [(0, "0s"), (119, "119s"), (600, "10m"), (7200, "2h"), (432_000, "5d")] {
            assert_eq!(rough(Duration::from_secs(seconds)), text);
        }
    }
}
