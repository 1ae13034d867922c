use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

const RSA: Algorithm = Algorithm::RsaSha256;

fn dkim() -> Dkim {
    let mut dkim = Dkim { algorithms: vec![RSA], ..Dkim::default() };
    dkim.rotation.interval = Duration::from_secs(1000);
    dkim.rotation.min_propagation = Duration::from_secs(50);
    dkim.rotation.retire_after = Duration::from_secs(300);
    dkim.rotation.revoke_for = Duration::from_secs(200);
    dkim
}

const TTL: i64 = 60;

/// Keys in slots of another zone.
fn delegated(slots: u8) -> Dkim {
    let delegation = Delegation {
        cname: true,
        target_zone: "dkim.test".to_owned(),
        slots,
        provider_ref: None,
        servers: Vec::new(),
    };
    Dkim { delegation: Some(delegation), ..dkim() }
}

/// What does as the plan says, without a cluster.
struct World {
    now: i64,
    /// The time that has really passed: it never goes back.
    passed: i64,
    /// When, of the time that has passed, each selector ceased to sign.
    quiet_since: HashMap<String, i64>,
    /// How many keys were made.
    made: usize,
    dkim: Dkim,
    keys: Vec<Key>,
    used: HashSet<String>,
    /// When each key ceased to sign.
    silent_since: HashMap<String, i64>,
    orders: Orders,
    fails_to_generate: bool,
}

impl World {
    fn new() -> Self {
        Self {
            now: 1_800_000_000,
            passed: 0,
            quiet_since: HashMap::new(),
            made: 0,
            dkim: dkim(),
            keys: Vec::new(),
            used: HashSet::new(),
            silent_since: HashMap::new(),
            orders: Orders::default(),
            fails_to_generate: false,
        }
    }

    fn time(&self) -> Timestamp {
        Timestamp::from_second(self.now).unwrap()
    }

    fn active(&self) -> Vec<&Key> {
        self.keys.iter().filter(|key| key.stage == Stage::Active).collect()
    }

    /// The clock goes on, or is set back.
    fn pass(&mut self, seconds: i64) {
        self.now += seconds;
        self.passed += seconds.max(0);
    }

    fn step(&mut self, seen: impl Fn(&str) -> Seen) {
        let settled = self.dkim.rotation.min_propagation.max(Duration::from_secs(TTL.unsigned_abs()));
        let settled =
            if self.dkim.delegated().is_some() { settled } else { self.dkim.rotation.min_propagation };
        let pace = Pace { settled, ttl: Duration::from_secs(TTL.unsigned_abs()), automatic: true };
        let now = self.time();
        let actions = plan(now, &self.dkim, pace, &self.keys, &seen, &self.orders);
        let signed_before: HashSet<String> = self.active().iter().map(|key| key.selector.clone()).collect();
        for action in actions {
            self.apply(action, &seen);
        }
        let signs_now = !self.active().is_empty();
        // I1, I7: once a key signs, one always does, but for an emergency.
        assert!(signed_before.is_empty() || signs_now || self.orders.force, "nothing signs any more");
    }

