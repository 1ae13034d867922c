//! By which way a domain's records are published, as its spec and the provider it names say.

use std::collections::HashMap;
use std::time::Duration;

use domains::types::{
    Cloudflare as CloudflareSpec, Dkim, DnsMode, MailDomain, ProviderKind, ProviderRef, RecordState,
    Rfc2136 as Rfc2136Spec, Route53 as Route53Spec,
};
use jiff::Timestamp;
use kube::ResourceExt;
use secrecy::{ExposeSecret, SecretSlice, SecretString};

use crate::cloudflare::{Cloudflare, CloudflareError};
use crate::endpoints::{Endpoints, EndpointsError};
use crate::error::Error;
use crate::observe::Observation;
use crate::reconcile::Context;
use crate::record::Record;
use crate::route53::{Access, Route53, Route53Error};
use crate::status::{Findings, Reason, mode};
use crate::update::{Change, Rfc2136, UpdateError};

/// A way to publish.
pub(crate) enum Publisher {
    /// Dynamic update at a primary.
    Rfc2136(Box<Rfc2136>),
    /// Cloudflare's API.
    Cloudflare(Box<Cloudflare>),
    /// The API of Amazon Route 53.
    Route53(Box<Route53>),
    /// Objects that external-dns reads.
    ExternalDns(Box<Endpoints>),
}

/// The ways to publish in the zones of a domain.
pub(crate) struct Publishers {
    /// In its own.
    pub(crate) own: Option<Publisher>,
    /// In the one that selectors lead into.
    pub(crate) target: Option<Publisher>,
}

impl Publishers {
    /// Whether a person publishes everything.
    pub(crate) fn are_none(&self) -> bool {
        self.own.is_none() && self.target.is_none()
    }
}

