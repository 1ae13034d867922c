//! Everything in one process: the services call each other directly.

use std::sync::Arc;

use anyhow::{Context, Result};
use domains::SecretsWanted;

use super::parts;
use crate::services::{Process, Services};
use crate::settings::Settings;

pub(super) async fn build(settings: &Settings, process: &Process) -> Result<Services> {
    let wanted = SecretsWanted { submission_users: true, signing_keys: true };
    let domains = parts::domains(settings, wanted, process).await?;
    let queue = parts::open_queue(settings).await?;
    let verifier = verifier::build(settings.verifier.clone(), verifier::Deps { domains: domains.clone() })
        .context("the verifier cannot be set up")?;
    let verifier: Arc<dyn proto::Verifier> = Arc::new(verifier);
    let delivery = parts::delivery(settings, &queue, &domains, &verifier)?;
    let policies = match settings.mta_sts.listen {
        Some(_) => Some(parts::policy_server(settings, &domains).await?),
        None => None,
    };
    let edge = parts::edge(settings, domains, verifier, delivery.clone()).await?;
    let admin = parts::admin(settings, process, Some(queue), Vec::new()).await?;

    let mut services = Services::new(process);
    services.start("edge", parts::limit(settings.edge.drain), |stop| async move {
        edge.run(stop).await;
        Ok(())
    });
    services.start("dispatcher", parts::limit(settings.delivery.dispatch.drain), |stop| async move {
        delivery.run(stop).await;
        Ok(())
    });
    if let Some(policies) = policies {
        services.start("mta-sts", parts::limit(settings.mta_sts.drain), |stop| async move {
            policies.serve(stop).await;
            Ok(())
        });
    }
    services.start("admin", parts::ADMIN_LIMIT, |stop| async move { Ok(admin.serve(stop).await?) });
    Ok(services)
}
