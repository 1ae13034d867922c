//! Whether a MailDomain's claim to its domain counts.

use crate::status::MailDomainStatus;
use crate::types::MailDomainSpec;

/// Whether the ownership of the domain is to be proven before anything is done for it: `required` of all, or asked for
/// by itself. Nobody can own a name below `invalid` (RFC 6761 section 6.4), and mail for it comes from nowhere else.
#[must_use]
pub fn must_be_proven(spec: &MailDomainSpec, required: bool) -> bool {
    let asked = spec.dns.as_ref().is_some_and(|dns| dns.verification.require_ownership_txt);
    (asked || required) && !spec.domain.ends_with(".invalid")
}

/// Whether the claim counts: nothing is to be proven, or the operator has seen it proven once. That the proof is gone
/// stops the operator, and no mail: name servers may err for a while.
#[must_use]
pub fn ownership_stands(spec: &MailDomainSpec, status: Option<&MailDomainStatus>, required: bool) -> bool {
    !must_be_proven(spec, required) || status.is_some_and(|status| status.ownership_proven_at.is_some())
}
