//! Objects of one kind as the API server told them last, and as this operator has written them since: what it
//! has just made is there at once, though the watch tells of it a moment later. Nothing is listed again for it.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::try_join_all;
use futures::stream::{BoxStream, select_all};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::NamespaceResourceScope;
use kube::api::Api;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, reflector as reflect, watcher as watch};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use crate::error::Error;

/// How long the first list may take.
const FIRST_LIST: Duration = Duration::from_secs(30);
/// What was written counts for so long without the watch telling of it. Writes carry the version they follow
/// from, so that a watch that lags leads to a refusal at most.
const LAG: Duration = Duration::from_secs(60);

/// Objects as they are touched.
pub(crate) type Touched<K> = BoxStream<'static, Result<K, watcher::Error>>;

/// What this operator did to an object, until the watch tells of it.
enum Written<K> {
    Is(Box<K>),
    /// By its UID.
    Gone(String),
}

/// What was done to objects, and when.
type Deeds<K> = HashMap<ObjectRef<K>, (Instant, Written<K>)>;
type Writes<K> = Mutex<Deeds<K>>;

/// The objects of one kind. It can be read by many; one stream keeps it up to date.
pub(crate) struct Mirror<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    /// One for each namespace that is looked after, or one of all.
    told: Vec<Store<K>>,
    written: Arc<Writes<K>>,
    /// What of an object is kept.
    keep: fn(&mut K),
}

/// The number in an object's version; it grows with each write.
fn version<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX)
}

/// Forgets what was written to an object once the watch has told of it, or of what came after.
fn overtake<K>(written: &Writes<K>, told: &K)
where
    K: Resource<DynamicType = ()> + Clone,
{
    let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
    let reference = ObjectRef::from_obj(told);
    if let Some((_, Written::Is(object))) = written.get(&reference)
        && version(told) >= version(object.as_ref())
    {
        written.remove(&reference);
    }
}

impl<K> Mirror<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static,
{
    /// A mirror, and the stream that keeps it up to date while it is polled: of objects that were touched.
    /// `keep` takes away what is not to be held in memory.
    pub(crate) fn new(apis: Vec<Api<K>>, config: &watcher::Config, keep: fn(&mut K)) -> (Self, Touched<K>) {
        let written: Arc<Writes<K>> = Arc::default();
        let (mut told, mut streams) = (Vec::new(), Vec::new());
        for api in apis {
            let (store, writer): (Store<K>, Writer<K>) = reflector::store();
            let writes = Arc::clone(&written);
            let events = reflect(writer, watch(api, config.clone()).modify(keep)).inspect_ok(move |event| {
                if let Event::Apply(object) | Event::Delete(object) = event {
                    overtake(&writes, object);
                }
            });
            told.push(store);
            streams.push(events.touched_objects().boxed());
        }
        (Self { told, written, keep }, select_all(streams).boxed())
    }

    /// Waits for the first lists.
    ///
    /// # Errors
    /// [`Error::NotTold`] when they do not come in time.
    pub(crate) async fn ready(&self) -> Result<(), Error> {
        ready(&self.told).await
    }

    fn lock(&self) -> MutexGuard<'_, Deeds<K>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an object as the API server gave it back.
    pub(crate) fn wrote(&self, mut object: K) {
        (self.keep)(&mut object);
        self.lock().insert(ObjectRef::from_obj(&object), (Instant::now(), Written::Is(Box::new(object))));
    }

    /// Notes that an object was deleted.
    pub(crate) fn removed(&self, namespace: &str, name: &str) {
        let reference = ObjectRef::new(name).within(namespace);
        let uid = self.one(&reference).and_then(|object| object.uid());
        if let Some(uid) = uid {
            self.lock().insert(reference, (Instant::now(), Written::Gone(uid)));
        }
    }

    fn told(&self, reference: &ObjectRef<K>) -> Option<Arc<K>> {
        self.told.iter().find_map(|store| store.get(reference))
    }

    fn one(&self, reference: &ObjectRef<K>) -> Option<K> {
        if let Some((_, Written::Is(object))) = self.lock().get(reference) {
            return Some(K::clone(object));
        }
        self.told(reference).map(|object| K::clone(&object))
    }

    /// The objects for which `wanted` holds.
    pub(crate) fn all(&self, wanted: impl Fn(&K) -> bool) -> Vec<K> {
        let mut written = self.lock();
        written.retain(|_, (at, _)| at.elapsed() < LAG);
        let mut found: HashMap<ObjectRef<K>, K> = HashMap::new();
        for object in self.told.iter().flat_map(|store| store.state_filter(&wanted)) {
            found.insert(ObjectRef::from_obj(object.as_ref()), K::clone(&object));
        }
        written.retain(|reference, (_, written)| {
            let told = self.told(reference);
            match (written, told) {
                // The watch has told of it, or of what came after.
                (Written::Is(object), Some(told)) if version(told.as_ref()) >= version(object.as_ref()) => {
                    false
                }
                (Written::Gone(uid), told)
                    if told.as_ref().is_none_or(|told| told.uid().as_ref() != Some(uid)) =>
                {
                    false
                }
                (Written::Is(object), _) => {
                    found.remove(reference);
                    if wanted(object) {
                        found.insert(reference.clone(), K::clone(object));
                    }
                    true
                }
                (Written::Gone(_), _) => {
                    found.remove(reference);
                    true
                }
            }
        });
        found.into_values().collect()
    }
}

/// Waits until all stores have been filled.
///
/// # Errors
/// [`Error::NotTold`] when that takes too long.
pub(crate) async fn ready<K>(stores: &[Store<K>]) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let all = stores.iter().map(Store::wait_until_ready);
    match timeout(FIRST_LIST, try_join_all(all)).await {
        Ok(Ok(_)) => Ok(()),
        _ => Err(Error::NotTold(K::plural(&()).into_owned())),
    }
}

/// Stores of objects of one kind that are only read, and the stream that fills them.
pub(crate) fn followed<K>(apis: Vec<Api<K>>) -> (Vec<Store<K>>, Touched<K>)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (mut stores, mut streams) = (Vec::new(), Vec::new());
    for api in apis {
        let (store, writer): (Store<K>, Writer<K>) = reflector::store();
        stores.push(store);
        streams.push(reflect(writer, watch(api, watcher::Config::default())).touched_objects().boxed());
    }
    (stores, select_all(streams).boxed())
}
