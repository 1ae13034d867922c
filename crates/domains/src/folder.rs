//! MailDomains and Secrets from a folder of YAML, followed while it changes.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use smtp::Mailbox;
use tokio_util::sync::CancellationToken;

use crate::index::{
    DEFAULT_KEY, DomainIndex, Domains, HostedDomain, SubmissionUser, hosted, owned_addresses,
};
use crate::key::SigningKey;
use crate::types::{MailDomain, SecretRef};
use crate::validate::validate;

/// How often the folder is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Files larger than this are refused, in octets.
const MAX_FILE: u64 = 16 * 1024 * 1024;
/// Which Secrets a role may hold. What is not wanted is not kept in memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct SecretsWanted {
    /// Password hashes of submission users: the edge.
    pub submission_users: bool,
    /// DKIM private keys: the verifier.
    pub signing_keys: bool,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// The line in it, from 1, where it is known.
    pub line: Option<usize>,
    /// What is wrong and what to do.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.text)
    }
}

/// The folder holds what cannot be used; all of it is told.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct LoadError(pub Vec<Problem>);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
}

#[derive(Deserialize)]
struct SecretDocument {
    metadata: SecretMetadata,
    #[serde(default)]
    data: HashMap<String, String>,
    #[serde(default, rename = "stringData")]
    string_data: HashMap<String, String>,
}

#[derive(Deserialize)]
struct SecretMetadata {
    name: String,
    #[serde(default)]
    namespace: Option<String>,
}

/// Where an object stands, for messages.
struct Source {
    file: PathBuf,
    text: Arc<str>,
    first_line: usize,
}

impl Source {
    /// A problem with one key of the object: its line is that of the key's last name.
    fn problem(&self, key: &str, text: impl fmt::Display) -> Problem {
        let name = key.rsplit('.').next().unwrap_or(key).split('[').next().unwrap_or(key);
        let line = self
            .text
            .lines()
            .enumerate()
            .skip(self.first_line)
            .find(|(_, line)| line.contains(&format!("{name}:")))
            .map_or(self.first_line + 1, |(at, _)| at + 1);
        Problem { file: self.file.clone(), line: Some(line), text: format!("{key}: {text}") }
    }
}

#[derive(Default)]
struct Loaded {
    domains: Vec<(Source, MailDomain)>,
    secrets: HashMap<(String, String), HashMap<String, SecretString>>,
    problems: Vec<Problem>,
}

/// Reads a folder once.
///
/// # Errors
/// With all problems, when there is any.
pub fn load_folder(folder: &Path, wanted: SecretsWanted) -> Result<DomainIndex, LoadError> {
    let mut loaded = Loaded::default();
    match yaml_files(folder) {
        Ok(files) => files.iter().for_each(|file| loaded.read_file(file)),
        Err(error) => {
            let text = format!(
                "the folder of MailDomains cannot be read: {error}; see domains.folder in the settings"
            );
            loaded.problems.push(Problem { file: folder.to_owned(), line: None, text });
        }
    }
    loaded.into_index(wanted)
}

/// The values of a Secret in a folder; nothing when it is not there.
///
/// # Errors
/// With all problems of the folder's files, when there is any.
pub fn secret_in_folder(
    folder: &Path,
    namespace: &str,
    name: &str,
) -> Result<Option<HashMap<String, SecretString>>, LoadError> {
    let mut loaded = Loaded::default();
    yaml_files(folder).unwrap_or_default().iter().for_each(|file| loaded.read_file(file));
    if !loaded.problems.is_empty() {
        return Err(LoadError(loaded.problems));
    }
    Ok(loaded.secrets.remove(&(namespace.to_owned(), name.to_owned())))
}

#[cfg(test)]
pub(crate) fn index_of(text: &str) -> Result<DomainIndex, LoadError> {
    let mut loaded = Loaded::default();
    loaded.read_text(Path::new("test.yaml"), text);
    loaded.into_index(SecretsWanted { submission_users: true, signing_keys: true })
}

fn yaml_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let visible = !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        // Followed, not looked at: in a mounted ConfigMap every file is a symbolic link.
        if visible && yaml && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

impl Loaded {
    fn problem(&mut self, file: &Path, line: Option<usize>, text: String) {
        self.problems.push(Problem { file: file.to_owned(), line, text });
    }

    fn read_file(&mut self, file: &Path) {
        match std::fs::metadata(file) {
            Ok(metadata) if metadata.len() > MAX_FILE => {
                return self.problem(file, None, format!("the file is larger than {MAX_FILE} octets"));
            }
            _ => {}
        }
        match std::fs::read_to_string(file) {
            Ok(text) => self.read_text(file, &text),
            Err(error) => self.problem(file, None, format!("the file cannot be read: {error}")),
        }
    }

