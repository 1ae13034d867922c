//! What is remembered of a domain's MTA-STS policy, in the cluster: one ConfigMap a MailDomain, while there is
//! anything to remember.

use domains::DOMAIN_ANNOTATION;
use domains::types::{MailDomain, MtaStsStatus};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use mta_sts::Policy;
use serde_json::json;

use crate::error::Error;
use crate::policy::{Memory, Version, unknown_policy};
use crate::store::{MANAGER, ignore_missing};

/// The label of such a ConfigMap.
pub(crate) const POLICY_LABEL: &str = "mail.packetboat.dev/mta-sts";
/// Where in it the memory lies, as JSON.
const ENTRY: &str = "memory.json";

/// The memory of one MailDomain.
pub(crate) struct MemoryStore<'a> {
    api: Api<ConfigMap>,
    name: String,
    domain: &'a MailDomain,
}

impl<'a> MemoryStore<'a> {
    pub(crate) fn new(client: &Client, domain: &'a MailDomain) -> Self {
        let api = Api::namespaced(client.clone(), &domain.namespace().unwrap_or_default());
        Self { api, name: format!("mta-sts-{}", domain.name_any()), domain }
    }

    /// What is remembered. Where the object is gone, what the status tells.
    pub(crate) async fn load(&self) -> Result<Option<Memory>, Error> {
        let status = self.domain.status.as_ref();
        let told = status.and_then(|status| status.mta_sts.as_ref());
        let erased = status.is_none_or(|status| status.conditions.is_empty());
        if self.domain.spec.mta_sts.is_none() && told.is_none() && !erased {
            return Ok(None);
        }
        let found =
            self.api.get_opt(&self.name).await.map_err(Error::kube("reading the memory of a policy"))?;
        let found =
            found.filter(|one| one.annotations().get(DOMAIN_ANNOTATION) == Some(&self.domain.spec.domain));
        let text = found.and_then(|one| one.data?.remove(ENTRY));
        let read = text.map(|text| serde_json::from_str::<Memory>(&text)).transpose();
        let known = read.unwrap_or_else(|error| {
            tracing::error!(object = self.name, %error, "the memory of a policy is damaged, the status is believed");
            None
        });
        Ok(known.filter(|memory| memory.served.is_some()).or_else(|| told.and_then(from_status)))
    }

    /// Writes it down.
    pub(crate) async fn write(&self, memory: &Memory) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(memory).unwrap_or_default();
        let patch = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": self.name,
                "annotations": {DOMAIN_ANNOTATION: self.domain.spec.domain},
                "labels": {POLICY_LABEL: "memory", "app.kubernetes.io/managed-by": MANAGER},
                "ownerReferences": self.domain.controller_owner_ref(&()).into_iter().collect::<Vec<_>>(),
            },
            "data": {ENTRY: text},
        });
        let params = PatchParams::apply(MANAGER).force();
        let written = self.api.patch(&self.name, &params, &Patch::Apply(&patch)).await;
        written.map(drop).map_err(Error::kube("writing the memory of a policy"))
    }

    /// Forgets it.
    pub(crate) async fn forget(&self) -> Result<(), Error> {
        ignore_missing(self.api.delete(&self.name, &DeleteParams::default()).await)
            .map_err(Error::kube("deleting the memory of a policy"))
    }

    /// Cuts it loose from its MailDomain, so that it stays for the next.
    pub(crate) async fn release(&self) -> Result<(), Error> {
        let patch = json!({"metadata": {"ownerReferences": null}});
        ignore_missing(self.api.patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch)).await)
            .map_err(Error::kube("releasing the memory of a policy"))
    }
}

/// What a status tells of a memory that is gone.
fn from_status(told: &MtaStsStatus) -> Option<Memory> {
    let served: Policy = told.policy.parse().ok()?;
    let served = Version { policy: served, id: told.policy_id.clone() };
    let announced = told.announced_id.as_ref().filter(|id| **id == served.id).map(|_| served.clone());
    let unknown = told.announced_id.is_some() && announced.is_none();
    Some(Memory {
        served: Some(served),
        announced,
        earlier: if unknown { vec![unknown_policy()] } else { Vec::new() },
        remembered_until: told.remembered_until.as_ref().and_then(|time| time.parse().ok()),
        ..Memory::default()
    })
}

#[cfg(test)]
mod tests {
    use mta_sts::Mode;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let policy = Policy::new(Mode::Enforce, ["mx.example.com"], 86_400);
        let version = Version { policy, id: "1".to_owned() };
        let mut memory =
            Memory { served: Some(version.clone()), announced: Some(version), ..Memory::default() };
        memory.earlier.push(unknown_policy());
        memory.served_since = "2026-01-01T00:00:00Z".parse().ok();
        let text = serde_json::to_string(&memory).unwrap();
        assert_eq!(serde_json::from_str::<Memory>(&text).unwrap(), memory);
    }

    #[test]
    fn a_status_tells_enough_to_go_on_and_no_more() {
        let policy = Policy::new(Mode::Enforce, ["mx.example.com"], 86_400);
        let told = |announced: &str| MtaStsStatus {
            policy: policy.to_string(),
            policy_id: policy.id(),
            announced_id: Some(announced.to_owned()),
            remembered_until: None,
        };
        let known = from_status(&told(&policy.id())).unwrap();
        assert!(
            known.announced.as_ref().is_some_and(|known| known.policy == policy) && known.earlier.is_empty()
        );
        let changing = from_status(&told("another")).unwrap();
        assert!(changing.announced.is_none() && changing.earlier == [unknown_policy()]);
    }
}
