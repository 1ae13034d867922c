//! Runs reconciliations for all MailDomains, in the one process that holds the lease.

use std::sync::Arc;
use std::time::Duration;

use dns::Resolver;
use domains::types::{ClusterDNSProvider, DNSProvider, Dkim, MailDomain, MailDomainStatus, ProviderKind};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, DynamicObject, ListParams, PartialObjectMeta, Patch, PatchParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::finalizer::{Error as FinalizerError, Event as Finalizer, finalizer};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::Config as Watch;
use kube::{Client, ResourceExt};
use kube_lease_manager::LeaseManagerBuilder;
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::endpoints;
use crate::error::Error;
use crate::observe::Observer;
use crate::password;
use crate::peer;
use crate::reconcile::{Context, age, told};
use crate::store::MANAGER;
use crate::tlsa;

/// What holds a MailDomain until its keys and records are seen to.
const FINALIZER: &str = "mail.packetboat.dev/operator";
/// The first wait after a failure; it doubles up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// A domain that fails to be cleaned up so often is let go: a namespace must not hang on it.
const CLEAN_UP_TRIES: u32 = 5;

/// Settings of the operator.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The namespace whose MailDomains are looked after; all when absent.
    pub namespace: Option<String>,
    /// The namespace of the lease by which several operators agree on one. Default `default`.
    pub lease_namespace: String,
    /// The name of that lease. Default `packetboat-operator`.
    pub lease_name: String,
    /// How long the lease of an operator that has died keeps the others waiting, 5 s at least. Default 15 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub lease_duration: Duration,
    /// Domains that are reconciled at once. Default 16.
    pub concurrency: u16,
    /// Every MailDomain's ownership is to be proven by a TXT record, whether it asks for that or not. Default no.
    pub require_ownership: bool,
    /// The Secret with the password of the Redis that belongs to this installation, in `lease_namespace`: a random one
    /// is put there when there is none. Absent: nothing is.
    pub redis_password_secret: Option<String>,
    /// Certificates between the services.
    pub peer_certificates: peer::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            namespace: None,
            lease_namespace: "default".to_owned(),
            lease_name: "packetboat-operator".to_owned(),
            lease_duration: Duration::from_secs(15),
            concurrency: 16,
            require_ownership: false,
            redis_password_secret: None,
            peer_certificates: peer::Config::default(),
        }
    }
}

/// The operator, ready to run.
pub struct Operator {
    config: Config,
    client: Client,
    resolver: Resolver,
}

impl Operator {
    /// Finds the Kubernetes API. Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`Error::NoConfig`].
    pub async fn new(config: Config, resolver: Resolver) -> Result<Self, Error> {
        let client = Client::try_default().await.map_err(|cause| Error::NoConfig(Box::new(cause)))?;
        Ok(Self { config, client, resolver })
    }

