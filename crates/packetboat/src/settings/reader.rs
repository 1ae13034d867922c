//! Takes sections out of the configuration and gathers everything that is wrong with them.
//!
//! A section is read into its type; when that fails, the fault is noted, its key is left out, and the
//! section is read again. So one look at a file finds all its faults, and not the first alone.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use serde_path_to_error::Segment;

use super::document::{Node, Path, Place, Step, Value};

/// What the names of environment variables begin with.
const PREFIX: &str = "PACKETBOAT_";
/// Names as much alike as this are taken for each other's misspelling, from 0 to 1.
const ALIKE: f64 = 0.85;

/// One thing that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) file: PathBuf,
    pub(crate) place: Place,
    /// The key, as in `listeners[2].address`; empty when it is the file as a whole.
    pub(crate) key: String,
    pub(crate) text: String,
}

impl Problem {
    /// File, line and column, or the environment variable.
    pub(crate) fn location(&self) -> String {
        let file = self.file.display();
        match &self.place {
            Place::File => file.to_string(),
            Place::Line(line, column) => format!("{file}:{line}:{column}"),
            Place::Variable(name) => format!("environment variable {name}"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.location())?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)
    }
}

/// Where a section lies, and which of its keys are read on their own.
pub(super) struct Section {
    path: Path,
    apart: &'static [&'static str],
}

/// The section at the end of `keys`, without the keys `apart`.
pub(super) fn section(keys: &str, apart: &'static [&'static str]) -> Section {
    Section { path: Path::of(keys), apart }
}

/// Takes sections out of a configuration.
pub(super) struct Reader {
    file: PathBuf,
    root: Node,
    taken: Vec<String>,
    /// Variables that are in nobody's section: they may well be another program's.
    strangers: Vec<(Arc<str>, Vec<String>)>,
    problems: Vec<Problem>,
}

impl Reader {
    /// A reader of a file with these environment variables laid over it; others than ours are passed over.
    pub(super) fn new(
        file: PathBuf,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        sections: &[&str],
    ) -> Self {
        let mut problems = Vec::new();
        let mut root = Node::read(&file).unwrap_or_else(|unreadable| {
            let (place, text) = (unreadable.place, unreadable.text);
            problems.push(Problem { file: file.clone(), place, key: String::new(), text });
            Node::default()
        });
        let mut strangers = Vec::new();
        for (name, text) in ours(environment) {
            let keys: Vec<String> = name[PREFIX.len()..].split("__").map(str::to_lowercase).collect();
            let name: Arc<str> = name.into();
            if keys.first().is_some_and(|first| sections.contains(&first.as_str())) {
                root.lay_over(&keys, &name, &text);
            } else {
                strangers.push((name, keys));
            }
        }
        let mut reader = Self { file, root, taken: Vec::new(), strangers, problems };
        if !matches!(reader.root.value, Value::Map(_)) {
            reader.problem(
                &Path::default(),
                "the settings must be keys with values, as in hostname: mx.example.org",
            );
            reader.root = Node::default();
        }
        reader
    }

    /// Notes that something is wrong with the key at the end of `path`.
    pub(super) fn problem(&mut self, path: &Path, text: impl Into<String>) {
        let place = self.root.place_of_key(path);
        self.note(place, path, text.into());
    }

    fn note(&mut self, place: Place, path: &Path, text: String) {
        let problem = Problem { file: self.file.clone(), place, key: path.to_string(), text: conceal(&text) };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Whether the key at the end of `path` is there with a value.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.root.get(path).is_some_and(|node| !matches!(node.value, Value::Scalar(Json::Null)))
    }

    /// How many items the list at the end of `path` has. Anything but a list is a problem.
    pub(super) fn list(&mut self, path: &Path) -> usize {
        self.take(path);
        match self.root.get(path).map(|node| &node.value) {
            Some(Value::List(items)) => items.len(),
            None | Some(Value::Scalar(Json::Null)) => 0,
            Some(_) => {
                self.problem(path, "a list is wanted here");
                0
            }
        }
    }

    /// Reads a value; `None` when it is missing, or wrong, which is noted.
    pub(super) fn value<T: DeserializeOwned>(&mut self, path: &Path) -> Option<T> {
        self.take(path);
        self.read(path, &[])
    }

    /// Reads a section, which begins with the defaults of its type.
    pub(super) fn section<T: DeserializeOwned + Default>(&mut self, section: &Section) -> T {
        self.take(&section.path);
        self.read(&section.path, section.apart).unwrap_or_default()
    }

    fn take(&mut self, path: &Path) {
        if let Some(Step::Key(first)) = path.0.first()
            && !self.taken.contains(first)
        {
            self.taken.push(first.clone());
        }
    }

    fn read<T: DeserializeOwned>(&mut self, path: &Path, apart: &[&str]) -> Option<T> {
        let node = self.root.get(path)?;
        if matches!(node.value, Value::Scalar(Json::Null)) {
            return None;
        }
        let mut without: Vec<Path> = apart.iter().map(|key| Path::of(key)).collect();
        loop {
            let json = self.root.get(path)?.to_json(&without);
            let error = match serde_path_to_error::deserialize::<_, T>(json) {
                Ok(value) => return Some(value),
                Err(error) => error,
            };
            let inner = steps(error.path());
            let mut fault = path.clone();
            fault.0.extend(inner.0.iter().cloned());
            let text = error.into_inner().to_string();
            let place = if text.starts_with("unknown field") {
                self.root.place_of_key(&fault)
            } else {
                self.root
                    .get(&fault)
                    .map_or_else(|| self.root.place_of_key(&fault), |node| node.place.clone())
            };
            self.note(place, &fault, in_plain_words(&text, &fault, apart));
            let left_out = key_of(inner)?;
            if without.contains(&left_out) {
                return None;
            }
            without.push(left_out);
        }
    }

