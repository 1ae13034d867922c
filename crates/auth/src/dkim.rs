//! DKIM signatures verified (RFC 6376, 8301, 8463): which signatures count is decided here, the
//! cryptography is mail-auth's.

use std::time::{SystemTime, UNIX_EPOCH};

use mail_auth::common::crypto::{Algorithm, HashAlgorithm};
use mail_auth::common::headers::Header as AuthHeader;
use mail_auth::dkim::{Canonicalization, DkimError, Signature};
use mail_auth::{AuthenticatedMessage, DkimOutput, Error, Parameters};
use message::Field;
use smtp::Domain;

use crate::body::Form;
use crate::content::Scanned;
use crate::dns::Dns;
use crate::keys::{self, KeyFault, KeyView};
use crate::tags::Tags;

/// A result of DKIM for one signature (RFC 8601 §2.7.1). A message without signatures has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DkimResult {
    /// The signature is valid and acceptable.
    Pass,
    /// It does not fit the message, or has expired.
    Fail,
    /// It may be valid, and is not acceptable: SHA-1, a short key, a body covered in part.
    Policy,
    /// It cannot be verified, now or later: malformed, or without a key.
    PermError,
    /// The key could not be looked up.
    TempError,
}

/// One DKIM signature and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DkimCheck {
    /// What it came to.
    pub result: DkimResult,
    /// Why, where it is no pass or a pass of no weight.
    pub reason: Option<&'static str>,
    /// `d=`, in lower case; empty when it cannot be read.
    pub domain: String,
    /// `i=`, where the signature has one.
    pub identity: Option<String>,
    /// `s=`.
    pub selector: String,
    /// `a=`.
    pub algorithm: String,
    /// The first eight characters of `b=`, which tell signatures apart (RFC 6008).
    pub signature: String,
    /// The key is in test mode (`t=y`): the message counts as unsigned (RFC 6376 §3.6.1).
    pub testing: bool,
}

impl DkimResult {
    /// The keyword of RFC 8601 §2.7.1.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Policy => "policy",
            Self::PermError => "permerror",
            Self::TempError => "temperror",
        }
    }
}

impl DkimCheck {
    /// Whether the domain answers for the message.
    #[must_use]
    pub fn vouches(&self) -> bool {
        self.result == DkimResult::Pass && !self.testing
    }

    fn settle(&mut self, result: DkimResult, reason: &'static str) {
        self.result = result;
        self.reason = Some(reason);
    }
}

/// A signature that is well-formed and acceptable, and waits for its key.
struct Claim<'a> {
    field: Field<'a>,
    signature: Signature,
    /// Its place in the list of checks.
    at: usize,
}

/// Verifies the signatures of a message, the uppermost first, at most `max_signatures`.
pub(crate) async fn verify(dns: &Dns, scanned: &Scanned, max_signatures: usize) -> Vec<DkimCheck> {
    let mut checks = Vec::new();
    let mut claims = Vec::new();
    let now = now();
    for (at, field) in scanned.header().named("DKIM-Signature").take(max_signatures).enumerate() {
        let (check, claim) = judge(scanned, field, at, now);
        checks.push(check);
        claims.extend(claim);
    }
    if claims.is_empty() {
        return checks;
    }
    let keys = fetch_keys(dns, &mut claims, &mut checks).await;
    let message = AuthenticatedMessage {
        headers: scanned.header().fields().map(|field| (field.name(), field.raw_value())).collect(),
        body_hashes: claims.iter().map(|claim| body_hash(scanned, &claim.signature)).collect(),
        dkim_headers: claims
            .iter()
            .map(|claim| {
                AuthHeader::new(claim.field.name(), claim.field.raw_value(), claim.signature.clone())
            })
            .collect(),
        ..AuthenticatedMessage::default()
    };
    let outputs = dns.authenticator.verify_dkim(Parameters::new(&message).with_txt_cache(&keys)).await;
    for (claim, output) in claims.iter().zip(&outputs) {
        conclude(&mut checks[claim.at], output);
    }
    checks
}

/// Looks all keys up; a claim without a key is settled and gone.
async fn fetch_keys(dns: &Dns, claims: &mut Vec<Claim<'_>>, checks: &mut [DkimCheck]) -> KeyView {
    let wanted: Vec<(&str, &str)> =
        claims.iter().map(|claim| (claim.signature.s.as_str(), claim.signature.d.as_str())).collect();
    let found = keys::keys(dns, &wanted).await;
    let mut view = KeyView::default();
    let mut waiting = Vec::with_capacity(claims.len());
    for (claim, key) in claims.drain(..).zip(found) {
        match key {
            Ok(key) => {
                view.add(&claim.signature.s, &claim.signature.d, &key);
                checks[claim.at].testing = key.testing;
                waiting.push(claim);
            }
            Err(fault) => {
                let result = match fault {
                    KeyFault::Temporary => DkimResult::TempError,
                    KeyFault::Size => DkimResult::Policy,
                    _ => DkimResult::PermError,
                };
                checks[claim.at].settle(result, fault.reason());
            }
        }
    }
    *claims = waiting;
    view
}

