//! The queue as a state machine, against a model of it, under random work and faults: a seed makes one run, and
//! the same seed makes the same run.
//!
//! What is asked of the queue ([`workload`]), what goes wrong ([`faults`]) and what has to hold ([`model`],
//! [`checkers`]) know nothing of each other. The same runs are made over the embedded backend, with its disk, and over
//! the scripts in a real server, whose clock is the run's.
//!
//! `SEEDS` and `REDIS_SEEDS` say how many runs are made over each, from `FIRST_SEED` on.

mod checkers;
mod faults;
mod model;
mod run;
mod workload;
mod worlds;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::{Context, Result};

use crate::run::{BEGIN, Run};
use crate::worlds::{Embedded, Redis};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn told(backend: &str, variable: &str, seed: u64) -> String {
    format!("over {backend} seed {seed} fails: run it alone with FIRST_SEED={seed} {variable}=1")
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// One run on the embedded queue.
fn embedded(seed: u64) -> Result<usize> {
    runtime()?.block_on(async {
        let mut world = Embedded::new(BEGIN).await?;
        Run::new(seed, &mut world, 15).finish().await
    })
}

#[test]
fn the_embedded_queue_agrees_with_the_model() {
    let (first, seeds) = (number("FIRST_SEED", 1), number("SEEDS", 100));
    let (next, steps, failure) = (AtomicU64::new(first), AtomicUsize::new(0), Mutex::new(None));
    // Most of a run is waiting for the queue's own threads.
    let threads = 4 * std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds || failure.lock().unwrap().is_some() {
                        return;
                    }
                    match std::panic::catch_unwind(|| embedded(seed)) {
                        Ok(Ok(made)) => drop(steps.fetch_add(made, Ordering::Relaxed)),
                        outcome => *failure.lock().unwrap() = Some((seed, outcome)),
                    }
                }
            });
        }
    });
    if let Some((seed, outcome)) = failure.into_inner().unwrap() {
        panic!("{}: {outcome:?}", told("the embedded queue", "SEEDS", seed));
    }
    println!("simulation: embedded seeds={seeds} steps={}", steps.into_inner());
}

#[test]
fn the_scripts_agree_with_the_model() -> Result<()> {
    let (first, seeds) = (number("FIRST_SEED", 1), number("REDIS_SEEDS", 40));
    runtime()?.block_on(async {
        let (mut world, mut steps) = (Redis::start(BEGIN).await?, 0);
        for seed in first..first + seeds {
            world.empty(BEGIN).await?;
            steps += Run::new(seed, &mut world, 1)
                .finish()
                .await
                .with_context(|| told("the scripts", "REDIS_SEEDS", seed))?;
        }
        println!("simulation: redis seeds={seeds} steps={steps}");
        Ok(())
    })
}
