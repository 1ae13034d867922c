//! Keys, DNS records and status of MailDomains. Mail goes on without it.

use std::sync::Arc;
use std::time::Duration;

use admin::Check;
use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use operator::Operator;

use super::parts;
use crate::services::{Process, Services};
use crate::settings::{DomainSource, Settings};

/// How long reconciliations in flight may go on.
const LIMIT: Duration = Duration::from_secs(20);

/// The Kubernetes API answers.
struct Kubernetes(Arc<Operator>);

#[async_trait]
impl Check for Kubernetes {
    async fn check(&self) -> Result<(), String> {
        self.0.check().await.map_err(|error| error.to_string())
    }
}

pub(super) async fn build(settings: &Settings, process: &Process) -> Result<Services> {
    let resolver = dns::Resolver::new(settings.dns.clone()).context("the resolver cannot be set up")?;
    let namespaces = match &settings.domains {
        DomainSource::Kubernetes(namespaces) => namespaces.clone(),
        DomainSource::Folder(_) => bail!("the operator works on a cluster: set domains.kubernetes"),
    };
    let operator = Operator::new(settings.operator.clone(), namespaces, resolver).await;
    let operator = operator.context("the operator cannot be set up")?;
    let operator = Arc::new(operator);
    let checks: Vec<(String, Arc<dyn Check>)> =
        vec![("kubernetes".to_owned(), Arc::new(Kubernetes(Arc::clone(&operator))))];
    let admin = parts::admin(settings, process, None, checks).await?;

    let mut services = Services::new(process);
    services.start("operator", LIMIT, |stop| async move { Ok(operator.run(stop).await?) });
    services.start("admin", parts::ADMIN_LIMIT, |stop| async move { Ok(admin.serve(stop).await?) });
    Ok(services)
}
