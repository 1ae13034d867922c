//! The index that follows from the objects of a cluster.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use secrecy::ExposeSecret;
use smtp::Mailbox;

use crate::cluster::{ACTIVE, DOMAIN_ANNOTATION, SELECTOR_LABEL, STAGE_ANNOTATION, Values, values};
use crate::folder::SecretsWanted;
use crate::index::{
    DEFAULT_KEY, DomainIndex, HostedDomain, ServedPolicy, SubmissionUser, hosted, owned_addresses,
};
use crate::key::SigningKey;
use crate::ownership::ownership_stands;
use crate::status::MailDomainStatus;
use crate::types::{MailDomain, SecretRef};
use crate::validate::validate;

/// What the operator told last of each MailDomain, by its UID: a status that was erased tells nothing.
pub(crate) type Statuses = HashMap<String, MailDomainStatus>;

/// Takes note of what statuses tell.
pub(crate) fn remember(statuses: &mut Statuses, domains: &[Arc<MailDomain>]) {
    let present: HashSet<String> = domains.iter().filter_map(|domain| domain.uid()).collect();
    statuses.retain(|uid, _| present.contains(uid));
    for domain in domains {
        let told = domain.status.as_ref().filter(|status| !status.conditions.is_empty());
        if let (Some(uid), Some(status)) = (domain.uid(), told) {
            statuses.insert(uid, status.clone());
        }
    }
}

/// What an index follows from, beside the MailDomains.
#[derive(Default)]
pub(crate) struct Known<'a> {
    /// The DKIM keys that the operator made.
    pub(crate) keys: &'a [Arc<Secret>],
    /// The Secrets that MailDomains name, by namespace and name.
    pub(crate) secrets: HashMap<(String, String), Arc<Values>>,
    /// What the operator told last.
    pub(crate) statuses: Statuses,
    /// Which Secrets this role reads.
    pub(crate) wanted: SecretsWanted,
    /// Every MailDomain's ownership is to be proven.
    pub(crate) require_ownership: bool,
}

/// The index of what the cluster holds, and what is wrong with it. Of several claims to a domain the oldest
/// holds, and of those of one age the first by name; one that is yet to be proven is none.
pub(crate) fn index_of(domains: &[Arc<MailDomain>], known: &Known<'_>) -> (DomainIndex, Vec<String>) {
    let wanted = known.wanted;
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
        let status = resource.uid().and_then(|uid| known.statuses.get(&uid));
        if !ownership_stands(&resource.spec, status, known.require_ownership) {
            problems
                .push(format!("MailDomain {label}: the ownership of {} is not proven", resource.spec.domain));
            continue;
        }
        if index.domains.contains_key(&resource.spec.domain) {
            problems.push(format!("MailDomain {label}: {} is claimed by an older one", resource.spec.domain));
            continue;
        }
        let mut domain = hosted(label, resource.spec.clone());
        let policy = status.and_then(|status| status.mta_sts.as_ref()).map(|told| told.policy.clone());
        domain.policy = ServedPolicy::Told(policy);
        let named = |reference: &SecretRef| known.secrets.get(&(namespace.clone(), reference.name.clone()));
        if wanted.signing_keys {
            let made = made_keys(&namespace, &domain, known.keys, &mut problems);
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
        let (index, problems) = index_of(&claims, &Known::default());
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
        let mut known = Known::default();
        let mut served = |status| {
            let domains = told(status);
            remember(&mut known.statuses, &domains);
            let (index, _) = index_of(&domains, &known);
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
    fn what_is_not_proven_claims_nothing() {
        let claim = |namespace: &str, uid: &str, created: &str, proven: Option<&str>| {
            let ready = serde_json::json!([{
                "type": "Ready", "status": "False", "reason": "Any", "message": "", "lastTransitionTime": created,
            }]);
            let object = serde_json::json!({
                "apiVersion": "mail.packetboat.dev/v1alpha1", "kind": "MailDomain",
                "metadata": {"name": "d", "namespace": namespace, "uid": uid, "creationTimestamp": created},
                "spec": {"domain": "example.com"}, "status": {"conditions": ready, "ownershipProvenAt": proven},
            });
            Arc::new(serde_json::from_value::<MailDomain>(object).unwrap())
        };
        let squatter = claim("a", "1", "2026-01-01T00:00:00Z", None);
        let owner = claim("b", "2", "2026-01-02T00:00:00Z", Some("2026-01-03T00:00:00Z"));
        let mut known = Known { require_ownership: true, ..Known::default() };
        let claims = [squatter, owner];
        remember(&mut known.statuses, &claims);
        let holder = |known: &Known<'_>| {
            let (index, _) = index_of(&claims, known);
            index.hosted("example.com").map(|domain| domain.resource.clone())
        };
        assert_eq!(holder(&known).as_deref(), Some("b/d"));
        known.statuses.remove("2");
        assert_eq!(holder(&known), None);
        known.require_ownership = false;
        assert_eq!(holder(&known).as_deref(), Some("a/d"));
    }

    #[test]
    fn one_bad_domain_does_not_stop_the_others() {
        let good = domain("a", "2026-01-01T00:00:00Z", serde_json::json!({"domain": "example.com"}));
        let bad = domain("b", "2026-01-01T00:00:00Z", serde_json::json!({"domain": "Example"}));
        let (index, problems) = index_of(&[bad, good], &Known::default());
        assert!(index.hosted("example.com").is_some());
        assert!(
            problems.iter().all(|problem| problem.starts_with("MailDomain b/d: spec.domain")),
            "{problems:?}"
        );
    }
}
