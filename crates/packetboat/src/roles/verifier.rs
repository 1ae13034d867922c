//! Verify and Sign over gRPC. The one role that holds the private DKIM keys.

use std::sync::Arc;

use anyhow::{Context, Result};
use domains::SecretsWanted;
use tls::PeerRole;

use super::parts;
use crate::services::{Process, Services};
use crate::settings::Settings;

pub(super) async fn build(settings: &Settings, process: &Process) -> Result<Services> {
    let wanted = SecretsWanted { submission_users: false, signing_keys: true };
    let domains = parts::domains(settings, wanted, process).await?;
    let verifier = verifier::build(settings.verifier.clone(), verifier::Deps { domains })
        .context("the verifier cannot be set up")?;
    let peer_tls = parts::peer_tls(settings, PeerRole::Verifier)?;
    let server = parts::grpc_server("verifier.listen", &settings.verifier_wire, peer_tls).await?;
    let admin = parts::admin(settings, process, None, Vec::new()).await?;

    let mut services = Services::new(process);
    services.start("verifier", parts::GRPC_LIMIT, |stop| async move {
        Ok(server.serve_verifier(Arc::new(verifier), stop).await?)
    });
    services.start("admin", parts::ADMIN_LIMIT, |stop| async move { Ok(admin.serve(stop).await?) });
    Ok(services)
}
