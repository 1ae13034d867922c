//! Records at Cloudflare, by its API: looked at first, and then one batch, which it applies as a whole or not
//! at all. Records of others at the same name are left as they are.

use std::time::Duration;

use reqwest::{Method, StatusCode, header};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::record::{Purpose, Record, quoted, unquoted};
use crate::update::{Change, OWNER_LABEL};

/// Cloudflare's own address.
const ENDPOINT: &str = "https://api.cloudflare.com";
/// How long one request may take.
const WAIT: Duration = Duration::from_secs(20);
/// How often a request is tried that was not served, and how long one waits at most between.
const TRIES: u32 = 3;
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Pages of one list that are read at most.
const MAX_PAGES: u32 = 50;

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum CloudflareError {
    /// The API is not there, or does not answer.
    #[error("Cloudflare's API cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    /// The token is not taken.
    #[error("Cloudflare refuses the API token ({0}): may it read the zone and edit its DNS?")]
    Credentials(StatusCode),
    /// It has had too many requests, or has trouble.
    #[error("Cloudflare's API answers {0}: it is tried again later")]
    Busy(StatusCode),
    /// It refuses the request.
    #[error("Cloudflare refuses: {0}")]
    Refused(String),
    /// The token sees no such zone.
    #[error("Cloudflare knows no zone {0} for this API token")]
    NoZone(String),
    /// The records belong to another operator or cluster.
    #[error(
        "the records of {0} belong to another Packetboat: the TXT record {OWNER_LABEL}.{0} says so; remove it there to take them over"
    )]
    Owned(String),
}

/// Publishes at Cloudflare.
pub struct Cloudflare {
    http: reqwest::Client,
    endpoint: String,
    token: SecretString,
    owner: String,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    result: Value,
    #[serde(default)]
    errors: Vec<Problem>,
    result_info: Option<PageInfo>,
}

#[derive(Deserialize)]
struct Problem {
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct PageInfo {
    #[serde(default)]
    total_pages: u32,
}

/// A record as it stands there.
#[derive(Deserialize)]
struct Standing {
    id: String,
    content: String,
    priority: Option<u16>,
}

impl Standing {
    /// In the form of [`Record::values`].
    fn value(&self, purpose: Purpose) -> String {
        match (purpose, self.priority) {
            (Purpose::Mx, Some(priority)) => format!("{priority} {}", host(&self.content)),
            (Purpose::DkimCname, _) => host(&self.content),
            (Purpose::Tlsa, _) => self.content.to_ascii_lowercase(),
            _ => unquoted(&self.content),
        }
    }
}

fn host(content: &str) -> String {
    content.trim_end_matches('.').to_ascii_lowercase()
}

impl Cloudflare {
    /// `endpoint` is Cloudflare's own when absent; `owner` names this operator's object, and stands in DNS.
    ///
    /// # Errors
    /// [`CloudflareError::Unreachable`] when no client can be made.
    pub fn new(endpoint: Option<&str>, token: SecretString, owner: String) -> Result<Self, CloudflareError> {
        let http = reqwest::Client::builder().timeout(WAIT).redirect(reqwest::redirect::Policy::none());
        let http = http.build().map_err(CloudflareError::Unreachable)?;
        let endpoint = endpoint.unwrap_or(ENDPOINT).trim_end_matches('/').to_owned();
        Ok(Self { http, endpoint, token, owner })
    }