    /// All that was found, with the keys that nobody has taken; and the tree, to find places in.
    pub(super) fn finish(mut self) -> (Vec<Problem>, Node) {
        // Where nothing could be read, nothing else that is missing needs to be told.
        if self.problems.iter().any(|problem| problem.key.is_empty()) {
            self.problems.retain(|problem| problem.key.is_empty());
            return (self.problems, self.root);
        }
        let unknown: Vec<String> =
            self.root.keys().map(|entry| entry.key.clone()).filter(|key| !self.taken.contains(key)).collect();
        let known: Vec<String> = self.taken.clone();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        for key in unknown {
            self.problem(&Path::default().key(&key), unknown_key(&key, &known));
        }
        for (name, keys) in std::mem::take(&mut self.strangers) {
            // Kubernetes sets PACKETBOAT_SERVICE_HOST and the like for a Service called packetboat.
            let first = keys.first().map(String::as_str).unwrap_or_default();
            if keys.len() > 1 || nearest(first, &known).is_some() {
                let path = Path(keys.iter().cloned().map(Step::Key).collect());
                self.note(Place::Variable(name), &path, unknown_key(first, &known));
            }
        }
        self.problems.sort_by_key(|problem| match problem.place {
            Place::File => (0, 0, 0),
            Place::Line(line, column) => (1, line, column),
            Place::Variable(_) => (2, 0, 0),
        });
        (self.problems, self.root)
    }
}

/// Our variables by name, those of outer keys before those of inner ones.
fn ours(environment: impl IntoIterator<Item = (OsString, OsString)>) -> BTreeMap<String, String> {
    environment
        .into_iter()
        .filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with(PREFIX) && name.len() > PREFIX.len())
        .collect()
}

fn steps(path: &serde_path_to_error::Path) -> Path {
    let step = |segment: &Segment| match segment {
        Segment::Seq { index } => Some(Step::Index(*index)),
        Segment::Map { key } => Some(Step::Key(key.clone())),
        Segment::Enum { .. } | Segment::Unknown => None,
    };
    Path(path.iter().map_while(step).collect())
}

/// The path up to its last key: items of a list are not left out, or the others would change places.
fn key_of(mut path: Path) -> Option<Path> {
    while matches!(path.0.last(), Some(Step::Index(_))) {
        path.0.pop();
    }
    (!path.0.is_empty()).then_some(path)
}

/// serde's message without what is for programmers.
fn in_plain_words(text: &str, fault: &Path, apart: &[&str]) -> String {
    let quoted: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
    if text.starts_with("unknown field")
        && let Some(Step::Key(key)) = fault.0.last()
    {
        let known: Vec<&str> = quoted.iter().skip(1).chain(apart).copied().collect();
        return unknown_key(key, &known);
    }
    if let (Some(rest), Some((unknown, known))) = (text.strip_prefix("unknown variant"), quoted.split_first())
        && !rest.is_empty()
    {
        return format!("{unknown:?} is not known here: write {}", known.join(" or "));
    }
    if let (true, Some(key)) = (text.starts_with("missing field"), quoted.first()) {
        return format!("the key {key} is missing");
    }
    if let Some((found, wanted)) =
        text.strip_prefix("invalid type: ").and_then(|rest| rest.split_once(", expected "))
    {
        let wanted = match wanted.split(' ').next().unwrap_or_default() {
            "u16" | "u32" | "u64" | "usize" => "a whole number",
            "f64" => "a number",
            "struct" | "map" => "keys with values",
            "sequence" | "a sequence" => "a list",
            _ => wanted,
        };
        return format!("{wanted} is wanted here, and not {}", found.replace("null", "nothing"));
    }
    text.trim_end_matches('.').to_owned()
}

fn unknown_key(key: &str, known: &[&str]) -> String {
    match (nearest(key, known), known) {
        (Some(near), _) => format!("there is no such key; did you mean {near}?"),
        (None, []) => "there is no such key".to_owned(),
        (None, known) => format!("there is no such key; the keys here are {}", known.join(", ")),
    }
}

fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let likeness = |known: &&'a str| strsim::jaro_winkler(key, known);
    let best = known.iter().copied().max_by(|one, other| likeness(one).total_cmp(&likeness(other)))?;
    (likeness(&best) >= ALIKE).then_some(best)
}

/// The text without the passwords in its URLs.
fn conceal(text: &str) -> String {
    let mut open = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        open.push_str(before);
        open.push_str("://");
        let authority = after.find(['/', ' ', '"', '\'']).map_or(after, |end| &after[..end]);
        rest = match authority.rfind('@') {
            Some(at) => {
                open.push_str("***");
                &after[at..]
            }
            None => after,
        };
    }
    open.push_str(rest);
    open
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_concealed() {
        assert_eq!(conceal("\"redis://:se@cret@host:1/0\" is odd"), "\"redis://***@host:1/0\" is odd");
        assert_eq!(conceal("http://host:1 and no more"), "http://host:1 and no more");
    }

    #[test]
    fn a_near_name_is_found_and_a_far_one_is_not() {
        let known = ["listeners", "hostname", "dns"];
        assert_eq!(nearest("listenerz", &known), Some("listeners"));
        assert_eq!(nearest("host_name", &known), Some("hostname"));
        assert_eq!(nearest("port", &known), None);
        assert_eq!(nearest("bin", &known), None);
    }
}
