//! Keys in the cluster. One Secret a key, written once: only its annotations move, with the key's stage. When a
//! key is revoked the Secret goes, and a ConfigMap keeps its name, stage and dates.
//!
//! Every change of a Secret names the version that it follows from: an operator that has been asleep, and does
//! not know yet that another leads, is refused.

use std::collections::BTreeMap;

use domains::types::{MailDomain, Stage};
use domains::{ACTIVE, Algorithm, DOMAIN_ANNOTATION, SELECTOR_LABEL, STAGE_ANNOTATION};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

use crate::error::Error;
use crate::keypair;
use crate::keys::Key;
use crate::mirror::Mirror;
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
/// Which rotation, asked for by annotation, a key answers.
const ORDER: &str = "mail.packetboat.dev/made-for";
/// The key of a Secret under which the private key lies.
const PRIVATE_KEY: &str = "tls.key";
/// Who writes, for server-side apply.
pub(crate) const MANAGER: &str = "packetboat-operator";
/// In memory alone, in place of the private key: the public one.
const PUBLIC_KEY: &str = "public";

/// A key as the cluster has it.
#[derive(Debug, Clone)]
pub(crate) struct StoredKey {
    pub(crate) key: Key,
    /// The Secret, and the ConfigMap that comes in its place when it is revoked.
    pub(crate) object: String,
    /// The public half; nothing when it is revoked.
    pub(crate) public_key: Option<String>,
    /// The version of the Secret; nothing once that is gone.
    pub(crate) version: Option<String>,
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

    /// Whether it is revoked, and its private key is still there: what was begun is to be ended.
    pub(crate) fn is_half_revoked(&self) -> bool {
        self.key.stage == Stage::Revoked && self.version.is_some()
    }
}

/// All keys of the cluster, or of the namespace that is looked after.
pub(crate) struct Keys {
    pub(crate) secrets: Mirror<Secret>,
    pub(crate) tombstones: Mirror<ConfigMap>,
}

/// Puts the public key in the place of the private one: that is not needed any more, and not kept in memory.
pub(crate) fn without_private_key(secret: &mut Secret) {
    let algorithm = secret.annotations().get(ALGORITHM).and_then(|name| algorithm_of(name));
    let data = secret.data.take().unwrap_or_default();
    let private = data.into_iter().find(|(name, _)| name == PRIVATE_KEY).map(|(_, octets)| octets.0);
    let private = private.and_then(|octets| String::from_utf8(octets).ok()).map(SecretString::from);
    let Some((algorithm, private)) = algorithm.zip(private) else { return };
    match keypair::public_key(algorithm, &private) {
        Ok(public) => {
            secret.data = Some(BTreeMap::from([(PUBLIC_KEY.to_owned(), ByteString(public.into_bytes()))]));
        }
        Err(error) => {
            tracing::error!(secret = secret.name_any(), %error, "DKIM key cannot be read, it is left alone");
        }
    }
}

/// The keys of one domain.
pub(crate) struct KeyStore<'a> {
    secrets: Api<Secret>,
    tombstones: Api<ConfigMap>,
    namespace: String,
    all: &'a Keys,
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
        waited: None,
        created: time(CREATED)?,
        missed: annotations.get(MISSED).and_then(|text| text.parse().ok()).unwrap_or(0),
        turn: annotations.get(TURN).and_then(|text| text.parse().ok()).unwrap_or(0),
        target: annotations.get(TARGET).cloned(),
        order: annotations.get(ORDER).cloned(),
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
    annotations.extend(key.order.clone().map(|order| (ORDER, order)));
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

