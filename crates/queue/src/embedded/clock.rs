//! The queue's time: it goes on steadily whatever is done to the machine's clock, and is never set back.
//!
//! While the process runs it follows the clock that nobody can set. At a start it is what the machine says, but no
//! earlier than it was when it was last written down, and no more than [`LONGEST_PAUSE`] later: one wrong clock
//! makes waiting mail neither wait for as long as it is wrong, nor expire.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::Timestamp;

/// A pause between two runs counts for so much at most; it is longer than waits between attempts are.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

/// A clock that goes on steadily.
#[derive(Debug)]
pub(super) struct Steady {
    began: Timestamp,
    since: Instant,
}

/// What the machine's clock says.
pub(super) fn wall() -> Timestamp {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

impl Steady {
    /// Goes on from `last`, the time that was written down by the run before; the machine says `wall`.
    pub(super) fn resume(last: Option<Timestamp>, wall: Timestamp) -> Self {
        let began = last.map_or(wall, |last| wall.clamp(last, last.after(LONGEST_PAUSE)));
        if began != wall {
            tracing::warn!(
                queue_ms = began.0,
                machine_ms = wall.0,
                "machine's clock was set, or the queue rested for long: its time goes on from where it was"
            );
        }
        Self { began, since: Instant::now() }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.began.after(self.since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn it_is_never_set_back_and_leaps_no_further_than_a_day() {
        let begun = |last: u64, wall: u64| Steady::resume(Some(Timestamp(last)), Timestamp(wall)).began.0;
        let noon = 1_000_000 * HOUR;
        assert_eq!(Steady::resume(None, Timestamp(noon)).began.0, noon);
        assert_eq!(begun(noon, noon + 2 * HOUR), noon + 2 * HOUR);
        assert_eq!(begun(noon, noon - 5 * HOUR), noon);
        assert_eq!(begun(noon, noon + 1000 * HOUR), noon + 24 * HOUR);
    }
}
