//! Two of each service as processes of their own over one Redis.
//!
//! The processes form two rows: the edge of a row calls the verifier and the delivery service of its
//! row. Both rows share the queue, so mail accepted in one row may go out from the other.

use anyhow::Result;
use testkit::process::{Packetboat, Role, Settings};
use testkit::redis::RedisServer;

use crate::world::World;

/// One edge, verifier and delivery process with their settings.
pub struct Row {
    /// SMTP in.
    pub edge: (Settings, Packetboat),
    /// Verify and Sign.
    pub verifier: (Settings, Packetboat),
    /// Accept and dispatch.
    pub delivery: (Settings, Packetboat),
}

/// Redis and two rows.
pub struct Cluster {
    /// The queue of both rows.
    pub redis: RedisServer,
    /// The processes.
    pub rows: [Row; 2],
}

impl Cluster {
    /// Starts everything, adjusted by `adjust`, and waits until all are ready.
    pub async fn start(world: &World, adjust: impl Fn(&mut Settings)) -> Result<Self> {
        Self::over(world, RedisServer::start().await?, adjust).await
    }

    /// The same over this server.
    pub async fn over(world: &World, redis: RedisServer, adjust: impl Fn(&mut Settings)) -> Result<Self> {
        let rows =
            [Row::start(world, &redis, "a", &adjust).await?, Row::start(world, &redis, "b", &adjust).await?];
        Ok(Self { redis, rows })
    }

    /// A metric of both delivery services together.
    pub async fn sum_of(&self, metric: &str) -> Result<f64> {
        let [a, b] = &self.rows;
        Ok(a.delivery.1.metric(metric).await? + b.delivery.1.metric(metric).await?)
    }
}

/// Settings of services that speak TLS with the certificates in `peer-ROLE`, and begin new connections all
/// the time.
pub fn over_tls(settings: &mut Settings) {
    settings.peer = Some(format!("peer-{:?}", settings.role).to_lowercase());
    for name in ["PACKETBOAT_VERIFIER__CONNECTION_AGE", "PACKETBOAT_DELIVERY__CONNECTION_AGE"] {
        settings.environment.push((name.to_owned(), "500ms".to_owned()));
    }
}

impl Row {
    /// Starts a row over `redis`; `name` tells its data folders from those of others.
    pub async fn start(
        world: &World,
        redis: &RedisServer,
        name: &str,
        adjust: &impl Fn(&mut Settings),
    ) -> Result<Self> {
        let over = |settings: &mut Settings| {
            settings.redis = Some(redis.url());
            adjust(settings);
        };
        Self::over(world, name, &over).await
    }

    /// The same over the Redis that `adjust` names.
    pub async fn over(world: &World, name: &str, adjust: &impl Fn(&mut Settings)) -> Result<Self> {
        let base = world.site.settings(Role::All)?;
        let prepare = |role| -> Result<Settings> {
            let mut settings = world.site.settings(role)?;
            settings.data_dir = format!("{}-{name}", settings.data_dir);
            settings.verifier = base.verifier;
            settings.delivery = base.delivery;
            adjust(&mut settings);
            Ok(settings)
        };
        let (verifier, delivery, edge) =
            (prepare(Role::Verifier)?, prepare(Role::Delivery)?, prepare(Role::Edge)?);
        let verifier_process = world.site.start(&verifier).await?;
        let delivery_process = world.site.start(&delivery).await?;
        let edge_process = world.site.start(&edge).await?;
        Ok(Self {
            edge: (edge, edge_process),
            verifier: (verifier, verifier_process),
            delivery: (delivery, delivery_process),
        })
    }
}
