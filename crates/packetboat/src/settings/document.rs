//! The configuration file as a tree that knows where each of its keys stands, with the environment's
//! overrides laid over it.

use std::fmt;
use std::path::Path as FilePath;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;
use serde_saphyr::{Location, Spanned};

/// The files that are read are configuration: nobody needs more, in octets.
const MAX_FILE: u64 = 1024 * 1024;

/// Where a key or a value was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Place {
    /// Nowhere: the key is missing.
    #[default]
    File,
    /// In the file, counted from 1.
    Line(u64, u64),
    /// In this environment variable.
    Variable(Arc<str>),
}

impl From<Location> for Place {
    fn from(location: Location) -> Self {
        match location.line() {
            0 => Self::File,
            line => Self::Line(line, location.column()),
        }
    }
}

/// One step from a node to one inside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

/// The way from the root to a node, as in `listeners[2].address`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Path(pub(crate) Vec<Step>);

impl Path {
    /// A path of keys that are separated by dots.
    pub(crate) fn of(keys: &str) -> Self {
        Self(keys.split('.').map(|key| Step::Key(key.to_owned())).collect())
    }

    pub(crate) fn key(mut self, key: &str) -> Self {
        self.0.push(Step::Key(key.to_owned()));
        self
    }

    pub(crate) fn index(mut self, index: usize) -> Self {
        self.0.push(Step::Index(index));
        self
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if at == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// A value and where it stands.
#[derive(Debug, Clone, Default)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Scalar(Json),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

impl Default for Value {
    fn default() -> Self {
        Self::Map(Vec::new())
    }
}

/// A key of a map: where it stands, and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) place: Place,
    pub(crate) node: Node,
}

/// The file is no YAML, or cannot be read.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub(crate) place: Place,
    pub(crate) text: String,
}

impl Node {
    /// Reads a file; an empty one is an empty map.
    pub(crate) fn read(file: &FilePath) -> Result<Self, Unreadable> {
        let failed = |text: String| Unreadable { place: Place::File, text };
        let length = std::fs::metadata(file).map_err(|error| {
            failed(format!("the configuration file cannot be read: {error}; give it as --config FILE"))
        })?;
        if length.len() > MAX_FILE {
            return Err(failed(format!("the file is larger than {MAX_FILE} octets")));
        }
        let text = std::fs::read_to_string(file)
            .map_err(|error| failed(format!("the configuration file cannot be read: {error}")))?;
        Self::parse(&text)
    }

    pub(crate) fn parse(text: &str) -> Result<Self, Unreadable> {
        match serde_saphyr::from_str::<Option<Spanned<Raw>>>(text) {
            Ok(Some(raw)) => Ok(raw.into()),
            Ok(None) => Ok(Self::default()),
            Err(error) => {
                let place = error.location().map_or(Place::File, Place::from);
                // Without the excerpt of the file that follows: there may be a password in it.
                let text = error.without_snippet().to_string();
                let text = text.lines().next().unwrap_or_default();
                let text = text.split(" at line ").next().unwrap_or_default().to_owned();
                Err(Unreadable { place, text })
            }
        }
    }

    /// The node at the end of a path.
    pub(crate) fn get(&self, path: &Path) -> Option<&Self> {
        path.0.iter().try_fold(self, |node, step| match (&node.value, step) {
            (Value::Map(entries), Step::Key(key)) => {
                entries.iter().find(|entry| entry.key == *key).map(|entry| &entry.node)
            }
            (Value::List(items), Step::Index(index)) => items.get(*index),
            _ => None,
        })
    }

    /// Where the last key of a path stands; the nearest part of the path that is there, when it is not.
    pub(crate) fn place_of_key(&self, path: &Path) -> Place {
        let mut node = self;
        let mut place = Place::File;
        for step in &path.0 {
            match (&node.value, step) {
                (Value::Map(entries), Step::Key(key)) => {
                    let Some(entry) = entries.iter().find(|entry| entry.key == *key) else { break };
                    place = entry.place.clone();
                    node = &entry.node;
                }
                (Value::List(items), Step::Index(index)) => {
                    let Some(item) = items.get(*index) else { break };
                    place = item.place.clone();
                    node = item;
                }
                _ => break,
            }
        }
        place
    }

