//! MailDomains of a Kubernetes cluster, followed by watch. What the API server said last stays while it is
//! away. A MailDomain that cannot be used is told in the log and left out; the others go on.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::Store;
use kube::runtime::watcher::{Config, Event, watch_object};
use kube::{Api, Client, Resource, ResourceExt};
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::cluster_index::{Known, Statuses, index_of, remember};
use crate::folder::SecretsWanted;
use crate::index::{DomainIndex, Domains};
use crate::namespaces::Namespaces;
use crate::types::{MailDomain, SecretRef};

/// The label of a Secret with a DKIM key that the operator made; its value is the selector.
pub const SELECTOR_LABEL: &str = "mail.packetboat.dev/dkim-selector";
/// The annotation with the domain of such a key.
pub const DOMAIN_ANNOTATION: &str = "mail.packetboat.dev/domain";
/// The annotation that says where such a key stands in its life; one that is `Active` signs.
pub const STAGE_ANNOTATION: &str = "mail.packetboat.dev/stage";
/// The stage of a key that signs.
pub const ACTIVE: &str = "Active";

/// How long the first answers of the API server may take.
const FIRST_ANSWERS: Duration = Duration::from_secs(30);
/// Changes that come together are taken together.
const GATHERED: Duration = Duration::from_millis(100);

/// Why the MailDomains of a cluster cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Neither a kubeconfig nor a service account is at hand.
    #[error("the Kubernetes API cannot be found: no KUBECONFIG, and no service account in this pod")]
    NoConfig(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The API server does not answer, or refuses.
    #[error(
        "the Kubernetes API has not told the {0} within 30 s; may this service account list and watch them?"
    )]
    NoAnswer(&'static str),
}

/// Follows the MailDomains of these namespaces until `shutdown`. With `require_ownership` those alone count that the
/// operator has seen proven.
///
/// # Errors
/// When the API server cannot be reached, or refuses the first list of any of them.
pub async fn watch_cluster(
    namespaces: &Namespaces,
    wanted: SecretsWanted,
    require_ownership: bool,
    shutdown: CancellationToken,
) -> Result<Domains, ClusterError> {
    let client = Client::try_default().await.map_err(|cause| ClusterError::NoConfig(Box::new(cause)))?;
    let changed = Arc::new(Notify::new());
    let domains: Mirror<MailDomain> =
        Mirror::start(namespaces, &client, &Config::default(), &changed, &shutdown);
    let keys = wanted.signing_keys.then(|| -> Mirror<Secret> {
        let labelled = Config::default().labels(SELECTOR_LABEL);
        Mirror::start(namespaces, &client, &labelled, &changed, &shutdown)
    });
    domains.ready().await.ok_or(ClusterError::NoAnswer("MailDomains"))?;
    if let Some(keys) = &keys {
        keys.ready().await.ok_or(ClusterError::NoAnswer("Secrets with DKIM keys"))?;
    }
    let mut follower = Follower {
        client,
        wanted,
        domains,
        keys,
        named: HashMap::new(),
        told: HashSet::new(),
        statuses: Statuses::new(),
        require_ownership,
        changed,
    };
    let published = Domains::fixed(follower.index(&shutdown).await);
    tracing::info!(domains = published.current().domains.len(), "MailDomains of the cluster followed");
    let following = published.clone();
    tokio::spawn(async move {
        while shutdown.run_until_cancelled(follower.changed.notified()).await.is_some() {
            sleep(GATHERED).await;
            let index = follower.index(&shutdown).await;
            tracing::debug!(domains = index.domains.len(), "MailDomains of the cluster have changed");
            following.replace(index);
        }
    });
    Ok(published)
}

/// The objects of a kind, as the API server told them last.
struct Mirror<K: Resource + 'static>
where
    K::DynamicType: Default + Eq + std::hash::Hash + Clone,
{
    objects: Store<K>,
    ready: watch::Receiver<bool>,
}

impl<K> Mirror<K>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Default + Eq + std::hash::Hash + Clone + Send + Sync,
{
    fn start(
        namespaces: &Namespaces,
        client: &Client,
        config: &Config,
        changed: &Arc<Notify>,
        shutdown: &CancellationToken,
    ) -> Self {
        let (objects, events) = namespaces.follow(client, config);
        let (told, ready) = watch::channel(false);
        let (changed, shutdown) = (Arc::clone(changed), shutdown.clone());
        tokio::spawn(async move {
            let mut events = std::pin::pin!(events);
            while let Some(Some(event)) = shutdown.run_until_cancelled(events.next()).await {
                let complete = matches!(event, Event::InitDone);
                if complete {
                    let _ = told.send(true);
                }
                if complete || matches!(event, Event::Apply(_) | Event::Delete(_)) {
                    changed.notify_one();
                }
            }
        });
        Self { objects, ready }
    }

    /// Waits for the first whole list.
    async fn ready(&self) -> Option<()> {
        let mut ready = self.ready.clone();
        let told = timeout(FIRST_ANSWERS, ready.wait_for(|ready| *ready)).await;
        matches!(told, Ok(Ok(_))).then_some(())
    }
}

