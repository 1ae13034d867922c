use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const TTL: u32 = 4;
const SETTLE: u32 = 2;
const MAX_AGE: u32 = 30;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn policy(mode: Mode, hosts: &[&str]) -> Policy {
    Policy::new(mode, hosts.iter().copied(), MAX_AGE)
}

fn wanted<'a>(policy: Option<&'a Policy>, hosts: &'a [String]) -> Wanted<'a> {
    Wanted { policy, hosts, settle: Duration::from_secs(SETTLE.into()), ttl: TTL }
}

fn owned(hosts: &[&str]) -> Vec<String> {
    hosts.iter().map(|&host| host.to_owned()).collect()
}

/// All is as the memory says, and MX names these hosts.
fn sight(second: i64, memory: Option<&Memory>, hosts: &[&str]) -> Sight {
    let served = memory.and_then(|memory| memory.served.as_ref()).map(|served| &served.policy);
    let told = memory.is_some_and(|memory| memory.announced.is_some() || memory.withdrawn);
    Sight {
        now: at(second),
        texts: served.map(|served| vec![served.to_string()]).ok_or("nobody answers".to_owned()),
        record: if told || memory.is_none() { Seen::Yes } else { Seen::No },
        exchangers: Exchangers {
            named: hosts.iter().map(|&host| (host.to_owned(), TTL)).collect(),
            complete: true,
        },
        standing: BTreeMap::new(),
    }
}

/// Plans once a second while all goes well, up to and with `end`.
fn live(
    mut memory: Option<Memory>,
    wanted: &Wanted<'_>,
    hosts: &[&str],
    from: i64,
    end: i64,
) -> Option<Plan> {
    let mut last = None;
    for second in from..=end {
        last = plan(memory.as_ref(), wanted, &sight(second, memory.as_ref(), hosts));
        memory = last.as_ref().and_then(|plan| plan.memory.clone());
    }
    last
}

#[test]
fn an_id_is_published_after_its_policy_was_seen_for_a_while() {
    let (declared, hosts) = (policy(Mode::Testing, &["a"]), owned(&["a"]));
    let wanted = wanted(Some(&declared), &hosts);
    let first = plan(None, &wanted, &sight(0, None, &["a"])).unwrap();
    assert!(matches!(first.verdict, Verdict::Unreachable(_)) && first.mx_free);
    let seen = live(first.memory.clone(), &wanted, &["a"], 1, 2).unwrap();
    assert!(matches!(seen.verdict, Verdict::Waiting(_)) && seen.memory.unwrap().announced.is_none());
    let mut other = sight(3, first.memory.as_ref(), &["a"]);
    other.texts.as_mut().unwrap().push("another replica says this".to_owned());
    let lagging = plan(first.memory.as_ref(), &wanted, &other).unwrap();
    assert!(matches!(lagging.verdict, Verdict::Mismatch(_)) && lagging.memory.unwrap().seen_since.is_none());
    let announced = live(first.memory, &wanted, &["a"], 1, 3).unwrap();
    assert_eq!(announced.memory.as_ref().unwrap().announced.as_ref().unwrap().policy, declared);
    let settled = live(announced.memory, &wanted, &["a"], 4, 9).unwrap();
    assert!(matches!(settled.verdict, Verdict::Served(_)) && settled.again.is_none(), "{settled:?}");
}

#[test]
fn a_policy_that_comes_back_gets_another_id() {
    let (one, other) = (policy(Mode::Testing, &["a"]), policy(Mode::Enforce, &["a"]));
    let hosts = owned(&["a"]);
    let first = live(None, &wanted(Some(&one), &hosts), &["a"], 0, 20).unwrap().memory;
    let id = |memory: &Option<Memory>| memory.as_ref().unwrap().served.as_ref().unwrap().id.clone();
    // It is served for a moment, and its id never published.
    let between = live(first.clone(), &wanted(Some(&other), &hosts), &["a"], 21, 21).unwrap().memory;
    let back = live(between.clone(), &wanted(Some(&one), &hosts), &["a"], 22, 22).unwrap().memory;
    let ids = [id(&first), id(&between), id(&back)];
    assert!(ids[0] != ids[1] && ids[0] != ids[2] && ids[1] != ids[2], "{ids:?}");
    assert!(ids.iter().all(|id| id.len() <= 32) && ids[0][..16] == ids[2][..16], "{ids:?}");
    assert!(ids[0].starts_with(&one.id()[..16]));
}

