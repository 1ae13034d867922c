//! The settings: one YAML file, with every key also as an environment variable.
//!
//! `PACKETBOAT_OUTBOUND__RETRY__INITIAL=30s` stands for `outbound: {retry: {initial: 30s}}` and wins over
//! it; lists are given as YAML or JSON text. A relative path starts from the folder of the file. Each
//! service brings the type of its section; what belongs together across sections is checked in `rules`.

mod document;
mod reader;
mod rules;
mod sections;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use delivery::outbound::OutboundConfig;
use dns::DnsConfig;
use domains::Namespaces;
use edge::config::{Limits, Listener};
use serde::Serialize;
use tls::{ClientTlsConfig, PeerTlsConfig, ServerTlsConfig};

pub(crate) use reader::Problem;
pub(crate) use sections::{Backend, QueueSettings};

use document::{Node, Path};
use reader::Reader;

/// Where the admin server listens unless told otherwise.
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8025);

/// The sections, in the order in which they are told.
const SECTIONS: [&str; 15] = [
    "hostname",
    "data_dir",
    "domains",
    "dns",
    "listeners",
    "edge",
    "tls",
    "queue",
    "outbound",
    "verifier",
    "delivery",
    "operator",
    "mta_sts",
    "admin",
    "telemetry",
];

/// What one process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    /// Everything in one process.
    All,
    /// SMTP in.
    Edge,
    /// Authentication and signing.
    Verifier,
    /// The queue and SMTP out.
    Delivery,
    /// Keys, DNS records and status of MailDomains in Kubernetes.
    Operator,
    /// MTA-STS policies over HTTPS.
    MtaSts,
}

impl Role {
    /// All of them.
    pub(crate) const EACH: [Self; 6] =
        [Self::All, Self::Edge, Self::Verifier, Self::Delivery, Self::Operator, Self::MtaSts];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Edge => "edge",
            Self::Verifier => "verifier",
            Self::Delivery => "delivery",
            Self::Operator => "operator",
            Self::MtaSts => "mta-sts",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a service is reached, and where it listens.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    /// Where others find it.
    pub(crate) endpoints: Vec<String>,
    /// Where it listens itself.
    pub(crate) listen: Option<SocketAddr>,
    /// Its connections end after so long, without breaking a call: clients then spread over new pods, and
    /// show the certificates of the day. Default 5 min.
    pub(crate) connection_age: Duration,
}

/// Where MailDomains come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DomainSource {
    /// YAML files in a folder.
    Folder(PathBuf),
    /// The Kubernetes API.
    Kubernetes(Namespaces),
}

/// All settings, checked. Paths are absolute or relative to the working folder.
pub(crate) struct Settings {
    /// The file they come from.
    file: PathBuf,
    /// The file as it was read.
    document: Node,
    /// EHLO name and authserv-id.
    pub(crate) hostname: String,
    /// Where the process keeps what must last.
    pub(crate) data_dir: PathBuf,
    /// Where MailDomains come from.
    pub(crate) domains: DomainSource,
    pub(crate) dns: DnsConfig,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) edge: Limits,
    pub(crate) tls: ServerTlsConfig,
    /// Mutual TLS between services.
    pub(crate) peer_tls: Option<PeerTlsConfig>,
    pub(crate) queue: QueueSettings,
    pub(crate) outbound: OutboundConfig,
    pub(crate) outbound_tls: ClientTlsConfig,
    pub(crate) verifier_wire: Wire,
    pub(crate) verifier: verifier::Config,
    pub(crate) delivery_wire: Wire,
    pub(crate) delivery: delivery::Config,
    pub(crate) operator: operator::Config,
    pub(crate) mta_sts: mta_sts::ServerConfig,
    pub(crate) admin: SocketAddr,
    pub(crate) telemetry: telemetry::Config,
}

