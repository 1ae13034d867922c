//! SMTP and LMTP out: a message to the mail exchangers of a domain, or to a configured next hop.
//!
//! The path: [`Outbound::offer_to_domain`] asks `dns` for the plan → for each host in order, an idle
//! connection of its own (`pool.rs`), or its addresses in order (`connect.rs`, `client.rs`) → the
//! recipients that are still open are offered (`transaction.rs`) → what each host said is kept in
//! the ledger (`ledger.rs`), which gives the outcomes.
//!
//! A host's permanent word on a recipient is final. After a temporary one, and after any trouble
//! with the host itself, the next host is tried, within the limits of the settings.
//!
//! What this module deliberately does not do: it knows nothing of queues, retries and bounces.

mod client;
mod config;
mod connect;
mod failure;
mod ledger;
mod peer;
mod pool;
mod probe;
mod source;
mod transaction;
mod wire;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use dns::{AddressError, AddressPolicy, MxError, Resolver};
use message::Failure;
use tls::ClientTls;
use tracing::{Instrument, info_span};

pub use config::{OutboundConfig, PoolConfig, Timeouts};
pub use ledger::Ledger;
pub use peer::Protocol;
pub use probe::Probe;
pub use source::{SourcePool, is_pool_name};

use crate::transfer::Transfer;
use ledger::Obstacle;
use peer::{Host, Peer};
use pool::Pool;
use source::{Source, Sources};
use transaction::After;

/// The outbound transport. Cheap to clone; clones share idle connections.
#[derive(Clone)]
pub struct Outbound {
    inner: Arc<Inner>,
}

struct Inner {
    config: OutboundConfig,
    resolver: Resolver,
    tls: ClientTls,
    pool: Arc<Pool>,
    sources: Sources,
}

/// What an attempt may still do.
struct Budget {
    connects: usize,
    sessions: usize,
}

/// How a host's name becomes addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lookup {
    /// A stranger's MX record names it: the DNS only, and only addresses that the policy permits.
    Exchanger,
    /// The same for a domain that has no MX record, and is its own exchanger.
    Implicit,
    /// The configuration names it.
    Configured,
}

impl Outbound {
    /// A transport of these settings. It connects to nobody yet.
    #[must_use]
    pub fn new(config: OutboundConfig, resolver: Resolver, tls: ClientTls) -> Self {
        let pool = Pool::new(config.pool.clone(), config.timeouts.quit);
        let sources = Sources::new(&config.pools);
        Self { inner: Arc::new(Inner { config, resolver, tls, pool, sources }) }
    }

    /// Offers a message to the mail exchangers of a domain, or to the host of an address literal
    /// (`[192.0.2.1]`). What comes of it is in the ledger, which is of the transfer's recipients in their order; also
    /// when this is dropped before its end.
    pub async fn offer_to_domain(&self, domain: &str, transfer: &Transfer, ledger: &mut Ledger) {
        let source = match self.source(transfer) {
            Ok(source) => source,
            Err(obstacle) => return ledger.obstruct_all(&obstacle),
        };
        match self.exchangers(domain, source).await {
            Ok((hosts, lookup)) => self.offer(&hosts, lookup, transfer, ledger).await,
            Err(error) => ledger.obstruct_all(&no_exchanger(&error)),
        }
    }

    /// Offers a message to one next hop, `host:port`. The ledger is as for [`Outbound::offer_to_domain`].
    pub async fn offer_to_host(
        &self,
        address: &str,
        protocol: Protocol,
        transfer: &Transfer,
        ledger: &mut Ledger,
    ) {
        match (Host::parse(address, protocol), self.source(transfer)) {
            (Some(host), Ok(source)) => {
                let host = Host { source, ..host };
                self.offer(&[host], Lookup::Configured, transfer, ledger).await;
            }
            (None, _) => ledger.obstruct_all(&not_an_address(address)),
            (_, Err(obstacle)) => ledger.obstruct_all(&obstacle),
        }
    }

    /// The source pools, as the settings have them.
    #[must_use]
    pub fn pools(&self) -> &BTreeMap<String, SourcePool> {
        &self.inner.config.pools
    }

    fn source(&self, transfer: &Transfer) -> Result<Option<Arc<Source>>, Obstacle> {
        let Some(name) = &transfer.pool else { return Ok(None) };
        let found = self.inner.sources.named(name).ok_or_else(|| {
            let text = format!("the source pool {name} of the MailDomain is not in outbound.pools");
            without_peer("4.3.5", false, text)
        });
        found.map(Some)
    }

    async fn exchangers(
        &self,
        domain: &str,
        source: Option<Arc<Source>>,
    ) -> Result<(Vec<Host>, Lookup), MxError> {
        let (port, protocol) = (self.inner.config.port, Protocol::Smtp);
        let host = |name: String| Host { name, port, protocol, source: source.clone() };
        if let Some(address) = address_literal(domain) {
            return Ok((vec![host(address.to_string())], Lookup::Exchanger));
        }
        let plan = self.inner.resolver.mx_plan(domain, &self.inner.config.hostname);
        let plan = asked(plan, domain, "MX").await?;
        let lookup = if plan.implicit { Lookup::Implicit } else { Lookup::Exchanger };
        Ok((plan.hosts.into_iter().map(|mx| host(mx.name)).collect(), lookup))
    }

    /// Offers the open recipients to host after host, until none is open or the budget is spent.
    async fn offer(&self, hosts: &[Host], lookup: Lookup, transfer: &Transfer, ledger: &mut Ledger) {
        let config = &self.inner.config;
        let mut budget = Budget { connects: config.max_connects, sessions: config.max_sessions };
        for host in hosts {
            if ledger.is_settled() || budget.is_spent() {
                return;
            }
            self.offer_to(host, lookup, transfer, ledger, &mut budget).await;
        }
    }

