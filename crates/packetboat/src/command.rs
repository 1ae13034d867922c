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
    /// Check the configuration file, the MailDomains, keys and certificates without starting anything
    Check(Check),
    /// Look at the queue of a running process, and work on it
    Queue(Queue),
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
        /// The queue id
        id: String,
    },
    /// Put a message aside: it is not tried until it is released
    Hold {
        /// The queue id
        id: String,
        /// Why, for other operators
        #[arg(long)]
        why: Option<String>,
    },
    /// Let a held message go on
    Release {
        /// The queue id
        id: String,
    },
    /// Give a message up: its sender gets a bounce
    Bounce {
        /// The queue id
        id: String,
        /// Why, for the sender
        #[arg(long)]
        why: Option<String>,
    },
    /// Show the account of the queue: what came of every entry that was accepted
    Account,
    /// Remove a message from the queue; its sender gets no bounce
    Remove {
        /// The queue id
        id: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only entries of this next hop, as the list shows it
    #[arg(long)]
    pub(crate) next_hop: Option<String>,
    /// Only entries in this state
    #[arg(long, value_enum)]
    pub(crate) state: Option<State>,
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
