//! `MailDomain` (group `mail.packetboat.dev`, version `v1alpha1`): everything about one domain. The
//! same types are the CRD in a cluster and the YAML of a folder outside one.

// Columns share their types.
#![allow(clippy::duplicated_attributes)]

use std::collections::BTreeMap;
use std::time::Duration;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration;
pub use crate::publishing::{
    Cloudflare, ClusterDNSProvider, ClusterDNSProviderSpec, DNSProvider, DNSProviderSpec, Dns, DnsMode,
    ExternalDns, NameRef, ProviderKind, ProviderRef, RecordPolicy, Rfc2136, Route53, Tsig, TxtFormat,
    Verification,
};
pub use crate::status::{
    DkimStatus, KeyStatus, MailDomainStatus, MtaStsStatus, RecordState, RecordStatus, Stage,
};

/// What a domain is to Packetboat.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "mail.packetboat.dev",
    version = "v1alpha1",
    kind = "MailDomain",
    namespaced,
    shortname = "mdom",
    category = "mail",
    status = "MailDomainStatus",
    derive = "PartialEq",
    selectable = ".spec.domain",
    printcolumn(name = "Domain", type_ = "string", json_path = ".spec.domain"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(name = "DKIM", type_ = "string", json_path = ".status.dkim.activeSelectors"),
    printcolumn(name = "DNS", type_ = "string", json_path = ".spec.dns.mode"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(
        name = "Next-Rotation",
        type_ = "string",
        json_path = ".status.dkim.nextRotation",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MailDomainSpec {
    /// The domain: a lower-case A-label. It cannot be changed.
    pub domain: String,
    /// Nothing is written for this domain while true; mail goes on.
    #[serde(default)]
    pub suspend: bool,
    /// What happens to keys and records when this object goes.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// Mail for the domain. Absent: none is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound: Option<Inbound>,
    /// Who may submit mail as the domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submission: Option<Submission>,
    /// Mail from the domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound: Option<Outbound>,
    /// Signing keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dkim: Option<Dkim>,
    /// The MX records.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mx: Vec<Mx>,
    /// The SPF record (RFC 7208).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spf: Option<Spf>,
    /// The DMARC record (RFC 9989).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dmarc: Option<Dmarc>,
    /// The MTA-STS policy (RFC 8461).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mta_sts: Option<MtaSts>,
    /// The TLS reporting record (RFC 8460).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_rpt: Option<TlsRpt>,
    /// The TLSA records of the mail hosts that lie below the domain (RFC 7672).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tlsa: Option<Tlsa>,
    /// Where records are published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
}

/// What happens to keys and records when the object goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// They stay.
    #[default]
    Retain,
    /// They are withdrawn.
    Delete,
}

/// Mail for the domain.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Inbound {
    /// Who exists.
    pub recipients: Recipients,
    /// Where mail is handed over. Absent: it waits in the queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<Route>,
    /// The largest message, in octets; the listener's limit holds as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_message_bytes: Option<u64>,
    /// Mail is taken under TLS only.
    #[serde(rename = "requireTLS")]
    pub require_tls: bool,
    /// What is done about the sender domain's DMARC policy.
    pub dmarc: InboundDmarc,
}

/// Who exists in the domain. `postmaster` and `abuse` always do (RFC 5321 §4.5.1, RFC 2142).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Recipients {
    /// How it is found out.
    pub mode: RecipientMode,
    /// Local parts, compared without regard to case; `*` stands for all.
    pub addresses: Vec<String>,
    /// Local parts that stand for others: local parts of this domain, or addresses anywhere.
    pub aliases: BTreeMap<String, Vec<String>>,
}

/// How it is found out whether a recipient exists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RecipientMode {
    /// `addresses` and `aliases` say it all.
    #[default]
    List,
    /// The LMTP or SMTP server of the route is asked at RCPT; `aliases` hold as well.
    Callout,
    /// Everybody does.
    AcceptAll,
}

/// Where mail is handed over: just one of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Route {
    /// To an LMTP server (RFC 2033).
    Lmtp(Server),
    /// To an SMTP server.
    Smtp(Server),
    /// Into Maildirs: `path/<domain>/<local part>/new/`.
    Maildir(Maildir),
}

/// A server that takes mail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Server {
    /// `host:port`.
    pub address: String,
}

/// A tree of Maildirs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Maildir {
    /// The tree's root, relative to the folder of the configuration file.
    pub path: String,
}

/// What is done about the sender domain's DMARC policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct InboundDmarc {
    /// The published policy is followed.
    pub enforce: bool,
    /// The folder, beside the inbox, for what is quarantined.
    pub quarantine_folder: String,
    /// What `p=reject` leads to (RFC 9989 leaves it to the receiver).
    pub on_reject: OnReject,
}

impl Default for InboundDmarc {
    fn default() -> Self {
        Self { enforce: true, quarantine_folder: "Junk".to_owned(), on_reject: OnReject::Reject }
    }
}

/// What `p=reject` leads to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnReject {
    /// The message is refused at the end of DATA.
    #[default]
    Reject,
    /// The message goes to the quarantine folder.
    Quarantine,
}

/// Who may submit mail as the domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Submission {
    /// A Secret whose keys are local parts and whose values are argon2id hashes (PHC strings).
    pub users_secret_ref: SecretRef,
}

/// A Secret in the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretRef {
    /// Its name.
    pub name: String,
    /// The key in it; a default by purpose when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// Mail from the domain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Outbound {
    /// Attempts begun a minute at most, over the whole cluster, one for each message and next hop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_per_minute: Option<u32>,
    /// The share of the queue beside other domains, 1 to 1000; 1 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// The source pool that mail leaves by: a name of `outbound.pools` in the configuration file. `default` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// How long delivery is tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// `host:port` of an SMTP server that everything is sent through, instead of the MX.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relay: Option<String>,
}