#[test]
fn nothing_is_enforced_while_something_speaks_against_it() {
    let (testing, declared) = (policy(Mode::Testing, &["a", "b"]), policy(Mode::Enforce, &["a", "b"]));
    let hosts = owned(&["a", "b"]);
    let wanted_before = wanted(Some(&testing), &hosts);
    let wanted = wanted(Some(&declared), &hosts);
    let held = |plan: Plan| {
        let memory = plan.memory.unwrap();
        (memory.served.unwrap().policy.mode == Mode::Testing).then_some(memory.named)
    };
    // Of what MX named before it was looked at nothing is known.
    assert!(held(live(None, &wanted, &["a"], 0, 3).unwrap()).is_some());
    assert!(held(live(None, &wanted, &["a"], 0, 4).unwrap()).is_none());
    let watched = live(None, &wanted_before, &["a"], 0, 10).unwrap().memory;
    let see = |hosts: &[&str]| sight(11, watched.as_ref(), hosts);
    let stray = plan(watched.as_ref(), &wanted, &see(&["a", "c"])).unwrap();
    let memory = stray.memory.clone();
    assert!(held(stray).unwrap().contains_key("c"));
    // Resolvers may remember it for as long as its record said.
    assert!(held(live(memory.clone(), &wanted, &["a"], 12, 15).unwrap()).is_some());
    assert!(held(live(memory, &wanted, &["a"], 12, 16).unwrap()).is_none());

    let mut silent = see(&["a"]);
    silent.exchangers.complete = false;
    assert!(held(plan(watched.as_ref(), &wanted, &silent).unwrap()).is_some());
    assert!(held(plan(watched.as_ref(), &wanted, &see(&[])).unwrap()).is_some());
    let mut bad = see(&["a"]);
    bad.standing.insert("b".to_owned(), Standing::Bad("expired".to_owned()));
    assert!(held(plan(watched.as_ref(), &wanted, &bad).unwrap()).is_some());
    bad.standing.insert("b".to_owned(), Standing::Unknown("no way out".to_owned()));
    assert!(held(plan(watched.as_ref(), &wanted, &bad).unwrap()).is_none());

    // What is enforced already stays so, and is told.
    let enforced = live(None, &wanted, &["a", "b"], 0, 20).unwrap();
    let mut later = sight(21, enforced.memory.as_ref(), &["a", "b", "c"]);
    let named = plan(enforced.memory.as_ref(), &wanted, &later).unwrap();
    assert!(matches!(named.verdict, Verdict::NotCovered(_)) && held(named).is_none());
    later.exchangers.named.remove("c");
    later.standing.insert("a".to_owned(), Standing::Bad("expired".to_owned()));
    let expired = plan(enforced.memory.as_ref(), &wanted, &later).unwrap();
    assert!(matches!(expired.verdict, Verdict::Certificate(_)) && held(expired).is_none());
}

#[test]
fn a_policy_goes_when_senders_have_forgotten_it() {
    let (declared, hosts) = (policy(Mode::Enforce, &["a"]), owned(&["a"]));
    let enforced = live(None, &wanted(Some(&declared), &hosts), &["a"], 0, 20).unwrap().memory;
    let gone = wanted(None, &hosts);
    // It was served until second 21 at least, and until 24 at most: then the other had been seen for a while.
    let farewell = live(enforced.clone(), &gone, &["a"], 21, 53).unwrap();
    let memory = farewell.memory.clone().unwrap();
    assert!(matches!(farewell.verdict, Verdict::Withdrawing(_)) && !memory.withdrawn, "{memory:?}");
    assert_eq!(memory.announced.unwrap().policy, Policy::new(Mode::None, [], MAX_AGE));
    assert!(live(enforced.clone(), &gone, &["a"], 21, 54).unwrap().memory.unwrap().withdrawn);
    assert!(live(enforced.clone(), &gone, &["a"], 21, 58).unwrap().memory.is_some());
    assert!(live(enforced.clone(), &gone, &["a"], 21, 59).unwrap().memory.is_none());
    // Wanted again at the last moment, it begins anew.
    let last = live(enforced, &gone, &["a"], 21, 56).unwrap();
    let again = live(last.memory, &wanted(Some(&declared), &hosts), &["a"], 57, 75).unwrap();
    assert!(matches!(again.verdict, Verdict::Served(_)), "{again:?}");
}

/// A world with two name servers, one that lags, a policy host that lags, and senders who remember all they saw.
struct World {
    now: i64,
    memory: Option<Memory>,
    declared: Option<Policy>,
    hosts: Vec<String>,
    serving: Option<Policy>,
    mx: [Vec<String>; 2],
    id: [Option<String>; 2],
    /// What resolvers may still have: when, MX hosts, id.
    views: VecDeque<(i64, Vec<String>, Option<String>)>,
    /// Policies that senders hold: until when, the policy, the id under which it was fetched.
    held: Vec<(i64, Policy, Option<String>)>,
}

