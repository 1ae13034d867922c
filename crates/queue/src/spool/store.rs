//! The object store: every request with a deadline, every error with what was attempted.

use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    ClientOptions, Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig,
};
use tokio::time::timeout;

use super::config::Config;
use crate::QueueError;

/// Repetitions of a request that a store did not answer, or answered with an error of its own.
const RETRIES: usize = 3;

/// An object that a listing names.
pub(super) struct Listed {
    /// Its name below the prefix.
    pub(super) name: String,
    pub(super) size: u64,
    /// Since it was written, by the store's clock and ours.
    pub(super) age: Duration,
}

/// The store of one queue: all names lie below the prefix of its URL.
#[derive(Clone)]
pub(super) struct Store {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    patience: Duration,
    /// The URL without what might be a password.
    shown: String,
}

/// The variables that are meant for one kind of store, as its options are spelled.
fn environment<'a>(prefix: &'a str, config: &'a Config) -> impl Iterator<Item = (String, &'a String)> {
    let variables = config.environment.iter().map(|(name, value)| (name.to_ascii_lowercase(), value));
    variables.filter(move |(name, _)| name.starts_with(prefix))
}

impl Store {
    pub(super) fn open(config: &Config) -> Result<Self, QueueError> {
        let (scheme, rest) = config.url.split_once("://").unwrap_or_default();
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let shown = format!("{scheme}://{}/{prefix}", bucket.rsplit('@').next().unwrap_or_default());
        let unusable = |error: Error| QueueError::Unavailable {
            doing: format!("setting up the spool at {shown}"),
            cause: Box::new(error),
        };
        let retry = RetryConfig {
            max_retries: RETRIES,
            retry_timeout: config.request_timeout,
            ..RetryConfig::default()
        };
        let plain = config.options.get("allow_http").is_some_and(|value| value == "true");
        let client = ClientOptions::new().with_timeout(config.request_timeout).with_allow_http(plain);
        let options = config.options.iter().filter(|(key, _)| *key != "allow_http");
        let objects: Arc<dyn ObjectStore> = match scheme {
            "s3" | "s3a" => {
                let mut builder = AmazonS3Builder::new().with_bucket_name(bucket);
                for (key, value) in environment("aws_", config) {
                    if let Ok(key) = AmazonS3ConfigKey::from_str(&key) {
                        builder = builder.with_config(key, value);
                    }
                }
                for (key, value) in options {
                    builder = builder.with_config(AmazonS3ConfigKey::from_str(key).map_err(unusable)?, value);
                }
                Arc::new(builder.with_retry(retry).with_client_options(client).build().map_err(unusable)?)
            }
            "gs" => {
                let mut builder = GoogleCloudStorageBuilder::new().with_bucket_name(bucket);
                for (key, value) in environment("google_", config) {
                    if let Ok(key) = GoogleConfigKey::from_str(&key) {
                        builder = builder.with_config(key, value);
                    }
                }
                for (key, value) in options {
                    builder = builder.with_config(GoogleConfigKey::from_str(key).map_err(unusable)?, value);
                }
                Arc::new(builder.with_retry(retry).with_client_options(client).build().map_err(unusable)?)
            }
            "az" => {
                let mut builder = MicrosoftAzureBuilder::new().with_container_name(bucket);
                for (key, value) in environment("azure_", config) {
                    if let Ok(key) = AzureConfigKey::from_str(&key) {
                        builder = builder.with_config(key, value);
                    }
                }
                for (key, value) in options {
                    builder = builder.with_config(AzureConfigKey::from_str(key).map_err(unusable)?, value);
                }
                Arc::new(builder.with_retry(retry).with_client_options(client).build().map_err(unusable)?)
            }
            "file" => {
                let folder = std::path::Path::new(rest);
                std::fs::create_dir_all(folder).map_err(|error| QueueError::Unavailable {
                    doing: format!("making the folder of the spool at {shown}"),
                    cause: Box::new(error),
                })?;
                // The folder is the store: nothing of its path belongs into the names.
                let local = LocalFileSystem::new_with_prefix(folder).map_err(unusable)?.with_fsync(true);
                return Ok(Self {
                    objects: Arc::new(local),
                    prefix: Path::default(),
                    patience: config.request_timeout,
                    shown,
                });
            }
            _ => {
                let source = "its URL begins with none of s3://, gs://, az:// and file:///".into();
                return Err(unusable(Error::Generic { store: "spool", source }));
            }
        };
        Ok(Self { objects, prefix: Path::from(prefix), patience: config.request_timeout * 2, shown })
    }

