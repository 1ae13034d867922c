//! MailDomain: its types, their validation, and the live index of them.
//!
//! [`types`] is the API, as the CRD and as YAML in a folder. [`Domains`] is what the services read:
//! an index that is replaced as a whole whenever something changes.

mod cluster;
mod cluster_index;
pub mod duration;
mod folder;
mod index;
mod key;
mod namespaces;
mod ownership;
mod publishing;
mod rules;
mod status;
pub mod types;
mod validate;

pub use cluster::{ACTIVE, ClusterError, DOMAIN_ANNOTATION, SELECTOR_LABEL, STAGE_ANNOTATION, watch_cluster};
pub use folder::{LoadError, Problem, SecretsWanted, load_folder, secret_in_folder, watch_folder};
pub use index::{DomainIndex, Domains, HostedDomain, RecipientStanding, ServedPolicy, SubmissionUser, owns};
pub use key::{KeyError, SigningKey};
pub use namespaces::Namespaces;
pub use ownership::{must_be_proven, ownership_stands};
pub use types::{Algorithm, MailDomain, MailDomainSpec, OnReject, RecipientMode, Route};

use kube::CustomResourceExt;

/// The CRDs, as Kubernetes takes them.
#[must_use]
pub fn crds() -> Vec<serde_json::Value> {
    let kinds = [MailDomain::crd(), types::DNSProvider::crd(), types::ClusterDNSProvider::crd()];
    let mut crds: Vec<_> = kinds.iter().map(|crd| serde_json::to_value(crd).unwrap_or_default()).collect();
    crds.iter_mut().for_each(forget_closed_objects);
    rules::add_to(&mut crds);
    crds
}

/// A structural schema may not say `additionalProperties: false` beside `properties`; the API server
/// prunes unknown fields, or refuses them under strict validation, by itself.
fn forget_closed_objects(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            if map.get("additionalProperties") == Some(&serde_json::Value::Bool(false)) {
                map.remove("additionalProperties");
            }
            map.values_mut().for_each(forget_closed_objects);
        }
        serde_json::Value::Array(list) => list.iter_mut().for_each(forget_closed_objects),
        _ => {}
    }
}
