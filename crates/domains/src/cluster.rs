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
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use smtp::Mailbox;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::folder::SecretsWanted;
use crate::index::{
    DEFAULT_KEY, DomainIndex, Domains, HostedDomain, ServedPolicy, SubmissionUser, hosted, owned_addresses,
};
use crate::key::SigningKey;
use crate::namespaces::Namespaces;
use crate::types::{MailDomain, SecretRef};
use crate::validate::validate;

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

/// Follows the MailDomains of these namespaces until `shutdown`.
///
/// # Errors
/// When the API server cannot be reached, or refuses the first list of any of them.
pub async fn watch_cluster(
    namespaces: &Namespaces,
    wanted: SecretsWanted,
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
        policies: HashMap::new(),
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

type Values = BTreeMap<String, SecretString>;

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

fn values(secret: Secret) -> Values {
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
    /// The policies that the operator told last, by the MailDomain's UID: a status that was erased tells none.
    policies: HashMap<String, Option<String>>,
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
        remember(&mut self.policies, &domains);
        let (index, problems) = index_of(&domains, &keys, &secrets, &self.policies, self.wanted);
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

/// Takes note of the policies that statuses tell.
fn remember(policies: &mut HashMap<String, Option<String>>, domains: &[Arc<MailDomain>]) {
    let present: HashSet<String> = domains.iter().filter_map(|domain| domain.uid()).collect();
    policies.retain(|uid, _| present.contains(uid));
    for domain in domains {
        let told = domain.status.as_ref().filter(|status| !status.conditions.is_empty());
        if let (Some(uid), Some(status)) = (domain.uid(), told) {
            policies.insert(uid, status.mta_sts.as_ref().map(|told| told.policy.clone()));
        }
    }
}

/// The index of what the cluster holds, and what is wrong with it. Of several claims to a domain the oldest
/// holds, and of those of one age the first by name.
fn index_of(
    domains: &[Arc<MailDomain>],
    keys: &[Arc<Secret>],
    secrets: &HashMap<(String, String), Arc<Values>>,
    policies: &HashMap<String, Option<String>>,
    wanted: SecretsWanted,
) -> (DomainIndex, Vec<String>) {
    let mut claims: Vec<&Arc<MailDomain>> = domains.iter().collect();
    claims.sort_by_key(|domain| (domain.creation_timestamp(), domain.namespace(), domain.name_any()));
    let (mut index, mut problems) = (DomainIndex::default(), Vec::new());
    for resource in claims {
        let namespace = resource.namespace().unwrap_or_default();
        let label = format!("{namespace}/{}", resource.name_any());
        let wrong = validate(&resource.spec);
        if !wrong.is_empty() {
            problems
                .extend(wrong.into_iter().map(|(key, text)| format!("MailDomain {label}: {key}: {text}")));
            continue;
        }
        if index.domains.contains_key(&resource.spec.domain) {
            problems.push(format!("MailDomain {label}: {} is claimed by an older one", resource.spec.domain));
            continue;
        }
        let mut domain = hosted(label, resource.spec.clone());
        let told = resource.uid().and_then(|uid| policies.get(&uid).cloned());
        domain.policy = ServedPolicy::Told(told.flatten());
        let named = |reference: &SecretRef| secrets.get(&(namespace.clone(), reference.name.clone()));
        if wanted.signing_keys {
            let made = made_keys(&namespace, &domain, keys, &mut problems);
            let imported = imported_keys(&domain, named, &mut problems);
            domain.signing_keys = made.into_iter().chain(imported).collect();
        }
        if wanted.submission_users {
            for user in users(&domain, named, &mut problems) {
                index.users.insert(user.login.to_lowercase(), Arc::new(user));
            }
        }
        index.domains.insert(domain.name.clone(), Arc::new(domain));
    }
    (index, problems)
}

/// The keys that the operator made for a domain and that sign now.
fn made_keys(
    namespace: &str,
    domain: &HostedDomain,
    keys: &[Arc<Secret>],
    problems: &mut Vec<String>,
) -> Vec<SigningKey> {
    let signs = |secret: &&Arc<Secret>| {
        secret.namespace().as_deref() == Some(namespace)
            && secret.annotations().get(DOMAIN_ANNOTATION) == Some(&domain.name)
            && secret.annotations().get(STAGE_ANNOTATION).is_some_and(|stage| stage == ACTIVE)
            && secret.metadata.deletion_timestamp.is_none()
    };
    let read = |secret: &Arc<Secret>| {
        let selector = secret.labels().get(SELECTOR_LABEL)?;
        let pem = values(Secret::clone(secret)).remove(DEFAULT_KEY);
        let key = pem
            .ok_or_else(|| format!("it has no {DEFAULT_KEY}"))
            .and_then(|pem| SigningKey::from_pem(selector, pem).map_err(|error| error.to_string()));
        match key {
            Ok(key) => Some(key),
            Err(text) => {
                problems.push(format!("Secret {namespace}/{}: {text}", secret.name_any()));
                None
            }
        }
    };
    keys.iter().filter(signs).filter_map(read).collect()
}

fn imported_keys<'s>(
    domain: &HostedDomain,
    named: impl Fn(&SecretRef) -> Option<&'s Arc<Values>>,
    problems: &mut Vec<String>,
) -> Vec<SigningKey> {
    let mut keys = Vec::new();
    for import in domain.spec.dkim.iter().flat_map(|dkim| &dkim.imported) {
        let entry = import.secret_ref.key.as_deref().unwrap_or(DEFAULT_KEY);
        let pem = named(&import.secret_ref).and_then(|values| values.get(entry).cloned());
        let key = pem
            .ok_or_else(|| "it is not there".to_owned())
            .and_then(|pem| SigningKey::from_pem(&import.selector, pem).map_err(|error| error.to_string()));
        match key {
            Ok(key) => keys.push(key),
            Err(text) => problems.push(format!(
                "MailDomain {}: {entry:?} in Secret {}: {text}",
                domain.resource, import.secret_ref.name
            )),
        }
    }
    keys
}

fn users<'s>(
    domain: &HostedDomain,
    named: impl Fn(&SecretRef) -> Option<&'s Arc<Values>>,
    problems: &mut Vec<String>,
) -> Vec<SubmissionUser> {
    let Some(submission) = &domain.spec.submission else { return Vec::new() };
    let reference = &submission.users_secret_ref;
    let Some(values) = named(reference) else {
        problems.push(format!(
            "MailDomain {}: there is no Secret {}, or it may not be read",
            domain.resource, reference.name
        ));
        return Vec::new();
    };
    let mut users = Vec::new();
    for (local_part, hash) in &**values {
        let login = format!("{local_part}@{}", domain.name);
        let trimmed = hash.expose_secret().trim();
        if !trimmed.starts_with("$argon2id$") || login.parse::<Mailbox>().is_err() {
            problems.push(format!(
                "MailDomain {}: {local_part:?} in Secret {} must be a local part with an argon2id hash",
                domain.resource, reference.name
            ));
            continue;
        }
        let owned_addresses = owned_addresses(domain, local_part);
        users.push(SubmissionUser { login, password_hash: trimmed.into(), owned_addresses });
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(namespace: &str, created: &str, spec: serde_json::Value) -> Arc<MailDomain> {
        let object = serde_json::json!({
            "apiVersion": "mail.packetboat.dev/v1alpha1",
            "kind": "MailDomain",
            "metadata": {"name": "d", "namespace": namespace, "creationTimestamp": created},
            "spec": spec,
        });
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn the_oldest_claim_holds() {
        let spec = serde_json::json!({"domain": "example.com"});
        let claims = [
            domain("a", "2026-02-01T00:00:00Z", spec.clone()),
            domain("z", "2026-01-01T00:00:00Z", spec.clone()),
        ];
        let (index, problems) =
            index_of(&claims, &[], &HashMap::new(), &HashMap::new(), SecretsWanted::default());
        assert_eq!(index.hosted("example.com").unwrap().resource, "z/d");
        assert_eq!(problems.len(), 1);
        assert!(!problems[0].contains("z/d"), "the other tenant is named: {problems:?}");
    }

    #[test]
    fn a_policy_is_served_until_the_operator_says_otherwise() {
        let told = |status: serde_json::Value| {
            let object = serde_json::json!({
                "apiVersion": "mail.packetboat.dev/v1alpha1", "kind": "MailDomain",
                "metadata": {"name": "d", "namespace": "a", "uid": "1"},
                "spec": {"domain": "example.com"}, "status": status,
            });
            [Arc::new(serde_json::from_value::<MailDomain>(object).unwrap())]
        };
        let condition = serde_json::json!([{
            "type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]);
        let mut policies = HashMap::new();
        let mut served = |status| {
            let domains = told(status);
            remember(&mut policies, &domains);
            let (index, _) = index_of(&domains, &[], &HashMap::new(), &policies, SecretsWanted::default());
            index.hosted("example.com").unwrap().policy.clone()
        };
        let text = "version: STSv1\r\n".to_owned();
        let policy = serde_json::json!({"policy": text, "policyId": "1"});
        assert_eq!(served(serde_json::json!({})), ServedPolicy::Told(None));
        let with = serde_json::json!({"conditions": condition, "mtaSts": policy});
        assert_eq!(served(with), ServedPolicy::Told(Some(text.clone())));
        assert_eq!(served(serde_json::json!({})), ServedPolicy::Told(Some(text)), "an erased status counts");
        assert_eq!(served(serde_json::json!({"conditions": condition})), ServedPolicy::Told(None));
    }

    #[test]
    fn one_bad_domain_does_not_stop_the_others() {
        let good = domain("a", "2026-01-01T00:00:00Z", serde_json::json!({"domain": "example.com"}));
        let bad = domain("b", "2026-01-01T00:00:00Z", serde_json::json!({"domain": "Example"}));
        let (index, problems) =
            index_of(&[bad, good], &[], &HashMap::new(), &HashMap::new(), SecretsWanted::default());
        assert!(index.hosted("example.com").is_some());
        assert!(
            problems.iter().all(|problem| problem.starts_with("MailDomain b/d: spec.domain")),
            "{problems:?}"
        );
    }
}
