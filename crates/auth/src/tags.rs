//! Tag lists (RFC 6376 §3.2), the form of DKIM signatures and keys and of DMARC records.

/// A `tag=value` list in the order it was written. Names are kept in lower case, so that a reader who
/// minds the case and one who does not see the same list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tags {
    tags: Vec<(String, String)>,
}

/// The most tags of a list; more are no list.
const MAX_TAGS: usize = 64;

impl Tags {
    /// Reads a list. `None` when it is malformed or a tag stands twice (§3.2: the list is then
    /// invalid). White space around names and values goes; octets that are no UTF-8 are replaced.
    pub(crate) fn parse(list: &[u8]) -> Option<Self> {
        let (tags, repeated) = read(list)?;
        (!repeated).then_some(Self { tags })
    }

    /// As [`parse`](Self::parse), with the first of repeated tags taken.
    pub(crate) fn parse_lenient(list: &[u8]) -> Option<Self> {
        read(list).map(|(tags, _)| Self { tags })
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.tags.iter().find(|(tag, _)| tag == name).map(|(_, value)| value.as_str())
    }

    /// The value without any white space: for values that may be folded anywhere.
    pub(crate) fn compact(&self, name: &str) -> Option<String> {
        self.get(name).map(|value| value.chars().filter(|c| !c.is_ascii_whitespace()).collect())
    }

    /// Whether a colon-separated value holds an item, in any case.
    pub(crate) fn lists(&self, name: &str, item: &str) -> Option<bool> {
        self.get(name).map(|value| value.split(':').any(|part| part.trim().eq_ignore_ascii_case(item)))
    }

    /// The tag that stands first.
    pub(crate) fn first(&self) -> Option<(&str, &str)> {
        self.tags.first().map(|(tag, value)| (tag.as_str(), value.as_str()))
    }
}

fn read(list: &[u8]) -> Option<(Vec<(String, String)>, bool)> {
    let text = String::from_utf8_lossy(list);
    let mut tags: Vec<(String, String)> = Vec::new();
    let mut repeated = false;
    for piece in text.split(';') {
        if piece.trim_ascii().is_empty() {
            continue;
        }
        let (name, value) = piece.split_once('=')?;
        let name = name.trim_ascii().to_ascii_lowercase();
        let well_formed = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !well_formed || tags.len() == MAX_TAGS {
            return None;
        }
        repeated |= tags.iter().any(|(tag, _)| *tag == name);
        tags.push((name, value.trim_ascii().to_owned()));
    }
    Some((tags, repeated))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        let tags = Tags::parse(b" v=1; A = rsa-sha256 ;h=From : To;\r\n b=ab\r\n cd;").unwrap();
        assert_eq!(tags.first(), Some(("v", "1")));
        assert_eq!(tags.get("a"), Some("rsa-sha256"));
        assert_eq!(tags.compact("b").as_deref(), Some("abcd"));
        assert_eq!(tags.lists("h", "from"), Some(true));
        assert_eq!(tags.lists("h", "cc"), Some(false));
        assert_eq!(tags.lists("s", "email"), None);
        assert_eq!(Tags::parse(b"").map(|tags| tags.first().is_none()), Some(true));
    }

    #[test]
    fn faulty_lists_are_none() {
        for list in [&b"v=1; v=1"[..], b"v=1; d=a; D=b", b"v", b"=1", b"v=1; a b=2"] {
            assert_eq!(Tags::parse(list), None);
        }
        assert_eq!(Tags::parse_lenient(b"p=a; p=b").unwrap().get("p"), Some("a"));
    }
}
