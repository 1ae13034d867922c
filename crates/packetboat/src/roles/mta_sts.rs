//! MTA-STS policies of the hosted domains, over HTTPS. It reads no Secret, and takes no mail.

use anyhow::Result;
use domains::SecretsWanted;

use super::parts;
use crate::services::{Process, Services};
use crate::settings::Settings;

pub(super) async fn build(settings: &Settings, process: &Process) -> Result<Services> {
    let domains = parts::domains(settings, SecretsWanted::default(), process).await?;
    let server = parts::policy_server(settings, &domains).await?;
    let admin = parts::admin(settings, process, None, Vec::new()).await?;

    let mut services = Services::new(process);
    services.start("mta-sts", parts::limit(settings.mta_sts.drain), |stop| async move {
        server.serve(stop).await;
        Ok(())
    });
    services.start("admin", parts::ADMIN_LIMIT, |stop| async move { Ok(admin.serve(stop).await?) });
    Ok(services)
}
