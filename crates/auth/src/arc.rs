//! The Authenticated Received Chain verified (RFC 8617). It is on its way out: it is reported, and by
//! itself changes nothing.

use mail_auth::arc::{Results, Seal, Signature};
use mail_auth::common::crypto::{Algorithm, HashAlgorithm};
use mail_auth::common::headers::Header as AuthHeader;
use mail_auth::{AuthenticatedMessage, DkimResult, Parameters};
use message::Header;

use crate::content::Scanned;
use crate::dkim::form;
use crate::dns::Dns;
use crate::keys::{self, KeyFault, KeyView};
use crate::tags::Tags;

/// The most sets of a chain (RFC 8617 §4.2.1).
const MAX_SETS: usize = 50;

/// A result of ARC (RFC 8617 §4.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArcResult {
    /// There is no chain.
    None,
    /// The chain is whole.
    Pass,
    /// The chain is broken, or could not be verified.
    Fail,
}

/// The ARC check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArcCheck {
    /// What it came to.
    pub result: ArcResult,
    /// Why, where the chain fails.
    pub reason: Option<&'static str>,
    /// How many sets the chain has.
    pub sets: usize,
    /// Who sealed last, when the chain passes.
    pub sealer: Option<String>,
}

impl ArcResult {
    /// The keyword of RFC 8617 §10.1.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Pass => "pass",
            Self::Fail => "fail",
        }
    }
}

/// The fields of a chain, each kind in the order of its instances.
struct Chain<'a> {
    results: Vec<AuthHeader<'a, Results>>,
    signatures: Vec<AuthHeader<'a, Signature>>,
    seals: Vec<AuthHeader<'a, Seal>>,
}

/// Verifies the chain of a message.
pub(crate) async fn verify(dns: &Dns, scanned: &Scanned) -> ArcCheck {
    let chain = match read(scanned.header()) {
        Ok(Some(chain)) => chain,
        Ok(None) => return ArcCheck { result: ArcResult::None, reason: None, sets: 0, sealer: None },
        Err(reason) => {
            return ArcCheck { result: ArcResult::Fail, reason: Some(reason), sets: 0, sealer: None };
        }
    };
    let sets = chain.seals.len();
    match verify_chain(dns, scanned, chain).await {
        Ok(sealer) => ArcCheck { result: ArcResult::Pass, reason: None, sets, sealer: Some(sealer) },
        Err(reason) => ArcCheck { result: ArcResult::Fail, reason: Some(reason), sets, sealer: None },
    }
}

async fn verify_chain(dns: &Dns, scanned: &Scanned, chain: Chain<'_>) -> Result<String, &'static str> {
    let view = fetch_keys(dns, &chain).await?;
    let sealer = chain.seals.last().map(|seal| seal.header.d.clone()).unwrap_or_default();
    let body_hashes = chain.signatures.iter().map(|signature| {
        let Signature { a, cb, l, .. } = signature.header;
        let hash = scanned.hash(form(cb)).map(|hash| hash.sha256.to_vec()).unwrap_or_default();
        (cb, HashAlgorithm::from(a), l, hash)
    });
    let message = AuthenticatedMessage {
        headers: scanned.header().fields().map(|field| (field.name(), field.raw_value())).collect(),
        body_hashes: body_hashes.collect(),
        aar_headers: chain.results,
        ams_headers: chain.signatures,
        as_headers: chain.seals,
        ..AuthenticatedMessage::default()
    };
    let output = dns.authenticator.verify_arc(Parameters::new(&message).with_txt_cache(&view)).await;
    match output.result() {
        DkimResult::Pass => Ok(sealer),
        DkimResult::Neutral(_) => Err("the message was changed after it was sealed"),
        _ => Err("the chain is broken"),
    }
}

/// The keys that a chain is verified with: of each seal, and of the last message signature.
async fn fetch_keys(dns: &Dns, chain: &Chain<'_>) -> Result<KeyView, &'static str> {
    let seals = chain.seals.iter().map(|seal| (seal.header.s.as_str(), seal.header.d.as_str()));
    let last = chain.signatures.last().map(|last| (last.header.s.as_str(), last.header.d.as_str()));
    let mut wanted: Vec<(&str, &str)> = seals.chain(last).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let mut view = KeyView::default();
    for ((selector, domain), key) in wanted.iter().zip(keys::keys(dns, &wanted).await) {
        view.add(selector, domain, &*key.map_err(KeyFault::reason)?);
    }
    Ok(view)
}

/// Reads the fields of the chain; `None` when there are none.
fn read(header: &Header) -> Result<Option<Chain<'_>>, &'static str> {
    const FAULT: &str = "a field of the chain is malformed";
    let mut chain = Chain { results: Vec::new(), signatures: Vec::new(), seals: Vec::new() };
    for field in header.fields() {
        let (name, value) = (field.name(), field.raw_value());
        if field.is("ARC-Seal") {
            chain.seals.push(AuthHeader::new(name, value, Seal::parse(value).map_err(|_| FAULT)?));
        } else if field.is("ARC-Message-Signature") {
            let signature = Signature::parse(value).map_err(|_| FAULT)?;
            let tags = Tags::parse(&field.value()).ok_or(FAULT)?;
            acceptable(&tags)?;
            chain.signatures.push(AuthHeader::new(name, value, signature));
        } else if field.is("ARC-Authentication-Results") {
            chain.results.push(AuthHeader::new(name, value, Results::parse(value).map_err(|_| FAULT)?));
        }
    }
    let sets = chain.seals.len();
    if sets == 0 && chain.signatures.is_empty() && chain.results.is_empty() {
        return Ok(None);
    }
    if sets == 0 || sets > MAX_SETS || chain.signatures.len() != sets || chain.results.len() != sets {
        return Err("a set of the chain is not whole, or there are more than 50");
    }
    if chain.seals.iter().any(|seal| seal.header.a == Algorithm::RsaSha1) {
        return Err("rsa-sha1 is not accepted");
    }
    chain.results.sort_by_key(|field| field.header.i);
    chain.signatures.sort_by_key(|field| field.header.i);
    chain.seals.sort_by_key(|field| field.header.i);
    Ok(Some(chain))
}

/// What a message signature must be beyond being well-formed (RFC 8617 §4.1.2, RFC 8301).
fn acceptable(tags: &Tags) -> Result<(), &'static str> {
    if tags.get("a").is_some_and(|a| a.eq_ignore_ascii_case("rsa-sha1")) {
        return Err("rsa-sha1 is not accepted");
    }
    if tags.get("l").is_some() {
        return Err("a signature of the chain may cover part of the body");
    }
    if tags.lists("h", "from") != Some(true) || tags.lists("h", "arc-seal") == Some(true) {
        return Err("a signature of the chain covers the wrong fields");
    }
    Ok(())
}
