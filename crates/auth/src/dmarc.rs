//! DMARC (RFC 9989): whether the domain of the author vouches for the message, and what its owner
//! asks for when it does not.

mod record;
mod walk;

use message::author::AuthorError;
use smtp::{Domain, Mailbox};

use crate::client::{SpfCheck, SpfResult};
use crate::dkim::{DkimCheck, DkimResult};
use crate::dns::{Dns, TemporaryFailure};

use record::Alignment;
pub use record::Policy;
pub(crate) use record::Record;
use walk::{organizational_domain, walk};

/// A result of DMARC (RFC 9989 §9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmarcResult {
    /// The domain has published no policy.
    None,
    /// An aligned identifier passed.
    Pass,
    /// None did.
    Fail,
    /// The DNS gave no answer that could have made the difference.
    TempError,
    /// There is no one author to check.
    PermError,
}

/// The DMARC check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DmarcCheck {
    /// What it came to.
    pub result: DmarcResult,
    /// The domain of the author; `None` when there is no one author.
    pub domain: Option<String>,
    /// What the owner asks for mail of this domain that fails; `None` when no policy is known: there
    /// is none, or it could not be looked up.
    pub policy: Option<Policy>,
    /// What is asked for this message if it fails, after `t` and `pct`.
    pub applied: Policy,
    /// Why there is no author.
    pub author_error: Option<AuthorError>,
}

impl DmarcResult {
    /// The keyword of RFC 8601 for `dmarc=`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::TempError => "temperror",
            Self::PermError => "permerror",
        }
    }
}

/// A domain that passed SPF or DKIM, or would have if the DNS had answered.
struct Identifier<'a> {
    domain: &'a str,
    method: Method,
    passed: bool,
}

#[derive(Clone, Copy)]
enum Method {
    Spf,
    Dkim,
}

impl Record {
    fn alignment(&self, method: Method) -> Alignment {
        match method {
            Method::Spf => self.spf,
            Method::Dkim => self.dkim,
        }
    }
}

/// Evaluates DMARC. `draw` is a number below 100, for policies that are for a share of mail only.
pub(crate) async fn verify(
    dns: &Dns,
    author: Result<Mailbox, AuthorError>,
    spf: &SpfCheck,
    dkim: &[DkimCheck],
    draw: u8,
) -> DmarcCheck {
    let check = |result, domain| DmarcCheck {
        result,
        domain,
        policy: None,
        applied: Policy::None,
        author_error: None,
    };
    let domain = match author {
        Ok(mailbox) => match mailbox.domain() {
            Domain::Name(name) => name.clone(),
            Domain::Literal(_) => {
                let reason = "the author's address has no domain name";
                let error = AuthorError::Malformed { field: "From", reason };
                return DmarcCheck { author_error: Some(error), ..check(DmarcResult::PermError, None) };
            }
        },
        Err(error) => return DmarcCheck { author_error: Some(error), ..check(DmarcResult::PermError, None) },
    };
    let identifiers = identifiers(spf, dkim);
    match tokio::time::timeout(dns.method_deadline(), evaluate(dns, &domain, &identifiers, draw)).await {
        Ok(Ok(None)) => check(DmarcResult::None, Some(domain)),
        Ok(Ok(Some((result, policy, applied)))) => {
            DmarcCheck { policy: Some(policy), applied, ..check(result, Some(domain)) }
        }
        Ok(Err(TemporaryFailure)) | Err(_) => check(DmarcResult::TempError, Some(domain)),
    }
}

fn identifiers<'a>(spf: &'a SpfCheck, dkim: &'a [DkimCheck]) -> Vec<Identifier<'a>> {
    let spf_domain =
        spf.domain.as_deref().filter(|_| matches!(spf.result, SpfResult::Pass | SpfResult::TempError));
    let from_spf = spf_domain.map(|domain| Identifier {
        domain,
        method: Method::Spf,
        passed: spf.result == SpfResult::Pass,
    });
    let from_dkim =
        dkim.iter().filter(|check| check.vouches() || check.result == DkimResult::TempError).map(|check| {
            Identifier {
                domain: &check.domain,
                method: Method::Dkim,
                passed: check.result == DkimResult::Pass,
            }
        });
    from_spf.into_iter().chain(from_dkim).collect()
}

/// The result, the policy, and the policy for this message; `None` without a record.
async fn evaluate(
    dns: &Dns,
    author: &str,
    identifiers: &[Identifier<'_>],
    draw: u8,
) -> Result<Option<(DmarcResult, Policy, Policy)>, TemporaryFailure> {
    // Where the author's own domain has a record and passed itself, nothing else matters (§4.10): one
    // look-up is enough.
    let own = walk::record(dns, author).await?;
    if let Some(record) = &own
        && identifiers.iter().any(|identifier| identifier.passed && identifier.domain == author)
    {
        return Ok(Some((DmarcResult::Pass, record.policy, record.sampled(record.policy, draw))));
    }
    let found = walk(dns, author).await?;
    let organization = organizational_domain(&found, author);
    let of_organization = found.iter().find(|(name, _)| *name == organization).or(found.last());
    let (record, policy) = match (own, of_organization) {
        (Some(record), _) => {
            let policy = record.policy;
            (record, policy)
        }
        (None, Some((_, record))) => {
            let policy = if record.subdomains != record.nonexistent && !exists(dns, author).await {
                record.nonexistent
            } else {
                record.subdomains
            };
            (record.clone(), policy)
        }
        (None, None) => return Ok(None),
    };
    let result = compare(dns, author, organization, &record, identifiers).await;
    Ok(Some((result, policy, record.sampled(policy, draw))))
}

/// Looks for an identifier that is aligned with the author (§4.4).
async fn compare(
    dns: &Dns,
    author: &str,
    organization: &str,
    record: &Record,
    identifiers: &[Identifier<'_>],
) -> DmarcResult {
    let mut result = DmarcResult::Fail;
    for identifier in identifiers {
        let aligned = if identifier.domain == author {
            Ok(true)
        } else if record.alignment(identifier.method) == Alignment::Strict
            || !is_within(identifier.domain, organization)
        {
            Ok(false)
        } else {
            let found = walk(dns, identifier.domain).await;
            found.map(|found| organizational_domain(&found, identifier.domain) == organization)
        };
        match aligned {
            Ok(true) if identifier.passed => return DmarcResult::Pass,
            Ok(true) | Err(TemporaryFailure) => result = DmarcResult::TempError,
            Ok(false) => {}
        }
    }
    result
}

/// Whether a name is `domain` or below it.
fn is_within(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether a name exists (RFC 8020). One that could not be looked up is taken to exist: the milder view.
async fn exists(dns: &Dns, name: &str) -> bool {
    !dns.txt(name).await.is_ok_and(|answer| answer.no_such_name)
}
