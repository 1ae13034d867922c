//! What goes wrong, and when: drawn from the seed, and apart from what is asked of the queue.

use rand::RngExt;
use rand::rngs::StdRng;

/// What goes wrong with a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// The change was made, and its answer is lost: the caller asks again.
    AnswerLost,
    /// A worker dies with all that it holds.
    WorkerDies,
    /// The process with the queue ends and begins again.
    Restart,
    /// The power goes while the change is being written, when this part of it is on the disk.
    PowerCut(f64),
    /// The clock is set forward or back by so many milliseconds.
    ClockStep(i64),
}

/// Which faults a run has.
pub(crate) struct Schedule {
    random: StdRng,
    /// The clock steps. What a store makes of that is asked of it, so the other checks are less strict.
    pub(crate) steps_clock: bool,
    /// A cut of power in so many steps of a thousand: on some backends it takes long.
    cuts: u32,
}

impl Schedule {
    pub(crate) fn new(random: StdRng, steps_clock: bool, cuts: u32) -> Self {
        Self { random, steps_clock, cuts }
    }

    /// The next fault.
    pub(crate) fn next(&mut self) -> Fault {
        let dice = self.random.random_range(0..1000);
        let part = self.random.random_range(0.0..=1.0);
        match dice {
            0..100 => Fault::AnswerLost,
            100..130 => Fault::WorkerDies,
            130..145 => Fault::Restart,
            _ if dice - 145 < self.cuts => Fault::PowerCut(part),
            900..920 if self.steps_clock => {
                let hour = 3_600_000;
                Fault::ClockStep(self.random.random_range(-hour..hour))
            }
            _ => Fault::None,
        }
    }
}
