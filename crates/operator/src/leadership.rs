//! Who leads, for certain. Whoever cannot reach the Kubernetes API does not hear that another has taken the lease:
//! after as long as a lease lasts, it stops by itself.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder};
use tokio::time::{Instant, sleep, timeout};

use crate::controller::Config;
use crate::error::Error;

/// The shortest lease.
const SHORTEST: u64 = 5;
/// Between two questions whether the lease is held that was said to be: at first, and at most.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// The lease, as it stands in the cluster.
pub(crate) struct Leadership {
    leases: Api<Lease>,
    name: String,
    identity: String,
    duration: Duration,
}

impl Leadership {
    /// The lease of the settings, and what holds it for this process.
    ///
    /// # Errors
    /// When the lease cannot be worked with at all.
    pub(crate) async fn new(client: &Client, config: &Config) -> Result<(Self, LeaseManager), Error> {
        let duration = config.lease_duration.as_secs().max(SHORTEST);
        // Two processes of one machine, or one that was started anew, are not the same.
        let identity = format!("packetboat-{:016x}", rand::random::<u64>());
        let manager = LeaseManagerBuilder::new(client.clone(), &config.lease_name)
            .with_namespace(&config.lease_namespace)
            .with_identity(&identity)
            .with_duration(duration)
            .with_grace((duration / 3).max(1))
            .build()
            .await
            .map_err(|cause| Error::NoConfig(Box::new(cause)))?;
        let this = Self {
            leases: Api::namespaced(client.clone(), &config.lease_namespace),
            name: config.lease_name.clone(),
            identity,
            duration: Duration::from_secs(duration),
        };
        Ok((this, manager))
    }

    /// Whether this process holds the lease; nothing when the API does not say.
    async fn is_held(&self) -> Option<bool> {
        let lease = timeout(self.duration / 3, self.leases.get(&self.name)).await.ok()?.ok()?;
        Some(lease.spec?.holder_identity.as_deref() == Some(&self.identity))
    }

    /// Waits until the API says that this process holds the lease.
    pub(crate) async fn confirmed(&self) {
        let mut pause = PAUSE;
        while self.is_held().await != Some(true) {
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Waits until another holds the lease, or could.
    pub(crate) async fn lost(&self) {
        let mut held = Instant::now();
        while held.elapsed() < self.duration {
            sleep(self.duration / 3).await;
            match self.is_held().await {
                Some(true) => held = Instant::now(),
                Some(false) => return,
                None => {}
            }
        }
    }
}
