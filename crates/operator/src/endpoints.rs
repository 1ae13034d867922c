//! Records as `DNSEndpoint` objects, which external-dns publishes: one object a record set, by server-side
//! apply. Whether external-dns does anything about them is seen in DNS alone.

use std::collections::BTreeMap;

use domains::types::{ExternalDns, MailDomain, TxtFormat};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
};
use kube::{Client, Resource, ResourceExt};
use serde_json::{Value, json};

use crate::error::Error;
use crate::publisher::Applied;
use crate::record::{Purpose, Record, quoted};
use crate::store::{MANAGER, ignore_missing};
use crate::update::Change;

/// The label that says of which MailDomain, by UID, an object is.
pub(crate) const OF: &str = "mail.packetboat.dev/mail-domain";

/// Why objects are not as they should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EndpointsError {
    /// An object of the name belongs to something else.
    #[error("the DNSEndpoint {0} belongs to another object")]
    Taken(String),
    /// The Kubernetes API failed or refused.
    #[error(transparent)]
    Kube(#[from] Error),
}

/// The objects of one MailDomain.
pub(crate) struct Endpoints {
    api: Api<DynamicObject>,
    /// Those that carry its label.
    present: BTreeMap<String, DynamicObject>,
    name: String,
    uid: String,
    owner: Vec<OwnerReference>,
    form: ExternalDns,
}

/// The kind of the objects.
pub(crate) fn kind() -> ApiResource {
    let kind = GroupVersionKind::gvk("externaldns.k8s.io", "v1alpha1", "DNSEndpoint");
    ApiResource::from_gvk_with_plural(&kind, "dnsendpoints")
}