    /// Whether the Kubernetes API answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check(&self) -> Result<(), Error> {
        self.client.apiserver_version().await.map(drop).map_err(Error::kube("asking the Kubernetes API"))
    }

    /// Waits for the lease, reconciles while it has it, and waits again, until `shutdown`.
    ///
    /// # Errors
    /// When the lease cannot be worked with at all.
    pub async fn run(&self, shutdown: CancellationToken) -> Result<(), Error> {
        let duration = self.config.lease_duration.as_secs().max(5);
        let manager = LeaseManagerBuilder::new(self.client.clone(), &self.config.lease_name)
            .with_namespace(&self.config.lease_namespace)
            .with_duration(duration)
            .with_grace((duration / 3).max(1))
            .build()
            .await
            .map_err(|cause| Error::NoConfig(Box::new(cause)))?;
        let (mut leads, lease) = manager.watch().await;
        loop {
            let elected = shutdown.run_until_cancelled(wait_until(&mut leads, true)).await;
            if elected != Some(true) {
                break;
            }
            tracing::info!(lease = self.config.lease_name, "this operator leads");
            metrics::gauge!("packetboat_operator_leads").set(1.0);
            let term = shutdown.child_token();
            let ends = async {
                wait_until(&mut leads, false).await;
                term.cancel();
            };
            tokio::select! {
                () = self.lead(term.clone()) => {}
                () = ends => tracing::warn!("the lease is lost, another operator may lead"),
            }
            metrics::gauge!("packetboat_operator_leads").set(0.0);
        }
        // The lease is given up when nobody watches it any more.
        drop(leads);
        let _ = tokio::time::timeout(Duration::from_secs(5), lease).await;
        Ok(())
    }

    async fn keep_password(&self, term: CancellationToken) {
        if let Some(secret) = &self.config.redis_password_secret {
            password::keep(&self.client, &self.config.lease_namespace, secret, term).await;
        }
    }

    /// What only the operator that holds the lease does.
    async fn lead(&self, term: CancellationToken) {
        tokio::join!(
            self.reconcile_all(term.clone()),
            self.keep_password(term.clone()),
            self.keep_certificates(term)
        );
    }

    async fn keep_certificates(&self, term: CancellationToken) {
        let config = &self.config.peer_certificates;
        if config.enabled {
            let namespace = config.namespace.as_ref().unwrap_or(&self.config.lease_namespace);
            peer::keep(&self.client, config, namespace, term).await;
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        match &self.config.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    /// A change of the way by which a domain is published, or of what was written for it, wakes it.
    async fn watch_ways(&self, controller: Controller<MailDomain>) -> Controller<MailDomain> {
        let all = controller.store();
        let mut controller =
            controller.watches(self.api::<DNSProvider>(), Watch::default(), move |provider| {
                let namespace = provider.namespace();
                users(&all.state(), ProviderKind::DNSProvider, &provider.name_any(), namespace.as_deref())
            });
        if self.config.namespace.is_none() {
            let all = controller.store();
            let providers: Api<ClusterDNSProvider> = Api::all(self.client.clone());
            controller = controller.watches(providers, Watch::default(), move |provider| {
                users(&all.state(), ProviderKind::ClusterDNSProvider, &provider.name_any(), None)
            });
        }
        let controller = self.watch_certificates(controller).await;
        let kind = endpoints::kind();
        let objects: Api<DynamicObject> = match &self.config.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &kind),
            None => Api::all_with(self.client.clone(), &kind),
        };
        // Without external-dns there is no such kind; where it comes later, domains look by themselves.
        match objects.list(&ListParams::default().limit(1)).await {
            Ok(_) => controller.owns_with(objects, kind, Watch::default().labels(endpoints::OF)),
            Err(_) => controller,
        }
    }

    /// A change of a mail host's certificate wakes whoever has TLSA records of it. Of Secrets only the names are kept.
    async fn watch_certificates(&self, controller: Controller<MailDomain>) -> Controller<MailDomain> {
        let all = controller.store();
        let secrets = self.api::<PartialObjectMeta<Secret>>();
        let watch = Watch::default().fields("type=kubernetes.io/tls");
        let controller = controller.watches(secrets, watch, move |secret| {
            pinning(&all.state(), &secret.name_any(), secret.namespace().as_deref())
        });
        let kind = tlsa::certificates();
        let certificates: Api<DynamicObject> = match &self.config.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &kind),
            None => Api::all_with(self.client.clone(), &kind),
        };
        // Without cert-manager there is no such kind.
        if certificates.list(&ListParams::default().limit(1)).await.is_err() {
            return controller;
        }
        let all = controller.store();
        controller.watches_with(certificates, kind, Watch::default(), move |certificate| {
            pinning(&all.state(), &certificate.name_any(), certificate.namespace().as_deref())
        })
    }

    async fn reconcile_all(&self, shutdown: CancellationToken) {
        let controller = Controller::new(self.api::<MailDomain>(), Watch::default())
            .with_config(
                kube::runtime::controller::Config::default()
                    .debounce(Duration::from_millis(200))
                    .concurrency(self.config.concurrency),
            )
            .owns(self.api::<Secret>(), Watch::default().labels(domains::SELECTOR_LABEL))
            .owns(self.api::<ConfigMap>(), Watch::default().labels(domains::SELECTOR_LABEL))
            .graceful_shutdown_on(shutdown.cancelled_owned());
        // Whoever waits for a domain is looked at again as soon as its holder changes or goes.
        let all = controller.store();
        let controller = controller.watches(self.api::<MailDomain>(), Watch::default(), move |changed| {
            rivals(&changed, &all.state())
        });
        let controller = self.watch_ways(controller).await;
        let reporter = Reporter { controller: MANAGER.to_owned(), instance: None };
        let context = Arc::new(Context {
            client: self.client.clone(),
            namespace: self.config.namespace.clone(),
            require_ownership: self.config.require_ownership,
            observer: Observer::new(self.resolver.clone()),
            recorder: Recorder::new(self.client.clone(), reporter),
            domains: controller.store(),
            rotated: Default::default(),
            failures: Default::default(),
            contests: Default::default(),
            rollovers: Default::default(),
        });
        controller
            .run(reconcile, on_error, context)
            .for_each(|outcome| async move {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "reconciliation ended with an error");
                }
            })
            .await;
    }
}

