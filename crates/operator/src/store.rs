//! Keys in the cluster. One Secret a key, written once: only its annotations move, with the key's stage. When a
//! key is revoked the Secret goes, and a ConfigMap keeps its name, stage and dates.

use std::collections::{BTreeMap, HashMap};

use domains::types::{MailDomain, Stage};
use domains::{ACTIVE, Algorithm, DOMAIN_ANNOTATION, SELECTOR_LABEL, STAGE_ANNOTATION};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

use crate::error::Error;
use crate::keypair;
use crate::keys::Key;
use crate::record::PublishedKey;

/// Says since when a key is in its stage, RFC 3339.
const SINCE: &str = "mail.packetboat.dev/stage-since";
/// Says when a key was made, RFC 3339.
const CREATED: &str = "mail.packetboat.dev/created-at";
/// Says what a key signs with.
const ALGORITHM: &str = "mail.packetboat.dev/algorithm";
/// How many looks in a row did not show an active key's record.
const MISSED: &str = "mail.packetboat.dev/missed";
/// Says which of its domain's keys came to sign when.
const TURN: &str = "mail.packetboat.dev/turn";
/// Says where a key's record is, where its selector is a CNAME.
const TARGET: &str = "mail.packetboat.dev/record-name";
/// The key of a Secret under which the private key lies.
const PRIVATE_KEY: &str = "tls.key";
/// Who writes, for server-side apply.
pub(crate) const MANAGER: &str = "packetboat-operator";

/// A key as the cluster has it.
#[derive(Debug, Clone)]
pub(crate) struct StoredKey {
    pub(crate) key: Key,
    /// The Secret, or the ConfigMap of a revoked key.
    pub(crate) object: String,
    /// The public half; nothing when it is revoked.
    pub(crate) public_key: Option<String>,
}

impl StoredKey {
    pub(crate) fn published(&self) -> PublishedKey {
        PublishedKey {
            selector: self.key.selector.clone(),
            algorithm: self.key.algorithm,
            public_key: self.public_key.clone(),
            target: self.key.target.clone(),
        }
    }
}

/// The keys of one domain.
pub(crate) struct KeyStore {
    secrets: Api<Secret>,
    tombstones: Api<ConfigMap>,
}

fn algorithm_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::RsaSha256 => "rsa-sha256",
        Algorithm::Ed25519Sha256 => "ed25519-sha256",
    }
}

fn algorithm_of(name: &str) -> Option<Algorithm> {
    [Algorithm::RsaSha256, Algorithm::Ed25519Sha256].into_iter().find(|one| algorithm_name(*one) == name)
}

/// Reads a key's place in its life from an object's metadata.
fn key_of(meta: &ObjectMeta) -> Option<Key> {
    let annotations = meta.annotations.as_ref()?;
    let time = |name: &str| annotations.get(name)?.parse::<Timestamp>().ok();
    Some(Key {
        selector: meta.labels.as_ref()?.get(SELECTOR_LABEL)?.clone(),
        algorithm: algorithm_of(annotations.get(ALGORITHM)?)?,
        stage: Stage::from_name(annotations.get(STAGE_ANNOTATION)?)?,
        since: time(SINCE)?,
        created: time(CREATED)?,
        missed: annotations.get(MISSED).and_then(|text| text.parse().ok()).unwrap_or(0),
        turn: annotations.get(TURN).and_then(|text| text.parse().ok()).unwrap_or(0),
        target: annotations.get(TARGET).cloned(),
    })
}

/// The metadata of a key's object.
fn meta_of(domain: &MailDomain, key: &Key, object: &str) -> ObjectMeta {
    let mut annotations = vec![
        (DOMAIN_ANNOTATION, domain.spec.domain.clone()),
        (STAGE_ANNOTATION, key.stage.name().to_owned()),
        (SINCE, key.since.to_string()),
        (CREATED, key.created.to_string()),
        (ALGORITHM, algorithm_name(key.algorithm).to_owned()),
        (MISSED, key.missed.to_string()),
        (TURN, key.turn.to_string()),
    ];
    annotations.extend(key.target.clone().map(|target| (TARGET, target)));
    let labels = [(SELECTOR_LABEL, key.selector.as_str()), ("app.kubernetes.io/managed-by", MANAGER)];
    let own = |map: &[(&str, String)]| -> BTreeMap<String, String> {
        map.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    };
    ObjectMeta {
        name: Some(object.to_owned()),
        namespace: domain.namespace(),
        annotations: Some(own(&annotations)),
        labels: Some(labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()),
        owner_references: Some(domain.controller_owner_ref(&()).into_iter().collect()),
        ..ObjectMeta::default()
    }
}

/// The name of a new key's Secret. Selectors that are CNAMEs come again, names never do.
fn object_name(domain: &MailDomain, key: &Key) -> String {
    let name = format!("dkim-{}-{}", domain.name_any(), key.selector);
    match key.target {
        Some(_) => format!("{name}-{:x}", key.created.as_second()),
        None => name,
    }
}

