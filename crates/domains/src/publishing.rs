//! Where records are published, and by whose leave: a MailDomain's `dns`, and the kinds `DNSProvider` and
//! `ClusterDNSProvider`.

// Columns share their types.
#![allow(clippy::duplicated_attributes)]

use std::collections::BTreeMap;
use std::time::Duration;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration;
use crate::types::SecretRef;

/// Where records are published.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Dns {
    /// How.
    pub mode: DnsMode,
    /// Time to live of the records, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u32>,
    /// What is done about each kind of record.
    pub records: BTreeMap<String, RecordPolicy>,
    /// For mode `RFC2136`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rfc2136: Option<Rfc2136>,
    /// For mode `ExternalDNS`.
    #[serde(rename = "externalDNS", skip_serializing_if = "Option::is_none")]
    pub external_dns: Option<ExternalDns>,
    /// For mode `Provider`: the way to publish, which several MailDomains may share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_ref: Option<ProviderRef>,
    /// How it is found out what DNS says.
    pub verification: Verification,
}

/// How it is found out what DNS says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Verification {
    /// `host:port` of the authoritative name servers to ask, where they are not those that NS records name:
    /// behind a hidden primary, or split horizons.
    #[schemars(length(max = 16))]
    pub servers: Vec<String>,
    /// Nothing is made for the domain until a TXT record, which the status tells, proves that whoever wrote
    /// this may change its DNS.
    #[serde(rename = "requireOwnershipTXT")]
    pub require_ownership_txt: bool,
    /// How often, once everything is as it should be.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub interval: Duration,
}

impl Default for Verification {
    fn default() -> Self {
        Self { servers: Vec::new(), require_ownership_txt: false, interval: Duration::from_secs(600) }
    }
}

/// How records are published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DnsMode {
    /// By a person; status holds what to paste.
    #[default]
    Manual,
    /// By dynamic update.
    #[serde(rename = "RFC2136")]
    Rfc2136,
    /// By external-dns.
    ExternalDNS,
    /// By the way that a DNSProvider or ClusterDNSProvider says.
    Provider,
}

/// What is done about one kind of record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RecordPolicy {
    /// Published and kept as it should be.
    Manage,
    /// Compared with what it should be.
    Verify,
    /// Left alone.
    Ignore,
}

/// Dynamic update (RFC 2136) with TSIG (RFC 8945).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rfc2136 {
    /// The primary, `host:port`.
    pub server: String,
    /// The key updates are signed with.
    pub tsig: Tsig,
}

/// A TSIG key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tsig {
    /// Its name.
    pub key_name: String,
    /// `hmac-sha256` or stronger.
    pub algorithm: String,
    /// Where the secret is.
    pub secret_ref: SecretRef,
}

/// What the objects for external-dns look like.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExternalDns {
    /// Labels that they carry, where external-dns selects by label.
    pub labels: BTreeMap<String, String>,
    /// Annotations that they carry.
    pub annotations: BTreeMap<String, String>,
    /// How the texts of TXT records are written.
    pub txt_format: TxtFormat,
}

/// How the texts of TXT records are written in objects for external-dns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TxtFormat {
    /// As in a zone file: quoted, and long ones split.
    #[default]
    Quoted,
    /// As they are.
    Raw,
}

/// A DNSProvider of the same namespace, or a ClusterDNSProvider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProviderRef {
    /// Which of the two.
    #[serde(default)]
    pub kind: ProviderKind,
    /// Its name.
    pub name: String,
}

/// The kinds of providers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProviderKind {
    /// Of the MailDomain's namespace.
    #[default]
    DNSProvider,
    /// Of the whole cluster.
    ClusterDNSProvider,
}