impl Endpoints {
    /// Looks what is there. Nothing when the cluster does not know the kind.
    pub(crate) async fn load(client: &Client, domain: &MailDomain) -> Result<Option<Self>, Error> {
        let namespace = domain.namespace().unwrap_or_default();
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &kind());
        let uid = domain.uid().unwrap_or_default();
        let present = match api.list(&ListParams::default().labels(&format!("{OF}={uid}"))).await {
            Ok(present) => present,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
            Err(error) => return Err(Error::kube("listing DNSEndpoints")(error)),
        };
        let form = domain.spec.dns.as_ref().and_then(|dns| dns.external_dns.clone()).unwrap_or_default();
        Ok(Some(Self {
            api,
            present: present.items.into_iter().map(|one| (one.name_any(), one)).collect(),
            name: domain.name_any(),
            uid,
            owner: domain.controller_owner_ref(&()).into_iter().collect(),
            form,
        }))
    }

    /// Makes the objects be as the changes say; writes only what differs.
    pub(crate) async fn apply(&self, changes: &[Change<'_>]) -> Result<Applied, EndpointsError> {
        let mut applied = Applied::default();
        for change in changes {
            let name = self.object_name(change.record);
            let present = self.present.get(&name);
            if change.remove {
                if present.is_some() {
                    ignore_missing(self.api.delete(&name, &DeleteParams::default()).await)
                        .map_err(Error::kube("deleting a DNSEndpoint"))?;
                    applied.changed = true;
                }
                continue;
            }
            let wanted = self.object(&name, change.record);
            let standing = match present.filter(|present| self.is_same(present, &wanted)) {
                Some(present) => since(present),
                None => {
                    self.write(&name, present.is_some(), &wanted).await?;
                    applied.changed = true;
                    Timestamp::now()
                }
            };
            applied.asked.insert((change.record.name.clone(), change.record.record_type()), standing);
        }
        Ok(applied)
    }

    async fn write(&self, name: &str, known: bool, wanted: &Value) -> Result<(), EndpointsError> {
        if !known {
            let other = self.api.get_opt(name).await.map_err(Error::kube("reading a DNSEndpoint"))?;
            // One that a MailDomain left behind has no owner, and is taken over.
            if other.is_some_and(|other| !other.owner_references().is_empty()) {
                return Err(EndpointsError::Taken(name.to_owned()));
            }
        }
        let params = PatchParams::apply(MANAGER).force();
        let written = self.api.patch(name, &params, &Patch::Apply(wanted)).await;
        written.map_err(Error::kube("writing a DNSEndpoint"))?;
        Ok(())
    }

    /// Cuts the objects loose, so that they stay.
    pub(crate) async fn release(&self) -> Result<(), Error> {
        let patch = json!({"metadata": {"ownerReferences": null}});
        for name in self.present.keys() {
            let released = self.api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await;
            ignore_missing(released).map_err(Error::kube("releasing a DNSEndpoint"))?;
        }
        Ok(())
    }

    fn object_name(&self, record: &Record) -> String {
        let purpose = match record.purpose {
            Purpose::MtaSts => "mta-sts",
            Purpose::TlsRpt => "tls-rpt",
            Purpose::DkimCname => "dkim-cname",
            other => other.key(),
        };
        match record.purpose {
            Purpose::Dkim | Purpose::DkimCname => {
                let selector = record.name.split('.').next().unwrap_or_default();
                format!("{}-{purpose}-{selector}", self.name)
            }
            Purpose::Tlsa => {
                let host = record.name.trim_start_matches("_25._tcp.").to_owned();
                format!("{}-{purpose}-{host}", self.name)
            }
            _ => format!("{}-{purpose}", self.name),
        }
    }

    fn object(&self, name: &str, record: &Record) -> Value {
        let mut labels = self.form.labels.clone();
        labels.insert(OF.to_owned(), self.uid.clone());
        labels.insert("app.kubernetes.io/managed-by".to_owned(), MANAGER.to_owned());
        json!({
            "apiVersion": "externaldns.k8s.io/v1alpha1",
            "kind": "DNSEndpoint",
            "metadata": {
                "name": name,
                "labels": labels,
                "annotations": self.form.annotations,
                "ownerReferences": self.owner,
            },
            "spec": {"endpoints": [{
                "dnsName": record.name,
                "recordType": record.record_type(),
                "recordTTL": record.ttl,
                "targets": targets(record, self.form.txt_format),
            }]},
        })
    }

    /// Whether an object is as it should be. What others add to it is theirs.
    fn is_same(&self, present: &DynamicObject, wanted: &Value) -> bool {
        let has = |own: &BTreeMap<String, String>, all: &Value| {
            all.as_object().is_none_or(|all| {
                all.iter().all(|(name, value)| own.get(name).map(String::as_str) == value.as_str())
            })
        };
        present.data["spec"]["endpoints"] == wanted["spec"]["endpoints"]
            && has(present.labels(), &wanted["metadata"]["labels"])
            && has(present.annotations(), &wanted["metadata"]["annotations"])
            && present.owner_references() == self.owner.as_slice()
    }
}

/// A record's values as external-dns takes them.
fn targets(record: &Record, form: TxtFormat) -> Vec<String> {
    let target = |value: &String| match (record.record_type(), form) {
        ("TXT", TxtFormat::Quoted) => quoted(value),
        _ => value.clone(),
    };
    record.values.iter().map(target).collect()
}

/// Since when an object says what it says: when it was applied last.
fn since(object: &DynamicObject) -> Timestamp {
    let applied = object.managed_fields().iter().filter(|entry| entry.manager.as_deref() == Some(MANAGER));
    let last = applied.filter_map(|entry| entry.time.as_ref().map(|time| time.0)).max();
    let created = || object.creation_timestamp().map(|time| time.0);
    last.or_else(created).unwrap_or_else(Timestamp::now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_written_as_zone_files_have_them_or_as_they_are() {
        let record = |purpose, value: &str| Record {
            purpose,
            name: "example.com".to_owned(),
            ttl: 300,
            values: vec![value.to_owned()],
        };
        let long = record(Purpose::Dkim, &"x".repeat(300));
        let quoted = targets(&long, TxtFormat::Quoted);
        assert_eq!(quoted, [format!("\"{}\" \"{}\"", "x".repeat(255), "x".repeat(45))]);
        assert_eq!(targets(&long, TxtFormat::Raw), ["x".repeat(300)]);
        let mx = record(Purpose::Mx, "10 mx.example.net");
        assert_eq!(targets(&mx, TxtFormat::Quoted), ["10 mx.example.net"]);
    }
}