    fn read_text(&mut self, file: &Path, text: &str) {
        let whole: Arc<str> = text.into();
        for (first_line, document) in documents(text) {
            let source = Source { file: file.to_owned(), text: Arc::clone(&whole), first_line };
            self.read_document(source, &document);
        }
    }

    fn read_document(&mut self, source: Source, document: &str) {
        let head: Head = match serde_saphyr::from_str(document) {
            Ok(head) => head,
            Err(error) => return self.unreadable(&source, &error),
        };
        match (head.api_version.as_str(), head.kind.as_str()) {
            ("mail.packetboat.dev/v1alpha1", "MailDomain") => match serde_saphyr::from_str(document) {
                Ok(domain) => self.domains.push((source, domain)),
                Err(error) => self.unreadable(&source, &error),
            },
            ("v1", "Secret") => match serde_saphyr::from_str::<SecretDocument>(document) {
                Ok(secret) => self.keep_secret(&source, secret),
                Err(error) => self.unreadable(&source, &error),
            },
            (version, kind) => {
                let text = format!(
                    "{version:?} {kind:?} is not known here: write apiVersion mail.packetboat.dev/v1alpha1 with kind MailDomain, or apiVersion v1 with kind Secret"
                );
                self.problems.push(source.problem("kind", text));
            }
        }
    }

    /// The parser's message without the excerpt of the file that follows it: there may be secrets in it.
    fn unreadable(&mut self, source: &Source, error: &serde_saphyr::Error) {
        let line = error.location().map(|location| usize::try_from(location.line()).unwrap_or_default());
        let text = error.without_snippet().to_string();
        let text = text.lines().next().unwrap_or_default().to_owned();
        self.problem(&source.file, line, text);
    }

    fn keep_secret(&mut self, source: &Source, secret: SecretDocument) {
        let mut values: HashMap<String, SecretString> =
            secret.string_data.into_iter().map(|(key, value)| (key, value.into())).collect();
        for (key, encoded) in secret.data {
            let joined: String = encoded.split_whitespace().collect();
            let decoded = STANDARD.decode(joined).ok().and_then(|octets| String::from_utf8(octets).ok());
            match decoded {
                Some(value) => {
                    values.entry(key).or_insert_with(|| value.into());
                }
                None => self
                    .problems
                    .push(source.problem(&format!("data.{key}"), "the value is not base64 of text")),
            }
        }
        let namespace = secret.metadata.namespace.unwrap_or_else(|| "default".to_owned());
        self.secrets.insert((namespace, secret.metadata.name), values);
    }

    fn into_index(mut self, wanted: SecretsWanted) -> Result<DomainIndex, LoadError> {
        let mut index = DomainIndex::default();
        for (source, resource) in std::mem::take(&mut self.domains) {
            self.problems
                .extend(validate(&resource.spec).into_iter().map(|(key, text)| source.problem(&key, text)));
            let namespace = resource.metadata.namespace.unwrap_or_else(|| "default".to_owned());
            let name = resource.metadata.name.unwrap_or_default();
            let label = format!("{namespace}/{name}");
            if let Some(other) = index.domains.get(&resource.spec.domain) {
                let text =
                    format!("{} is claimed by MailDomain {} already", resource.spec.domain, other.resource);
                self.problems.push(source.problem("spec.domain", text));
                continue;
            }
            let mut domain = hosted(label, resource.spec);
            if wanted.signing_keys {
                domain.signing_keys = self.signing_keys(&source, &namespace, &domain);
            }
            if wanted.submission_users {
                for user in self.users(&source, &namespace, &domain) {
                    index.users.insert(user.login.to_lowercase(), Arc::new(user));
                }
            }
            index.domains.insert(domain.name.clone(), Arc::new(domain));
        }
        if self.problems.is_empty() { Ok(index) } else { Err(LoadError(self.problems)) }
    }

    fn secret(
        &self,
        source: &Source,
        key: &str,
        namespace: &str,
        reference: &SecretRef,
    ) -> Result<&HashMap<String, SecretString>, Problem> {
        self.secrets.get(&(namespace.to_owned(), reference.name.clone())).ok_or_else(|| {
            source.problem(key, format!("there is no Secret {namespace}/{} in the folder", reference.name))
        })
    }