    fn apply(&mut self, action: Action, seen: &impl Fn(&str) -> Seen) {
        let now = self.time();
        match action {
            Action::Generate(_) if self.fails_to_generate => {}
            Action::Generate(algorithm) => {
                let (selector, target) = self.place(algorithm);
                self.made += 1;
                let (since, created) = (now, now);
                self.keys.push(Key {
                    selector,
                    algorithm,
                    stage: Stage::Generated,
                    since,
                    waited: None,
                    created,
                    missed: 0,
                    turn: 0,
                    target,
                    order: self.orders.rotate.clone(),
                });
            }
            Action::Move(selector, stage) => {
                let newest = self.keys.iter().map(|key| key.turn).max().unwrap_or(0);
                let key = self.keys.iter_mut().find(|key| key.selector == selector).unwrap();
                let before = key.stage;
                if stage == Stage::Active {
                    key.turn = newest + 1;
                }
                let back = matches!(
                    (before, stage),
                    (Stage::Propagating | Stage::Active, Stage::Publishing)
                        | (Stage::Retiring, Stage::Active)
                );
                let next = stage as u8 == before as u8 + 1;
                let emergency = stage == Stage::Revoked && before == Stage::Active;
                assert!(back || next || emergency, "I6: from {before:?} to {stage:?}");
                if stage == Stage::Active {
                    assert_eq!(seen(&selector), Seen::Yes, "it signs with a record that is not seen");
                }
                if before == Stage::Active {
                    self.silent_since.insert(selector.clone(), self.now);
                    self.quiet_since.insert(selector.clone(), self.passed);
                }
                if stage == Stage::Revoked && self.orders.revoke.as_deref() != Some(&selector) {
                    let silent = self.now - self.silent_since[&selector];
                    assert!(silent >= 300, "I4: the key goes after {silent} s");
                }
                (key.stage, key.since, key.missed) = (stage, now, 0);
            }
            Action::Missed(selector, missed) => {
                self.keys.iter_mut().find(|key| key.selector == selector).unwrap().missed = missed;
            }
            Action::Forget(selector) => self.keys.retain(|key| key.selector != selector),
        }
    }

    fn place(&mut self, algorithm: Algorithm) -> (String, Option<String>) {
        if let Some(delegation) = self.dkim.delegated() {
            let slot = slot(delegation, &self.keys, &self.orders, |_| true).unwrap();
            assert!(self.keys.iter().all(|key| key.selector != slot), "I3: {slot} has a key");
            if let Some(since) = self.quiet_since.get(&slot) {
                let quiet = self.passed - since;
                assert!(quiet >= 300 + TTL, "I3: {slot} is used again after {quiet} s");
            }
            let target = format!("{slot}.{}", delegation.base("example.test"));
            self.used.insert(slot.clone());
            return (slot, Some(target));
        }
        let taken: Vec<&str> = self.keys.iter().map(|key| key.selector.as_str()).collect();
        let lot = u16::try_from(self.used.len()).unwrap();
        let selector = selector("{alg}{yyyymmdd}", algorithm, self.time(), lot, &taken);
        assert!(self.used.insert(selector.clone()), "I3: {selector} is used twice");
        (selector, None)
    }
}

#[test]
fn a_key_goes_through_its_life() {
    let mut world = World::new();
    let mut first = None;
    for _ in 0..400 {
        world.step(|_| Seen::Yes);
        first = first.or_else(|| world.active().first().map(|key| key.selector.clone()));
        world.pass(10);
    }
    let first = first.unwrap();
    assert!(world.used.len() >= 3, "{:?}", world.used);
    assert!(world.keys.iter().all(|key| key.selector != first), "the first is forgotten");
}

#[test]
fn slots_are_used_again_once_they_are_quiet() {
    for (slots, algorithms) in [(2, vec![RSA]), (3, vec![RSA, Algorithm::Ed25519Sha256])] {
        let mut world = World::new();
        world.dkim = Dkim { algorithms: algorithms.clone(), ..delegated(slots) };
        for _ in 0..1000 {
            world.step(|_| Seen::Yes);
            world.pass(10);
        }
        assert!(world.made >= 7 * algorithms.len(), "{slots} slots: only {} keys were made", world.made);
        let all: HashSet<String> = (1..=slots).map(|slot| format!("s{slot}")).collect();
        assert_eq!(world.used, all);
        assert_eq!(world.active().len(), algorithms.len());
    }
}

#[test]
fn without_a_quiet_slot_the_old_key_goes_on() {
    let mut world = World::new();
    world.dkim = delegated(2);
    world.dkim.rotation.revoke_for = Duration::from_secs(1_000_000);
    world.dkim.rotation.retire_after = Duration::from_secs(3000);
    for _ in 0..200 {
        world.step(|_| Seen::Yes);
        world.pass(10);
    }
    // The second signs since long, the slot of the first is kept for mail under way.
    assert_eq!((world.made, world.active().len()), (2, 1));
}