    async fn offer_to(
        &self,
        host: &Host,
        lookup: Lookup,
        transfer: &Transfer,
        ledger: &mut Ledger,
        budget: &mut Budget,
    ) {
        if let Some(connection) = self.inner.pool.take(host) {
            let after = self.offer_over(connection, transfer, ledger).await;
            if after != After::Stale {
                budget.sessions -= 1;
                return;
            }
        }
        let mut addresses = match self.addresses(host, lookup).await {
            Ok(addresses) => addresses,
            Err(error) => return ledger.obstruct_all(&no_address(host, lookup, &error)),
        };
        if let Some(source) = &host.source {
            addresses.retain(|address| source.reaches(*address));
            if addresses.is_empty() {
                return ledger.obstruct_all(&out_of_reach(host, source));
            }
        }
        for address in addresses {
            if ledger.is_settled() || budget.is_spent() {
                return;
            }
            budget.connects -= 1;
            let peer = Peer { host: host.clone(), address: SocketAddr::new(address, host.port) };
            match connect::connect(&peer, &self.inner.tls, &self.inner.config).await {
                Err(obstacle) => ledger.obstruct_all(&obstacle),
                Ok(connection) => {
                    budget.sessions -= 1;
                    self.offer_over(connection, transfer, ledger).await;
                }
            }
        }
    }

    /// Offers the open recipients over one connection, and keeps it if it is still of use.
    async fn offer_over(
        &self,
        mut connection: client::Connection,
        transfer: &Transfer,
        ledger: &mut Ledger,
    ) -> After {
        let span = info_span!(
            "transaction",
            otel.kind = "client",
            network.protocol.name = connection.peer.host.protocol.as_str(),
            server.address = connection.peer.host.name,
            network.peer.address = %connection.peer.address.ip(),
            tls.protocol.version = connection.security.as_ref().map(|security| security.protocol),
            tls.cipher = connection.security.as_ref().map(|security| security.cipher.as_str()),
            tls.verified = connection.security.as_ref().map(|security| security.verified),
        );
        let offer = transaction::offer(&mut connection, transfer, ledger, &self.inner.config);
        let after = offer.instrument(span).await;
        if after == After::Ready {
            self.inner.pool.put(connection);
        }
        after
    }

    async fn addresses(&self, host: &Host, lookup: Lookup) -> Result<Vec<IpAddr>, AddressError> {
        let (resolver, name) = (&self.inner.resolver, host.name.as_str());
        let policy = AddressPolicy { allow_loopback: self.inner.config.allow_loopback };
        match lookup {
            Lookup::Configured => asked(resolver.host_addresses(name), name, "A").await,
            Lookup::Exchanger | Lookup::Implicit => match name.parse() {
                // An address literal: the host is its own address.
                Ok(address) if policy.permits(address) => Ok(vec![address]),
                Ok(address) => Err(AddressError::Refused { host: name.to_owned(), address }),
                Err(_) => asked(resolver.addresses(name, policy), name, "A").await,
            },
        }
    }
}

impl Budget {
    fn is_spent(&self) -> bool {
        self.connects == 0 || self.sessions == 0
    }
}

/// The answer to a look-up, within a span of its own unless a cache has it at once.
async fn asked<T>(lookup: impl Future<Output = T>, name: &str, kind: &str) -> T {
    let mut lookup = pin!(lookup);
    let at_once = poll_fn(|context| Poll::Ready(lookup.as_mut().poll(context))).await;
    if let Poll::Ready(answer) = at_once {
        return answer;
    }
    let span = info_span!("dns", otel.kind = "client", dns.question.name = name, dns.question.type = kind);
    lookup.instrument(span).await
}

/// The address in `[192.0.2.1]` or `[IPv6:2001:db8::1]` (RFC 5321 §4.1.3).
fn address_literal(domain: &str) -> Option<IpAddr> {
    match domain.parse() {
        Ok(smtp::Domain::Literal(address)) => Some(address),
        _ => None,
    }
}

fn without_peer(status: &str, permanent: bool, text: String) -> Obstacle {
    let failure = Failure { status: status.to_owned(), reply: None, remote_mta: None, text };
    Obstacle { failure, permanent }
}

fn no_exchanger(error: &MxError) -> Obstacle {
    without_peer(error.status(), error.is_permanent(), error.to_string())
}

fn no_address(host: &Host, lookup: Lookup, error: &AddressError) -> Obstacle {
    tracing::debug!(server.address = host.name, %error, "no address to connect to");
    if matches!((lookup, error), (Lookup::Implicit, AddressError::NoAddress { .. })) {
        let text = format!("the domain {} has neither an MX record nor an address", host.name);
        return without_peer("5.1.2", true, text);
    }
    // A host that the configuration names has its address back when its Service has: the sender did nothing wrong.
    if lookup == Lookup::Configured {
        return without_peer("4.4.3", false, error.to_string());
    }
    without_peer(error.status(), error.is_permanent(), error.to_string())
}

fn out_of_reach(host: &Host, source: &Source) -> Obstacle {
    let (host, pool) = (&host.name, &source.name);
    let text = format!("the source pool {pool} has no address of the families of those of {host}");
    without_peer("4.4.4", false, text)
}

fn not_an_address(address: &str) -> Obstacle {
    let text = format!("the next hop {address:?} is not HOST:PORT; correct the route of the MailDomain");
    without_peer("4.3.5", false, text)
}
