//! Runs reconciliations for all MailDomains, in the one process that holds the lease.

use std::sync::Arc;
use std::time::Duration;

use dns::Resolver;
use domains::Namespaces;
use domains::types::{ClusterDNSProvider, DNSProvider, Dkim, MailDomain, MailDomainStatus, ProviderKind};
use futures::StreamExt;
use futures::future::ready;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, ApiResource, DynamicObject, ListParams, PartialObjectMeta, Patch, PatchParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::finalizer::{Error as FinalizerError, Event as Finalizer, finalizer};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::{Config as Watch, Event};
use kube::{Client, ResourceExt};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::endpoints;
use crate::error::Error;
use crate::failures::Failures;
use crate::leadership::Leadership;
use crate::memory::POLICY_LABEL;
use crate::mirror::{Mirror, followed};
use crate::observe::Observer;
use crate::password;
use crate::peer;
use crate::reconcile::{Context, age, told};
use crate::store::{Keys, MANAGER, without_private_key};
use crate::tally::Tally;
use crate::tlsa;
use crate::ways::Ways;
use crate::witness::{PolicyConfig, Witness};

/// What holds a MailDomain until its keys and records are seen to.
const FINALIZER: &str = "mail.packetboat.dev/operator";
/// Changes that come together are looked at together.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// The wait after a write that came too late.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait after a round that failed.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// The longest wait while name servers, or providers, do not do what they are asked.
const LONGEST_TROUBLE: Duration = Duration::from_secs(120);
/// A domain that fails to be cleaned up so often is let go: a namespace must not hang on it.
const CLEAN_UP_TRIES: u32 = 5;

/// Settings of the operator.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
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
    /// MTA-STS: how policies are looked at from outside.
    pub mta_sts: PolicyConfig,
    /// Certificates between the services.
    pub peer_certificates: peer::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lease_namespace: "default".to_owned(),
            lease_name: "packetboat-operator".to_owned(),
            lease_duration: Duration::from_secs(15),
            concurrency: 16,
            require_ownership: false,
            redis_password_secret: None,
            mta_sts: PolicyConfig::default(),
            peer_certificates: peer::Config::default(),
        }
    }
}

/// The operator, ready to run.
pub struct Operator {
    config: Config,
    namespaces: Namespaces,
    client: Client,
    resolver: Resolver,
    witness: Arc<Witness>,
}

