//! Who a user is: passwords against argon2id hashes, and how often one may guess.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use argon2::{Argon2, PasswordVerifier};
use domains::{Domains, SubmissionUser};
use secrecy::{ExposeSecret, SecretString};
use smtp::sasl::Credentials;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::network::network_of;

/// Most addresses and logins whose failures are counted.
const MAX_COUNTED: usize = 100_000;
/// A login may fail this many times as often as an address: else anybody could lock a user out.
const LOGIN_FACTOR: u32 = 10;
/// How long an attempt waits for its turn: hashing is made to be expensive.
const TURN: Duration = Duration::from_secs(10);

/// What came of an attempt.
pub(crate) enum Outcome {
    /// The password is right.
    Accepted(Arc<SubmissionUser>),
    /// The login or the password is wrong; which one is not told.
    Refused,
    /// Too many attempts failed from here, or with this login.
    PutOff,
    /// Too many attempts are being checked.
    Busy,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Suspect {
    Client(IpAddr),
    /// By its hash: a client may send logins of any length.
    Login(u64),
}

/// Checks passwords.
pub(crate) struct Passwords {
    domains: Domains,
    turns: Semaphore,
    hashes: RandomState,
    failures: Mutex<HashMap<Suspect, (u32, Instant)>>,
    max_failures: u32,
    window: Duration,
}

impl Passwords {
    pub(crate) fn new(domains: Domains, max_failures: u32, window: Duration) -> Self {
        let at_a_time = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            domains,
            turns: Semaphore::new(at_a_time),
            hashes: RandomState::new(),
            failures: Mutex::default(),
            max_failures,
            window,
        }
    }

    pub(crate) async fn check(&self, client: IpAddr, credentials: Credentials) -> Outcome {
        let login = self.hashes.hash_one(credentials.login.to_lowercase());
        let suspects = [Suspect::Client(network_of(client)), Suspect::Login(login)];
        if self.put_off(&suspects) {
            return Outcome::PutOff;
        }
        let index = self.domains.current();
        let user = index.user(&credentials.login).cloned();
        // Somebody who does not exist costs as much as a wrong password: the time tells nothing.
        let hash = user.as_ref().or_else(|| index.users().next()).map(|user| user.password_hash.clone());
        drop(index);
        let Some(hash) = hash else {
            self.count_failure(suspects);
            return Outcome::Refused;
        };
        let Ok(Ok(_turn)) = timeout(TURN, self.turns.acquire()).await else { return Outcome::Busy };
        // While it waited, attempts in other sessions may have failed.
        if self.put_off(&suspects) {
            return Outcome::PutOff;
        }
        let right = tokio::task::spawn_blocking(move || matches(&credentials, &hash)).await;
        match (user, right) {
            (Some(user), Ok(true)) => Outcome::Accepted(user),
            (_, Ok(_)) => {
                self.count_failure(suspects);
                Outcome::Refused
            }
            (_, Err(error)) => {
                tracing::error!(%error, "checking a password failed");
                Outcome::Busy
            }
        }
    }

    fn put_off(&self, suspects: &[Suspect; 2]) -> bool {
        let limits = [self.max_failures, self.max_failures.saturating_mul(LOGIN_FACTOR)];
        suspects.iter().zip(limits).any(|(suspect, limit)| self.failed(suspect) >= limit)
    }

    fn failed(&self, suspect: &Suspect) -> u32 {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures
            .get(suspect)
            .filter(|(_, since)| since.elapsed() < self.window)
            .map_or(0, |(count, _)| *count)
    }

    fn count_failure(&self, suspects: [Suspect; 2]) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= MAX_COUNTED {
            failures.retain(|_, (_, since)| since.elapsed() < self.window);
            if failures.len() >= MAX_COUNTED {
                forget_older_half(&mut failures);
            }
        }
        for suspect in suspects {
            let entry = failures.entry(suspect).or_insert_with(|| (0, Instant::now()));
            if entry.1.elapsed() >= self.window {
                *entry = (0, Instant::now());
            }
            entry.0 += 1;
        }
    }
}

/// Makes room. Whoever fails now stays put off; forgetting all would let everybody guess again.
fn forget_older_half(failures: &mut HashMap<Suspect, (u32, Instant)>) {
    let mut times: Vec<Instant> = failures.values().map(|(_, since)| *since).collect();
    let middle = times.len() / 2;
    let (_, &mut median, _) = times.select_nth_unstable(middle);
    failures.retain(|_, (_, since)| *since > median);
}

fn matches(credentials: &Credentials, hash: &SecretString) -> bool {
    Argon2::default().verify_password(credentials.password.as_bytes(), hash.expose_secret()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_failures_are_kept() {
        let (mut failures, start) = (HashMap::new(), Instant::now());
        for number in 0..100 {
            failures.insert(Suspect::Login(number), (1, start + Duration::from_millis(number)));
        }
        forget_older_half(&mut failures);
        assert_eq!(failures.len(), 49);
        assert!((51..100).all(|number| failures.contains_key(&Suspect::Login(number))));
    }
}
