//! Which namespaces count, and their objects as one: several watches, one store.

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Debug};
use std::hash::Hash;
use std::sync::Arc;

use futures::stream::{self, BoxStream, Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{self, ObjectRef, Store, store::Writer};
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

/// The namespaces whose objects count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Namespaces {
    /// All that the cluster has: rights for the whole cluster are needed.
    All,
    /// These, each once: rights within each are enough.
    These(Vec<String>),
}

impl Namespaces {
    /// Whether it is all of the cluster.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Self::All
    }

    /// Whether objects of this namespace count.
    #[must_use]
    pub fn contains(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::These(names) => names.iter().any(|name| name == namespace),
        }
    }

    /// Where objects of one kind are found: in one place, or in one a namespace.
    #[must_use]
    pub fn apis<K>(&self, client: &Client) -> Vec<Api<K>>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        let api = |name: &String| Api::namespaced(client.clone(), name);
        match self {
            Self::All => vec![Api::all(client.clone())],
            Self::These(names) => names.iter().map(api).collect(),
        }
    }

    /// Follows the objects of one kind. The store is ready when every namespace has been listed; what comes out
    /// of the stream is in the store already. Failures are told in the log, and tried again.
    pub fn follow<K>(
        &self,
        client: &Client,
        config: &Config,
    ) -> (Store<K>, impl Stream<Item = Event<K>> + Send + 'static)
    where
        K: Resource<Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug
            + Send
            + Sync
            + 'static,
        K::DynamicType: Default + Eq + Hash + Clone + Send + Sync,
    {
        let names = match self {
            Self::All => vec![None],
            Self::These(names) => names.iter().cloned().map(Some).collect(),
        };
        let watches = self.apis::<K>(client).into_iter().enumerate().map(|(at, api)| {
            let events = watcher(api, config.clone()).default_backoff();
            events.map(move |event| (at, event)).boxed()
        });
        let watches: stream::SelectAll<BoxStream<'static, _>> = stream::select_all(watches);
        let (store, writer) = reflector::store();
        let mut merge = Merge::new(names, writer);
        let merged = watches.flat_map(move |(at, event)| stream::iter(merge.take(at, event)));
        (store, merged)
    }
}

/// For people.
impl fmt::Display for Namespaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::These(names) => f.write_str(&names.join(", ")),
        }
    }
}

/// What one watch is doing.
struct Source<K: Resource> {
    namespace: Option<String>,
    /// It has told a whole list.
    complete: bool,
    /// The list that it tells first, which waits for those of the others.
    first: HashMap<ObjectRef<K>, K>,
    /// What a list that is told again has named so far.
    arriving: HashSet<ObjectRef<K>>,
}

/// Brings several watches into one store. Each tells whole lists now and then, which must not take the objects
/// of the others away.
struct Merge<K: Resource + Clone + 'static>
where
    K::DynamicType: Eq + Hash + Clone,
{
    sources: Vec<Source<K>>,
    writer: Writer<K>,
    /// The first lists of all are in the store.
    begun: bool,
}