pub(crate) type Values = BTreeMap<String, SecretString>;

/// One Secret that a MailDomain names, as it is followed.
struct Named {
    /// Nothing until the first answer; then what is in it, if it is there.
    values: watch::Receiver<Option<Option<Arc<Values>>>>,
    task: AbortHandle,
}

impl Drop for Named {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn values(secret: Secret) -> Values {
    let data = secret.data.unwrap_or_default();
    data.into_iter().filter_map(|(key, value)| Some((key, String::from_utf8(value.0).ok()?.into()))).collect()
}

struct Follower {
    client: Client,
    wanted: SecretsWanted,
    domains: Mirror<MailDomain>,
    keys: Option<Mirror<Secret>>,
    /// Secrets that MailDomains name, by namespace and name.
    named: HashMap<(String, String), Named>,
    /// Problems that were told already.
    told: HashSet<String>,
    statuses: Statuses,
    require_ownership: bool,
    changed: Arc<Notify>,
}

impl Follower {
    /// The index that follows from what is known now.
    async fn index(&mut self, shutdown: &CancellationToken) -> DomainIndex {
        let domains = self.domains.objects.state();
        self.follow_named(&domains, shutdown);
        let mut secrets = HashMap::new();
        let deadline = Instant::now() + FIRST_ANSWERS;
        for (name, named) in &self.named {
            let mut values = named.values.clone();
            if let Ok(Ok(told)) = timeout_at(deadline, values.wait_for(Option::is_some)).await
                && let Some(Some(values)) = &*told
            {
                secrets.insert(name.clone(), Arc::clone(values));
            }
        }
        let keys = self.keys.as_ref().map(|keys| keys.objects.state()).unwrap_or_default();
        remember(&mut self.statuses, &domains);
        let known = Known {
            keys: &keys,
            secrets,
            statuses: std::mem::take(&mut self.statuses),
            wanted: self.wanted,
            require_ownership: self.require_ownership,
        };
        let (index, problems) = index_of(&domains, &known);
        self.statuses = known.statuses;
        let problems: HashSet<String> = problems.into_iter().collect();
        for problem in problems.difference(&self.told) {
            tracing::error!(problem, "part of a MailDomain cannot be used");
        }
        self.told = problems;
        index
    }

    /// Follows the Secrets that the domains name, and those alone.
    fn follow_named(&mut self, domains: &[Arc<MailDomain>], shutdown: &CancellationToken) {
        let mut names = HashSet::new();
        for domain in domains {
            let namespace = domain.namespace().unwrap_or_default();
            names.extend(references(domain, self.wanted).map(|one| (namespace.clone(), one.name.clone())));
        }
        self.named.retain(|name, _| names.contains(name));
        for name in names {
            if !self.named.contains_key(&name) {
                let named = self.follow_one(&name, shutdown.clone());
                self.named.insert(name, named);
            }
        }
    }

    fn follow_one(&self, (namespace, name): &(String, String), shutdown: CancellationToken) -> Named {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let (tell, values_of) = watch::channel(None);
        let (name, changed) = (name.clone(), Arc::clone(&self.changed));
        let task = tokio::spawn(async move {
            let mut states = std::pin::pin!(watch_object(api, &name).default_backoff());
            while let Some(Some(state)) = shutdown.run_until_cancelled(states.next()).await {
                match state {
                    Ok(secret) => {
                        let _ = tell.send(Some(secret.map(|secret| Arc::new(values(secret)))));
                        changed.notify_one();
                    }
                    Err(error) => {
                        // An answer, too: nobody waits for it any more.
                        if is_refusal(&error) {
                            tell.send_if_modified(|told| {
                                let first = told.is_none();
                                told.get_or_insert(None);
                                first
                            });
                        }
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(
                            secret = name,
                            error,
                            "Secret cannot be watched, what it held last stays"
                        );
                    }
                }
            }
        });
        Named { values: values_of, task: task.abort_handle() }
    }
}

/// Whether the API server says that this service account may not.
fn is_refusal(error: &kube::runtime::watcher::Error) -> bool {
    use kube::runtime::watcher::Error;
    match error {
        Error::InitialListFailed(cause) | Error::WatchStartFailed(cause) | Error::WatchFailed(cause) => {
            matches!(cause, kube::Error::Api(status) if status.code == 403)
        }
        Error::WatchError(status) => status.code == 403,
        Error::NoResourceVersion => false,
    }
}

/// The Secrets that a MailDomain names and this role may hold.
fn references(domain: &MailDomain, wanted: SecretsWanted) -> impl Iterator<Item = &SecretRef> {
    let users = domain.spec.submission.as_ref().map(|submission| &submission.users_secret_ref);
    let imported = domain.spec.dkim.iter().flat_map(|dkim| &dkim.imported).map(|key| &key.secret_ref);
    users.filter(|_| wanted.submission_users).into_iter().chain(imported.filter(move |_| wanted.signing_keys))
}
