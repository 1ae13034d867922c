//! Certificates between the services, where nothing else in the cluster makes them.
//!
//! One Secret holds an authority, one Secret for each role its certificate, its key, and the authorities to
//! trust. Certificates are made again when two thirds of their life are over. An authority is succeeded in
//! three steps, each of which is waited out until every pod has seen it: the next one is trusted, then it
//! issues, then the one before is forgotten. So at no moment two services meet that do not trust each other.
//!
//! `plan.rs` decides (pure), `issue.rs` makes certificates, `secrets.rs` keeps them.

mod issue;
mod plan;
mod secrets;

use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use serde::Deserialize;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use plan::Step;
use secrets::Secrets;

pub use issue::IssueError;

/// The roles that call each other, as their certificates name them.
pub const ROLES: [&str; 3] = ["edge", "verifier", "delivery"];

/// Secrets that somebody has changed or removed are made good within this.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// The first wait after a failure; it doubles up to [`LOOK_EVERY`].
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Settings of the certificates between services.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether the operator makes them. Default no.
    pub enabled: bool,
    /// The namespace of the Secrets; that of the lease when absent.
    pub namespace: Option<String>,
    /// What their names begin with: PREFIX-authority, PREFIX-edge, PREFIX-verifier and PREFIX-delivery.
    /// Default `packetboat-peer`.
    pub secret_prefix: String,
    /// The domain in which certificates name roles, as `tls.peer.domain` of the services has it. Default
    /// `packetboat.internal`.
    pub domain: String,
    /// How long a certificate holds. Default 90 days.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub lifetime: Duration,
    /// How long an authority holds. Default 730 days.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub authority_lifetime: Duration,
    /// After so long every service shows and trusts what was written to the Secrets. Default 15 min: the
    /// kubelet's period, and the age of connections.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub propagation: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: false,
            namespace: None,
            secret_prefix: "packetboat-peer".to_owned(),
            domain: "packetboat.internal".to_owned(),
            lifetime: Duration::from_secs(90 * 24 * 3600),
            authority_lifetime: Duration::from_secs(730 * 24 * 3600),
            propagation: Duration::from_secs(15 * 60),
        }
    }
}

impl Config {
    /// Whether the times fit together: nothing may run out while it is being replaced.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.propagation * 6 <= self.lifetime && self.lifetime <= self.authority_lifetime
    }
}

/// Why certificates could not be seen to. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Kubernetes API failed or refused.
    #[error("{doing} {secret} failed")]
    Kube {
        /// What was attempted.
        doing: &'static str,
        /// The Secret.
        secret: String,
        /// What the API said.
        #[source]
        cause: Box<kube::Error>,
    },
    /// A certificate cannot be made.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

/// Sees to the certificates until `shutdown`. Only the operator that leads may do so.
pub(crate) async fn keep(client: &Client, config: &Config, namespace: &str, shutdown: CancellationToken) {
    let secrets = Secrets::new(client, namespace, &config.secret_prefix);
    let mut wait = Duration::ZERO;
    while shutdown.run_until_cancelled(sleep(wait)).await.is_some() {
        let span = tracing::info_span!(
            parent: None, "certificates", otel.status_code = tracing::field::Empty
        );
        match see_to(&secrets, config).instrument(span.clone()).await {
            Ok(()) => wait = LOOK_EVERY.min(config.propagation),
            Err(error) => {
                span.record("otel.status_code", "error");
                metrics::counter!("packetboat_operator_reconcile_errors_total", "category" => "certificates")
                    .increment(1);
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "certificates between services cannot be seen to"
                );
                wait = (wait * 2).clamp(FIRST_WAIT, LOOK_EVERY);
            }
        }
    }
}

/// One look: the authority takes a step when one is due, then every role has what it should have.
async fn see_to(secrets: &Secrets, config: &Config) -> Result<(), Error> {
    let now = Timestamp::now();
    let mut authority = secrets.authority().await?;
    let mut services = Vec::new();
    for role in ROLES {
        services.push(secrets.service(role).await?);
    }
    let observed: Vec<_> = services.iter().map(|service| service.observed(&authority, config)).collect();
    let step = plan::step(now, config, &authority.observed(), &observed);
    if step != Step::Nothing {
        tracing::info!(step = step.name(), "authority of the services");
        authority.take(step, now, config)?;
        secrets.write_authority(&mut authority).await?;
    }
    for service in &mut services {
        if plan::is_due(now, config, &service.observed(&authority, config)) {
            service.renew(&authority, now, config)?;
            tracing::info!(role = service.role, "certificate between services made");
        }
        if service.trust(&authority, now) || service.changed {
            secrets.write_service(service).await?;
        }
    }
    Ok(())
}
