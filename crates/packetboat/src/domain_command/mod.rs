//! `packetboat domain`: what a domain's DNS should say, and what it says.

mod check;
mod pins;
mod spf;
mod transport;

use std::path::Path;

use anyhow::{Context, Result, bail};
use comfy_table::{Table, presets};
use dns::{DnsConfig, Resolver};
use domains::types::{MailDomainSpec, RecordPolicy, RecordState};
use domains::{SecretsWanted, load_folder, secret_in_folder};
use mta_sts::Fetcher;
use operator::keypair::public_key;
use operator::observe::Observer;
use operator::record::{PIN, PublishedKey, Purpose, Record, desired, tlsa_name, tlsa_record};
use operator::tlsa::key_of_certificate;
use secrecy::ExposeSecret;
use serde::Serialize;

use crate::command::{Domain, DomainVerb, Output};
use crate::settings::{DomainSource, Settings};

/// Runs one command.
pub(crate) fn run(arguments: &Domain) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    runtime.block_on(dispatch(arguments))
}

async fn dispatch(arguments: &Domain) -> Result<()> {
    let settings = match &arguments.config {
        Some(file) => Some(Settings::load(file).context("the settings cannot be used")?),
        None => None,
    };
    let resolver = resolver(arguments, settings.as_ref())?;
    let output = arguments.output;
    match &arguments.verb {
        DomainVerb::Records { domain } => records(&declared(settings.as_ref(), domain).await?, output),
        DomainVerb::Show { domain } => {
            show(&declared(settings.as_ref(), domain).await?, resolver, output).await
        }
        DomainVerb::Check { domain, selector } => {
            let config = settings.as_ref().map(|settings| settings.operator.mta_sts.fetch.clone());
            let fetcher = Fetcher::new(resolver.clone(), config.unwrap_or_default());
            let fetcher = fetcher.context("no policy can be fetched")?;
            check::run(&resolver, &fetcher, domain, selector, output).await
        }
    }
}

fn resolver(arguments: &Domain, settings: Option<&Settings>) -> Result<Resolver> {
    let mut config = settings.map_or_else(DnsConfig::default, |settings| settings.dns.clone());
    if let Some(server) = arguments.server {
        config.servers = vec![server];
    }
    Resolver::new(config).context("the resolver cannot be set up")
}

/// A domain as it is declared, with the keys that are published.
struct Declared {
    spec: MailDomainSpec,
    keys: Vec<PublishedKey>,
    /// The TLSA records of its hosts.
    pins: Vec<Record>,
    announced: Announced,
}

/// Which MTA-STS policy the TXT record tells.
enum Announced {
    /// The declared one.
    Declared,
    /// The one of this id, as the operator says; none yet, or no more, when absent.
    Told(Option<String>),
}

impl Declared {
    /// The records that should be.
    fn records(&self) -> Vec<Record> {
        let mut records = desired(&self.spec, &self.keys);
        if let Announced::Told(id) = &self.announced {
            records.retain(|record| record.purpose != Purpose::MtaSts || id.is_some());
            let policies = records.iter_mut().filter(|record| record.purpose == Purpose::MtaSts);
            policies
                .for_each(|record| record.values = id.iter().map(|id| mta_sts::record::text(id)).collect());
        }
        records.extend(self.pins.iter().cloned());
        records
    }
}

/// The MailDomain of a domain: from the folder, or from the cluster.
async fn declared(settings: Option<&Settings>, domain: &str) -> Result<Declared> {
    let settings = settings.context("say where MailDomains are: --config FILE")?;
    match &settings.domains {
        DomainSource::Folder(folder) => {
            let wanted = SecretsWanted { submission_users: false, signing_keys: true };
            let index = load_folder(folder, wanted).context("the MailDomains cannot be used")?;
            let hosted = index
                .hosted(domain)
                .with_context(|| format!("there is no MailDomain for {domain} in {}", folder.display()))?;
            let publish = |key: &domains::SigningKey| -> Result<PublishedKey> {
                let public_key = public_key(key.algorithm, &key.private_key)
                    .with_context(|| format!("the key {} cannot be read", key.selector))?;
                let (selector, algorithm) = (key.selector.clone(), key.algorithm);
                Ok(PublishedKey { selector, algorithm, public_key: Some(public_key), target: None })
            };
            let keys = hosted.signing_keys.iter().map(publish).collect::<Result<_>>()?;
            let pins = pins_in_folder(folder, &hosted.resource, &hosted.spec)?;
            Ok(Declared { spec: hosted.spec.clone(), keys, pins, announced: Announced::Declared })
        }
        DomainSource::Kubernetes(namespaces) => {
            let found = operator::find(namespaces, domain).await?;
            let found =
                found.with_context(|| format!("there is no MailDomain for {domain} in the cluster"))?;
            // The keys are the operator's: what they publish is in the status.
            let status = found.status.unwrap_or_default();
            let announced = Announced::Told(status.mta_sts.and_then(|told| told.announced_id));
            let records = status.records;
            let keys =
                records.iter().filter(|record| record.purpose == "dkim").filter_map(published).collect();
            let pins = records.iter().filter(|record| record.purpose == Purpose::Tlsa.key());
            let pins = pins.map(|record| pinned(&found.spec, record)).collect();
            Ok(Declared { spec: found.spec, keys, pins, announced })
        }
    }
}