    /// The keys of a map, in their order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Entry> {
        match &self.value {
            Value::Map(entries) => entries.as_slice(),
            _ => &[],
        }
        .iter()
    }

    /// Lays the value of an environment variable over the file. `keys` may be an index where the file
    /// has a list.
    pub(crate) fn lay_over(&mut self, keys: &[String], variable: &Arc<str>, text: &str) {
        let place = Place::Variable(Arc::clone(variable));
        let Some((key, rest)) = keys.split_first() else {
            *self = from_variable(text);
            return self.stand_in(&place);
        };
        if let (Value::List(items), Ok(index)) = (&mut self.value, key.parse::<usize>())
            && let Some(item) = items.get_mut(index)
        {
            return item.lay_over(rest, variable, text);
        }
        if !matches!(self.value, Value::Map(_)) {
            self.value = Value::default();
        }
        let Value::Map(entries) = &mut self.value else { return };
        let known = entries.iter().position(|entry| entry.key == *key).unwrap_or_else(|| {
            entries.push(Entry { key: key.clone(), place: place.clone(), node: Self::default() });
            entries.len() - 1
        });
        if rest.is_empty() {
            entries[known].place = place;
        }
        entries[known].node.lay_over(rest, variable, text);
    }

    fn stand_in(&mut self, place: &Place) {
        self.place = place.clone();
        match &mut self.value {
            Value::Scalar(_) => {}
            Value::List(items) => items.iter_mut().for_each(|item| item.stand_in(place)),
            Value::Map(entries) => entries.iter_mut().for_each(|entry| {
                entry.place = place.clone();
                entry.node.stand_in(place);
            }),
        }
    }

    /// The tree as JSON without the keys at these paths, which start at this node.
    pub(crate) fn to_json(&self, without: &[Path]) -> Json {
        self.to_json_at(&mut Path::default(), without)
    }

    fn to_json_at(&self, at: &mut Path, without: &[Path]) -> Json {
        match &self.value {
            Value::Scalar(value) => value.clone(),
            Value::List(items) => {
                let mut list = Vec::with_capacity(items.len());
                for (index, item) in items.iter().enumerate() {
                    at.0.push(Step::Index(index));
                    list.push(item.to_json_at(at, without));
                    at.0.pop();
                }
                Json::Array(list)
            }
            Value::Map(entries) => {
                let mut map = serde_json::Map::new();
                for entry in entries {
                    at.0.push(Step::Key(entry.key.clone()));
                    if !without.contains(at) {
                        map.insert(entry.key.clone(), entry.node.to_json_at(at, without));
                    }
                    at.0.pop();
                }
                Json::Object(map)
            }
        }
    }
}

/// Lists, maps, quoted text, numbers and truth values are read as YAML. All else is the text itself: a
/// password may hold whatever YAML gives a meaning to.
fn from_variable(text: &str) -> Node {
    let scalar = |value: Json| Node { place: Place::File, value: Value::Scalar(value) };
    let structured = text.trim_start().starts_with(['[', '{', '"', '\'']);
    if structured && let Ok(node) = Node::parse(text) {
        return node;
    }
    match text.parse::<Json>() {
        Ok(value @ (Json::Bool(_) | Json::Number(_))) => scalar(value),
        _ => scalar(Json::String(text.to_owned())),
    }
}

/// What the parser fills.
enum Raw {
    Scalar(Json),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl From<Spanned<Raw>> for Node {
    fn from(raw: Spanned<Raw>) -> Self {
        let value = match raw.value {
            Raw::Scalar(value) => Value::Scalar(value),
            Raw::List(items) => Value::List(items.into_iter().map(Self::from).collect()),
            Raw::Map(entries) => {
                let entry = |(key, node): (Spanned<String>, Spanned<Raw>)| Entry {
                    key: key.value,
                    place: key.referenced.into(),
                    node: node.into(),
                };
                Value::Map(entries.into_iter().map(entry).collect())
            }
        };
        Self { place: raw.referenced.into(), value }
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("settings")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Scalar(Json::Null))
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Scalar(Json::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "hostname: a.test\ndns:\n  servers: [\"127.0.0.1:53\"]\n  attempts: 3\nempty:\n";

    fn lay(node: &mut Node, variable: &str, text: &str) {
        let keys: Vec<String> = variable.to_lowercase().split("__").map(str::to_owned).collect();
        node.lay_over(&keys, &variable.into(), text);
    }

    #[test]
    fn keys_know_where_they_stand() {
        let node = Node::parse(TEXT).unwrap();
        assert_eq!(node.place_of_key(&Path::of("hostname")), Place::Line(1, 1));
        assert_eq!(node.place_of_key(&Path::of("dns.attempts")), Place::Line(4, 3));
        assert_eq!(node.get(&Path::of("dns.attempts")).unwrap().place, Place::Line(4, 13));
        assert_eq!(node.place_of_key(&Path::of("dns.servers").index(0)), Place::Line(3, 13));
        assert_eq!(node.place_of_key(&Path::of("dns.missing")), Place::Line(2, 1));
        assert_eq!(
            node.to_json(&[Path::of("dns.servers")]),
            serde_json::json!({"hostname": "a.test", "dns": {"attempts": 3}, "empty": null})
        );
    }

    #[test]
    fn an_empty_file_is_an_empty_map() {
        for text in ["", "# nothing\n", "---\n"] {
            assert_eq!(Node::parse(text).unwrap().keys().count(), 0, "{text:?}");
        }
    }

    #[test]
    fn broken_yaml_is_placed_and_not_quoted() {
        let unreadable = Node::parse("hostname: a.test\nqueue: {redis: [secret\n").unwrap_err();
        assert!(matches!(unreadable.place, Place::Line(2 | 3, _)), "{unreadable:?}");
        assert!(!unreadable.text.contains("secret"), "{unreadable:?}");
    }

    #[test]
    fn variables_lie_over_the_file() {
        let mut node = Node::parse(TEXT).unwrap();
        lay(&mut node, "DNS__ATTEMPTS", "5");
        lay(&mut node, "DNS__SERVERS__0", "127.0.0.2:53");
        lay(&mut node, "QUEUE__REDIS__URL", "redis://:p#x: y@localhost");
        lay(&mut node, "LISTENERS", "[{name: mx}]");
        lay(&mut node, "EMPTY", "\"5\"");
        assert_eq!(
            node.to_json(&[]),
            serde_json::json!({
                "hostname": "a.test", "dns": {"servers": ["127.0.0.2:53"], "attempts": 5}, "empty": "5",
                "queue": {"redis": {"url": "redis://:p#x: y@localhost"}}, "listeners": [{"name": "mx"}]
            })
        );
        let place = node.place_of_key(&Path::of("listeners").index(0).key("name"));
        assert_eq!(place, Place::Variable("LISTENERS".into()));
    }
}
