//! A verifier with a DNS server and a folder of domains.

use std::time::Duration;

use bytes::Bytes;
use domains::{Domains, SecretsWanted, load_folder};
use message::{Content, Cut};
use proto::{
    Disposition, End, ServiceError, SignBegin, SignResponse, SmtpReply, Verifier, VerifyBegin,
    VerifyResponse, frames_of, sign_request, verify_request,
};
use sha2::{Digest, Sha256};
use testkit::dns::DnsServer;
use testkit::process::Site;
use verifier::{Config, Deps, VerifierService, build};

pub(crate) const HOST: &str = "mx.receiver.test";
pub(crate) const SENDER: &str = "192.0.2.1";

pub(crate) struct Bench {
    pub(crate) dns: DnsServer,
    pub(crate) service: VerifierService,
    domains: Domains,
    site: Site,
}

pub(crate) fn config(dns: &DnsServer) -> Config {
    Config {
        authserv_id: HOST.to_owned(),
        auth: auth::Config {
            dns_servers: vec![dns.address()],
            dns_timeout: Duration::from_millis(300),
            dns_attempts: 1,
            ..auth::Config::default()
        },
        ..Config::default()
    }
}

/// Two hosted domains: one that follows policies, one that does not.
fn write_domains(site: &Site, extra: &[(&str, &str)]) {
    let inbound = "inbound:\n  recipients: {addresses: [bob]}\n  route: {maildir: {path: mail}}\n";
    site.domain("receiver.test", inbound).unwrap();
    site.domain("lax.test", &format!("{inbound}  dmarc: {{enforce: false}}\n")).unwrap();
    for (domain, spec) in extra {
        site.domain(domain, spec).unwrap();
    }
}

impl Bench {
    pub(crate) async fn new(zone: &str) -> Self {
        Self::with(zone, &[], &[], |config| config).await
    }

    /// With more domains, secrets, and other settings.
    pub(crate) async fn with(
        zone: &str,
        extra: &[(&str, &str)],
        secrets: &[(&str, &str)],
        change: impl FnOnce(Config) -> Config,
    ) -> Self {
        let dns = DnsServer::start(zone).await.unwrap();
        let site = Site::new(dns.address()).unwrap();
        write_domains(&site, extra);
        for (name, key) in secrets {
            site.secret(name, &[("tls.key", key)]).unwrap();
        }
        let wanted = SecretsWanted { signing_keys: true, ..SecretsWanted::default() };
        let index = load_folder(&site.path().join("domains"), wanted).unwrap();
        let domains = Domains::fixed(index);
        let service = build(change(config(&dns)), Deps { domains: domains.clone() }).unwrap();
        Self { dns, service, domains, site }
    }

    /// The domains the service sees.
    pub(crate) fn domains(&self) -> &Domains {
        &self.domains
    }

    /// Where the domains lie.
    pub(crate) fn site(&self) -> &Site {
        &self.site
    }

    pub(crate) async fn verify(&self, from: &str, to: &[&str], message: &str) -> Judged {
        let response = self.service.verify(frames_of(verify_frames(from, to, message))).await.unwrap();
        Judged::new(response, message)
    }

    pub(crate) async fn sign(&self, begin: SignBegin, message: &str) -> Signed {
        let response = self.try_sign(begin, message).await.unwrap();
        Signed::new(response, message)
    }

    async fn try_sign(&self, begin: SignBegin, message: &str) -> Result<SignResponse, ServiceError> {
        let mut frames = vec![sign_request::Frame::Begin(begin)];
        frames.extend(chunks(message).map(sign_request::Frame::Chunk));
        frames.push(sign_request::Frame::End(end(message)));
        self.service.sign(frames_of(frames)).await
    }
}

pub(crate) fn chunks(message: &str) -> impl Iterator<Item = Bytes> {
    message.as_bytes().chunks(1000).map(Bytes::copy_from_slice)
}

pub(crate) fn end(message: &str) -> End {
    End { size: message.len() as u64, sha256: Sha256::digest(message.as_bytes()).to_vec().into() }
}

pub(crate) fn begin(from: &str, to: &[&str]) -> VerifyBegin {
    VerifyBegin {
        queue_id: "0123456789abcdefghjkmnpqrs".to_owned(),
        client_ip: SENDER.to_owned(),
        helo: "mail.author.test".to_owned(),
        reverse_path: from.to_owned(),
        forward_paths: to.iter().map(|path| (*path).to_owned()).collect(),
        smtputf8: false,
    }
}

pub(crate) fn verify_frames(from: &str, to: &[&str], message: &str) -> Vec<verify_request::Frame> {
    let mut frames = vec![verify_request::Frame::Begin(begin(from, to))];
    frames.extend(chunks(message).map(verify_request::Frame::Chunk));
    frames.push(verify_request::Frame::End(end(message)));
    frames
}

/// The message as it would be stored.
fn stored(message: &str, prepend: &Bytes, cuts: &[proto::Cut]) -> String {
    let cuts: Vec<Cut> = cuts.iter().map(|cut| Cut { offset: cut.offset, length: cut.length }).collect();
    let mut content = Content::from(Bytes::copy_from_slice(message.as_bytes())).without(&cuts);
    content.prepend(prepend.clone());
    String::from_utf8(content.to_bytes().to_vec()).unwrap()
}

pub(crate) struct Judged {
    pub(crate) disposition: Disposition,
    pub(crate) reply: Option<SmtpReply>,
    /// The prepended field, unfolded.
    pub(crate) results: String,
    pub(crate) stored: String,
}

impl Judged {
    fn new(response: VerifyResponse, message: &str) -> Self {
        let results = String::from_utf8(response.prepend.to_vec()).unwrap().replace("\r\n\t", " ");
        let stored = stored(message, &response.prepend, &response.cuts);
        Self { disposition: response.disposition(), reply: response.reply, results, stored }
    }

    /// `550 5.7.1`, or nothing.
    pub(crate) fn code(&self) -> String {
        self.reply.as_ref().map(|reply| format!("{} {}", reply.code, reply.enhanced)).unwrap_or_default()
    }
}

pub(crate) struct Signed {
    pub(crate) disposition: Disposition,
    pub(crate) reply: Option<SmtpReply>,
    pub(crate) stored: String,
}

impl Signed {
    fn new(response: SignResponse, message: &str) -> Self {
        let stored = stored(message, &response.prepend, &response.cuts);
        Self { disposition: response.disposition(), reply: response.reply, stored }
    }
}
