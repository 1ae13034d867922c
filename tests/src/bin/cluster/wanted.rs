//! What of the test is to run: all of it, or what EVENT names.

use anyhow::{Result, bail};

use crate::events;

/// The parts that come before the events under load.
const FIRST: [&str; 2] = ["mail-in", "mail-out"];
/// Those that come after.
const LAST: [&str; 4] = ["trace", "deletion-policies", "uninstall", "install-guide"];
/// What `scripts/cluster-test` runs by itself, without a cluster of the user's.
const OF_THE_SCRIPT: &str = "leaves-nothing";

/// The names that were asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted(Option<Vec<String>>);

impl Wanted {
    /// Reads the variable EVENT.
    ///
    /// # Errors
    /// It names what there is not: nothing would run, and nothing would fail.
    pub(crate) fn find() -> Result<Self> {
        Self::parse(&std::env::var("EVENT").unwrap_or_default())
    }

    fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let names: Vec<String> = text.split(',').map(str::to_owned).collect();
        let known: Vec<&str> = known().collect();
        match names.iter().find(|name| !known.contains(&name.as_str())) {
            None => Ok(Self(Some(names))),
            Some(unknown) => {
                bail!("EVENT names {unknown:?}; there are {} and {OF_THE_SCRIPT}", known.join(", "))
            }
        }
    }

    /// Whether this one is to run.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|names| names.iter().any(|one| one == name))
    }

    /// Whether anything but this one is to run.
    pub(crate) fn has_more_than(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|names| names.iter().any(|one| one != name))
    }
}

fn known() -> impl Iterator<Item = &'static str> {
    FIRST.into_iter().chain(events::EVENTS.map(|event| event.0)).chain(LAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_wanted_unless_something_is() {
        let all = Wanted::parse("").unwrap();
        assert!(known().all(|name| all.has(name)) && all.has_more_than("install-guide"));
        let some = Wanted::parse("quiet,upgrade").unwrap();
        assert!(some.has("quiet") && some.has("upgrade") && !some.has("drain"));
        assert!(!Wanted::parse("install-guide").unwrap().has_more_than("install-guide"));
    }

    #[test]
    fn unknown_names_are_refused() {
        for text in ["quite", "quiet,quite", "quiet,", "leaves-nothing"] {
            let told = Wanted::parse(text).unwrap_err().to_string();
            assert!(told.contains("restart-mta-sts") && told.contains("leaves-nothing"), "{told}");
        }
    }
}