/// How long delivery is tried.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Retry {
    /// Given up after so long (`120h`).
    #[serde(with = "duration::option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub max_age: Option<Duration>,
}

/// Signing keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Dkim {
    /// The algorithms keys are made for.
    pub algorithms: Vec<Algorithm>,
    /// Length of RSA keys: 2048, 3072 or 4096.
    pub rsa_bits: u16,
    /// How selectors are made.
    pub selector_template: String,
    /// When keys change.
    pub rotation: Rotation,
    /// Selectors that are CNAMEs into a zone of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delegation: Option<Delegation>,
    /// Keys made elsewhere; they sign as long as they stand here.
    pub imported: Vec<ImportedKey>,
}

impl Default for Dkim {
    fn default() -> Self {
        Self {
            algorithms: vec![Algorithm::RsaSha256, Algorithm::Ed25519Sha256],
            rsa_bits: 2048,
            selector_template: "{alg}{yyyymmdd}".to_owned(),
            rotation: Rotation::default(),
            delegation: None,
            imported: Vec::new(),
        }
    }
}

/// A DKIM signature algorithm (RFC 6376, RFC 8463).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// RSA, at least 2048 bits.
    #[serde(rename = "rsa-sha256")]
    RsaSha256,
    /// Ed25519.
    #[serde(rename = "ed25519-sha256")]
    Ed25519Sha256,
}

/// When keys change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Rotation {
    /// Keys are made and changed.
    pub enabled: bool,
    /// How long a key signs.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub interval: Duration,
    /// How long a record must have been seen before its key signs.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub min_propagation: Duration,
    /// How long a record stays after its key has ceased to sign.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub retire_after: Duration,
    /// How long a revoked record (`p=`) stays.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub revoke_for: Duration,
}

const HOUR: Duration = Duration::from_secs(3600);

impl Default for Rotation {
    fn default() -> Self {
        Self {
            enabled: true,
            interval: 2160 * HOUR,
            min_propagation: HOUR,
            retire_after: 168 * HOUR,
            revoke_for: 720 * HOUR,
        }
    }
}

/// Selectors that are CNAMEs into a zone of ours, so that a rotation needs nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Delegation {
    /// Whether selectors are CNAMEs.
    #[serde(default)]
    pub cname: bool,
    /// The zone they lead into: `s1._domainkey.<domain>` to `s1.<domain>.<targetZone>`.
    pub target_zone: String,
    /// How many selectors there are, `s1` and on: more than algorithms.
    #[serde(default = "three")]
    pub slots: u8,
    /// The way to publish in that zone; that of the domain's own records when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_ref: Option<ProviderRef>,
    /// `host:port` of that zone's authoritative name servers, where they are not those that NS records name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub servers: Vec<String>,
}

impl Delegation {
    /// The name below which the records of this domain's keys lie.
    #[must_use]
    pub fn base(&self, domain: &str) -> String {
        format!("{domain}.{}", self.target_zone.trim_end_matches('.'))
    }

    /// The selectors.
    pub fn selectors(&self) -> impl Iterator<Item = String> + use<> {
        (1..=self.slots).map(|slot| format!("s{slot}"))
    }
}

impl Dkim {
    /// The delegation, where it is asked for.
    #[must_use]
    pub fn delegated(&self) -> Option<&Delegation> {
        self.delegation.as_ref().filter(|delegation| delegation.cname)
    }
}

fn three() -> u8 {
    3
}

/// A key made elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImportedKey {
    /// Its selector.
    pub selector: String,
    /// The Secret with the private key in PEM; the key in it is `tls.key` by default.
    pub secret_ref: SecretRef,
}

/// One MX record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mx {
    /// The host.
    pub host: String,
    /// Lower is tried first.
    pub preference: u16,
}

/// The SPF record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spf {
    /// Mechanisms before `all`.
    #[serde(default)]
    pub mechanisms: Vec<String>,
    /// The last term: `-all`, `~all`, `?all`.
    pub all: String,
}

/// The DMARC record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dmarc {
    /// `none`, `quarantine` or `reject`.
    pub policy: String,
    /// The same for subdomains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subdomain_policy: Option<String>,
    /// The share the policy holds for; RFC 9989 has dropped it, only 100 has a meaning everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pct: Option<u8>,
    /// DKIM alignment: `relaxed` or `strict`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adkim: Option<String>,
    /// SPF alignment: `relaxed` or `strict`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aspf: Option<String>,
    /// Where aggregate reports go.
    #[serde(default)]
    pub rua: Vec<String>,
    /// Where failure reports go.
    #[serde(default)]
    pub ruf: Vec<String>,
}

/// The MTA-STS policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MtaSts {
    /// `none`, `testing` or `enforce`.
    pub mode: String,
    /// How long senders remember it, in seconds.
    pub max_age: u32,
}

/// The TLS reporting record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsRpt {
    /// Where reports go.
    pub rua: Vec<String>,
}

/// The TLSA records of the mail hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tlsa {
    /// The hosts' certificate: a Certificate of cert-manager, or a Secret of the type `kubernetes.io/tls`.
    pub certificate_ref: NameRef,
    /// How long the record of a key stays once that of the key after it is shown everywhere; the time to live at
    /// least. Until then every host must have taken the new certificate up.
    #[serde(default = "one_hour", with = "duration")]
    #[schemars(with = "String")]
    pub retire_after: Duration,
}

fn one_hour() -> Duration {
    HOUR
}
