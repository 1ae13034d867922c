//! The Secrets: read, and written only as they were read, so that two operators never mix.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use secrecy::{ExposeSecret, SecretString};

use super::issue::{self, Identity, IssueError};
use super::plan::{self, Authorities, Step};
use super::{Config, Error};
use crate::store::MANAGER;

/// Of a role's Secret: since when it trusts what it trusts, RFC 3339.
const TRUSTS_SINCE: &str = "mail.packetboat.dev/trusts-since";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// Of a role's Secret: the authorities to trust.
const TRUSTED: &str = "ca.crt";
/// Of the authority's Secret: the one that is to issue.
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
/// Of the authority's Secret: the one that has issued.
const PREVIOUS: &str = "previous.crt";

/// The Secrets of one installation.
pub(super) struct Secrets {
    api: Api<Secret>,
    prefix: String,
}

/// The authorities, as their Secret has them.
pub(super) struct Authority {
    secret: Secret,
    current: Option<Identity>,
    next: Option<Identity>,
    previous: Option<String>,
}

/// A role's certificate, as its Secret has it.
pub(super) struct Service {
    pub(super) role: &'static str,
    secret: Secret,
    identity: Option<Identity>,
    trusted: String,
    trusts_since: Option<Timestamp>,
    /// Whether it is to be written.
    pub(super) changed: bool,
}

impl Secrets {
    pub(super) fn new(client: &Client, namespace: &str, prefix: &str) -> Self {
        Self { api: Api::namespaced(client.clone(), namespace), prefix: prefix.to_owned() }
    }

    async fn read(&self, name: &str) -> Result<Secret, Error> {
        let name = format!("{}-{name}", self.prefix);
        let found = self.api.get_opt(&name).await.map_err(failed("reading the Secret", &name))?;
        Ok(found.unwrap_or_else(|| Secret {
            metadata: ObjectMeta { name: Some(name), ..ObjectMeta::default() },
            ..Secret::default()
        }))
    }

    /// Creates what was not there, and replaces what was; fails when somebody else has changed it since.
    async fn write(&self, secret: &Secret) -> Result<Secret, Error> {
        let (name, params) = (
            secret.name_any(),
            PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() },
        );
        match &secret.metadata.resource_version {
            Some(_) => self.api.replace(&name, &params, secret).await,
            None => self.api.create(&params, secret).await,
        }
        .map_err(failed("writing the Secret", &name))
    }

    pub(super) async fn authority(&self) -> Result<Authority, Error> {
        let secret = self.read("authority").await?;
        Ok(Authority {
            current: identity(&secret, CERTIFICATE, KEY),
            next: identity(&secret, NEXT_CERTIFICATE, NEXT_KEY),
            previous: text(&secret, PREVIOUS).filter(|pem| issue::read(pem).is_some()),
            secret,
        })
    }

    pub(super) async fn service(&self, role: &'static str) -> Result<Service, Error> {
        let secret = self.read(role).await?;
        Ok(Service {
            role,
            identity: identity(&secret, CERTIFICATE, KEY),
            trusted: text(&secret, TRUSTED).unwrap_or_default(),
            trusts_since: secret.annotations().get(TRUSTS_SINCE).and_then(|text| text.parse().ok()),
            changed: false,
            secret,
        })
    }

    pub(super) async fn write_authority(&self, authority: &mut Authority) -> Result<(), Error> {
        let mut data = BTreeMap::new();
        for (identity, certificate, key) in
            [(&authority.current, CERTIFICATE, KEY), (&authority.next, NEXT_CERTIFICATE, NEXT_KEY)]
        {
            if let Some(identity) = identity {
                data.insert(certificate.to_owned(), octets(&identity.certificate));
                data.insert(key.to_owned(), octets(identity.key.expose_secret()));
            }
        }
        data.extend(authority.previous.as_deref().map(|pem| (PREVIOUS.to_owned(), octets(pem))));
        authority.secret.data = Some(data);
        authority.secret = self.write(&authority.secret).await?;
        Ok(())
    }

    pub(super) async fn write_service(&self, service: &mut Service) -> Result<(), Error> {
        let mut data = BTreeMap::from([(TRUSTED.to_owned(), octets(&service.trusted))]);
        if let Some(identity) = &service.identity {
            data.insert(CERTIFICATE.to_owned(), octets(&identity.certificate));
            data.insert(KEY.to_owned(), octets(identity.key.expose_secret()));
        }
        service.secret.data = Some(data);
        if let Some(since) = service.trusts_since {
            service.secret.annotations_mut().insert(TRUSTS_SINCE.to_owned(), since.to_string());
        }
        service.secret = self.write(&service.secret).await?;
        service.changed = false;
        Ok(())
    }
}