    fn path(&self, name: &str) -> Path {
        Path::from_iter(self.prefix.parts().chain(Path::from(name).parts()))
    }

    fn failed(
        &self,
        doing: &str,
        name: &str,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> QueueError {
        QueueError::Unavailable { doing: format!("{doing} {name} in {}", self.shown), cause: cause.into() }
    }

    /// The answer; `None` when there is no such object.
    async fn within<T>(
        &self,
        doing: &str,
        name: &str,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<Option<T>, QueueError> {
        match timeout(self.patience, work).await {
            Ok(Ok(answer)) => Ok(Some(answer)),
            Ok(Err(Error::NotFound { .. })) => Ok(None),
            Ok(Err(error)) => Err(self.failed(doing, name, error)),
            Err(late) => Err(self.failed(doing, name, late)),
        }
    }

    /// Writes an object; it is durable when this returns.
    pub(super) async fn put(&self, name: &str, payload: PutPayload) -> Result<(), QueueError> {
        let path = self.path(name);
        let written = self.within("writing", name, self.objects.put(&path, payload)).await?;
        written.map(drop).ok_or_else(|| self.failed("writing", name, "there is no such bucket or container"))
    }

    /// Writes an object unless there is one of that name already.
    pub(super) async fn put_first(&self, name: &str, octets: Bytes) -> Result<(), QueueError> {
        let path = self.path(name);
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match timeout(self.patience, self.objects.put_opts(&path, octets.into(), options)).await {
            Ok(Ok(_) | Err(Error::AlreadyExists { .. } | Error::Precondition { .. })) => Ok(()),
            Ok(Err(error)) => Err(self.failed("writing", name, error)),
            Err(late) => Err(self.failed("writing", name, late)),
        }
    }

    pub(super) async fn get(&self, name: &str) -> Result<Option<Bytes>, QueueError> {
        let path = self.path(name);
        let read = async { self.objects.get(&path).await?.bytes().await };
        self.within("reading", name, read).await
    }

    /// Some octets of an object. A range past its end is an error.
    pub(super) async fn range(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>, QueueError> {
        if range.is_empty() {
            return Ok(Some(Bytes::new()));
        }
        let path = self.path(name);
        self.within("reading", name, self.objects.get_range(&path, range)).await
    }

    /// Deletes objects; those that are gone already are no error.
    pub(super) async fn delete(&self, name: &str) -> Result<(), QueueError> {
        let path = self.path(name);
        self.within("deleting", name, self.objects.delete(&path)).await.map(drop)
    }

    /// Calls `each` with every object below a folder, in no promised order. The listing as a whole has no
    /// deadline, each page has.
    pub(super) async fn list(
        &self,
        folder: &str,
        mut each: impl FnMut(Listed) + Send,
    ) -> Result<(), QueueError> {
        let prefix = self.path(folder);
        let mut objects = self.objects.list(Some(&prefix));
        let own = self.prefix.as_ref().len();
        while let Some(object) = self.within("listing", folder, objects.try_next()).await?.flatten() {
            let name = object.location.as_ref()[own..].trim_start_matches('/').to_owned();
            let written = SystemTime::from(object.last_modified);
            let age = SystemTime::now().duration_since(written).unwrap_or_default();
            each(Listed { name, size: object.size, age });
        }
        Ok(())
    }
}
