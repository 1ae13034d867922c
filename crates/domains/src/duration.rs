//! Durations as people write them: `90s`, `5m`, `120h`, `7d`, `1h30m`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer};

/// Reads a duration.
///
/// # Errors
/// A sentence that says what was expected.
pub fn parse(text: &str) -> Result<Duration, String> {
    let malformed = || format!("{text:?} is not a duration: write for example 90s, 5m, 120h or 7d");
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u32 = rest[..digits].parse().map_err(|_| malformed())?;
        rest = &rest[digits..];
        let (unit, width) = match rest {
            _ if rest.starts_with("ms") => (Duration::from_millis(1), 2),
            _ if rest.starts_with('s') => (Duration::from_secs(1), 1),
            _ if rest.starts_with('m') => (Duration::from_secs(60), 1),
            _ if rest.starts_with('h') => (Duration::from_secs(3600), 1),
            _ if rest.starts_with('d') => (Duration::from_secs(86_400), 1),
            _ => return Err(malformed()),
        };
        rest = &rest[width..];
        total = unit.checked_mul(number).and_then(|part| total.checked_add(part)).ok_or_else(malformed)?;
    }
    if text.is_empty() { Err(malformed()) } else { Ok(total) }
}

/// Writes a duration in its largest whole unit.
#[must_use]
pub fn format(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (unit, name) in [(3_600_000, "h"), (60_000, "m"), (1000, "s")] {
        if millis > 0 && millis.is_multiple_of(unit) {
            return format!("{}{name}", millis / unit);
        }
    }
    format!("{millis}ms")
}

/// For `#[serde(with)]`.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*duration))
}

/// For `#[serde(with)]`.
///
/// # Errors
/// When the text is no duration.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).map_err(serde::de::Error::custom)
}

/// The same for an optional duration.
pub mod option {
    use super::{Deserialize, Deserializer, Duration, Serializer};

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// When the text is no duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        let text: Option<String> = Option::deserialize(deserializer)?;
        text.map(|text| super::parse(&text)).transpose().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        for (text, seconds) in [("90s", 90), ("5m", 300), ("120h", 432_000), ("7d", 604_800), ("1h30m", 5400)]
        {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)));
        }
        for bad in ["", "5", "m", "5x", "-5m", "99999999999h"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(format(Duration::from_secs(5400)), "90m");
        assert_eq!(format(Duration::from_millis(1500)), "1500ms");
    }
}