impl Authority {
    pub(super) fn observed(&self) -> Authorities {
        let validity = |identity: &Option<Identity>| {
            identity.as_ref().and_then(|one| issue::read(&one.certificate)).map(|said| said.validity)
        };
        Authorities {
            current: validity(&self.current),
            next: validity(&self.next),
            previous: self.previous.is_some(),
        }
    }

    /// Takes a step, without writing it down.
    pub(super) fn take(&mut self, step: Step, now: Timestamp, config: &Config) -> Result<(), IssueError> {
        let new = || issue::authority(now, config.authority_lifetime).map(Some);
        match step {
            Step::Nothing => {}
            Step::Begin => (self.current, self.next, self.previous) = (new()?, None, None),
            Step::Prepare => self.next = new()?,
            Step::Succeed => {
                let before = std::mem::replace(&mut self.current, self.next.take());
                self.previous = before.map(|identity| identity.certificate);
            }
            Step::Forget => self.previous = None,
        }
        Ok(())
    }

    /// All certificates to trust, the present authority's first.
    fn bundle(&self) -> String {
        let identities = [&self.current, &self.next].into_iter().flatten();
        let all = identities.map(|identity| identity.certificate.as_str()).chain(self.previous.as_deref());
        all.map(|pem| format!("{}\n", pem.trim())).collect()
    }
}

impl Service {
    pub(super) fn observed(&self, authority: &Authority, config: &Config) -> plan::Service {
        let said = self.identity.as_ref().and_then(|identity| issue::read(&identity.certificate));
        let above = authority.current.as_ref().and_then(|identity| issue::read(&identity.certificate));
        plan::Service {
            of_current: said.as_ref().zip(above).is_some_and(|(said, above)| said.issuer == above.subject),
            certificate: said.filter(|said| said.names == [self.name(config)]).map(|said| said.validity),
            trusts_since: self.trusts_since.filter(|_| self.trusted == authority.bundle()),
        }
    }

    fn name(&self, config: &Config) -> String {
        format!("{}.{}", self.role, config.domain)
    }

    /// Makes another certificate, without writing it down.
    pub(super) fn renew(
        &mut self,
        authority: &Authority,
        now: Timestamp,
        config: &Config,
    ) -> Result<(), IssueError> {
        if let Some(current) = &authority.current {
            self.identity = Some(issue::certificate(current, &self.name(config), now, config.lifetime)?);
            self.changed = true;
        }
        Ok(())
    }

    /// Trusts what is to be trusted, without writing it down. Whether that is anything new.
    pub(super) fn trust(&mut self, authority: &Authority, now: Timestamp) -> bool {
        let wanted = authority.bundle();
        if self.trusted == wanted && self.trusts_since.is_some() {
            return false;
        }
        (self.trusted, self.trusts_since) = (wanted, Some(now));
        true
    }
}

fn failed(doing: &'static str, secret: &str) -> impl Fn(kube::Error) -> Error {
    let secret = secret.to_owned();
    move |cause| Error::Kube { doing, secret: secret.clone(), cause: Box::new(cause) }
}

fn octets(text: &str) -> ByteString {
    ByteString(text.as_bytes().to_vec())
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok()
}

/// A certificate that can be read, with its key.
fn identity(secret: &Secret, certificate: &str, key: &str) -> Option<Identity> {
    let certificate = text(secret, certificate).filter(|pem| issue::read(pem).is_some())?;
    let key = SecretString::from(text(secret, key).filter(|key| !key.is_empty())?);
    Some(Identity { certificate, key })
}
