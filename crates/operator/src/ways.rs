//! What MailDomains publish through: providers, followed by watch, and the Secrets with their credentials.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use domains::types::{ClusterDNSProvider, DNSProvider};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client};
use secrecy::{ExposeSecret, SecretSlice};
use tokio::time::Instant;

use crate::error::Error;
use crate::mirror::ready;

/// How long a credential is taken to be what it was, as long as all goes well with it.
const CREDENTIAL: Duration = Duration::from_secs(60);

/// A Secret's namespace, its name, and the key in it.
type Place = (String, String, String);
type Credentials = HashMap<Place, (Instant, SecretSlice<u8>)>;

/// Providers and credentials.
pub(crate) struct Ways {
    pub(crate) client: Client,
    pub(crate) providers: Vec<Store<DNSProvider>>,
    /// None where the operator does not look after the whole cluster.
    pub(crate) cluster_providers: Vec<Store<ClusterDNSProvider>>,
    pub(crate) credentials: Mutex<Credentials>,
}

impl Ways {
    /// The DNSProvider of a namespace.
    pub(crate) async fn provider(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<DNSProvider>>, Error> {
        ready(&self.providers).await?;
        let reference = ObjectRef::new(name).within(namespace);
        Ok(self.providers.iter().find_map(|store| store.get(&reference)))
    }

    /// A ClusterDNSProvider.
    pub(crate) async fn cluster_provider(
        &self,
        name: &str,
    ) -> Result<Option<Arc<ClusterDNSProvider>>, Error> {
        ready(&self.cluster_providers).await?;
        Ok(self.cluster_providers.iter().find_map(|store| store.get(&ObjectRef::new(name))))
    }

    fn lock(&self) -> MutexGuard<'_, Credentials> {
        self.credentials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One value of a Secret, as octets. It is asked for once a minute at most while all goes well; what is not
    /// there is asked for each time.
    pub(crate) async fn secret_value(
        &self,
        namespace: &str,
        name: &str,
        key: &str,
    ) -> Result<Option<Vec<u8>>, Error> {
        let place = (namespace.to_owned(), name.to_owned(), key.to_owned());
        if let Some((read, value)) = self.lock().get(&place)
            && read.elapsed() < CREDENTIAL
        {
            return Ok(Some(value.expose_secret().to_vec()));
        }
        let value = self.secret(namespace, name).await?.remove(key).map(|value| value.0);
        match &value {
            Some(value) => self.lock().insert(place, (Instant::now(), SecretSlice::from(value.clone()))),
            None => self.lock().remove(&place),
        };
        Ok(value)
    }

    /// What a Secret holds now; nothing when it is not there.
    pub(crate) async fn secret(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<BTreeMap<String, ByteString>, Error> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let secret = secrets.get_opt(name).await.map_err(Error::kube("reading a Secret"))?;
        Ok(secret.and_then(|secret| secret.data).unwrap_or_default())
    }

    /// Reads every credential anew: one of them may be what is wrong.
    pub(crate) fn doubt(&self) {
        self.lock().clear();
    }
}