    fn signing_keys(&mut self, source: &Source, namespace: &str, domain: &HostedDomain) -> Vec<SigningKey> {
        let imported = domain.spec.dkim.iter().flat_map(|dkim| &dkim.imported);
        let mut keys = Vec::new();
        let mut problems = Vec::new();
        for (at, import) in imported.enumerate() {
            let path = format!("spec.dkim.imported[{at}].secretRef");
            let entry = import.secret_ref.key.as_deref().unwrap_or(DEFAULT_KEY);
            let name = &import.secret_ref.name;
            let key = self.secret(source, &path, namespace, &import.secret_ref).and_then(|values| {
                let pem = values.get(entry).ok_or_else(|| {
                    source.problem(&path, format!("the Secret {namespace}/{name} has no key {entry:?}"))
                })?;
                SigningKey::from_pem(&import.selector, pem.clone()).map_err(|error| {
                    source.problem(
                        &path,
                        format!("{entry:?} in Secret {namespace}/{name} cannot sign: {error}"),
                    )
                })
            });
            match key {
                Ok(key) => keys.push(key),
                Err(problem) => problems.push(problem),
            }
        }
        self.problems.append(&mut problems);
        keys
    }

    fn users(&mut self, source: &Source, namespace: &str, domain: &HostedDomain) -> Vec<SubmissionUser> {
        const KEY: &str = "spec.submission.usersSecretRef";
        let Some(submission) = &domain.spec.submission else { return Vec::new() };
        let reference = &submission.users_secret_ref;
        let mut users = Vec::new();
        let mut problems = Vec::new();
        match self.secret(source, KEY, namespace, reference) {
            Err(problem) => problems.push(problem),
            Ok(values) => {
                for (local_part, hash) in values {
                    let login = format!("{local_part}@{}", domain.name);
                    let trimmed = hash.expose_secret().trim();
                    if !trimmed.starts_with("$argon2id$") || login.parse::<Mailbox>().is_err() {
                        let text = format!(
                            "{local_part:?} in Secret {namespace}/{} must be a local part with an argon2id hash ($argon2id$…)",
                            reference.name
                        );
                        problems.push(source.problem(KEY, text));
                        continue;
                    }
                    let owned_addresses = owned_addresses(domain, local_part);
                    users.push(SubmissionUser { login, password_hash: trimmed.into(), owned_addresses });
                }
            }
        }
        self.problems.append(&mut problems);
        users
    }
}

/// Splits a file at its `---` lines. Each document keeps its lines' numbers: what stands before it
/// has become empty lines.
fn documents(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut document = String::new();
    let mut first_line = 0;
    let blank =
        |document: &str| document.lines().all(|line| line.trim().is_empty() || line.trim().starts_with('#'));
    for (at, line) in text.lines().enumerate() {
        if line.trim_end() == "---" || line.starts_with("--- ") {
            if !blank(&document) {
                found.push((first_line, std::mem::take(&mut document)));
            }
            document = "\n".repeat(at + 1);
            first_line = at + 1;
        } else {
            document.push_str(line);
            document.push('\n');
        }
    }
    if !blank(&document) {
        found.push((first_line, document));
    }
    found
}

type Fingerprint = Vec<(PathBuf, Option<SystemTime>, u64)>;

/// What the folder looks like from outside: names, times and sizes.
fn fingerprint(folder: &Path) -> Fingerprint {
    let files = yaml_files(folder).unwrap_or_default();
    let look = |file: PathBuf| {
        let metadata = std::fs::metadata(&file).ok();
        let modified = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
        (file, modified, metadata.map_or(0, |metadata| metadata.len()))
    };
    files.into_iter().map(look).collect()
}

/// Reads a folder, and follows its changes until `shutdown`. A later version that cannot be used is
/// logged and left: the last good one stays.
///
/// # Errors
/// When the first version cannot be used.
pub async fn watch_folder(
    folder: &Path,
    wanted: SecretsWanted,
    shutdown: CancellationToken,
) -> Result<Domains, LoadError> {
    let folder = folder.to_owned();
    let mut known = fingerprint(&folder);
    let domains = Domains::fixed(load_folder(&folder, wanted)?);
    let watched = domains.clone();
    tokio::spawn(async move {
        while shutdown.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            let (folder, before) = (folder.clone(), known.clone());
            let look = move || {
                let now = fingerprint(&folder);
                let changed = now != before;
                (now, changed.then(|| load_folder(&folder, wanted)))
            };
            let Ok((now, reloaded)) = tokio::task::spawn_blocking(look).await else { continue };
            known = now;
            match reloaded {
                Some(Ok(index)) => {
                    tracing::info!(domains = index.domains.len(), "domains reloaded");
                    watched.replace(index);
                }
                Some(Err(LoadError(problems))) => {
                    for problem in problems {
                        tracing::error!(%problem, "domains not reloaded, the last good version stays");
                    }
                }
                None => {}
            }
        }
    });
    Ok(domains)
}
