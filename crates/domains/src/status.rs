//! The status of a MailDomain, as the operator writes it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::types::Algorithm;

/// What is so, as the operator saw it last.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MailDomainStatus {
    /// The generation of the spec that this status tells of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions by the Kubernetes API conventions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// When all name servers first showed the proof of ownership, RFC 3339; absent where none is asked for, or was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ownership_proven_at: Option<String>,
    /// The signing keys that the operator looks after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dkim: Option<DkimStatus>,
    /// The MTA-STS policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mta_sts: Option<MtaStsStatus>,
    /// The DNS records of the domain, ready to be pasted into a zone, and whether they are there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<RecordStatus>,
}

/// The signing keys of a domain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DkimStatus {
    /// The selectors that sign now.
    #[serde(default)]
    pub active_selectors: Vec<String>,
    /// When the next key is made, RFC 3339; absent when rotation is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_rotation: Option<String>,
    /// Every key, those too that sign no more.
    #[serde(default)]
    pub keys: Vec<KeyStatus>,
}

/// One signing key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyStatus {
    /// Its selector.
    pub selector: String,
    /// What it signs with.
    pub algorithm: Algorithm,
    /// Where it is in its life.
    pub stage: Stage,
    /// Since when, RFC 3339.
    pub stage_since: String,
    /// The Secret that holds it; absent once the private key is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
}

/// The MTA-STS policy of a domain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MtaStsStatus {
    /// The text that is to be served at `https://mta-sts.DOMAIN/.well-known/mta-sts.txt`.
    pub policy: String,
    /// Its id.
    pub policy_id: String,
    /// The id that the TXT record tells, or is to tell; it follows the policy once that was seen to be served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announced_id: Option<String>,
    /// Until when senders may remember an earlier policy that they have to keep, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remembered_until: Option<String>,
}

/// Where a key is in its life. Each stage follows from the one before, and none is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Stage {
    /// Made, and in a Secret.
    Generated,
    /// Its record is being published.
    Publishing,
    /// Every authoritative name server shows its record; the time before it may sign runs.
    Propagating,
    /// It signs.
    Active,
    /// It signs no more; its record stays, for mail under way.
    Retiring,
    /// Its record says that it is revoked; the private key is gone.
    Revoked,
}

impl Stage {
    /// Its name in annotations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Generated => "Generated",
            Self::Publishing => "Publishing",
            Self::Propagating => "Propagating",
            Self::Active => "Active",
            Self::Retiring => "Retiring",
            Self::Revoked => "Revoked",
        }
    }

    /// The stage of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        const ALL: [Stage; 6] = [
            Stage::Generated,
            Stage::Publishing,
            Stage::Propagating,
            Stage::Active,
            Stage::Retiring,
            Stage::Revoked,
        ];
        ALL.into_iter().find(|stage| stage.name() == name)
    }
}

/// One DNS record set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecordStatus {
    /// What it is for: `mx`, `spf`, `dkim`, `dmarc`, `mtaSts`, `tlsRpt`.
    pub purpose: String,
    /// The owner name, without a dot at the end.
    pub name: String,
    /// `TXT` or `MX`.
    #[serde(rename = "type")]
    pub record_type: String,
    /// The lines to paste into the zone.
    pub zone_lines: Vec<String>,
    /// What the authoritative name servers say.
    pub state: RecordState,
    /// What they say instead, where it is something else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub observed: Vec<String>,
}

/// What the authoritative name servers say of a record set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RecordState {
    /// All of them show it as it should be.
    Verified,
    /// At least one shows none.
    Missing,
    /// At least one shows another.
    Drifted,
    /// Something stands there that the operator will not touch.
    Conflict,
    /// At least one did not answer.
    Unknown,
}
