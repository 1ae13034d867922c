//! Who sent the message: SPF (RFC 7208) and iprev (RFC 8601 §3). The content is not needed for it, so
//! it is done while the content still comes in.

use std::net::IpAddr;

use smtp::{Domain, ReversePath};

use crate::dns::{Dns, TemporaryFailure};
use crate::spf::{self, Sender};

/// The most names of an address that iprev asks for.
const MAX_NAMES: usize = 2;

/// The SMTP client and what it said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its address, after any PROXY header.
    pub ip: IpAddr,
    /// The argument of EHLO or HELO as given.
    pub helo: String,
    /// The argument of MAIL FROM.
    pub reverse_path: ReversePath,
}

/// A result of SPF (RFC 7208 §2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SpfResult {
    None,
    Neutral,
    Pass,
    Fail,
    SoftFail,
    TempError,
    PermError,
}

/// Whose record was evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpfIdentity {
    /// The domain of MAIL FROM.
    MailFrom,
    /// The EHLO name, as the sender is null (RFC 7208 §2.4).
    Helo,
}

/// The SPF check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpfCheck {
    /// What it came to.
    pub result: SpfResult,
    /// Which identity was checked.
    pub identity: SpfIdentity,
    /// The identity as `Authentication-Results` shows it: the address or the EHLO name.
    pub value: String,
    /// The domain whose record was evaluated; `None` when the identity holds no domain name.
    pub domain: Option<String>,
}

/// A result of iprev (RFC 8601 §2.7.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IprevResult {
    /// The address has a name that has the address.
    Pass,
    /// It has names, none of which has the address.
    Fail,
    /// The DNS gave no answer.
    TempError,
    /// The address has no name.
    PermError,
}

/// The iprev check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IprevCheck {
    /// What it came to.
    pub result: IprevResult,
    /// The address.
    pub ip: IpAddr,
    /// The first name it has, without the dot at the end.
    pub name: Option<String>,
}

/// What is known of the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCheck {
    /// The SPF check.
    pub spf: SpfCheck,
    /// The iprev check.
    pub iprev: IprevCheck,
}

impl SpfResult {
    /// The keyword of RFC 8601 §2.7.2.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Neutral => "neutral",
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::SoftFail => "softfail",
            Self::TempError => "temperror",
            Self::PermError => "permerror",
        }
    }
}

impl IprevResult {
    /// The keyword of RFC 8601 §2.7.3.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::TempError => "temperror",
            Self::PermError => "permerror",
        }
    }
}

/// Evaluates iprev: whether a name of the address has the address. At most two names are asked for.
pub(crate) async fn iprev(dns: &Dns, ip: IpAddr) -> IprevCheck {
    let names = match dns.ptr(ip).await {
        Err(TemporaryFailure) => return IprevCheck { result: IprevResult::TempError, ip, name: None },
        Ok(answer) => answer,
    };
    let Some(first) = names.found().first() else {
        return IprevCheck { result: IprevResult::PermError, ip, name: None };
    };
    let mut check = IprevCheck { result: IprevResult::Fail, ip, name: Some(first.clone()) };
    for name in names.found().iter().take(MAX_NAMES) {
        match spf::addresses(dns, name, ip).await {
            Ok(addresses) if addresses.contains(&ip) => {
                return IprevCheck { result: IprevResult::Pass, name: Some(name.clone()), ..check };
            }
            Ok(_) => {}
            Err(TemporaryFailure) => check.result = IprevResult::TempError,
        }
    }
    check
}

/// Evaluates SPF for MAIL FROM or, where that is null, for the EHLO name.
pub(crate) async fn spf(dns: &Dns, client: &Client) -> SpfCheck {
    let (identity, value, local_part, domain) = match &client.reverse_path {
        ReversePath::Mailbox(mailbox) => {
            let domain = mailbox.domain_name().map(str::to_owned);
            (SpfIdentity::MailFrom, mailbox.to_string(), mailbox.local_part(), domain)
        }
        ReversePath::Null => {
            let domain = match client.helo.parse() {
                Ok(Domain::Name(name)) => Some(name),
                Ok(Domain::Literal(_)) | Err(_) => None,
            };
            (SpfIdentity::Helo, client.helo.clone(), "postmaster", domain)
        }
    };
    // A name of one label is nothing that could have published a policy (RFC 7208 §4.3).
    let result = match domain.as_deref().filter(|domain| domain.contains('.')) {
        None => SpfResult::None,
        Some(domain) => {
            let sender = Sender { ip: client.ip, local_part, domain, helo: &client.helo };
            let evaluation = spf::check_host(dns, &sender);
            let evaluation = tokio::time::timeout(dns.method_deadline(), evaluation);
            evaluation.await.unwrap_or(SpfResult::TempError)
        }
    };
    SpfCheck { result, identity, value, domain }
}
