//! Records at Amazon Route 53, by its API: looked at first, and then one batch, which it applies as a whole or not
//! at all. Its unit is the record set, so values of others in the same set are written again as they were; and a
//! set that has changed since it was looked at makes the batch fail, for a set is deleted as it was seen before it
//! is created as it is to be.

use std::sync::LazyLock;
use std::time::Duration;

use aws_sdk_route53::Client;
use aws_sdk_route53::config::retry::RetryConfig;
use aws_sdk_route53::config::timeout::TimeoutConfig;
use aws_sdk_route53::config::{BehaviorVersion, Credentials, Region, SharedHttpClient};
use aws_sdk_route53::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_route53::operation::change_resource_record_sets::ChangeResourceRecordSetsError;
use aws_sdk_route53::types::{
    Change as ApiChange, ChangeAction, ChangeBatch, ResourceRecord, ResourceRecordSet, RrType,
};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use secrecy::{ExposeSecret, SecretString};

use crate::reconcile;
use crate::record::{Purpose, Record, quoted, unquoted};
use crate::update::{Change, OWNER_LABEL};

/// The region that requests are signed for, but in other partitions.
const REGION: &str = "us-east-1";
/// How long one request may take, and all tries of it together.
const WAIT: Duration = Duration::from_secs(20);
const WAIT_IN_ALL: Duration = Duration::from_secs(60);
/// How often a request is tried that was refused for the time being.
const TRIES: u32 = 3;
/// Time to live of the record that says whose the records are, in seconds.
const OWNER_TTL: i64 = 300;

/// Connections to the API, for all domains.
static HTTP: LazyLock<SharedHttpClient> = LazyLock::new(|| {
    aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(CryptoMode::AwsLc))
        .build_https()
});

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum Route53Error {
    /// The API is not there, or does not answer.
    #[error("the API of Route 53 cannot be reached: {0}")]
    Unreachable(String),
    /// The access key is not taken, or may not do this.
    #[error(
        "Route 53 refuses the access key ({0}): may it list hosted zones and their records, and change them?"
    )]
    Credentials(String),
    /// It has had too many requests, or has trouble.
    #[error("the API of Route 53 answers {0}: it is tried again later")]
    Busy(String),
    /// It refuses the request.
    #[error("Route 53 refuses: {0}")]
    Refused(String),
    /// Somebody changed a record set between look and change: look again.
    #[error("the records of {0} changed while they were being updated")]
    Changed(String),
    /// The access key sees no such zone.
    #[error("Route 53 knows no public hosted zone {0} for this access key")]
    NoZone(String),
    /// It is not clear which zone is meant.
    #[error("Route 53 has several public hosted zones {0}: say which by hostedZoneID")]
    SeveralZones(String),
    /// The records belong to another operator or cluster.
    #[error(
        "the records of {0} belong to another Packetboat: the TXT record {OWNER_LABEL}.{0} says so; remove it there to take them over"
    )]
    Owned(String),
}

/// An access key, and which zone it is for.
pub struct Access {
    /// The access key's id.
    pub key_id: String,
    /// The access key.
    pub secret: SecretString,
    /// What belongs to a temporary access key.
    pub session: Option<SecretString>,
    /// The region that requests are signed for; `us-east-1` when absent.
    pub region: Option<String>,
    /// The hosted zone's id; looked for by the zone's name when absent.
    pub zone_id: Option<String>,
    /// The API's address; Amazon's own when absent.
    pub endpoint: Option<String>,
}

/// Publishes at Route 53.
pub struct Route53 {
    client: Client,
    zone_id: Option<String>,
    owner: String,
}

impl Route53 {
    /// `owner` names this operator's object, and stands in DNS.
    #[must_use]
    pub fn new(access: Access, owner: String) -> Self {
        let session = access.session.map(|token| token.expose_secret().to_owned());
        let secret = access.secret.expose_secret();
        let credentials = Credentials::new(access.key_id, secret, session, None, "secret");
        let timeouts =
            TimeoutConfig::builder().operation_attempt_timeout(WAIT).operation_timeout(WAIT_IN_ALL);
        let mut config = aws_sdk_route53::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .http_client(HTTP.clone())
            .credentials_provider(credentials)
            .region(Region::new(access.region.unwrap_or_else(|| REGION.to_owned())))
            .retry_config(RetryConfig::standard().with_max_attempts(TRIES))
            .timeout_config(timeouts.build());
        config.set_endpoint_url(access.endpoint);
        Self { client: Client::from_conf(config.build()), zone_id: access.zone_id, owner }
    }