/// The MailDomains that publish through a provider.
fn users(
    all: &[Arc<MailDomain>],
    kind: ProviderKind,
    name: &str,
    namespace: Option<&str>,
) -> Vec<ObjectRef<MailDomain>> {
    let uses = |domain: &&Arc<MailDomain>| {
        let own = domain.spec.dns.as_ref().and_then(|dns| dns.provider_ref.as_ref());
        let target = domain.spec.dkim.as_ref().and_then(Dkim::delegated);
        let target = target.and_then(|delegation| delegation.provider_ref.as_ref());
        [own, target].into_iter().flatten().any(|provider| provider.kind == kind && provider.name == name)
            && namespace.is_none_or(|namespace| domain.namespace().as_deref() == Some(namespace))
    };
    all.iter().filter(uses).map(|domain| ObjectRef::from_obj(domain.as_ref())).collect()
}

/// The MailDomains of a namespace whose hosts have the certificate of this name, or in the Secret of this name: where
/// cert-manager calls it otherwise, its Certificate tells.
fn pinning(all: &[Arc<MailDomain>], name: &str, namespace: Option<&str>) -> Vec<ObjectRef<MailDomain>> {
    let pins = |domain: &&Arc<MailDomain>| {
        domain.namespace().as_deref() == namespace
            && domain.spec.tlsa.as_ref().is_some_and(|tlsa| tlsa.certificate_ref.name == name)
    };
    all.iter().filter(pins).map(|domain| ObjectRef::from_obj(domain.as_ref())).collect()
}

/// The other objects that name the domain of one that changed or went.
fn rivals(changed: &MailDomain, all: &[Arc<MailDomain>]) -> Vec<ObjectRef<MailDomain>> {
    let rivals = all
        .iter()
        .filter(|other| other.spec.domain == changed.spec.domain && other.uid() != changed.uid())
        // Only who comes after it can gain anything: no two of them wake each other for ever.
        .filter(|other| age(changed) < age(other));
    rivals.map(|other| ObjectRef::from_obj(other.as_ref())).collect()
}

/// The MailDomain of a domain in the cluster at hand: of one namespace, or of all. Of several the oldest.
///
/// # Errors
/// When the Kubernetes API cannot be found, or refuses.
pub async fn find(namespace: Option<&str>, domain: &str) -> Result<Option<MailDomain>, Error> {
    let client = Client::try_default().await.map_err(|cause| Error::NoConfig(Box::new(cause)))?;
    let api: Api<MailDomain> = match namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    let wanted = kube::api::ListParams::default().fields(&format!("spec.domain={domain}"));
    let found = api.list(&wanted).await.map_err(Error::kube("looking for the MailDomain"))?;
    Ok(found.items.into_iter().min_by_key(|one| one.creation_timestamp()))
}

/// Waits until the lease is held, or is not. False when nobody tells any more.
async fn wait_until(leads: &mut tokio::sync::watch::Receiver<bool>, wanted: bool) -> bool {
    leads.wait_for(|leads| *leads == wanted).await.is_ok()
}