    /// Makes the zone say what the changes say, where it does not yet. True when anything was changed.
    ///
    /// # Errors
    /// See [`CloudflareError`]; nothing has changed then, but where the answer to the batch was lost.
    pub async fn apply(
        &self,
        zone: &str,
        domain: &str,
        changes: &[Change<'_>],
    ) -> Result<bool, CloudflareError> {
        let zone = self.zone_id(zone).await?;
        let (mut deletes, mut posts) = (Vec::new(), Vec::new());
        for change in changes {
            let record = change.record;
            let mut wanted: Vec<&String> =
                if change.remove { Vec::new() } else { record.values.iter().collect() };
            for standing in self.list(&zone, record.record_type(), &record.name).await? {
                let value = standing.value(record.purpose);
                if !record.purpose.is_one(&value) {
                    continue;
                }
                match wanted.iter().position(|one| **one == value) {
                    Some(at) => drop(wanted.remove(at)),
                    None => deletes.push(json!({"id": standing.id})),
                }
            }
            posts.extend(wanted.into_iter().map(|value| post(record, value)));
        }
        if deletes.is_empty() && posts.is_empty() {
            return Ok(false);
        }
        let name = format!("{OWNER_LABEL}.{domain}");
        let text = format!("packetboat owner={}", self.owner);
        let claims = self.list(&zone, "TXT", &name).await?;
        if claims.iter().any(|claim| unquoted(&claim.content) != text) {
            return Err(CloudflareError::Owned(domain.to_owned()));
        }
        let releasing = changes.iter().all(|change| change.remove);
        match releasing {
            true => deletes.extend(claims.iter().map(|claim| json!({"id": claim.id}))),
            false if claims.is_empty() => {
                posts.push(json!({"type": "TXT", "name": name, "content": quoted(&text), "ttl": 300}));
            }
            false => {}
        }
        let batch = json!({"deletes": deletes, "posts": posts});
        self.request(Method::POST, &format!("/zones/{zone}/dns_records/batch"), Some(&batch)).await?;
        Ok(true)
    }

    async fn zone_id(&self, zone: &str) -> Result<String, CloudflareError> {
        let answer = self.request(Method::GET, &format!("/zones?name={zone}"), None).await?;
        let found = answer.result.as_array().into_iter().flatten().find(|one| one["name"] == zone);
        let id = found.and_then(|one| one["id"].as_str());
        id.map(str::to_owned).ok_or_else(|| CloudflareError::NoZone(zone.to_owned()))
    }

    /// All records of a type at a name, page by page.
    async fn list(&self, zone: &str, kind: &str, name: &str) -> Result<Vec<Standing>, CloudflareError> {
        let mut all = Vec::new();
        for page in 1..=MAX_PAGES {
            let path = format!("/zones/{zone}/dns_records?type={kind}&name={name}&page={page}&per_page=100");
            let answer = self.request(Method::GET, &path, None).await?;
            let listed: Vec<Standing> = serde_json::from_value(answer.result)
                .map_err(|_| CloudflareError::Refused("its answer cannot be read".to_owned()))?;
            all.extend(listed);
            if answer.result_info.is_none_or(|info| info.total_pages <= page) {
                return Ok(all);
            }
        }
        Err(CloudflareError::Refused(format!("{name} has too many records")))
    }

    /// One request, again where it was surely not served.
    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, CloudflareError> {
        let mut tried = 0;
        loop {
            tried += 1;
            let url = format!("{}/client/v4{path}", self.endpoint);
            let mut request = self.http.request(method.clone(), url).bearer_auth(self.token.expose_secret());
            if let Some(body) = body {
                request = request.header(header::CONTENT_TYPE, "application/json").body(body.to_string());
            }
            let unreachable = |error: reqwest::Error| CloudflareError::Unreachable(error.without_url());
            let answer = request.send().await.map_err(unreachable)?;
            let status = answer.status();
            let after = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            let pause = after
                .and_then(|text| text.parse().ok())
                .map_or_else(|| Duration::from_millis(200 << tried), Duration::from_secs);
            // A batch that met an error of the server may have been applied: it is looked at again later.
            let again = status == StatusCode::TOO_MANY_REQUESTS
                || (status.is_server_error() && method == Method::GET);
            if again && tried < TRIES && pause <= LONGEST_PAUSE {
                tokio::time::sleep(pause).await;
                continue;
            }
            let octets = answer.bytes().await.map_err(unreachable)?;
            return read(status, &octets);
        }
    }
}

fn read(status: StatusCode, octets: &[u8]) -> Result<Answer, CloudflareError> {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(CloudflareError::Credentials(status)),
        StatusCode::TOO_MANY_REQUESTS => return Err(CloudflareError::Busy(status)),
        status if status.is_server_error() => return Err(CloudflareError::Busy(status)),
        _ => {}
    }
    let answer: Answer = serde_json::from_slice(octets)
        .map_err(|_| CloudflareError::Refused(format!("{status}, and no JSON")))?;
    if status.is_success() && answer.errors.is_empty() {
        return Ok(answer);
    }
    let words: Vec<String> = answer.errors.into_iter().map(|problem| problem.message).collect();
    Err(CloudflareError::Refused(words.join("; ")))
}

/// A record to be made.
fn post(record: &Record, value: &str) -> Value {
    let (name, ttl) = (&record.name, record.ttl);
    match value.split_once(' ').filter(|_| record.purpose == Purpose::Mx) {
        Some((priority, host)) => json!({
            "type": "MX", "name": name, "ttl": ttl,
            "content": host, "priority": priority.parse::<u16>().unwrap_or_default(),
        }),
        None if record.purpose == Purpose::Tlsa => {
            let mut parts = value.split(' ');
            let mut number = || parts.next().and_then(|part| part.parse::<u8>().ok()).unwrap_or_default();
            let (usage, selector, matching) = (number(), number(), number());
            let data = json!({
                "usage": usage, "selector": selector, "matching_type": matching,
                "certificate": parts.next().unwrap_or_default(),
            });
            json!({"type": "TLSA", "name": name, "ttl": ttl, "data": data})
        }
        None if record.purpose == Purpose::DkimCname => {
            json!({"type": "CNAME", "name": name, "ttl": ttl, "content": value, "proxied": false})
        }
        None => json!({"type": record.record_type(), "name": name, "ttl": ttl, "content": quoted(value)}),
    }
}