/// Says no more than the file's name: there may be passwords in it.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Everything that is wrong with the settings.
#[derive(Debug)]
pub(crate) struct Problems(pub(crate) Vec<Problem>);

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl Settings {
    /// Reads the file and the environment.
    ///
    /// # Errors
    /// With all that is wrong, when anything is.
    pub(crate) fn load(file: &FilePath) -> Result<Self, Problems> {
        Self::load_with(file, std::env::vars_os())
    }

    fn load_with(
        file: &FilePath,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Problems> {
        let mut reader = Reader::new(file.to_owned(), environment, &SECTIONS);
        let mut settings = sections::read(&mut reader, file);
        rules::check(&settings, &mut reader);
        let (problems, document) = reader.finish();
        settings.document = document;
        if problems.is_empty() { Ok(settings) } else { Err(Problems(problems)) }
    }

    /// Something that is wrong with a key, as turned out when it was put to use.
    pub(crate) fn problem(&self, key: &str, text: impl Into<String>) -> Problem {
        let place = self.document.place_of_key(&Path::of(key));
        Problem { file: self.file.clone(), place, key: key.to_owned(), text: text.into() }
    }

    /// What a role lacks: keys without which it cannot run.
    pub(crate) fn lacks(&self, role: Role) -> Vec<&'static str> {
        let needs = |wanted: bool, missing: bool, key| (wanted && missing).then_some(key);
        let edge = matches!(role, Role::All | Role::Edge);
        let alone = matches!(role, Role::Edge | Role::Delivery);
        let in_cluster = matches!(self.domains, DomainSource::Kubernetes(_));
        [
            needs(edge, self.listeners.is_empty(), "listeners"),
            needs(role == Role::Verifier, self.verifier_wire.listen.is_none(), "verifier.listen"),
            needs(role == Role::Delivery, self.delivery_wire.listen.is_none(), "delivery.listen"),
            needs(alone, self.verifier_wire.endpoints.is_empty(), "verifier.endpoint"),
            needs(role == Role::Edge, self.delivery_wire.endpoints.is_empty(), "delivery.endpoint"),
            needs(role == Role::Operator, !in_cluster, "domains.kubernetes"),
            needs(role == Role::MtaSts, self.mta_sts.listen.is_none(), "mta_sts.listen"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Fails when a role cannot run under these settings.
    ///
    /// # Errors
    /// One problem for each key that is missing.
    pub(crate) fn require(&self, role: Role) -> Result<(), Problems> {
        let problem =
            |key| self.problem(key, format!("the role {role} needs this key, as in {}", example(key)));
        let problems: Vec<Problem> = self.lacks(role).into_iter().map(problem).collect();
        if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
    }
}

/// What a missing key may look like.
fn example(key: &str) -> &'static str {
    match key {
        "listeners" => "listeners: [{name: mx, kind: mx, address: \"0.0.0.0:25\"}]",
        "verifier.listen" => "verifier: {listen: \"0.0.0.0:9091\"}",
        "delivery.listen" => "delivery: {listen: \"0.0.0.0:9092\"}",
        "domains.kubernetes" => "domains: {kubernetes: {}}",
        "mta_sts.listen" => "mta_sts: {listen: \"0.0.0.0:8443\"}",
        "verifier.endpoint" => "verifier: {endpoint: \"http://verifier:9091\"}",
        _ => "delivery: {endpoint: \"http://delivery:9092\"}",
    }
}

/// Where a running process serves its admin API, from its configuration file. The rest of the file is
/// not looked at: a fault there must not keep an operator from the queue.
///
/// # Errors
/// When the file or the address cannot be read.
pub(crate) fn admin_address(file: &FilePath) -> Result<SocketAddr, Problems> {
    let mut reader = Reader::new(file.to_owned(), std::env::vars_os(), &SECTIONS);
    let address = sections::admin(&mut reader);
    let wrong: Vec<Problem> = reader.finish().0.into_iter().filter(matters_to_admin).collect();
    if wrong.is_empty() { Ok(address) } else { Err(Problems(wrong)) }
}

/// Where traces are asked for, from a configuration file. The rest of the file is not looked at.
///
/// # Errors
/// When the file or its `telemetry` section cannot be read.
pub(crate) fn trace_endpoint(file: &FilePath) -> Result<Option<String>, Problems> {
    let mut reader = Reader::new(file.to_owned(), std::env::vars_os(), &SECTIONS);
    let telemetry = sections::telemetry(&mut reader);
    let matters = |problem: &Problem| problem.key.is_empty() || problem.key.starts_with("telemetry");
    let wrong: Vec<Problem> = reader.finish().0.into_iter().filter(matters).collect();
    if wrong.is_empty() { Ok(telemetry.query) } else { Err(Problems(wrong)) }
}

fn matters_to_admin(problem: &Problem) -> bool {
    problem.key.is_empty() || problem.key.starts_with("admin")
}