impl<K> Merge<K>
where
    K: Resource + Clone + Debug + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    fn new(names: Vec<Option<String>>, writer: Writer<K>) -> Self {
        let source = |namespace| Source {
            namespace,
            complete: false,
            first: HashMap::new(),
            arriving: HashSet::new(),
        };
        Self { sources: names.into_iter().map(source).collect(), writer, begun: false }
    }

    /// What follows from an event of one watch; the store has it.
    fn take(&mut self, at: usize, event: Result<Event<K>, watcher::Error>) -> Vec<Event<K>> {
        let events = match event {
            Ok(event) if self.begun => self.later(at, event),
            Ok(event) => self.first(at, event),
            Err(error) => {
                tracing::warn!(
                    kind = %K::kind(&K::DynamicType::default()),
                    namespace = self.sources[at].namespace,
                    error = &error as &dyn std::error::Error,
                    "Kubernetes API cannot be watched, what it said last stays"
                );
                Vec::new()
            }
        };
        events.iter().for_each(|event| self.writer.apply_watcher_event(event));
        events
    }

    /// The first lists are one list, once all are complete.
    fn first(&mut self, at: usize, event: Event<K>) -> Vec<Event<K>> {
        let source = &mut self.sources[at];
        match event {
            Event::Init => {
                source.first.clear();
                source.complete = false;
            }
            Event::InitApply(object) | Event::Apply(object) => {
                source.first.insert(ObjectRef::from_obj(&object), object);
            }
            Event::Delete(object) => {
                source.first.remove(&ObjectRef::from_obj(&object));
            }
            Event::InitDone => source.complete = true,
        }
        if !self.sources.iter().all(|source| source.complete) {
            return Vec::new();
        }
        self.begun = true;
        let objects = self.sources.iter_mut().flat_map(|source| std::mem::take(&mut source.first));
        let objects = objects.map(|(_, object)| Event::InitApply(object));
        std::iter::once(Event::Init).chain(objects).chain([Event::InitDone]).collect()
    }

    /// A list that is told again changes what it names, and takes away what it leaves out.
    fn later(&mut self, at: usize, event: Event<K>) -> Vec<Event<K>> {
        let source = &mut self.sources[at];
        match event {
            Event::Init => {
                source.arriving.clear();
                Vec::new()
            }
            Event::InitApply(object) => {
                source.arriving.insert(ObjectRef::from_obj(&object));
                vec![Event::Apply(object)]
            }
            Event::InitDone => {
                let arrived = std::mem::take(&mut source.arriving);
                let is_gone = |object: &&Arc<K>| {
                    let of_source = source.namespace.is_none() || object.namespace() == source.namespace;
                    of_source && !arrived.contains(&ObjectRef::from_obj(object.as_ref()))
                };
                let known = self.writer.as_reader().state();
                known.iter().filter(is_gone).map(|object| Event::Delete(K::clone(object))).collect()
            }
            change => vec![change],
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn object(namespace: &str, name: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.namespace = Some(namespace.to_owned());
        object.metadata.name = Some(name.to_owned());
        object
    }

    fn names(store: &Store<ConfigMap>) -> Vec<String> {
        let name = |object: &Arc<ConfigMap>| {
            format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
        };
        let mut names: Vec<String> = store.state().iter().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn a_list_told_again_leaves_the_objects_of_others() {
        let (store, writer) = reflector::store();
        let mut merge = Merge::new(vec![Some("a".to_owned()), Some("b".to_owned())], writer);
        let mut tell = |at, event| merge.take(at, Ok(event)).len();
        tell(0, Event::Init);
        tell(0, Event::InitApply(object("a", "one")));
        tell(0, Event::InitApply(object("a", "two")));
        tell(0, Event::InitDone);
        assert_eq!(names(&store), [""; 0], "half of it was told as the whole");
        // The other list is late; meanwhile something goes from the first.
        tell(0, Event::Delete(object("a", "two")));
        tell(1, Event::Init);
        tell(1, Event::InitApply(object("b", "one")));
        tell(1, Event::InitDone);
        assert_eq!(names(&store), ["a/one", "b/one"]);
        for event in [Event::Init, Event::InitApply(object("a", "three")), Event::InitDone] {
            tell(0, event);
        }
        assert_eq!(names(&store), ["a/three", "b/one"]);
        tell(1, Event::Delete(object("b", "one")));
        assert_eq!(names(&store), ["a/three"]);
    }

    #[test]
    fn a_watch_that_begins_anew_before_all_are_complete_does_no_harm() {
        let (store, writer) = reflector::store();
        let mut merge = Merge::new(vec![Some("a".to_owned()), Some("b".to_owned())], writer);
        let mut tell = |at, event| merge.take(at, Ok(event)).len();
        for event in [Event::Init, Event::InitApply(object("a", "one")), Event::InitDone] {
            tell(0, event);
        }
        for event in [Event::Init, Event::InitApply(object("a", "two")), Event::InitDone] {
            tell(0, event);
        }
        for event in [Event::Init, Event::InitDone] {
            tell(1, event);
        }
        assert_eq!(names(&store), ["a/two"]);
    }
}
