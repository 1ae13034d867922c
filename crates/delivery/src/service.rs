//! The delivery service: what the edge calls (accept and probe), and the dispatcher that runs beside.

use std::sync::Arc;

use async_trait::async_trait;
use domains::{Domains, Route};
use proto::accept_request::Frame;
use proto::trace::call_failed;
use proto::{
    AcceptResponse, Delivery, ErrorCode, Frames, ProbeRequest, ProbeResponse, RecipientStanding,
    ServiceError, Verifier,
};
use queue::{NewMessage, Queue};
use smtp::Mailbox;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use tracing::field::Empty;

use crate::accept::Intake;
use crate::attempt::Attempts;
use crate::bounce::Bouncer;
use crate::config::Config;
use crate::dispatcher::Dispatcher;
use crate::error::{AcceptError, DeliveryError, with_causes};
use crate::outbound::{Outbound, Probe, Protocol};
use crate::route::Planner;

/// What delivery works with.
pub struct Deps {
    /// Where messages are held.
    pub queue: Arc<dyn Queue>,
    /// Which domains are hosted here, and how.
    pub domains: Domains,
    /// The way to other servers.
    pub outbound: Outbound,
    /// Signs notifications.
    pub verifier: Arc<dyn Verifier>,
}

/// The delivery service.
pub struct DeliveryService {
    config: Config,
    queue: Arc<dyn Queue>,
    domains: Domains,
    outbound: Outbound,
    planner: Planner,
    dispatcher: Arc<Dispatcher>,
    /// Octets of memory for messages being accepted.
    memory: Semaphore,
    /// Questions to mailbox stores at once.
    probes: Semaphore,
}

/// Builds the service. It accepts from then on; queued mail moves while [`DeliveryService::run`] runs.
///
/// # Errors
/// When a setting cannot be used.
pub fn build(config: Config, deps: Deps) -> Result<Arc<DeliveryService>, DeliveryError> {
    config.validate()?;
    let Deps { queue, domains, outbound, verifier } = deps;
    let hostname = config.hostname.parse().map_err(|error: smtp::AddressError| DeliveryError::Setting {
        setting: "hostname",
        why: error.to_string(),
    })?;
    let planner =
        Planner { recipients_per_entry: config.accept.recipients_per_entry, max_age: config.retry.max_age };
    let bouncer = Bouncer {
        hostname,
        config: config.bounce.clone(),
        queue: Arc::clone(&queue),
        domains: domains.clone(),
        verifier,
        planner: planner.clone(),
    };
    let attempts = Attempts {
        hostname: config.hostname.clone(),
        base_folder: config.base_folder.clone(),
        dispatch: config.dispatch.clone(),
        retry: config.retry.clone(),
        queue: Arc::clone(&queue),
        domains: domains.clone(),
        outbound: outbound.clone(),
        bouncer,
    };
    // That there were none is to be seen, too.
    metrics::counter!("packetboat_accept_refused_total").increment(0);
    metrics::counter!("packetboat_delivery_attempt_panics_total").increment(0);
    metrics::counter!("packetboat_delivery_settlements_lost_total").increment(0);
    let worker = config.worker().to_owned();
    // An entry that shared a failure has its next try after the rest, not within it.
    let rest = config.retry.initial / 2;
    let dispatcher = Dispatcher::new(worker, config.dispatch.clone(), Arc::clone(&queue), attempts, rest);
    Ok(Arc::new(DeliveryService {
        memory: Semaphore::new(config.accept.memory_bytes),
        probes: Semaphore::new(config.probe.concurrency),
        config,
        queue,
        domains,
        outbound,
        planner,
        dispatcher: Arc::new(dispatcher),
    }))
}

impl DeliveryService {
    /// Runs the dispatcher until shutdown; returns when attempts in flight have ended, or were
    /// handed back after the drain time.
    pub async fn run(&self, shutdown: CancellationToken) {
        self.dispatcher.run(shutdown).await;
    }

