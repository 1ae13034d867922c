//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::settings::Role;

/// A mail transfer cluster: receives, verifies, signs, queues and delivers mail.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run everything in one process
    All(ConfigFile),
    /// Run SMTP in: listeners that stream mail to the verifier and to delivery
    Edge(ConfigFile),
    /// Run the verifier: SPF, DKIM, DMARC, ARC, and signing
    Verifier(ConfigFile),
    /// Run delivery: the queue, and SMTP out
    Delivery(ConfigFile),
    /// Run the operator: DKIM keys, DNS records and status of the MailDomains of a Kubernetes cluster
    Operator(ConfigFile),
    /// Serve the MTA-STS policies of the MailDomains over HTTPS
    MtaSts(ConfigFile),
    /// Check the configuration file, the MailDomains, keys and certificates without starting anything
    Check(Check),
    /// Look at the queue of a running process, and work on it
    Queue(Queue),
    /// Look at a domain: its records, whether they are there, and what is wrong with its mail DNS
    Domain(Domain),
    /// Show the way of a message, by the traces that the services have sent to a Jaeger
    Trace(TraceArguments),
    /// Send a message through a cluster and wait for it at the other end; exit code 1 when it does not arrive
    Probe(Probe),
    /// Print the CustomResourceDefinitions for Kubernetes
    Crds(Crds),
}

