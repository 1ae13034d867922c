//! Processes that die or stand still.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::process::{Packetboat, Settings};
use tokio::time::sleep;

use super::{LASTS, MESSAGES, Outcome, on_redis};
use crate::world::World;

/// A service of the first row.
#[derive(Clone, Copy, Debug)]
pub enum Service {
    /// SMTP in.
    Edge,
    /// Verify and Sign.
    Verifier,
    /// Queue and SMTP out.
    Delivery,
}

/// SIGKILL for one service, which stays away.
pub async fn kill9(service: Service) -> Result<Outcome> {
    on_redis(async |_, cluster, _| {
        let row = &mut cluster.rows[0];
        match service {
            Service::Edge => row.edge.1.kill9().await,
            Service::Verifier => row.verifier.1.kill9().await,
            Service::Delivery => row.delivery.1.kill9().await,
        }
    })
    .await
}

/// SIGKILL for Redis, which comes back.
pub async fn kill9_redis() -> Result<Outcome> {
    on_redis(async |_, cluster, _| {
        cluster.redis.kill9().await?;
        cluster.redis.restart().await
    })
    .await
}

/// SIGKILL for one after another, each started again, until `kills` have died.
pub async fn kill9_anything(kills: usize) -> Result<Outcome> {
    on_redis(async |world, cluster, load| {
        for round in 0..kills {
            let row = &mut cluster.rows[round % 2];
            match round % 4 {
                0 => reborn(world, &mut row.edge).await?,
                1 => reborn(world, &mut row.verifier).await?,
                2 => reborn(world, &mut row.delivery).await?,
                _ => {
                    cluster.redis.kill9().await?;
                    cluster.redis.restart().await?;
                }
            }
            // The next comes in the middle of the load, as long as there is one.
            let next = (load.accepted() + 700 / kills).min(MESSAGES);
            load.wait_until_accepted(next).await?;
        }
        Ok(())
    })
    .await
}

/// SIGSTOP for a while.
pub async fn freeze(service: Service) -> Result<Outcome> {
    on_redis(async |_, cluster, _| {
        let row = &cluster.rows[0];
        frozen(match service {
            Service::Edge => &row.edge.1,
            Service::Verifier => &row.verifier.1,
            Service::Delivery => &row.delivery.1,
        })
        .await
    })
    .await
}

/// SIGSTOP for both verifiers, for a while: nothing is accepted that was not verified.
pub async fn freeze_verifiers() -> Result<Outcome> {
    on_redis(async |_, cluster, load| {
        let verifiers = cluster.rows.each_ref().map(|row| &row.verifier.1);
        for verifier in verifiers {
            verifier.child().freeze()?;
        }
        // Verdicts that were given before are on their way for a moment.
        sleep(Duration::from_millis(500)).await;
        let before = load.accepted();
        sleep(LASTS).await;
        let since = load.accepted() - before;
        for verifier in verifiers {
            verifier.child().thaw()?;
        }
        ensure!(since == 0, "{since} messages were accepted without a verdict");
        Ok(())
    })
    .await
}

/// SIGSTOP for Redis, for a while.
pub async fn freeze_redis() -> Result<Outcome> {
    on_redis(async |_, cluster, _| {
        let redis = cluster.redis.child().context("Redis runs")?;
        redis.freeze()?;
        sleep(LASTS).await;
        redis.thaw()
    })
    .await
}

/// Kills a process and starts it again.
pub async fn reborn(world: &World, process: &mut (Settings, Packetboat)) -> Result<()> {
    process.1.kill9().await?;
    process.1 = world.site.start(&process.0).await?;
    Ok(())
}

async fn frozen(process: &Packetboat) -> Result<()> {
    process.child().freeze()?;
    sleep(LASTS).await;
    process.child().thaw()
}