#[test]
fn keys_move_to_where_the_spec_wants_them() {
    let mut world = World::new();
    while world.active().is_empty() {
        world.step(|_| Seen::Yes);
        world.pass(10);
    }
    world.dkim = delegated(3);
    for _ in 0..20 {
        world.step(|_| Seen::Yes);
        world.pass(10);
    }
    assert!(world.active()[0].target.is_some(), "{:?}", world.keys);
    world.dkim = dkim();
    for _ in 0..20 {
        world.step(|_| Seen::Yes);
        world.pass(10);
    }
    assert!(world.active()[0].target.is_none(), "{:?}", world.keys);
}

#[test]
fn a_slot_that_is_to_be_revoked_takes_no_new_key() {
    let mut world = World::new();
    world.dkim = delegated(3);
    while world.active().is_empty() {
        world.step(|_| Seen::Yes);
        world.pass(10);
    }
    let bad = world.active()[0].selector.clone();
    world.orders.revoke = Some(bad.clone());
    for _ in 0..500 {
        world.step(|_| Seen::Yes);
        world.pass(10);
    }
    assert!(world.active().iter().all(|key| key.selector != bad));
    assert!(world.keys.iter().all(|key| key.selector != bad), "it is forgotten, and not used again");
}

#[test]
fn nothing_signs_before_it_is_seen_for_long_enough() {
    let mut world = World::new();
    for at in 0..20 {
        world.step(|_| if at == 10 { Seen::No } else { Seen::Yes });
        world.pass(7);
        // Seen from the third step to the tenth: 49 seconds. Then it begins anew.
        assert!(world.active().is_empty() || at >= 19, "step {at}: {:?}", world.keys);
    }
}

#[test]
fn silence_of_dns_changes_nothing() {
    let mut world = World::new();
    for _ in 0..10 {
        world.step(|_| Seen::Yes);
        world.pass(20);
    }
    let before = world.keys.clone();
    for _ in 0..10 {
        world.step(|_| Seen::Unknown);
        world.pass(20);
    }
    assert_eq!(world.keys, before);
}

#[test]
fn an_active_key_whose_record_is_gone_gives_way_to_the_one_before() {
    let mut world = World::new();
    while world.used.len() < 2 || world.keys.iter().all(|key| key.stage != Stage::Retiring) {
        world.step(|_| Seen::Yes);
        world.pass(10);
    }
    let lost = world.active()[0].selector.clone();
    for _ in 0..i64::from(MISSED) {
        assert_eq!(world.active()[0].selector, lost);
        world.step(|selector| if selector == lost { Seen::No } else { Seen::Yes });
        world.pass(1);
    }
    assert_ne!(world.active()[0].selector, lost);
}

#[test]
fn a_revoked_key_ends_once_another_signs_or_at_once_by_force() {
    let mut world = World::new();
    while world.active().is_empty() {
        world.step(|_| Seen::Yes);
        world.pass(10);
    }
    let bad = world.active()[0].selector.clone();
    let stage = |world: &World| world.keys.iter().find(|key| key.selector == bad).map(|key| key.stage);
    world.orders.revoke = Some(bad.clone());
    world.step(|_| Seen::Yes);
    assert_eq!(stage(&world), Some(Stage::Active), "another does not sign yet");
    for _ in 0..10 {
        world.pass(10);
        world.step(|_| Seen::Yes);
    }
    assert_eq!(stage(&world), Some(Stage::Revoked));
    assert_eq!(world.active().len(), 1);

    let worse = world.active()[0].selector.clone();
    world.orders = Orders { revoke: Some(worse.clone()), force: true, rotate: None };
    world.step(|_| Seen::Yes);
    assert!(world.active().iter().all(|key| key.selector != worse));
}