impl Operator {
    /// Finds the Kubernetes API, for the MailDomains of these namespaces. Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`Error::NoConfig`] and [`Error::Trust`].
    pub async fn new(config: Config, namespaces: Namespaces, resolver: Resolver) -> Result<Self, Error> {
        let client = Client::try_default().await.map_err(|cause| Error::NoConfig(Box::new(cause)))?;
        let witness = Arc::new(Witness::new(config.mta_sts.clone(), resolver.clone())?);
        Ok(Self { config, namespaces, client, resolver, witness })
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
        let (leadership, manager) = Leadership::new(&self.client, &self.config).await?;
        let (mut leads, lease) = manager.watch().await;
        loop {
            let elected = shutdown.run_until_cancelled(wait_until(&mut leads, true)).await;
            if elected != Some(true) {
                break;
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = wait_until(&mut leads, false) => continue,
                () = leadership.confirmed() => {}
            }
            tracing::info!(lease = self.config.lease_name, "this operator leads");
            metrics::gauge!("packetboat_operator_leads").set(1.0);
            let term = shutdown.child_token();
            let ends = async {
                tokio::select! {
                    _ = wait_until(&mut leads, false) => {}
                    () = leadership.lost() => {}
                }
                term.cancel();
            };
            tokio::select! {
                () = self.lead(term.clone()) => {}
                () = ends => tracing::warn!("the lease is lost, another operator may lead"),
            }
            metrics::gauge!("packetboat_operator_leads").set(0.0);
            // What others look after is not told of from here.
            Tally::default().tell();
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

    /// A change of a mail host's certificate wakes whoever has TLSA records of it. Of Secrets only the names are kept.
    async fn watch_certificates(&self, mut controller: Controller<MailDomain>) -> Controller<MailDomain> {
        let watch = Watch::default().fields("type=kubernetes.io/tls");
        for secrets in self.namespaces.apis::<PartialObjectMeta<Secret>>(&self.client) {
            let all = controller.store();
            controller = controller.watches(secrets, watch.clone(), move |secret| {
                pinning(&all.state(), &secret.name_any(), secret.namespace().as_deref())
            });
        }
        let kind = tlsa::certificates();
        for certificates in self.places(&kind) {
            // Without cert-manager there is no such kind.
            if certificates.list(&ListParams::default().limit(1)).await.is_err() {
                continue;
            }
            let all = controller.store();
            controller =
                controller.watches_with(certificates, kind.clone(), Watch::default(), move |certificate| {
                    pinning(&all.state(), &certificate.name_any(), certificate.namespace().as_deref())
                });
        }
        controller
    }

    /// Where objects of a kind of others are found.
    fn places(&self, kind: &ApiResource) -> Vec<Api<DynamicObject>> {
        match &self.namespaces {
            Namespaces::All => vec![Api::all_with(self.client.clone(), kind)],
            Namespaces::These(names) => {
                names.iter().map(|name| Api::namespaced_with(self.client.clone(), name, kind)).collect()
            }
        }
    }

    async fn reconcile_all(&self, shutdown: CancellationToken) {
        let (store, events) = self.namespaces.follow::<MailDomain>(&self.client, &Watch::default());
        let all = store.clone();
        // Whoever waits for a domain is looked at again as soon as its holder changes or goes.
        let (woken, rivals_woken) = tokio::sync::mpsc::unbounded_channel();
        let changed = events.filter_map(move |event| {
            let (Event::Apply(domain) | Event::Delete(domain) | Event::InitApply(domain)) = &event else {
                return ready(None);
            };
            for rival in rivals(domain, &all.state()) {
                // It fails when the controller ends.
                let _ = woken.send(rival);
            }
            ready(match event {
                Event::Apply(domain) | Event::InitApply(domain) => Some(Ok(domain)),
                _ => None,
            })
        });
        let controller = Controller::for_stream(changed, store)
            .with_config(
                kube::runtime::controller::Config::default()
                    .debounce(DEBOUNCE)
                    .concurrency(self.config.concurrency),
            )
            .reconcile_on(UnboundedReceiverStream::new(rivals_woken))
            .graceful_shutdown_on(shutdown.cancelled_owned());
        let (controller, keys) = self.watch_keys(controller);
        let controller = self.watch_memories(controller);
        let (controller, ways) = self.watch_ways(controller);
        let controller = self.watch_certificates(controller).await;
        let controller = self.watch_endpoints(controller).await;
        let reporter = Reporter { controller: MANAGER.to_owned(), instance: None };
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let context = Arc::new(Context {
            client: self.client.clone(),
            namespaces: self.namespaces.clone(),
            require_ownership: self.config.require_ownership,
            observer: Observer::new(self.resolver.clone()),
            witness: Arc::clone(&self.witness),
            recorder: Recorder::new(self.client.clone(), reporter),
            domains: controller.store(),
            keys,
            ways,
            generators: Semaphore::new(processors.saturating_sub(1).max(1)),
            tally: Tally::default(),
            waits: Default::default(),
            failures: Failures::default(),
            troubles: Failures::default(),
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

    /// A change of a key wakes its domain.
    fn watch_keys(&self, controller: Controller<MailDomain>) -> (Controller<MailDomain>, Keys) {
        let labelled = Watch::default().labels(domains::SELECTOR_LABEL);
        let apis = self.namespaces.apis::<Secret>(&self.client);
        let (secrets, changed) = Mirror::new(apis, &labelled, without_private_key);
        let controller = controller.owns_stream(changed);
        let apis = self.namespaces.apis::<ConfigMap>(&self.client);
        let (tombstones, changed) = Mirror::new(apis, &labelled, |_| {});
        (controller.owns_stream(changed), Keys { secrets, tombstones })
    }

    /// A change of what is remembered of a policy wakes its domain.
    fn watch_memories(&self, mut controller: Controller<MailDomain>) -> Controller<MailDomain> {
        for memories in self.namespaces.apis::<ConfigMap>(&self.client) {
            controller = controller.owns(memories, Watch::default().labels(POLICY_LABEL));
        }
        controller
    }

    /// A change of a provider wakes the domains that are published through it.
    fn watch_ways(&self, controller: Controller<MailDomain>) -> (Controller<MailDomain>, Ways) {
        let all = controller.store();
        let (providers, changed) = followed(self.namespaces.apis::<DNSProvider>(&self.client));
        let mut controller = controller.watches_stream(changed, move |provider: DNSProvider| {
            let namespace = provider.namespace();
            users(&all.state(), ProviderKind::DNSProvider, &provider.name_any(), namespace.as_deref())
        });
        let mut cluster_providers = Vec::new();
        if self.namespaces.is_all() {
            let all = controller.store();
            let (stores, changed) = followed(vec![Api::<ClusterDNSProvider>::all(self.client.clone())]);
            cluster_providers = stores;
            controller = controller.watches_stream(changed, move |provider: ClusterDNSProvider| {
                users(&all.state(), ProviderKind::ClusterDNSProvider, &provider.name_any(), None)
            });
        }
        let (client, credentials) = (self.client.clone(), Default::default());
        (controller, Ways { client, providers, cluster_providers, credentials })
    }

    /// A change of an object for external-dns wakes its domain.
    async fn watch_endpoints(&self, mut controller: Controller<MailDomain>) -> Controller<MailDomain> {
        let kind = endpoints::kind();
        for objects in self.places(&kind) {
            // Without external-dns there is no such kind; where it comes later, domains look by themselves.
            if objects.list(&ListParams::default().limit(1)).await.is_ok() {
                let labelled = Watch::default().labels(endpoints::OF);
                controller = controller.owns_with(objects, kind.clone(), labelled);
            }
        }
        controller
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

/// The MailDomain of a domain in the cluster at hand, in these namespaces. Of several the oldest.
///
/// # Errors
/// When the Kubernetes API cannot be found, or refuses.
pub async fn find(namespaces: &Namespaces, domain: &str) -> Result<Option<MailDomain>, Error> {
    let client = Client::try_default().await.map_err(|cause| Error::NoConfig(Box::new(cause)))?;
    let wanted = ListParams::default().fields(&format!("spec.domain={domain}"));
    let mut found = Vec::new();
    for api in namespaces.apis::<MailDomain>(&client) {
        found.extend(api.list(&wanted).await.map_err(Error::kube("looking for the MailDomain"))?.items);
    }
    Ok(found.into_iter().min_by_key(age))
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
    let uid = domain.uid().unwrap_or_default();
    let outcome = context.advance(domain).await?;
    context.failures.forget(&uid);
    let findings = &outcome.findings;
    context.tell_drift(domain, &findings.records).await;
    let has_keys_made =
        !findings.conflict && domain.spec.dkim.as_ref().is_some_and(crate::status::has_keys_made);
    context.tally.note(&uid, has_keys_made, &findings.keys, &findings.records);
    context.tally.tell();
    let wait = if findings.is_in_trouble() {
        outcome.again.max(context.troubles.wait(&uid, LONGEST_TROUBLE))
    } else {
        context.troubles.forget(&uid);
        outcome.again
    };
    let status = findings.status(domain, Timestamp::now());
    if domain.status.as_ref() != Some(&status) && !write_status(domain, &status, api).await? {
        return Ok(Action::requeue(FIRST_WAIT));
    }
    let jitter = 0.9 + rand::random::<f64>() / 5.0;
    Ok(Action::requeue(wait.mul_f64(jitter)))
}

/// Writes the status; false where the object has changed since it was looked at, and that is to be looked at
/// first.
async fn write_status(
    domain: &MailDomain,
    status: &MailDomainStatus,
    api: &Api<MailDomain>,
) -> Result<bool, Error> {
    let patch = json!({
        "apiVersion": "mail.packetboat.dev/v1alpha1",
        "kind": "MailDomain",
        "metadata": {"resourceVersion": domain.resource_version()},
        "status": status,
    });
    let params = PatchParams::apply(MANAGER).force();
    match api.patch_status(&domain.name_any(), &params, &Patch::Apply(&patch)).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(refused)) if refused.code == 409 => Ok(false),
        Err(error) => Err(Error::kube("writing the status")(error)),
    }
}

async fn clean_up(domain: &MailDomain, context: &Context) -> Result<Action, Error> {
    let uid = domain.uid().unwrap_or_default();
    match context.clean_up(domain).await {
        Ok(()) => {}
        // `on_error` counts this failure.
        Err(error) if context.failures.count(&uid) + 1 >= CLEAN_UP_TRIES => {
            let text = format!("{}; the object is let go all the same", told(&error));
            context.warn(domain, "CleanUpFailed", text).await;
        }
        Err(error) => return Err(error),
    }
    context.failures.forget(&uid);
    context.troubles.forget(&uid);
    context.tally.forget(&uid);
    context.waits.forget(&uid);
    context.tally.tell();
    Ok(Action::await_change())
}

fn on_error(domain: Arc<MailDomain>, error: &FinalizerError<Error>, context: Arc<Context>) -> Action {
    let category = match error {
        FinalizerError::ApplyFailed(error) | FinalizerError::CleanupFailed(error) => error.category(),
        _ => "finalizer",
    };
    metrics::counter!("packetboat_operator_reconcile_errors_total", "category" => category).increment(1);
    let wait = context.failures.wait(&domain.uid().unwrap_or_default(), LONGEST_WAIT);
    tracing::warn!(domain = domain.spec.domain, error = told(error), ?wait, "reconciliation failed");
    Action::requeue(wait)
}
