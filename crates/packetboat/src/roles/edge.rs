//! SMTP in. It keeps nothing: each message is streamed to the verifier and to delivery.

use std::sync::Arc;

use anyhow::Result;
use domains::SecretsWanted;
use proto::client::{DeliveryClient, VerifierClient};
use tls::PeerRole;

use super::parts;
use super::reach::Reach;
use crate::services::{Process, Services};
use crate::settings::Settings;

pub(super) async fn build(settings: &Settings, process: &Process) -> Result<Services> {
    let wanted = SecretsWanted { submission_users: true, signing_keys: false };
    let domains = parts::domains(settings, wanted, process).await?;
    let peer_tls = parts::peer_tls(settings, PeerRole::Edge)?;
    let verifier =
        parts::peers(&settings.verifier_wire, PeerRole::Verifier, peer_tls.as_ref(), process).await?;
    let delivery =
        parts::peers(&settings.delivery_wire, PeerRole::Delivery, peer_tls.as_ref(), process).await?;
    let verifier = Arc::new(VerifierClient(verifier));
    let delivery = Arc::new(DeliveryClient(delivery));
    let edge = parts::edge(settings, domains, verifier, delivery).await?;
    let checks = vec![
        Reach::check(PeerRole::Verifier, &settings.verifier_wire.endpoints, peer_tls.as_ref()),
        Reach::check(PeerRole::Delivery, &settings.delivery_wire.endpoints, peer_tls.as_ref()),
    ];
    let admin = parts::admin(settings, process, None, checks).await?;

    let mut services = Services::new(process);
    services.start("edge", parts::limit(settings.edge.drain), |stop| async move {
        edge.run(stop).await;
        Ok(())
    });
    services.start("admin", parts::ADMIN_LIMIT, |stop| async move { Ok(admin.serve(stop).await?) });
    Ok(services)
}