/// Why records were not published.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    #[error(transparent)]
    Update(#[from] UpdateError),
    #[error(transparent)]
    Cloudflare(#[from] CloudflareError),
    #[error(transparent)]
    Route53(#[from] Route53Error),
    #[error(transparent)]
    Endpoints(#[from] EndpointsError),
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// Something was changed.
    pub(crate) changed: bool,
    /// Where another program publishes: by the names of record sets, since when it is asked to.
    pub(crate) asked: HashMap<(String, &'static str), Timestamp>,
}

impl Applied {
    /// A record set that is not there though it was asked for long ago, in words.
    pub(crate) fn overdue(&self, seen: &[(Record, Observation)], patience: Duration) -> Option<String> {
        let now = Timestamp::now();
        let late = |record: &Record| {
            let asked = self.asked.get(&(record.name.clone(), record.record_type()))?;
            Duration::try_from(now.duration_since(*asked)).ok().filter(|waited| *waited > patience)
        };
        let absent = |state| matches!(state, RecordState::Missing | RecordState::Drifted);
        let found = seen.iter().find(|(record, seen)| absent(seen.state) && late(record).is_some())?;
        Some(format!("{} {} is not as it was asked to be", found.0.name, found.0.record_type()))
    }
}

impl Publisher {
    /// Makes the records be as the changes say.
    pub(crate) async fn apply(
        &self,
        zone: &str,
        domain: &str,
        changes: &[Change<'_>],
    ) -> Result<Applied, PublishError> {
        match self {
            Self::Rfc2136(publisher) => {
                let changed = publisher.apply(zone, domain, changes).await?;
                Ok(Applied { changed, ..Applied::default() })
            }
            Self::Cloudflare(publisher) => {
                let changed = publisher.apply(zone, domain, changes).await?;
                Ok(Applied { changed, ..Applied::default() })
            }
            Self::Route53(publisher) => {
                let changed = publisher.apply(zone, domain, changes).await?;
                Ok(Applied { changed, ..Applied::default() })
            }
            Self::ExternalDns(endpoints) => Ok(endpoints.apply(changes).await?),
        }
    }

    /// Whether what it wrote is seen in DNS, so that it need not be asked while the name servers show all that
    /// is wanted.
    pub(crate) fn is_seen_in_dns(&self) -> bool {
        !matches!(self, Self::ExternalDns(_))
    }

    /// What to look at where another program does not publish.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Rfc2136(_) | Self::Cloudflare(_) | Self::Route53(_) => "look at the name servers",
            Self::ExternalDns(_) => {
                "does external-dns run with --source=crd --managed-record-types=TXT --managed-record-types=MX \
                (and A, AAAA, CNAME), and are the names free of records that it does not own?"
            }
        }
    }
}

type Way<T> = Result<Result<T, Findings>, Error>;

fn refuse<T>(reason: Reason, text: impl Into<String>) -> Way<T> {
    Ok(Err(Findings::refuse(reason, text)))
}

impl Context {
    /// The way to publish, where the spec asks for one; or why there is none.
    async fn publisher(&self, domain: &MailDomain) -> Way<Option<Publisher>> {
        let dns = domain.spec.dns.clone().unwrap_or_default();
        let namespace = domain.namespace().unwrap_or_default();
        match mode(domain) {
            DnsMode::Manual => Ok(Ok(None)),
            DnsMode::Rfc2136 => match &dns.rfc2136 {
                Some(spec) => self.rfc2136(domain, spec, "dns.rfc2136", &namespace).await,
                None => refuse(Reason::InvalidSpec, "mode RFC2136 needs dns.rfc2136 with server and tsig"),
            },
            DnsMode::Provider => match &dns.provider_ref {
                Some(provider) => self.provider(domain, provider, &namespace, &domain.spec.domain).await,
                None => refuse(Reason::InvalidSpec, "mode Provider needs dns.providerRef with kind and name"),
            },
            DnsMode::ExternalDNS => match Endpoints::load(&self.client, domain).await? {
                Some(endpoints) => Ok(Ok(Some(Publisher::ExternalDns(Box::new(endpoints))))),
                None => refuse(
                    Reason::ExternalDNSNotInstalled,
                    "the cluster knows no DNSEndpoint (externaldns.k8s.io/v1alpha1): install external-dns with its CRD",
                ),
            },
        }
    }

    /// The ways to publish that the spec asks for; or why there is one missing.
    pub(crate) async fn publishers(&self, domain: &MailDomain) -> Way<Publishers> {
        let own = match self.publisher(domain).await? {
            Ok(own) => own,
            Err(findings) => return Ok(Err(findings)),
        };
        Ok(self.target_publisher(domain).await?.map(|target| Publishers { own, target }))
    }

    /// The way to publish in the zone that selectors lead into; nothing where they do not.
    async fn target_publisher(&self, domain: &MailDomain) -> Way<Option<Publisher>> {
        let Some(delegation) = domain.spec.dkim.as_ref().and_then(Dkim::delegated) else {
            return Ok(Ok(None));
        };
        match &delegation.provider_ref {
            Some(provider) => {
                let namespace = domain.namespace().unwrap_or_default();
                self.provider(domain, provider, &namespace, &delegation.base(&domain.spec.domain)).await
            }
            None if mode(domain) == DnsMode::Manual => {
                let text =
                    "dkim.delegation in mode Manual needs a providerRef: what publishes in targetZone?";
                refuse(Reason::InvalidSpec, text)
            }
            None => self.publisher(domain).await,
        }
    }

    /// The way that a DNSProvider or ClusterDNSProvider says, for a name and what is below it.
    async fn provider(
        &self,
        domain: &MailDomain,
        provider: &ProviderRef,
        namespace: &str,
        for_name: &str,
    ) -> Way<Option<Publisher>> {
        let name = &provider.name;
        let found = match provider.kind {
            ProviderKind::DNSProvider => {
                let found = self.ways.provider(namespace, name).await?;
                found.map(|found| (found.spec.clone(), namespace.to_owned()))
            }
            ProviderKind::ClusterDNSProvider if !self.namespaces.is_all() => {
                let text = "this operator looks after certain namespaces and uses no ClusterDNSProvider: \
                    make a DNSProvider beside the MailDomain";
                return refuse(Reason::ProviderNotAllowed, text);
            }
            ProviderKind::ClusterDNSProvider => {
                let found = self.ways.cluster_provider(name).await?;
                if found.as_ref().is_some_and(|one| !one.spec.permits(namespace, for_name)) {
                    let text = format!(
                        "the ClusterDNSProvider {name} is not for {for_name}, or not for this namespace"
                    );
                    return refuse(Reason::ProviderNotAllowed, text);
                }
                found.map(|found| {
                    let spec = found.spec.clone();
                    let secrets = spec.secret_namespace.clone();
                    (spec.way(), secrets)
                })
            }
        };
        let Some((way, secrets)) = found else {
            return refuse(Reason::ProviderNotFound, format!("there is no {:?} {name}", provider.kind));
        };
        let place = format!("{:?} {name}", provider.kind);
        match (&way.rfc2136, &way.cloudflare, &way.route53) {
            (Some(spec), None, None) => {
                self.rfc2136(domain, spec, &format!("{place}: rfc2136"), &secrets).await
            }
            (None, Some(spec), None) => {
                self.cloudflare(domain, spec, &format!("{place}: cloudflare"), &secrets).await
            }
            (None, None, Some(spec)) => {
                self.route53(domain, spec, &format!("{place}: route53"), &secrets).await
            }
            _ => refuse(Reason::InvalidSpec, format!("the {place} does not say just one way to publish")),
        }
    }

    async fn rfc2136(
        &self,
        domain: &MailDomain,
        spec: &Rfc2136Spec,
        place: &str,
        namespace: &str,
    ) -> Way<Option<Publisher>> {
        let Some(server) = self.observer.server(&spec.server).await.and_then(|all| all.first().copied())
        else {
            return refuse(Reason::InvalidSpec, format!("{place}.server: {} has no address", spec.server));
        };
        let (name, key) =
            (&spec.tsig.secret_ref.name, spec.tsig.secret_ref.key.as_deref().unwrap_or("secret"));
        let Some(secret) = self.ways.secret_value(namespace, name, key).await? else {
            let text =
                format!("{place}.tsig.secretRef: the Secret {name} has no key {key:?}, or is not there");
            return refuse(Reason::CredentialsMissing, text);
        };
        let owner = domain.uid().unwrap_or_default();
        let decoded = decode_tsig(secret);
        match Rfc2136::new(server, &spec.tsig.key_name, &spec.tsig.algorithm, &decoded, owner) {
            Ok(publisher) => Ok(Ok(Some(Publisher::Rfc2136(Box::new(publisher))))),
            Err(error) => refuse(Reason::InvalidSpec, format!("{place}.tsig: {error}")),
        }
    }

    async fn cloudflare(
        &self,
        domain: &MailDomain,
        spec: &CloudflareSpec,
        place: &str,
        namespace: &str,
    ) -> Way<Option<Publisher>> {
        let token = &spec.api_token_secret_ref;
        let (name, key) = (&token.name, token.key.as_deref().unwrap_or("api-token"));
        let found = self.ways.secret_value(namespace, name, key).await?;
        let Some(token) = found.and_then(|octets| String::from_utf8(octets).ok()) else {
            let text =
                format!("{place}.apiTokenSecretRef: the Secret {name} has no key {key:?}, or is not there");
            return refuse(Reason::CredentialsMissing, text);
        };
        let token = SecretString::from(token.trim().to_owned());
        match Cloudflare::new(spec.endpoint.as_deref(), token, domain.uid().unwrap_or_default()) {
            Ok(publisher) => Ok(Ok(Some(Publisher::Cloudflare(Box::new(publisher))))),
            Err(error) => refuse(Reason::InvalidSpec, format!("{place}: {error}")),
        }
    }

    async fn route53(
        &self,
        domain: &MailDomain,
        spec: &Route53Spec,
        place: &str,
        namespace: &str,
    ) -> Way<Option<Publisher>> {
        let name = &spec.access_key_secret_ref.name;
        let value = async |key: &str| -> Result<Option<SecretString>, Error> {
            let octets = self.ways.secret_value(namespace, name, key).await?;
            let text = octets.and_then(|octets| String::from_utf8(octets).ok()).unwrap_or_default();
            Ok(Some(text.trim()).filter(|text| !text.is_empty()).map(|text| text.to_owned().into()))
        };
        let values = (value("access-key-id").await?, value("secret-access-key").await?);
        let (Some(key_id), Some(secret)) = values else {
            let text = format!(
                "{place}.accessKeySecretRef: the Secret {name} has no keys \"access-key-id\" and \
                \"secret-access-key\", or is not there"
            );
            return refuse(Reason::CredentialsMissing, text);
        };
        let access = Access {
            key_id: key_id.expose_secret().to_owned(),
            secret,
            session: value("session-token").await?,
            region: spec.region.clone(),
            zone_id: spec.hosted_zone_id.clone(),
            endpoint: spec.endpoint.clone(),
        };
        let publisher = Route53::new(access, domain.uid().unwrap_or_default());
        Ok(Ok(Some(Publisher::Route53(Box::new(publisher)))))
    }

    /// Cuts the objects for external-dns loose from a MailDomain that goes, so that they stay.
    pub(crate) async fn release_endpoints(&self, domain: &MailDomain) -> Result<(), Error> {
        if mode(domain) != DnsMode::ExternalDNS {
            return Ok(());
        }
        match Endpoints::load(&self.client, domain).await? {
            Some(endpoints) => endpoints.release().await,
            None => Ok(()),
        }
    }
}

/// The value of a TSIG Secret: base64, as `tsig-keygen` prints it, or octets.
fn decode_tsig(value: Vec<u8>) -> SecretSlice<u8> {
    use base64::Engine;
    let text = std::str::from_utf8(&value).map(str::trim).unwrap_or_default();
    match base64::engine::general_purpose::STANDARD.decode(text) {
        Ok(decoded) if !decoded.is_empty() => SecretSlice::from(decoded),
        _ => SecretSlice::from(value),
    }
}