/// The TLSA records of the hosts that lie below a domain, where the folder has their certificate.
fn pins_in_folder(folder: &Path, resource: &str, spec: &MailDomainSpec) -> Result<Vec<Record>> {
    let Some(tlsa) = spec.tlsa.as_ref().filter(|_| Purpose::Tlsa.policy(spec) != RecordPolicy::Ignore) else {
        return Ok(Vec::new());
    };
    let (namespace, name) = (resource.split('/').next().unwrap_or_default(), &tlsa.certificate_ref.name);
    let secret = secret_in_folder(folder, namespace, name).context("the folder's Secrets cannot be used")?;
    let certificate = secret.and_then(|mut values| values.remove("tls.crt"));
    let digest = certificate.and_then(|pem| key_of_certificate(pem.expose_secret().as_bytes()));
    let digest = digest.with_context(|| {
        format!("tlsa.certificateRef: the folder has no Secret {namespace}/{name} with a certificate under tls.crt")
    })?;
    let hosts = spec.mx.iter().map(|mx| mx.host.trim_end_matches('.').to_ascii_lowercase());
    let below = hosts.filter(|host| *host == spec.domain || host.ends_with(&format!(".{}", spec.domain)));
    Ok(below.map(|host| tlsa_record(spec, &host, vec![format!("{PIN}{digest}")])).collect())
}

/// A TLSA record as a status tells of it.
fn pinned(spec: &MailDomainSpec, record: &domains::types::RecordStatus) -> Record {
    let values = record.zone_lines.iter().filter_map(|line| Some(line.split_once(" TLSA ")?.1.to_owned()));
    let host = record.name.trim_start_matches(&tlsa_name("")).to_owned();
    tlsa_record(spec, &host, values.collect())
}

/// A key as a status tells of it.
fn published(record: &domains::types::RecordStatus) -> Option<PublishedKey> {
    let selector = record.name.split('.').next()?.to_owned();
    let target = (!record.name.contains("._domainkey.")).then(|| record.name.clone());
    let line = record.zone_lines.first()?;
    let text: String = line.split('"').skip(1).step_by(2).collect();
    let tag = |name: &str| text.split(';').find_map(|tag| tag.trim().strip_prefix(name)).map(str::to_owned);
    let algorithm = match tag("k=").as_deref() {
        Some("ed25519") => domains::Algorithm::Ed25519Sha256,
        _ => domains::Algorithm::RsaSha256,
    };
    Some(PublishedKey { selector, algorithm, public_key: tag("p=").filter(|key| !key.is_empty()), target })
}

/// A record as programs are told.
#[derive(Serialize)]
struct Told<'a> {
    purpose: &'static str,
    name: &'a str,
    r#type: &'static str,
    lines: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<RecordState>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    observed: Vec<String>,
}

fn told(record: &Record) -> Told<'_> {
    Told {
        purpose: record.purpose.key(),
        name: &record.name,
        r#type: record.record_type(),
        lines: record.zone_lines(),
        state: None,
        observed: Vec::new(),
    }
}

fn records(declared: &Declared, output: Output) -> Result<()> {
    let records = declared.records();
    match output {
        Output::Json => {
            println!("{}", serde_json::to_string_pretty(&records.iter().map(told).collect::<Vec<_>>())?)
        }
        Output::Table => records.iter().flat_map(Record::zone_lines).for_each(|line| println!("{line}")),
    }
    Ok(())
}

async fn show(declared: &Declared, resolver: Resolver, output: Output) -> Result<()> {
    let observer = Observer::new(resolver);
    let zones = observer.zones(&declared.spec).await?;
    let records = declared.records();
    let mut all = Vec::with_capacity(records.len());
    for record in &records {
        let seen = observer.look(zones.of(record), record).await;
        all.push(Told { state: Some(seen.state), observed: seen.observed, ..told(record) });
    }
    let wrong = all.iter().filter(|one| one.state != Some(RecordState::Verified)).count();
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&all)?),
        Output::Table => {
            for authorities in [&zones.own].into_iter().chain(zones.target.as_ref().map(|(_, target)| target))
            {
                let servers: Vec<String> = authorities.servers.iter().map(ToString::to_string).collect();
                println!("zone {}, asked at {}", authorities.zone, servers.join(", "));
            }
            println!();
            let mut table = Table::new();
            table.load_style(presets::NOTHING);
            table.set_header(["RECORD", "TYPE", "STATE", "INSTEAD"]);
            for one in &all {
                let state = one.state.map(|state| format!("{state:?}")).unwrap_or_default();
                table.add_row([one.name, one.r#type, &state, &one.observed.join(" | ")]);
            }
            println!("{table}");
            for one in all.iter().filter(|one| one.state != Some(RecordState::Verified)) {
                one.lines.iter().for_each(|line| println!("\npublish: {line}"));
            }
        }
    }
    if wrong > 0 {
        bail!("{wrong} of {} record sets are not as they should be", all.len());
    }
    Ok(())
}