/// What mail-auth made of a claim.
fn conclude(check: &mut DkimCheck, output: &DkimOutput<'_>) {
    use mail_auth::DkimResult as Made;
    match output.result() {
        Made::Pass if check.testing => check.settle(DkimResult::Pass, "the key is in test mode"),
        Made::Pass => check.result = DkimResult::Pass,
        Made::Neutral(Error::Dkim(DkimError::FailedBodyHashMatch)) => {
            check.settle(DkimResult::Fail, "the body was changed");
        }
        Made::Neutral(Error::Dkim(DkimError::SignatureExpired)) => {
            check.settle(DkimResult::Fail, "the signature has expired");
        }
        Made::Fail(Error::Dkim(DkimError::FailedAuidMatch)) => {
            check.settle(DkimResult::PermError, "the identity is not of the domain");
        }
        Made::Fail(Error::Crypto(mail_auth::common::crypto::CryptoError::IncompatibleAlgorithms)) => {
            check.settle(DkimResult::PermError, "the key is of another algorithm");
        }
        _ => check.settle(DkimResult::Fail, "the signature does not fit the header"),
    }
}

/// Reads a signature: what it says, and a claim when it is worth a key.
fn judge<'a>(scanned: &Scanned, field: Field<'a>, at: usize, now: u64) -> (DkimCheck, Option<Claim<'a>>) {
    let mut check = DkimCheck {
        result: DkimResult::PermError,
        reason: Some("the signature is malformed"),
        domain: String::new(),
        identity: None,
        selector: String::new(),
        algorithm: String::new(),
        signature: String::new(),
        testing: false,
    };
    let value = field.value();
    let Some(tags) = Tags::parse(&value) else {
        return (check, None);
    };
    let text = |name| tags.get(name).unwrap_or_default().to_owned();
    check.domain = match tags.compact("d").unwrap_or_default().parse() {
        Ok(Domain::Name(name)) => name,
        Ok(Domain::Literal(_)) | Err(_) => String::new(),
    };
    check.identity = tags.compact("i");
    check.selector = text("s");
    check.algorithm = text("a").to_ascii_lowercase();
    check.signature = tags.compact("b").unwrap_or_default().chars().take(8).collect();
    if let Err((result, reason)) = acceptable(scanned, &tags, &check, now) {
        check.settle(result, reason);
        return (check, None);
    }
    let Ok(mut signature) = Signature::parse(field.raw_value()) else {
        return (check, None);
    };
    // Nobody here sends failure reports (RFC 6651) or asks third parties (RFC 6541).
    signature.r = false;
    signature.atps = None;
    if let Err((result, reason)) = covers_body(scanned, &tags, &signature) {
        check.settle(result, reason);
        return (check, None);
    }
    check.reason = None;
    (check, Some(Claim { field, signature, at }))
}

/// The conditions of RFC 6376 §6.1.1 and RFC 8301 that need no key.
fn acceptable(
    scanned: &Scanned,
    tags: &Tags,
    check: &DkimCheck,
    now: u64,
) -> Result<(), (DkimResult, &'static str)> {
    let malformed = |reason| Err((DkimResult::PermError, reason));
    if tags.get("v") != Some("1") {
        return malformed("the version is not 1");
    }
    if check.domain.is_empty() || check.selector.is_empty() {
        return malformed("the signature names no domain and selector");
    }
    if check.algorithm == "rsa-sha1" {
        return Err((DkimResult::Policy, "rsa-sha1 is not accepted"));
    }
    if !matches!(check.algorithm.as_str(), "rsa-sha256" | "ed25519-sha256") {
        return malformed("the algorithm is unknown");
    }
    if tags.lists("h", "from") != Some(true) || scanned.header().only("From").is_none() {
        return malformed("the signature does not cover one From field");
    }
    if tags.lists("q", "dns/txt") == Some(false) {
        return malformed("the key is not in the DNS");
    }
    let time = |name| match tags.get(name) {
        None => Ok(None),
        Some(text) if text.len() <= 12 => text.parse::<u64>().map(Some).map_err(|_| ()),
        Some(_) => Err(()),
    };
    match (time("t"), time("x")) {
        (Err(()), _) | (_, Err(())) => malformed("a time is malformed"),
        (Ok(Some(t)), Ok(Some(x))) if x <= t => malformed("the signature expires before it is made"),
        (_, Ok(Some(x))) if x <= now => Err((DkimResult::Fail, "the signature has expired")),
        _ => Ok(()),
    }
}

/// `l=` must be the length of the whole canonical body: what comes after it would be unsigned (RFC 6376
/// §8.2).
fn covers_body(
    scanned: &Scanned,
    tags: &Tags,
    signature: &Signature,
) -> Result<(), (DkimResult, &'static str)> {
    let Some(limit) = tags.get("l") else {
        return Ok(());
    };
    let length = scanned.hash(form(signature.cb)).map_or(0, |hash| hash.length);
    match limit.parse::<u64>() {
        Ok(limit) if limit == length => Ok(()),
        Ok(limit) if limit < length => Err((DkimResult::Policy, "the signature covers part of the body")),
        _ => Err((DkimResult::PermError, "the body is shorter than the signature says")),
    }
}

pub(crate) fn form(canonicalization: Canonicalization) -> Form {
    match canonicalization {
        Canonicalization::Simple => Form::Simple,
        Canonicalization::Relaxed => Form::Relaxed,
    }
}

type BodyHashEntry = (Canonicalization, HashAlgorithm, u64, Vec<u8>);

/// The entry under which mail-auth looks for the body hash of a signature. A hash that was not made
/// is empty, and equals none.
fn body_hash(scanned: &Scanned, signature: &Signature) -> BodyHashEntry {
    let hash = match signature.a {
        Algorithm::RsaSha1 => Vec::new(),
        Algorithm::RsaSha256 | Algorithm::Ed25519Sha256 => {
            scanned.hash(form(signature.cb)).map(|hash| hash.sha256.to_vec()).unwrap_or_default()
        }
    };
    (signature.cb, HashAlgorithm::from(signature.a), signature.l, hash)
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