    /// Makes the zone say what the changes say, where it does not yet. True when anything was changed.
    ///
    /// # Errors
    /// See [`Route53Error`]; nothing has changed then, but where the answer to the batch was lost.
    pub async fn apply(
        &self,
        zone: &str,
        domain: &str,
        changes: &[Change<'_>],
    ) -> Result<bool, Route53Error> {
        let zone_id = match &self.zone_id {
            Some(id) => id.clone(),
            None => self.find_zone(zone).await?,
        };
        let mut batch = Vec::new();
        for change in changes {
            let record = change.record;
            let standing = self.standing(&zone_id, &record.name, record.record_type()).await?;
            batch.extend(exchange(standing, change)?);
        }
        if batch.is_empty() {
            return Ok(false);
        }
        let name = format!("{OWNER_LABEL}.{domain}");
        let text = quoted(&format!("packetboat owner={}", self.owner));
        let claim = self.standing(&zone_id, &name, "TXT").await?;
        if claim.iter().flat_map(values).any(|value| value != text) {
            return Err(Route53Error::Owned(domain.to_owned()));
        }
        match (changes.iter().all(|change| change.remove), claim) {
            (true, Some(claim)) => batch.push(step(ChangeAction::Delete, claim)?),
            (false, None) => {
                let claim = record_set(&name, "TXT", OWNER_TTL, vec![text])?;
                batch.push(step(ChangeAction::Create, claim)?);
            }
            _ => {}
        }
        let batch = ChangeBatch::builder().set_changes(Some(batch)).build().map_err(unmade)?;
        let change = self.client.change_resource_record_sets().hosted_zone_id(&zone_id).change_batch(batch);
        // What it answers, PENDING or INSYNC, is not waited for: the name servers tell.
        change.send().await.map_err(|error| refusal(zone, error))?;
        Ok(true)
    }

    /// The id of the one public zone of this name.
    async fn find_zone(&self, zone: &str) -> Result<String, Route53Error> {
        let wanted = format!("{zone}.");
        let listed = self.client.list_hosted_zones_by_name().dns_name(&wanted).send().await.map_err(told)?;
        let public = listed.hosted_zones.into_iter().filter(|found| {
            found.name == wanted && !found.config.as_ref().is_some_and(|config| config.private_zone)
        });
        let mut ids = public.map(|found| found.id.trim_start_matches("/hostedzone/").to_owned());
        match (ids.next(), ids.next()) {
            (Some(id), None) => Ok(id),
            (Some(_), Some(_)) => Err(Route53Error::SeveralZones(zone.to_owned())),
            (None, _) => Err(Route53Error::NoZone(zone.to_owned())),
        }
    }

    /// The record set of a name and type; one that depends on who asks is none that could be written.
    async fn standing(
        &self,
        zone_id: &str,
        name: &str,
        kind: &str,
    ) -> Result<Option<ResourceRecordSet>, Route53Error> {
        let (wanted, kind) = (format!("{name}."), RrType::from(kind));
        // The list begins with what is looked for, if that is there.
        let request = self.client.list_resource_record_sets().hosted_zone_id(zone_id).max_items(1);
        let request = request.start_record_name(&wanted).start_record_type(kind.clone());
        let listed = request.send().await.map_err(told)?.resource_record_sets.into_iter().next();
        let found = listed.filter(|set| set.name.eq_ignore_ascii_case(&wanted) && set.r#type == kind);
        match found {
            Some(set) if set.set_identifier.is_some() || set.alias_target.is_some() => {
                let text = format!(
                    "{name} {kind} is an alias, or has a routing policy: make it a simple record set"
                );
                Err(Route53Error::Refused(text))
            }
            other => Ok(other),
        }
    }
}

fn values(set: &ResourceRecordSet) -> impl Iterator<Item = &str> {
    set.resource_records().iter().map(|record| record.value.as_str())
}

/// A value as it stands there, in the form of [`Record::values`].
fn plain(purpose: Purpose, value: &str) -> String {
    match purpose.record_type() {
        "TXT" => unquoted(value),
        _ => value.trim_end_matches('.').to_ascii_lowercase(),
    }
}

/// A value as it is written there.
fn written(record: &Record, value: &str) -> String {
    match record.record_type() {
        "TXT" => quoted(value),
        "TLSA" => value.to_owned(),
        _ => format!("{value}."),
    }
}

/// What makes a record set be as it should: nothing, where it is. Values of others stay in it, and its time to live.
fn exchange(
    standing: Option<ResourceRecordSet>,
    change: &Change<'_>,
) -> Result<Vec<ApiChange>, Route53Error> {
    let record = change.record;
    let is_ours = |value: &str| record.purpose.is_one(&plain(record.purpose, value));
    let present: Vec<&str> = standing.iter().flat_map(values).collect();
    let mut ours: Vec<String> =
        present.iter().filter(|value| is_ours(value)).map(|value| plain(record.purpose, value)).collect();
    let mut wanted: Vec<String> = if change.remove { Vec::new() } else { record.values.clone() };
    ours.sort_unstable();
    wanted.sort_unstable();
    if ours == wanted {
        return Ok(Vec::new());
    }
    let theirs: Vec<String> =
        present.iter().filter(|value| !is_ours(value)).map(|&value| value.to_owned()).collect();
    let ttl = standing.as_ref().filter(|_| !theirs.is_empty()).and_then(|set| set.ttl);
    let own = wanted.iter().map(|value| written(record, value));
    let all: Vec<String> = theirs.iter().cloned().chain(own).collect();
    let mut steps = Vec::new();
    if let Some(standing) = standing {
        steps.push(step(ChangeAction::Delete, standing)?);
    }
    if !all.is_empty() {
        let ttl = ttl.unwrap_or(i64::from(record.ttl));
        let set = record_set(&record.name, record.record_type(), ttl, all)?;
        steps.push(step(ChangeAction::Create, set)?);
    }
    Ok(steps)
}

fn record_set(
    name: &str,
    kind: &str,
    ttl: i64,
    values: Vec<String>,
) -> Result<ResourceRecordSet, Route53Error> {
    let records: Result<Vec<_>, _> =
        values.into_iter().map(|value| ResourceRecord::builder().value(value).build()).collect();
    let set = ResourceRecordSet::builder().name(format!("{name}.")).r#type(RrType::from(kind)).ttl(ttl);
    set.set_resource_records(Some(records.map_err(unmade)?)).build().map_err(unmade)
}

fn step(action: ChangeAction, set: ResourceRecordSet) -> Result<ApiChange, Route53Error> {
    ApiChange::builder().action(action).resource_record_set(set).build().map_err(unmade)
}

fn unmade(error: aws_sdk_route53::error::BuildError) -> Route53Error {
    Route53Error::Refused(error.to_string())
}

/// What came of the batch.
fn refusal(zone: &str, error: SdkError<ChangeResourceRecordSetsError>) -> Route53Error {
    if let Some(ChangeResourceRecordSetsError::InvalidChangeBatch(refused)) = error.as_service_error() {
        let text = refused.messages().iter().map(String::as_str).chain(refused.message());
        let text = text.collect::<Vec<_>>().join("; ");
        let raced = ["already exists", "was not found", "do not match the current values"];
        return match raced.iter().any(|sign| text.contains(sign)) {
            true => Route53Error::Changed(zone.to_owned()),
            false => Route53Error::Refused(text),
        };
    }
    told(error)
}

/// Why a request failed.
fn told<E>(error: SdkError<E>) -> Route53Error
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let status = error.raw_response().map(|answer| answer.status().as_u16());
    let code = error.code().unwrap_or_default().to_owned();
    let busy = ["Throttling", "ThrottlingException", "PriorRequestNotComplete"].contains(&code.as_str());
    match status {
        Some(status) if busy || status == 429 || status >= 500 => {
            Route53Error::Busy(format!("{status} {code}").trim_end().to_owned())
        }
        Some(401 | 403) => Route53Error::Credentials(code),
        Some(404) => Route53Error::NoZone(error.message().unwrap_or(&code).to_owned()),
        Some(_) if error.as_service_error().is_some() => {
            Route53Error::Refused(format!("{code}: {}", error.message().unwrap_or_default()))
        }
        _ => Route53Error::Unreachable(reconcile::told(&error)),
    }
}