#[derive(Debug, Args)]
pub(crate) struct ConfigFile {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "PACKETBOAT_CONFIG")]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    #[command(flatten)]
    pub(crate) file: ConfigFile,
    /// Check for one role; without it, for every role that the file suffices for
    #[arg(long, value_enum)]
    pub(crate) role: Option<Role>,
    /// How to print what was found
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Crds {
    /// Write each to a file of its own in this folder instead
    #[arg(long, value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Domain {
    #[command(subcommand)]
    pub(crate) verb: DomainVerb,
    /// The configuration file: where MailDomains are, and which name servers to ask
    #[arg(long, value_name = "FILE", global = true, env = "PACKETBOAT_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// A name server to ask, as ADDRESS:PORT; wins over the file and the system's
    #[arg(long, value_name = "ADDRESS", global = true)]
    pub(crate) server: Option<SocketAddr>,
    /// How to print the answer
    #[arg(short, long, value_enum, global = true, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DomainVerb {
    /// Show a MailDomain's records, and what the authoritative name servers say of them
    Show {
        /// The domain
        domain: String,
    },
    /// Tell everything that is wrong with any domain's mail DNS, and what to do about it; exit code 1 when
    /// anything is
    Check {
        /// The domain
        domain: String,
        /// A DKIM selector to look at; may be given again
        #[arg(long)]
        selector: Vec<String>,
    },
    /// Print the records that a MailDomain should have, ready to be pasted into a zone
    Records {
        /// The domain
        domain: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct TraceArguments {
    /// The queue id, as the 250 reply told it
    pub(crate) id: String,
    /// Jaeger's query API, as in http://jaeger:16686; wins over --config
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: Option<String>,
    /// The configuration file, for its telemetry.query
    #[arg(long, value_name = "FILE", env = "PACKETBOAT_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// How to print the answer
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Probe {
    /// Where the message is sent to, as HOST:25
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) smtp: String,
    /// Where it is expected, by LMTP: the route of the recipient's domain leads here
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: SocketAddr,
    /// The recipient
    #[arg(long, value_name = "MAILBOX")]
    pub(crate) to: String,
    /// The envelope's sender; without it the empty one of notifications
    #[arg(long, value_name = "MAILBOX", default_value = "")]
    pub(crate) from: String,
    /// How long all of it may take (30s, 2m)
    #[arg(long, value_parser = age, default_value = "60s")]
    pub(crate) timeout: std::time::Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Queue {
    #[command(subcommand)]
    pub(crate) verb: Verb,
    /// The configuration file of the running process, for its admin.address
    #[arg(long, value_name = "FILE", global = true, env = "PACKETBOAT_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// The admin address of the running process; wins over --config
    #[arg(long, value_name = "ADDRESS", global = true)]
    pub(crate) admin: Option<SocketAddr>,
    /// How to print the answer
    #[arg(short, long, value_enum, global = true, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List the entries in the queue
    List(List),
    /// Show a message with all its entries
    Show {
        /// The queue id, as the 250 reply told it
        id: String,
    },
    /// Try a message's waiting entries now
    Retry {
        /// The queue id, or that of one entry (ID.N)
        id: String,
    },
    /// Put a message aside: it is not tried until it is released
    Hold {
        /// The queue id, or that of one entry (ID.N)
        id: String,
        /// Why, for other operators
        #[arg(long)]
        why: Option<String>,
    },
    /// Let a held message go on
    Release {
        /// The queue id, or that of one entry (ID.N)
        id: String,
    },
    /// Give a message up: its sender gets a bounce
    Bounce {
        /// The queue id, or that of one entry (ID.N)
        id: String,
        /// Why, for the sender
        #[arg(long)]
        why: Option<String>,
    },
    /// Do the same to all entries that meet some conditions: a job with progress, beside everything else
    Bulk(Bulk),
    /// Leave the entries of a next hop, a tenant or a source pool where they are
    Suspend {
        #[command(flatten)]
        which: Which,
        /// Why, for other operators
        #[arg(long)]
        why: Option<String>,
    },
    /// Let a suspended next hop, tenant or source pool go on
    Resume {
        #[command(flatten)]
        which: Which,
    },
    /// List what is suspended
    Suspensions,
    /// Show the account of the queue: what came of every entry that was accepted
    Account,
    /// Compare the queue with itself, and name what does not fit; exit code 1 when anything does not
    Audit,
    /// List what operators have done, the latest first
    Verbs {
        /// At most so many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
    },
    /// Print what happens to entries, from now on, until it is interrupted
    Events {
        /// The name under which the queue keeps what this reader has not seen
        #[arg(long)]
        reader: String,
        /// Print what there is, and stop
        #[arg(long)]
        once: bool,
        /// Nothing is kept for this reader any more
        #[arg(long, conflicts_with = "once")]
        forget: bool,
    },
    /// Make the queue again from its object store, after Redis was lost; --config is required
    Rebuild {
        /// The queue may hold entries: what is missing is added to them
        #[arg(long)]
        merge: bool,
    },
    /// Remove a message from the queue; its sender gets no bounce
    Remove {
        /// The queue id, or that of one entry (ID.N)
        id: String,
    },
}

/// Just one of them.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// A next hop, as the list shows it
    #[arg(long)]
    pub(crate) next_hop: Option<String>,
    /// A tenant: the hosted domain that mail leaves for
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    /// A source pool, as outbound.pools names it; `default` for mail for which none is named
    #[arg(long)]
    pub(crate) pool: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Conditions {
    /// Only entries of this next hop, as the list shows it
    #[arg(long)]
    pub(crate) next_hop: Option<String>,
    /// Only entries of this tenant
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    /// Only entries that leave by this source pool
    #[arg(long)]
    pub(crate) pool: Option<String>,
    /// Only entries to or from this domain
    #[arg(long)]
    pub(crate) domain: Option<String>,
    /// Only entries in this state
    #[arg(long, value_enum)]
    pub(crate) state: Option<State>,
    /// Only messages accepted at least so long ago (90s, 15m, 2h, 3d)
    #[arg(long, value_parser = age)]
    pub(crate) older_than: Option<std::time::Duration>,
}

fn age(text: &str) -> Result<std::time::Duration, String> {
    let parsed: jiff::SignedDuration = text.parse().map_err(|_| "use something like 90s, 15m, 2h or 72h")?;
    parsed.try_into().map_err(|_| "it must not be negative".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct Bulk {
    /// What to do
    #[arg(value_enum)]
    pub(crate) verb: BulkVerb,
    #[command(flatten)]
    pub(crate) conditions: Conditions,
    /// Every entry is meant
    #[arg(long)]
    pub(crate) all: bool,
    /// Why, for hold and bounce
    #[arg(long)]
    pub(crate) why: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum BulkVerb {
    /// Try them now
    Retry,
    /// Put them aside
    Hold,
    /// Let them go on
    Release,
    /// Give them up: their senders get bounces
    Bounce,
    /// Remove them; nobody is told
    Remove,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) conditions: Conditions,
    /// At most so many entries, from 1 to 1000
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) limit: u16,
    /// Go on where the page before ended: it told the cursor
    #[arg(long)]
    pub(crate) cursor: Option<String>,
    /// All pages, one after the other
    #[arg(long, conflicts_with = "cursor")]
    pub(crate) all: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum State {
    /// Waiting for their time, or for a worker
    Queued,
    /// In a worker's hands
    Leased,
    /// Put aside
    Held,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}
