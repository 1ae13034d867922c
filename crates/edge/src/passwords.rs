//! Who a user is: passwords against argon2id hashes, and how often one may guess.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use argon2::{Argon2, PasswordVerifier};
use domains::{Domains, SubmissionUser};
use secrecy::{ExposeSecret, SecretString};
use smtp::sasl::Credentials;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

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
    Login(String),
}

/// Checks passwords.
pub(crate) struct Passwords {
    domains: Domains,
    turns: Semaphore,
    failures: Mutex<HashMap<Suspect, (u32, Instant)>>,
    max_failures: u32,
    window: Duration,
}

impl Passwords {
    pub(crate) fn new(domains: Domains, max_failures: u32, window: Duration) -> Self {
        let at_a_time = std::thread::available_parallelism().map_or(1, usize::from);
        Self { domains, turns: Semaphore::new(at_a_time), failures: Mutex::default(), max_failures, window }
    }

    pub(crate) async fn check(&self, client: IpAddr, credentials: Credentials) -> Outcome {
        let suspects =
            [Suspect::Client(network_of(client)), Suspect::Login(credentials.login.to_lowercase())];
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
                failures.clear();
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

fn matches(credentials: &Credentials, hash: &SecretString) -> bool {
    Argon2::default().verify_password(credentials.password.as_bytes(), hash.expose_secret()).is_ok()
}

/// A client with IPv6 has a /64 to itself.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}
