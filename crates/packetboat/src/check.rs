//! `packetboat check`: reads all that a role would read, and says what is wrong, without starting anything.

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use domains::{DomainIndex, LoadError, SecretsWanted, load_folder};
use serde::Serialize;
use tls::{PeerRole, ServerTls};

use crate::command::{Check, Output};
use crate::report;
use crate::roles;
use crate::settings::{Backend, DomainSource, Problem, Role, Settings};

/// What was found. As JSON it is for programs.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// What is wrong; empty when all is well.
    problems: Vec<Finding>,
    /// Roles that the file suffices for.
    roles: Vec<Role>,
    /// Roles that it does not suffice for, and the keys they want.
    others: Vec<Lack>,
    /// What would run.
    summary: Vec<(String, String)>,
}

/// One thing that is wrong.
#[derive(Debug, Serialize)]
struct Finding {
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    text: String,
}

impl From<Problem> for Finding {
    fn from(problem: Problem) -> Self {
        let location = Some(problem.location());
        Self { location, key: Some(problem.key).filter(|key| !key.is_empty()), text: problem.text }
    }
}

#[derive(Debug, Serialize)]
struct Lack {
    role: Role,
    keys: Vec<&'static str>,
}

/// Checks, and fails when anything is wrong.
pub(crate) fn run(arguments: &Check) -> Result<()> {
    let mut report = Report::default();
    match Settings::load(&arguments.file.config) {
        Ok(settings) => report.check(&settings, arguments.role),
        Err(problems) => report.problems.extend(problems.0.into_iter().map(Finding::from)),
    }
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Table => report.print(),
    }
    match report.problems.len() {
        0 => Ok(()),
        1 => anyhow::bail!("1 problem was found"),
        count => anyhow::bail!("{count} problems were found"),
    }
}

impl Report {
    fn check(&mut self, settings: &Settings, wanted: Option<Role>) {
        for role in wanted.map_or(Role::EACH.to_vec(), |role| vec![role]) {
            let keys = settings.lacks(role);
            if keys.is_empty() {
                self.roles.push(role);
            } else {
                self.others.push(Lack { role, keys });
            }
        }
        if self.roles.is_empty() {
            let each: Vec<String> = self
                .others
                .iter()
                .map(|lack| format!("{} wants {}", lack.role, lack.keys.join(" and ")))
                .collect();
            self.found(None, format!("the file suffices for no role: {}", each.join("; ")));
        }
        self.summarize("hostname", &settings.hostname);
        self.domains(settings);
        self.listeners(settings);
        self.services(settings);
    }

    fn has(&self, roles: &[Role]) -> bool {
        self.roles.iter().any(|role| roles.contains(role))
    }

    fn found(&mut self, location: Option<String>, text: String) {
        self.problems.push(Finding { location, key: None, text });
    }

    /// Notes the failure of a step, if it failed, at the key that it hangs on.
    fn attempt<T>(&mut self, settings: &Settings, key: &str, step: Result<T>) -> Option<T> {
        step.map_err(|error| self.problems.push(settings.problem(key, report::one_line(&error)).into())).ok()
    }

    fn summarize(&mut self, what: &str, value: impl ToString) {
        self.summary.push((what.to_owned(), value.to_string()));
    }

    fn domains(&mut self, settings: &Settings) {
        let wanted = SecretsWanted {
            submission_users: self.has(&[Role::All, Role::Edge]),
            signing_keys: self.has(&[Role::All, Role::Verifier]),
        };
        let folder = match &settings.domains {
            DomainSource::Folder(folder) => folder,
            DomainSource::Kubernetes(namespaces) => {
                return self.summarize("domains", format!("by Kubernetes watch, namespaces: {namespaces}"));
            }
        };
        match load_folder(folder, wanted) {
            Ok(index) => {
                self.signing_keys(&index);
                self.source_pools(settings, &index);
                let mut names: Vec<&str> = index.all().map(|domain| domain.name.as_str()).collect();
                names.sort_unstable();
                let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                self.summarize("domains", names);
            }
            Err(LoadError(problems)) => {
                for problem in problems {
                    let line = problem.line.map(|line| format!(":{line}")).unwrap_or_default();
                    self.found(Some(format!("{}{line}", problem.file.display())), problem.text);
                }
            }
        }
    }

    /// Mail of a domain whose source pool is not there would wait.
    fn source_pools(&mut self, settings: &Settings, index: &DomainIndex) {
        if !self.has(&[Role::All, Role::Delivery]) {
            return;
        }
        for domain in index.all() {
            let pool = domain.spec.outbound.as_ref().and_then(|outbound| outbound.pool.as_deref());
            let known =
                |pool: &str| pool == queue::Pool::DEFAULT || settings.outbound.pools.contains_key(pool);
            if let Some(pool) = pool.filter(|pool| !known(pool)) {
                let resource = &domain.resource;
                let text = format!(
                    "MailDomain {resource}: outbound.pool is {pool}, which outbound.pools does not have: its mail would wait"
                );
                self.found(None, text);
            }
        }
    }