#[test]
fn a_clock_that_is_put_forward_shortens_nothing() {
    let mut world = World::new();
    while world.keys.iter().all(|key| key.stage != Stage::Propagating) {
        world.step(|_| Seen::Yes);
        world.now += 1;
    }
    world.keys[0].waited = Some(Duration::from_secs(1));
    world.now += 5000;
    world.step(|_| Seen::Yes);
    assert!(world.active().is_empty());
    world.keys[0].waited = Some(Duration::from_secs(50));
    world.step(|_| Seen::Yes);
    assert_eq!(world.active().len(), 1);
}

#[test]
fn a_rotation_that_is_asked_for_is_done_once() {
    let mut world = World::new();
    world.dkim.rotation.interval = Duration::from_secs(1_000_000);
    for wish in ["one", "two", "two"] {
        world.orders.rotate = Some(wish.to_owned());
        for _ in 0..100 {
            world.step(|_| Seen::Yes);
            world.now += 10;
        }
    }
    // The first is made while the first wish stands already.
    assert_eq!(world.used.len(), 2);
}

#[test]
fn without_a_new_key_the_old_one_goes_on() {
    let mut world = World::new();
    while world.active().is_empty() {
        world.step(|_| Seen::Yes);
        world.pass(10);
    }
    world.fails_to_generate = true;
    for _ in 0..300 {
        world.step(|_| Seen::Yes);
        world.pass(10);
    }
    assert_eq!(world.active().len(), 1);
}

#[test]
fn a_clock_that_is_set_back_retires_nothing_new() {
    let mut world = World::new();
    while world.active().is_empty() {
        world.step(|_| Seen::Yes);
        world.pass(10);
    }
    let old = world.active()[0].selector.clone();
    world.orders.rotate = Some("once".to_owned());
    world.step(|_| Seen::Yes);
    world.pass(-5000);
    for _ in 0..600 {
        world.step(|_| Seen::Yes);
        world.pass(10);
    }
    assert!(world.active().iter().all(|key| key.selector != old), "the old key came back");
    // Six rotations by time, and the one that was asked for.
    assert!(world.used.len() <= 9, "keys are made over and over: {:?}", world.used);
}

#[test]
fn an_algorithm_that_is_dropped_ceases_to_sign() {
    let mut world = World::new();
    world.dkim.algorithms = vec![RSA, Algorithm::Ed25519Sha256];
    while world.active().len() < 2 {
        world.step(|_| Seen::Yes);
        world.pass(10);
    }
    world.dkim.algorithms = vec![RSA];
    for _ in 0..40 {
        world.step(|_| Seen::Yes);
        world.pass(10);
    }
    assert!(world.active().iter().all(|key| key.algorithm == RSA));
    assert!(world.keys.iter().all(|key| key.algorithm == RSA || key.stage == Stage::Revoked));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn the_invariants_hold(
        steps in proptest::collection::vec((0..3_u8, -400..400_i64, 0..40_u8), 1..200),
        slots in 0..5_u8,
    ) {
        let mut world = World::new();
        if slots > 1 {
            world.dkim = delegated(slots);
        }
        for (look, passes, order) in steps {
            let seen = [Seen::Yes, Seen::No, Seen::Unknown][usize::from(look)];
            // The clock goes on, and now and then it is set back.
            world.pass(if passes < -300 { passes } else { passes.abs() });
            world.orders = match order {
                0 => Orders { rotate: Some(world.now.to_string()), ..Orders::default() },
                1 => Orders {
                    revoke: world.active().first().map(|key| key.selector.clone()),
                    ..Orders::default()
                },
                _ => Orders::default(),
            };
            world.fails_to_generate = order == 3;
            world.step(|selector| match (seen, selector.bytes().last().unwrap_or(0) % 2) {
                (Seen::No, 1) => Seen::Yes,
                _ => seen,
            });
        }
    }
}
