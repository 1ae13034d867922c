//! Accept over gRPC, the queue, and the dispatcher that sends mail on.

use std::sync::Arc;

use anyhow::Result;
use domains::SecretsWanted;
use proto::client::VerifierClient;
use tls::PeerRole;

use super::parts;
use crate::services::{Process, Services};
use crate::settings::Settings;

pub(super) async fn build(settings: &Settings, process: &Process) -> Result<Services> {
    let domains = parts::domains(settings, SecretsWanted::default(), process).await?;
    let queue = parts::open_queue(settings).await?;
    let peer_tls = parts::peer_tls(settings, PeerRole::Delivery)?;
    // It signs bounces. They go out without it, too, so this role is ready even when it is away.
    let verifier =
        parts::peers(&settings.verifier_wire, PeerRole::Verifier, peer_tls.as_ref(), process).await?;
    let verifier: Arc<dyn proto::Verifier> = Arc::new(VerifierClient(verifier));
    let delivery = parts::delivery(settings, &queue, &domains, &verifier)?;
    let server = parts::grpc_server("delivery.listen", &settings.delivery_wire, peer_tls).await?;
    let admin = parts::admin(settings, process, Some(queue), Vec::new()).await?;

    let mut services = Services::new(process);
    let accepting = delivery.clone();
    services.start("delivery", parts::GRPC_LIMIT, |stop| async move {
        Ok(server.serve_delivery(accepting, stop).await?)
    });
    services.start("dispatcher", parts::limit(settings.delivery.dispatch.drain), |stop| async move {
        delivery.run(stop).await;
        Ok(())
    });
    services.start("admin", parts::ADMIN_LIMIT, |stop| async move { Ok(admin.serve(stop).await?) });
    Ok(services)
}