    fn signing_keys(&mut self, index: &DomainIndex) {
        for domain in index.all() {
            for key in &domain.signing_keys {
                let algorithm = match key.algorithm {
                    domains::Algorithm::RsaSha256 => auth::Algorithm::RsaSha256,
                    domains::Algorithm::Ed25519Sha256 => auth::Algorithm::Ed25519Sha256,
                };
                let signer = auth::Signer::new(&domain.name, &key.selector, algorithm, &key.private_key);
                if let Err(error) = signer {
                    let (selector, resource) = (&key.selector, &domain.resource);
                    let text =
                        format!("the key of the selector {selector} of MailDomain {resource} cannot sign: ");
                    self.found(None, text + &report::one_line(&error.into()));
                }
            }
        }
    }

    fn listeners(&mut self, settings: &Settings) {
        if !self.has(&[Role::All, Role::Edge]) {
            return;
        }
        for listener in &settings.listeners {
            let kind = match listener.kind {
                edge::config::Kind::Mx => "mail from other servers",
                edge::config::Kind::Submission => "mail from users",
            };
            let tls = if listener.implicit_tls { "TLS" } else { "STARTTLS" };
            let proxy = if listener.proxies.is_empty() { "" } else { ", behind a proxy" };
            self.summarize(
                &format!("listener {}", listener.name),
                format!("{}, {kind}, {tls}{proxy}", listener.address),
            );
        }
        match &settings.tls.certificate {
            Some(certificate) => {
                let loaded = ServerTls::load(&settings.tls, &settings.data_dir, &settings.hostname);
                if self.attempt(settings, "tls", loaded.map_err(anyhow::Error::new)).is_some() {
                    self.summarize("certificate", certificate.display());
                }
            }
            None => self.summarize("certificate", "self-signed, made in data_dir"),
        }
    }

    fn services(&mut self, settings: &Settings) {
        if self.has(&[Role::Verifier, Role::All]) {
            let built = verifier::build(
                settings.verifier.clone(),
                verifier::Deps { domains: domains::Domains::fixed(DomainIndex::default()) },
            );
            self.attempt(settings, "verifier", built.context("the verifier cannot be set up"));
        }
        if self.has(&[Role::Delivery, Role::All]) {
            let resolver = dns::Resolver::new(settings.dns.clone());
            self.attempt(settings, "dns", resolver.context("the resolver cannot be set up"));
            match settings.queue.backend {
                Backend::Embedded => {
                    self.summarize("queue", format!("embedded in {}", settings.data_dir.display()))
                }
                Backend::Redis => self.summarize("queue", "redis"),
            }
        }
        let wires = [("verifier", &settings.verifier_wire), ("delivery", &settings.delivery_wire)];
        for (name, wire) in wires {
            if let Some(listen) = wire.listen {
                self.summarize(&format!("{name}.listen"), listen);
            }
            if !wire.endpoints.is_empty() {
                self.summarize(&format!("{name}.endpoint"), wire.endpoints.join(", "));
            }
        }
        self.peer_tls(settings);
        self.policies(settings);
        self.summarize("admin", settings.admin);
    }

    /// What serves MTA-STS policies.
    fn policies(&mut self, settings: &Settings) {
        let Some(listen) = settings.mta_sts.listen else { return };
        let own = !settings.mta_sts.certificates.is_empty();
        if own {
            self.attempt(settings, "mta_sts.certificates", roles::policy_tls(settings));
        }
        let how = match (settings.mta_sts.plain, own || settings.tls.certificate.is_some()) {
            (true, _) => "plain HTTP",
            (false, true) => "HTTPS",
            (false, false) => "HTTPS with a self-signed certificate, which senders do not take",
        };
        self.summarize("mta_sts.listen", format!("{listen}, {how}"));
    }

    /// The certificates between services have to name one of the roles: several may share the file.
    fn peer_tls(&mut self, settings: &Settings) {
        let roles = [
            (Role::Edge, PeerRole::Edge),
            (Role::Verifier, PeerRole::Verifier),
            (Role::Delivery, PeerRole::Delivery),
        ];
        let wanted = roles.into_iter().filter(|(role, _)| self.has(&[*role]));
        let (named, failed): (Vec<_>, Vec<_>) = wanted
            .map(|(role, service)| (role, roles::peer_tls(settings, service)))
            .partition(|(_, loaded)| loaded.is_ok());
        if let (true, Some((_, failure))) = (named.is_empty(), failed.into_iter().next()) {
            self.attempt(settings, "tls.peer", failure);
        } else if settings.peer_tls.is_some() {
            let names: Vec<&str> = named.iter().map(|(role, _)| role.name()).collect();
            self.summarize("tls.peer", names.join(", "));
        }
    }

    fn print(&self) {
        for problem in &self.problems {
            let place = [&problem.location, &problem.key].into_iter().flatten();
            let place: String = place.map(|part| format!("{part}: ")).collect();
            println!("{place}{}", problem.text);
        }
        if !self.problems.is_empty() {
            return;
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let roles: Vec<&str> = self.roles.iter().map(|role| role.name()).collect();
        table.add_row(["suffices for".to_owned(), roles.join(", ")]);
        for (what, value) in &self.summary {
            table.add_row([what, value]);
        }
        for line in table.to_string().lines() {
            println!("{}", line.trim());
        }
        println!("No problems were found.");
    }
}