    async fn take(&self, frames: Frames<Frame>) -> Result<AcceptResponse, AcceptError> {
        let intake = Intake { config: &self.config.accept, queue: &*self.queue, memory: &self.memory };
        let received = intake.run(frames).await?;
        let entries = self.planner.plan(&received.record.envelope, &self.domains.current());
        if entries.is_empty() {
            return Err(AcceptError::contract("the recipients lead nowhere"));
        }
        let (id, size) = (received.record.id, received.record.size);
        tracing::record_all!(tracing::Span::current(), mail.size = size, mail.entries = entries.len());
        let lease = self.dispatcher.lease_with_accept(&entries);
        let message = NewMessage { record: received.record, inline: received.head, entries };
        let accepted = self.queue.accept(message, lease).await?;
        drop(received.memory);
        metrics::counter!("packetboat_accepted_messages_total").increment(1);
        metrics::counter!("packetboat_accepted_octets_total").increment(size);
        tracing::info!(queue_id = %id, size, fresh = accepted.fresh, "message accepted");
        self.dispatcher.admit(accepted.leased);
        Ok(AcceptResponse { fresh: accepted.fresh })
    }

    async fn ask_store(&self, mailbox: &Mailbox) -> ProbeResponse {
        let index = self.domains.current();
        let route = mailbox
            .domain_name()
            .and_then(|name| index.hosted(name))
            .map(|domain| domain.spec.inbound.as_ref().and_then(|inbound| inbound.route.as_ref()));
        let (address, protocol) = match route {
            None => return answer(RecipientStanding::Unknown, "the domain is not hosted here"),
            Some(Some(Route::Lmtp(server))) => (&server.address, Protocol::Lmtp),
            Some(Some(Route::Smtp(server))) => (&server.address, Protocol::Smtp),
            Some(_) => return answer(RecipientStanding::Unavailable, "the domain's route cannot be asked"),
        };
        match self.outbound.probe(address, protocol, mailbox).await {
            Probe::Exists => answer(RecipientStanding::Exists, ""),
            Probe::Unknown(reply) => answer(RecipientStanding::Unknown, reply),
            Probe::Unavailable(reason) => answer(RecipientStanding::Unavailable, reason),
        }
    }
}

fn answer(standing: RecipientStanding, detail: impl Into<String>) -> ProbeResponse {
    ProbeResponse { standing: standing.into(), detail: detail.into() }
}

#[async_trait]
impl Delivery for DeliveryService {
    async fn accept(&self, frames: Frames<Frame>) -> Result<AcceptResponse, ServiceError> {
        let span = tracing::info_span!(
            "accept",
            otel.kind = "server",
            otel.status_code = Empty,
            rpc.method = "packetboat.v1.Delivery/Accept",
            error.type = Empty,
            mail.queue_id = Empty,
            mail.size = Empty,
            mail.entries = Empty,
        );
        self.take(frames)
            .instrument(span.clone())
            .await
            .inspect_err(|error| {
                let _entered = span.enter();
                metrics::counter!("packetboat_accept_refused_total").increment(1);
                tracing::warn!(error = %with_causes(error), "message not accepted");
            })
            .map_err(ServiceError::from)
            .inspect_err(|error| call_failed(&span, error))
    }

    async fn probe(&self, request: ProbeRequest) -> Result<ProbeResponse, ServiceError> {
        let mailbox: Mailbox = request.forward_path.parse().map_err(|error: smtp::AddressError| {
            ServiceError::new(ErrorCode::InvalidArgument, error.to_string())
        })?;
        let span =
            tracing::info_span!("probe", otel.kind = "server", rpc.method = "packetboat.v1.Delivery/Probe");
        let asked = timeout(self.config.probe.timeout, async {
            // Closed by nobody.
            let _turn = self.probes.acquire().await;
            self.ask_store(&mailbox).await
        });
        Ok(asked.instrument(span).await.unwrap_or_else(|_| {
            answer(RecipientStanding::Unavailable, "the mailbox store did not answer in time")
        }))
    }
}