impl World {
    fn reconcile(&mut self, publishes: bool) {
        let mut named = BTreeMap::new();
        self.mx.iter().flatten().for_each(|host| _ = named.insert(host.clone(), TTL));
        let wants = self.memory.as_ref().and_then(|memory| memory.announced.as_ref());
        let wants = wants.map(|announced| announced.id.clone());
        let told = self.memory.as_ref().is_some_and(|memory| memory.announced.is_some() || memory.withdrawn);
        let shown = (told || self.memory.is_none()) && self.id.iter().all(|id| *id == wants);
        let sight = Sight {
            now: at(self.now),
            texts: self.serving.as_ref().map(|policy| vec![policy.to_string()]).ok_or(String::new()),
            record: if shown { Seen::Yes } else { Seen::No },
            exchangers: Exchangers { named, complete: true },
            standing: BTreeMap::new(),
        };
        let plan = plan(self.memory.as_ref(), &wanted(self.declared.as_ref(), &self.hosts), &sight);
        self.memory = plan.as_ref().and_then(|plan| plan.memory.clone());
        if !publishes {
            return;
        }
        if plan.as_ref().is_none_or(|plan| plan.mx_free) {
            self.mx[0].clone_from(&self.hosts);
        }
        if let Some(memory) = &self.memory
            && (memory.announced.is_some() || memory.withdrawn)
        {
            self.id[0] = memory.announced.as_ref().map(|announced| announced.id.clone());
        }
    }

    fn pass(&mut self) {
        self.now += 1;
        for server in 0..2 {
            self.views.push_back((self.now, self.mx[server].clone(), self.id[server].clone()));
        }
        while self.views.front().is_some_and(|(then, ..)| *then + i64::from(TTL) <= self.now) {
            self.views.pop_front();
        }
        if let Some(serving) = &self.serving {
            let until = self.now + i64::from(serving.max_age);
            for (_, _, id) in &self.views {
                self.held.retain(|(_, policy, of)| !(policy == serving && of == id));
                self.held.push((until, serving.clone(), id.clone()));
            }
        }
        self.held.retain(|(until, ..)| *until >= self.now);
        self.check();
    }

    /// Whatever a sender holds and whatever its resolver tells it, it delivers, or finds a policy under which it
    /// does.
    fn check(&self) {
        let forbids = |policy: &Policy, host: &str| policy.mode == Mode::Enforce && !policy.covers(host);
        for host in self.views.iter().flat_map(|(_, hosts, _)| hosts) {
            if let Some(serving) = &self.serving {
                assert!(!forbids(serving, host), "{host} is forbidden by what is served: {serving}");
            }
            for (_, held, fetched_under) in self.held.iter().filter(|(_, held, _)| forbids(held, host)) {
                for (_, _, id) in &self.views {
                    assert!(
                        id.is_some() && id != fetched_under,
                        "a sender cannot learn that {host} is allowed: it holds {held}"
                    );
                }
            }
        }
        if self.memory.is_none() {
            assert!(self.held.iter().all(|(_, held, _)| held.mode != Mode::Enforce), "it went too early");
            assert!(self.views.iter().all(|(_, _, id)| id.is_none()), "its id is still to be seen");
        }
    }
}

#[derive(Debug, Clone)]
enum Act {
    Declare(Option<u8>, u8),
    Reconcile,
    Unpublished,
    Serve,
    Follow,
    Pass(u8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => (proptest::option::of(0..3_u8), 1..8_u8).prop_map(|(mode, hosts)| Act::Declare(mode, hosts)),
        6 => Just(Act::Reconcile),
        1 => Just(Act::Unpublished),
        4 => Just(Act::Serve),
        4 => Just(Act::Follow),
        6 => (1..6_u8).prop_map(Act::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn no_sender_is_ever_kept_from_delivering(acts in prop::collection::vec(act(), 1..300)) {
        let mut world = World {
            now: 0, memory: None, declared: None, hosts: owned(&["a"]), serving: None,
            mx: [owned(&["a"]), owned(&["a"])], id: [None, None], views: VecDeque::new(), held: Vec::new(),
        };
        for act in acts {
            match act {
                Act::Declare(mode, bits) => {
                    let all = ["a", "b", "c"];
                    let hosts = all.iter().enumerate().filter(|(at, _)| bits & (1 << at) != 0);
                    world.hosts = hosts.map(|(_, &host)| host.to_owned()).collect();
                    let hosts: Vec<&str> = world.hosts.iter().map(String::as_str).collect();
                    world.declared = mode.map(|mode| {
                        policy([Mode::None, Mode::Testing, Mode::Enforce][usize::from(mode)], &hosts)
                    });
                }
                Act::Reconcile => world.reconcile(true),
                Act::Unpublished => world.reconcile(false),
                Act::Serve => world.serving = world.memory.as_ref().and_then(|memory| memory.served.clone()).map(|served| served.policy),
                Act::Follow => {
                    world.mx[1] = world.mx[0].clone();
                    world.id[1] = world.id[0].clone();
                }
                Act::Pass(seconds) => (0..seconds).for_each(|_| world.pass()),
            }
        }
    }
}