/// A way to publish records, for the MailDomains of its namespace. Just one of the ways is given; Secrets
/// lie beside it.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "mail.packetboat.dev",
    version = "v1alpha1",
    kind = "DNSProvider",
    plural = "dnsproviders",
    namespaced,
    shortname = "mdns",
    category = "mail",
    derive = "PartialEq",
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DNSProviderSpec {
    /// By dynamic update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rfc2136: Option<Rfc2136>,
    /// By Cloudflare's API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cloudflare: Option<Cloudflare>,
    /// By the API of Amazon Route 53.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route53: Option<Route53>,
}

/// A way to publish records that MailDomains of other namespaces may use, as far as it lets them.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "mail.packetboat.dev",
    version = "v1alpha1",
    kind = "ClusterDNSProvider",
    plural = "clusterdnsproviders",
    shortname = "cmdns",
    category = "mail",
    derive = "PartialEq",
    printcolumn(name = "Domains", type_ = "string", json_path = ".spec.domains"),
    printcolumn(name = "Namespaces", type_ = "string", json_path = ".spec.namespaces"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterDNSProviderSpec {
    /// The domains that may be published through it, each with all below it; `*` stands for any.
    pub domains: Vec<String>,
    /// The namespaces whose MailDomains may use it; `*` stands for any.
    pub namespaces: Vec<String>,
    /// The namespace of the Secrets that it names.
    pub secret_namespace: String,
    /// By dynamic update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rfc2136: Option<Rfc2136>,
    /// By Cloudflare's API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloudflare: Option<Cloudflare>,
    /// By the API of Amazon Route 53.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route53: Option<Route53>,
}

impl ClusterDNSProviderSpec {
    /// Whether MailDomains of this namespace may use it for this domain.
    #[must_use]
    pub fn permits(&self, namespace: &str, domain: &str) -> bool {
        let covers = |allowed: &String| {
            allowed == "*"
                || domain == allowed
                || domain.strip_suffix(allowed.as_str()).is_some_and(|rest| rest.ends_with('.'))
        };
        self.domains.iter().any(covers) && self.namespaces.iter().any(|one| one == "*" || one == namespace)
    }

    /// The way itself.
    #[must_use]
    pub fn way(self) -> DNSProviderSpec {
        DNSProviderSpec { rfc2136: self.rfc2136, cloudflare: self.cloudflare, route53: self.route53 }
    }
}

/// Cloudflare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cloudflare {
    /// An API token that may read the zone and edit its DNS; the key in the Secret is `api-token` by default.
    pub api_token_secret_ref: SecretRef,
    /// The API's address, where it is not Cloudflare's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

/// Amazon Route 53.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route53 {
    /// A Secret with the keys `access-key-id` and `secret-access-key`, and `session-token` where the access key
    /// is a temporary one.
    pub access_key_secret_ref: NameRef,
    /// The region that requests are signed for; `us-east-1` when absent, which is right but for the partitions
    /// of China and of governments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The hosted zone's id, where several have the zone's name. Absent: the one public zone of that name.
    #[serde(rename = "hostedZoneID", default, skip_serializing_if = "Option::is_none")]
    pub hosted_zone_id: Option<String>,
    /// The API's address, where it is not Amazon's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

/// An object in the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NameRef {
    /// Its name.
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_provider_is_for_whom_it_names() {
        let spec = |domains: &[&str], namespaces: &[&str]| ClusterDNSProviderSpec {
            domains: domains.iter().map(|&one| one.to_owned()).collect(),
            namespaces: namespaces.iter().map(|&one| one.to_owned()).collect(),
            ..ClusterDNSProviderSpec::default()
        };
        let one = spec(&["example.com"], &["mail"]);
        assert!(one.permits("mail", "example.com") && one.permits("mail", "eu.example.com"));
        assert!(!one.permits("other", "example.com") && !one.permits("mail", "badexample.com"));
        assert!(!one.permits("mail", "com"));
        assert!(spec(&["*"], &["*"]).permits("any", "thing.test"));
        assert!(!spec(&[], &["*"]).permits("any", "thing.test"));
    }
}