/// One round of one domain.
async fn reconcile(domain: Arc<MailDomain>, context: Arc<Context>) -> Result<Action, FinalizerError<Error>> {
    let started = std::time::Instant::now();
    let api: Api<MailDomain> =
        Api::namespaced(context.client.clone(), &domain.namespace().unwrap_or_default());
    let name = domain.spec.domain.clone();
    let span = tracing::info_span!(
        parent: None, "reconcile", otel.status_code = tracing::field::Empty, mail.domain = name
    );
    let work = finalizer(&api, FINALIZER, domain, |event| async {
        match event {
            Finalizer::Apply(domain) => apply(&domain, &context, &api).await,
            Finalizer::Cleanup(domain) => clean_up(&domain, &context).await,
        }
    });
    let outcome = tracing::Instrument::instrument(work, span.clone()).await;
    if outcome.is_err() {
        span.record("otel.status_code", "error");
    }
    metrics::histogram!("packetboat_operator_reconcile_seconds").record(started.elapsed().as_secs_f64());
    outcome
}

async fn apply(domain: &MailDomain, context: &Context, api: &Api<MailDomain>) -> Result<Action, Error> {
    let outcome = context.advance(domain).await?;
    forget_failures(context, domain);
    let status = outcome.findings.status(domain, Timestamp::now());
    if domain.status.as_ref() != Some(&status) {
        write_status(domain, &status, api).await?;
    }
    let jitter = 0.9 + rand::random::<f64>() / 5.0;
    Ok(Action::requeue(outcome.again.mul_f64(jitter)))
}

async fn write_status(
    domain: &MailDomain,
    status: &MailDomainStatus,
    api: &Api<MailDomain>,
) -> Result<(), Error> {
    let patch = json!({
        "apiVersion": "mail.packetboat.dev/v1alpha1",
        "kind": "MailDomain",
        "status": status,
    });
    let params = PatchParams::apply(MANAGER).force();
    api.patch_status(&domain.name_any(), &params, &Patch::Apply(&patch))
        .await
        .map(drop)
        .map_err(Error::kube("writing the status"))
}

async fn clean_up(domain: &MailDomain, context: &Context) -> Result<Action, Error> {
    match context.clean_up(domain).await {
        Ok(()) => {
            forget_failures(context, domain);
            Ok(Action::await_change())
        }
        // `on_error` counts this failure.
        Err(error) if failures(context, domain) + 1 >= CLEAN_UP_TRIES => {
            let text = format!("{}; the object is let go all the same", told(&error));
            context.warn(domain, "CleanUpFailed", text).await;
            forget_failures(context, domain);
            Ok(Action::await_change())
        }
        Err(error) => Err(error),
    }
}

/// Failures in a row of a domain. By UID: names recur in other namespaces.
fn failures(context: &Context, domain: &MailDomain) -> u32 {
    let failures = context.failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    failures.get(&domain.uid().unwrap_or_default()).copied().unwrap_or(0)
}

/// Counts one more failure.
fn count_failure(context: &Context, domain: &MailDomain) -> u32 {
    let mut failures = context.failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let count = failures.entry(domain.uid().unwrap_or_default()).or_insert(0);
    *count = count.saturating_add(1);
    *count
}

fn forget_failures(context: &Context, domain: &MailDomain) {
    let mut failures = context.failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    failures.remove(&domain.uid().unwrap_or_default());
}

fn on_error(domain: Arc<MailDomain>, error: &FinalizerError<Error>, context: Arc<Context>) -> Action {
    let category = match error {
        FinalizerError::ApplyFailed(error) | FinalizerError::CleanupFailed(error) => error.category(),
        _ => "finalizer",
    };
    metrics::counter!("packetboat_operator_reconcile_errors_total", "category" => category).increment(1);
    let count = count_failure(&context, &domain);
    let wait = (FIRST_WAIT * 2_u32.saturating_pow(count.min(10))).min(LONGEST_WAIT);
    tracing::warn!(domain = domain.spec.domain, error = told(error), ?wait, "reconciliation failed");
    Action::requeue(wait)
}