impl<'a> KeyStore<'a> {
    pub(crate) fn new(client: &Client, namespace: &str, all: &'a Keys) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            tombstones: Api::namespaced(client.clone(), namespace),
            namespace: namespace.to_owned(),
            all,
        }
    }

    /// All keys of a domain, as their objects tell; nothing else is needed to go on.
    ///
    /// # Errors
    /// When the API server has not told of them yet.
    pub(crate) async fn list(&self, domain: &MailDomain) -> Result<Vec<StoredKey>, Error> {
        self.all.secrets.ready().await?;
        self.all.tombstones.ready().await?;
        let ours = |meta: &ObjectMeta| {
            let name = meta.annotations.as_ref().and_then(|all| all.get(DOMAIN_ANNOTATION));
            name == Some(&domain.spec.domain)
                && meta.namespace.as_ref() == Some(&self.namespace)
                && meta.deletion_timestamp.is_none()
        };
        let mut keys = Vec::new();
        for secret in self.all.secrets.all(|secret| ours(&secret.metadata)) {
            let public = secret.data.as_ref().and_then(|data| data.get(PUBLIC_KEY));
            let public = public.and_then(|octets| String::from_utf8(octets.0.clone()).ok());
            let object = secret.name_any();
            match (key_of(&secret.metadata), public) {
                (Some(key), Some(public)) => {
                    let public_key = Some(public).filter(|_| key.stage != Stage::Revoked);
                    keys.push(StoredKey { key, object, public_key, version: secret.resource_version() });
                }
                _ => tracing::error!(
                    secret = object,
                    "DKIM key or its annotations are damaged, it is left alone"
                ),
            }
        }
        for tombstone in self.all.tombstones.all(|tombstone| ours(&tombstone.metadata)) {
            if let Some(key) = key_of(&tombstone.metadata) {
                // A crash between the two leaves both; the tombstone counts.
                let object = tombstone.name_any();
                let both = keys.iter().position(|other| other.object == object);
                let version = both.and_then(|at| keys.swap_remove(at).version);
                keys.push(StoredKey { key, object, public_key: None, version });
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
        let (object, version) = (created.name_any(), created.resource_version());
        self.all.secrets.wrote(created);
        Ok(StoredKey { key, object, public_key: Some(public_key), version })
    }

    /// Writes down a key's stage. One that is revoked loses its private key for good.
    ///
    /// # Errors
    /// When the Kubernetes API refuses: the Secret has changed since it was looked at, say.
    pub(crate) async fn write(&self, domain: &MailDomain, stored: &mut StoredKey) -> Result<(), Error> {
        if stored.version.is_some() {
            let annotations = meta_of(domain, &stored.key, &stored.object).annotations;
            let patch = json!({"metadata": {"annotations": annotations, "resourceVersion": stored.version}});
            let params = PatchParams::default();
            let written = self.secrets.patch(&stored.object, &params, &Patch::Merge(&patch)).await;
            let written = written.map_err(Error::kube("writing the stage of a key"))?;
            stored.version = written.resource_version();
            self.all.secrets.wrote(written);
        }
        // A revoked one signs no more from here on, whatever happens.
        if stored.key.stage == Stage::Revoked { self.bury(domain, stored).await } else { Ok(()) }
    }

    /// Puts a tombstone in the place of a revoked key's Secret.
    pub(crate) async fn bury(&self, domain: &MailDomain, stored: &mut StoredKey) -> Result<(), Error> {
        let patch = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": meta_of(domain, &stored.key, &stored.object),
            "data": {"note": "a revoked DKIM key: its record says so until this object goes"},
        });
        let params = PatchParams::apply(MANAGER).force();
        let written = self.tombstones.patch(&stored.object, &params, &Patch::Apply(&patch)).await;
        self.all.tombstones.wrote(written.map_err(Error::kube("writing the tombstone of a key"))?);
        self.remove_secret(stored).await?;
        (stored.public_key, stored.version) = (None, None);
        Ok(())
    }

    async fn remove_secret(&self, stored: &StoredKey) -> Result<(), Error> {
        ignore_missing(self.secrets.delete(&stored.object, &DeleteParams::default()).await)
            .map_err(Error::kube("deleting a key Secret"))?;
        self.all.secrets.removed(&self.namespace, &stored.object);
        Ok(())
    }

    /// Forgets a revoked key.
    pub(crate) async fn forget(&self, stored: &StoredKey) -> Result<(), Error> {
        ignore_missing(self.tombstones.delete(&stored.object, &DeleteParams::default()).await)
            .map_err(Error::kube("deleting the tombstone of a key"))?;
        self.all.tombstones.removed(&self.namespace, &stored.object);
        Ok(())
    }

    /// Cuts keys loose from their MailDomain, so that they stay when it goes.
    pub(crate) async fn release(&self, stored: &StoredKey) -> Result<(), Error> {
        let patch = json!({"metadata": {"ownerReferences": null}});
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let released = match stored.version {
            Some(_) => self.secrets.patch(&stored.object, &params, &patch).await.map(drop),
            None => self.tombstones.patch(&stored.object, &params, &patch).await.map(drop),
        };
        ignore_missing(released).map_err(Error::kube("releasing a key"))
    }

    /// Deletes a key with all that is known of it.
    pub(crate) async fn delete(&self, stored: &StoredKey) -> Result<(), Error> {
        self.remove_secret(stored).await?;
        self.forget(stored).await
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
