//! The password of the Redis that a release brings: a random one, in a Secret that waits for it, or is made.
//!
//! Once it is there it is never written again: Redis and the delivery service have read it. Who wants another
//! password empties the Secret, and restarts both when it has been filled anew.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::store::MANAGER;

/// The key under which the password lies.
const PASSWORD: &str = "password";
/// The key under which its SHA-256 lies, as Redis takes it behind a `#`.
const SHA256: &str = "sha256";
/// How often the Secret is looked for.
const LOOK: Duration = Duration::from_secs(60);
/// How soon after a failure.
const AGAIN: Duration = Duration::from_secs(5);

/// Sees to it that the Secret is there, until `shutdown`.
pub(crate) async fn keep(client: &Client, namespace: &str, name: &str, shutdown: CancellationToken) {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    loop {
        let wait = match ensure(&api, name).await {
            Ok(made) => {
                if made {
                    tracing::info!(secret = name, "a password for redis was made");
                }
                LOOK
            }
            Err(error) => {
                tracing::warn!(secret = name, %error, cause = ?std::error::Error::source(&error), "the password of redis cannot be seen to");
                AGAIN
            }
        };
        if shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
    }
}

/// Whether it had to be made.
async fn ensure(api: &Api<Secret>, name: &str) -> Result<bool, Error> {
    let found = api.get_opt(name).await.map_err(Error::kube("reading the password of Redis"))?;
    let filled = |secret: &Secret| {
        let data = secret.data.as_ref();
        data.is_some_and(|data| [PASSWORD, SHA256].iter().all(|key| data.contains_key(*key)))
    };
    if found.as_ref().is_some_and(filled) {
        return Ok(false);
    }
    let is_new = found.is_none();
    let mut secret = found.unwrap_or_else(|| Secret {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        ..Secret::default()
    });
    let password = hex(&rand::random::<[u8; 32]>());
    secret.string_data = Some(BTreeMap::from([
        (SHA256.to_owned(), hex(&Sha256::digest(&password))),
        (PASSWORD.to_owned(), password),
    ]));
    let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
    let written = if is_new {
        api.create(&params, &secret).await
    } else {
        // With its version: it fails when somebody has written it since.
        api.replace(name, &params, &secret).await
    };
    match written {
        Ok(_) => Ok(true),
        // Somebody was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(Error::kube("writing the password of Redis")(error)),
    }
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}