impl KeyStore {
    pub(crate) fn new(client: &Client, namespace: &str) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            tombstones: Api::namespaced(client.clone(), namespace),
        }
    }

    /// All keys of a domain, as their objects tell; nothing else is needed to go on.
    pub(crate) async fn list(&self, domain: &MailDomain) -> Result<Vec<StoredKey>, Error> {
        let labelled = ListParams::default().labels(SELECTOR_LABEL);
        let ours = |meta: &ObjectMeta| {
            let name = meta.annotations.as_ref().and_then(|all| all.get(DOMAIN_ANNOTATION));
            name == Some(&domain.spec.domain) && meta.deletion_timestamp.is_none()
        };
        let mut keys = Vec::new();
        for secret in self.secrets.list(&labelled).await.map_err(Error::kube("listing key Secrets"))? {
            if !ours(&secret.metadata) {
                continue;
            }
            let object = secret.name_any();
            let pem = secret.data.as_ref().and_then(|data| data.get(PRIVATE_KEY));
            let pem = pem.and_then(|octets| String::from_utf8(octets.0.clone()).ok()).map(SecretString::from);
            match (key_of(&secret.metadata), pem) {
                (Some(key), Some(pem)) => match keypair::public_key(key.algorithm, &pem) {
                    Ok(public_key) => keys.push(StoredKey { key, object, public_key: Some(public_key) }),
                    Err(error) => {
                        tracing::error!(secret = object, %error, "DKIM key cannot be read, it is left alone")
                    }
                },
                _ => tracing::error!(
                    secret = object,
                    "annotations of a DKIM key are damaged, it is left alone"
                ),
            }
        }
        let tombstones = self.tombstones.list(&labelled).await;
        for tombstone in tombstones.map_err(Error::kube("listing tombstones of keys"))? {
            if let Some(key) = key_of(&tombstone.metadata).filter(|_| ours(&tombstone.metadata)) {
                // A crash between the two leaves both; the tombstone counts.
                let object = tombstone.name_any();
                keys.retain(|other| other.object != object);
                keys.push(StoredKey { key, object, public_key: None });
            }
        }
        keys.sort_by(|a, b| (a.key.created, &a.key.selector).cmp(&(b.key.created, &b.key.selector)));
        Ok(keys)
    }

    /// Stores a new key. A Secret of that name is never overwritten.
    pub(crate) async fn create(
        &self,
        domain: &MailDomain,
        key: Key,
        pem: &SecretString,
    ) -> Result<StoredKey, Error> {
        let public_key = keypair::public_key(key.algorithm, pem)?;
        let secret = Secret {
            metadata: meta_of(domain, &key, &object_name(domain, &key)),
            immutable: Some(true),
            data: Some(BTreeMap::from([(
                PRIVATE_KEY.to_owned(),
                ByteString(pem.expose_secret().as_bytes().to_vec()),
            )])),
            ..Secret::default()
        };
        let created = self.secrets.create(&PostParams::default(), &secret).await;
        let created = created.map_err(Error::kube("creating a key Secret"))?;
        Ok(StoredKey { key, object: created.name_any(), public_key: Some(public_key) })
    }

    /// Writes down a key's stage. One that is revoked loses its private key for good.
    pub(crate) async fn write(&self, domain: &MailDomain, stored: &mut StoredKey) -> Result<(), Error> {
        let meta = meta_of(domain, &stored.key, &stored.object);
        if stored.key.stage == Stage::Revoked {
            let patch = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": meta,
                "data": {"note": "a revoked DKIM key: its record says so until this object goes"},
            });
            let name = &stored.object;
            self.tombstones
                .patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&patch))
                .await
                .map_err(Error::kube("writing the tombstone of a key"))?;
            ignore_missing(self.secrets.delete(name, &DeleteParams::default()).await)
                .map_err(Error::kube("deleting a revoked key"))?;
            stored.public_key = None;
            return Ok(());
        }
        let patch = json!({"metadata": {"annotations": meta.annotations}});
        self.secrets
            .patch(&stored.object, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .map_err(Error::kube("writing the stage of a key"))?;
        Ok(())
    }

    /// Forgets a revoked key.
    pub(crate) async fn forget(&self, stored: &StoredKey) -> Result<(), Error> {
        ignore_missing(self.tombstones.delete(&stored.object, &DeleteParams::default()).await)
            .map_err(Error::kube("deleting the tombstone of a key"))
    }

    /// Cuts keys loose from their MailDomain, so that they stay when it goes.
    pub(crate) async fn release(&self, stored: &StoredKey) -> Result<(), Error> {
        let patch = json!({"metadata": {"ownerReferences": null}});
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let released = match stored.public_key {
            Some(_) => self.secrets.patch(&stored.object, &params, &patch).await.map(drop),
            None => self.tombstones.patch(&stored.object, &params, &patch).await.map(drop),
        };
        released.map_err(Error::kube("releasing a key"))
    }

    /// Deletes a key with all that is known of it.
    pub(crate) async fn delete(&self, stored: &StoredKey) -> Result<(), Error> {
        ignore_missing(self.secrets.delete(&stored.object, &DeleteParams::default()).await)
            .map_err(Error::kube("deleting a key Secret"))?;
        self.forget(stored).await
    }

    /// All values of a Secret that are texts, without blanks around them; none when it is not there.
    pub(crate) async fn secret_texts(&self, name: &str) -> Result<HashMap<String, SecretString>, Error> {
        let secret = self.secrets.get_opt(name).await.map_err(Error::kube("reading a Secret"))?;
        let data = secret.and_then(|secret| secret.data).unwrap_or_default();
        let text = |(key, value): (String, ByteString)| {
            Some((key, SecretString::from(std::str::from_utf8(&value.0).ok()?.trim().to_owned())))
        };
        Ok(data.into_iter().filter_map(text).collect())
    }

    /// One value of a Secret, as octets.
    pub(crate) async fn secret_value(&self, name: &str, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let secret = self.secrets.get_opt(name).await.map_err(Error::kube("reading a Secret"))?;
        Ok(secret.and_then(|secret| secret.data?.remove(key)).map(|value| value.0))
    }
}

/// What is not there need not be deleted.
pub(crate) fn ignore_missing<T>(outcome: kube::Result<T>) -> kube::Result<()> {
    match outcome {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

const _: () = assert!(matches!(ACTIVE.as_bytes(), b"Active"));
