//! All that one run of the test works with.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use testkit::jaeger::Jaeger;

use crate::ledger::Ledger;
use crate::place::{MAIL, Place};
use crate::release::Release;
use crate::world::World;

/// The port of OTLP over gRPC.
const OTLP: u16 = 4317;

/// The place, what is around, and the release under test.
pub(crate) struct Test {
    /// The cluster and this machine.
    pub(crate) place: Place,
    /// Name server and mail stores.
    pub(crate) world: World,
    /// Where spans go, outside of the cluster.
    pub(crate) jaeger: Jaeger,
    /// The release under test.
    pub(crate) release: Release,
    /// What was counted so far.
    pub(crate) ledger: Ledger,
}

impl Test {
    /// Starts what is around; nothing is installed yet.
    pub(crate) async fn prepare(place: Place) -> Result<Self> {
        println!("cluster: the node is {}, this machine {}", place.node, place.world);
        let world = World::start(&place).await.context("starting the world around")?;
        let jaeger = Jaeger::start_at(SocketAddr::new(place.world, OTLP)).await?;
        let release = Release::new(MAIL, &place, &world, &serde_json::json!({}));
        Ok(Self { place, world, jaeger, release, ledger: Ledger::default() })
    }
}
