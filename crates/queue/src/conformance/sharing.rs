//! How the queue is shared, and what operators and readers are told.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use message::QueueId;
use tokio::time::{Instant, sleep};

use super::{
    LONG, PATIENCE, SHORT, Subject, accept, done, hold, is_stale, lease, lease_one, message, only_entry,
    operate, request, retry,
};
use crate::{
    Allowance, EntryId, EntryState, EventKind, LeaseRequest, ListFilter, NextHop, Policy, Pool, Scope,
    Target, Tenant, Verb,
};

pub(super) async fn run<F, Fut>(make: &F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Subject>,
{
    checks!(make:
        tenants_share_by_weight,
        a_tenant_with_a_deep_queue_does_not_hold_up_others,
        a_rate_bounds_what_is_leased,
        what_is_suspended_stays,
        source_pools_bound_what_leaves_by_them,
        source_pools_are_passed_over_and_suspended,
        a_verb_may_be_about_one_entry,
        verbs_are_written_down,
        listings_are_narrowed,
        workers_learn_their_shares,
        readers_are_told_what_happens,
        an_audit_finds_nothing_odd,
    );
}

async fn accept_for(queue: &Subject, tenant: &str, hops: &[&str]) -> QueueId {
    let mut message = message(hops);
    message.entries.iter_mut().for_each(|entry| entry.tenant = Tenant(tenant.to_owned()));
    let id = message.record.id;
    assert!(queue.accept(message, None).await.expect("accept").fresh);
    id
}

fn tenants(given: &[(&str, Allowance)]) -> Policy {
    let tenants = given.iter().map(|(name, one)| (Tenant((*name).to_owned()), *one)).collect();
    Policy { tenants, ..Policy::default() }
}

/// Leases until so many have come, counted by tenant.
async fn leased_by_tenant(queue: &Subject, batch: usize, total: usize) -> HashMap<String, usize> {
    let (mut counts, mut left) = (HashMap::new(), total);
    let deadline = Instant::now() + PATIENCE;
    while left > 0 {
        for leased in lease(queue, batch.min(left), LONG).await {
            *counts.entry(leased.entry.tenant.0).or_default() += 1;
            left -= 1;
        }
        assert!(Instant::now() < deadline, "{left} did not come");
    }
    counts
}

async fn tenants_share_by_weight(queue: Subject) {
    let heavy = Allowance { weight: 3, per_minute: None };
    queue.set_policy(&tenants(&[("heavy", heavy)])).await.expect("policy");
    for _ in 0..160 {
        accept_for(&queue, "heavy", &["mx:a"]).await;
        accept_for(&queue, "light", &["mx:a"]).await;
    }
    let counts = leased_by_tenant(&queue, 80, 80).await;
    let light = counts.get("light").copied().unwrap_or(0);
    assert!((12..=30).contains(&light), "of 80, weight 1 of 4 had {light}");
}

async fn a_tenant_with_a_deep_queue_does_not_hold_up_others(queue: Subject) {
    for at in 0..300 {
        accept_for(&queue, "deep", &[&format!("mx:{}", at % 60)]).await;
    }
    let late = accept_for(&queue, "late", &["mx:1"]).await;
    let mut first = Vec::new();
    for _ in 0..6 {
        first.extend(lease(&queue, 8, LONG).await.into_iter().map(|leased| leased.message.id));
    }
    assert!(first.contains(&late), "it waits behind all that is older");
}

async fn a_rate_bounds_what_is_leased(queue: Subject) {
    let slow = Allowance { weight: 1, per_minute: Some(60) };
    let mut policy = tenants(&[("slow", slow)]);
    policy.next_hops.insert(NextHop("mx:slow".to_owned()), slow);
    queue.set_policy(&policy).await.expect("policy");
    for _ in 0..40 {
        accept_for(&queue, "slow", &["mx:a"]).await;
        accept_for(&queue, "quick", &["mx:a"]).await;
        accept_for(&queue, "quick", &["mx:slow"]).await;
    }
    let mut counts: HashMap<(String, String), usize> = HashMap::new();
    for _ in 0..10 {
        for leased in lease(&queue, 100, LONG).await {
            *counts.entry((leased.entry.tenant.0, leased.entry.next_hop.0)).or_default() += 1;
        }
    }
    let count = |tenant: &str, hop: &str| counts.get(&(tenant.to_owned(), hop.to_owned())).copied();
    assert_eq!(count("quick", "mx:a"), Some(40), "a limit for one stops another: {counts:?}");
    // One a second, and five seconds' worth at once; rounded up in each shard.
    for limited in [count("slow", "mx:a"), count("quick", "mx:slow")] {
        let limited = limited.unwrap_or(0);
        assert!((1..=12).contains(&limited), "{limited} in no time: {counts:?}");
    }
    let born = accept_leased(&queue, "slow").await;
    assert_eq!(born, 0, "the rate does not hold for what is accepted leased");
    let deadline = Instant::now() + PATIENCE;
    while lease(&queue, 1, LONG).await.is_empty() {
        assert!(Instant::now() < deadline, "nothing more comes");
        sleep(Duration::from_millis(50)).await;
    }
    queue.set_policy(&Policy::default()).await.expect("policy");
    assert_eq!(accept_leased(&queue, "slow").await, 1, "the rate was not taken back");
}

/// How many of a message's entries are leased with its accept.
async fn accept_leased(queue: &Subject, tenant: &str) -> usize {
    let mut message = message(&["mx:a"]);
    message.entries[0].tenant = Tenant(tenant.to_owned());
    // Of several shards, each has tokens of its own: with this many tries all are out of them.
    let mut leased =
        queue.accept(message.clone(), Some(request(1, LONG))).await.expect("accept").leased.len();
    for _ in 0..20 {
        message.record.id = QueueId::generate();
        leased = queue.accept(message.clone(), Some(request(1, LONG))).await.expect("accept").leased.len();
    }
    leased
}

async fn what_is_suspended_stays(queue: Subject) {
    let (hop, tenant) = (Scope::NextHop("mx:a".to_owned()), Scope::Tenant("t".to_owned()));
    queue.suspend(&hop, "it asked us to", "alice").await.expect("suspend");
    queue.suspend(&tenant, "it spams", "bob").await.expect("suspend");
    accept_for(&queue, "", &["mx:a"]).await;
    accept_for(&queue, "t", &["mx:b"]).await;
    let free = accept_for(&queue, "", &["mx:b"]).await;
    let mut suspended = message(&["mx:a"]);
    suspended.record.id = QueueId::generate();
    let born = queue.accept(suspended, Some(request(1, LONG))).await.expect("accept");
    assert!(born.leased.is_empty(), "what is suspended was leased with its accept");
    let leased = lease(&queue, 10, LONG).await;
    assert_eq!(leased.iter().map(|leased| leased.message.id).collect::<Vec<_>>(), [free]);
    let told = queue.suspensions().await.expect("suspensions");
    let told: Vec<_> = told.iter().map(|one| (&one.scope, one.why.as_str(), one.by.as_str())).collect();
    assert_eq!(told, [(&hop, "it asked us to", "alice"), (&tenant, "it spams", "bob")]);
    assert!(queue.resume(&hop, "alice").await.expect("resume"));
    assert!(!queue.resume(&hop, "alice").await.expect("resume"), "resumed twice");
    assert!(queue.resume(&tenant, "bob").await.expect("resume"));
    assert_eq!(
        leased_by_tenant(&queue, 10, 3).await,
        HashMap::from([(String::new(), 2), ("t".to_owned(), 1)])
    );
}

/// `slow` leaves by the pool `bulk`, others by the default one, and `local:` does not leave.
fn pools(given: &[(&str, u32)]) -> Policy {
    let pool = |(name, rate): &(&str, u32)| {
        (Pool((*name).to_owned()), Allowance { weight: 1, per_minute: Some(*rate) })
    };
    Policy {
        pools: given.iter().map(pool).collect(),
        tenant_pools: [(Tenant("slow".to_owned()), Pool("bulk".to_owned()))].into(),
        leaving: ["mx".to_owned()].into(),
        ..Policy::default()
    }
}

/// What can be leased, counted by tenant and next hop.
async fn all_leased(queue: &Subject, request: &LeaseRequest) -> HashMap<(String, String), usize> {
    let mut counts = HashMap::new();
    for _ in 0..10 {
        for leased in queue.lease(request.clone()).await.expect("lease") {
            *counts.entry((leased.entry.tenant.0, leased.entry.next_hop.0)).or_default() += 1;
        }
    }
    counts
}

fn of(counts: &HashMap<(String, String), usize>, tenant: &str, hop: &str) -> usize {
    counts.get(&(tenant.to_owned(), hop.to_owned())).copied().unwrap_or(0)
}

async fn source_pools_bound_what_leaves_by_them(queue: Subject) {
    queue.set_policy(&pools(&[("bulk", 60), (Pool::DEFAULT, 60)])).await.expect("policy");
    for at in 0..40 {
        accept_for(&queue, "slow", &[&format!("mx:{}", at % 4)]).await;
        accept_for(&queue, "other", &["mx:a"]).await;
        accept_for(&queue, "", &["local:a"]).await;
        accept_for(&queue, "", &["mx:a"]).await;
    }
    let counts = all_leased(&queue, &request(100, LONG)).await;
    assert_eq!(of(&counts, "", "local:a"), 40, "what does not leave has no pool: {counts:?}");
    let by_bulk: usize = (0..4).map(|at| of(&counts, "slow", &format!("mx:{at}"))).sum();
    assert!((1..=12).contains(&by_bulk), "{by_bulk} in no time by one pool: {counts:?}");
    let by_default = of(&counts, "other", "mx:a") + of(&counts, "", "mx:a");
    assert!((1..=12).contains(&by_default), "{by_default} in no time by the default pool: {counts:?}");
    assert_eq!(accept_leased(&queue, "slow").await, 0, "the rate does not hold for what is accepted leased");

    let list = async |pool: &str| {
        let mut filter = ListFilter { pool: Some(pool.to_owned()), limit: 1000, ..ListFilter::default() };
        let mut found = 0;
        loop {
            let page = queue.list(filter.clone()).await.expect("list");
            found += page.entries.len();
            filter.cursor = page.next;
            if filter.cursor.is_none() {
                return found;
            }
        }
    };
    assert_eq!((list("bulk").await, list(Pool::DEFAULT).await, list("none").await), (61, 80, 0));

    // What waits follows a change of pools at once.
    let mut changed = pools(&[("bulk", 60)]);
    changed.tenant_pools = [(Tenant("slow".to_owned()), Pool("free".to_owned()))].into();
    queue.set_policy(&changed).await.expect("policy");
    let deadline = Instant::now() + PATIENCE;
    let mut came = 0;
    while came < 40 {
        let counts = all_leased(&queue, &request(100, LONG)).await;
        came +=
            counts.iter().filter(|((tenant, _), _)| tenant == "slow").map(|(_, count)| count).sum::<usize>();
        assert!(Instant::now() < deadline, "only {came} came by the other pool");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn source_pools_are_passed_over_and_suspended(queue: Subject) {
    queue.set_policy(&pools(&[])).await.expect("policy");
    for _ in 0..30 {
        accept_for(&queue, "slow", &["mx:a"]).await;
        accept_for(&queue, "", &["mx:b"]).await;
    }
    let local = accept_for(&queue, "", &["local:a"]).await;
    let except_pools = vec![Pool("bulk".to_owned()), Pool(Pool::DEFAULT.to_owned())];
    let mut seen = Vec::new();
    for _ in 0..5 {
        let request = LeaseRequest { except_pools: except_pools.clone(), ..request(10, LONG) };
        seen.extend(queue.lease(request).await.expect("lease").into_iter().map(|leased| leased.message.id));
    }
    assert_eq!(seen, [local], "what is passed over was leased, or held up others");

    let scope = Scope::Pool("bulk".to_owned());
    queue.suspend(&scope, "it is on a list", "alice").await.expect("suspend");
    assert_eq!(queue.suspensions().await.expect("suspensions")[0].scope, scope);
    assert_eq!(leased_by_tenant(&queue, 10, 30).await, HashMap::from([(String::new(), 30)]));
    assert!(lease(&queue, 10, LONG).await.is_empty(), "what is suspended was leased");
    assert_eq!(accept_leased(&queue, "slow").await, 0, "what is suspended was leased with its accept");
    assert!(queue.resume(&scope, "alice").await.expect("resume"));
    assert_eq!(leased_by_tenant(&queue, 10, 51).await, HashMap::from([("slow".to_owned(), 51)]));
    let shared = Scope::Pool("bulk".to_owned());
    assert_eq!(queue.sharers(&shared, "w1", LONG).await.expect("sharers"), (1, 0));
}

async fn a_verb_may_be_about_one_entry(queue: Subject) {
    let id = accept(&queue, &["mx:a", "mx:b"]).await;
    let entry = |number| Target::Entry(EntryId { message: id, number });
    assert_eq!(queue.operate(entry(1), &hold(), "test").await.expect("hold"), 1);
    let leased = lease(&queue, 10, LONG).await;
    assert_eq!(leased.iter().map(|leased| leased.entry.next_hop.0.as_str()).collect::<Vec<_>>(), ["mx:a"]);
    assert_eq!(queue.operate(entry(0), &Verb::Remove, "test").await.expect("remove"), 1);
    assert!(is_stale(queue.settle(done(&leased[0])).await), "a removed entry was settled");
    assert_eq!(only_entry(&queue, id).await.state, EntryState::Held);
    assert!(queue.inline_content(id).await.is_ok(), "the content went with the first of two entries");
    assert_eq!(queue.operate(entry(1), &Verb::Remove, "test").await.expect("remove"), 1);
    assert!(queue.show(id).await.expect("show").is_none(), "the message outlived its entries");
    assert_eq!(queue.operate(entry(7), &Verb::Remove, "test").await.expect("remove"), 0);
    assert_eq!(queue.ledger().await.expect("ledger").unaccounted(), 0);
}

async fn verbs_are_written_down(queue: Subject) {
    let id = accept(&queue, &["mx:a"]).await;
    operate(&queue, id, &hold()).await.expect("hold");
    sleep(Duration::from_millis(3)).await;
    queue.suspend(&Scope::NextHop("mx:a".to_owned()), "slow", "alice").await.expect("suspend");
    let verbs = queue.verbs(10).await.expect("verbs");
    let told: Vec<_> = verbs
        .iter()
        .map(|one| (one.by.as_str(), one.verb.as_str(), one.target.clone(), one.why.as_str(), one.entries))
        .collect();
    let expected = [
        ("alice", "suspend", "h:mx:a".to_owned(), "slow", 0),
        ("test", "hold", id.to_string(), "looks odd", 1),
    ];
    assert_eq!(told, expected);
    assert!(verbs[0].at.0 > 0);
}

async fn listings_are_narrowed(queue: Subject) {
    accept_for(&queue, "one", &["mx:a"]).await;
    accept_for(&queue, "two", &["mx:a"]).await;
    let list = async |filter: ListFilter| queue.list(filter).await.expect("list").entries.len();
    let filter = ListFilter { limit: 10, ..ListFilter::default() };
    assert_eq!(list(ListFilter { tenant: Some("one".to_owned()), ..filter.clone() }).await, 1);
    assert_eq!(list(ListFilter { domain: Some("b.example".to_owned()), ..filter.clone() }).await, 2);
    assert_eq!(list(ListFilter { domain: Some("c.example".to_owned()), ..filter.clone() }).await, 0);
    assert_eq!(list(ListFilter { older_than: Some(LONG), ..filter.clone() }).await, 0);
    sleep(SHORT).await;
    assert_eq!(list(ListFilter { older_than: Some(SHORT), ..filter }).await, 2);
}

async fn workers_learn_their_shares(queue: Subject) {
    let hop = Scope::NextHop("mx:a".to_owned());
    assert_eq!(queue.sharers(&hop, "w1", LONG).await.expect("sharers"), (1, 0));
    let (workers, before) = queue.sharers(&hop, "w2", LONG).await.expect("sharers");
    // A backend of one process has one worker, whatever it is called.
    assert!((workers, before) == (2, 1) || (workers, before) == (1, 0), "{workers} {before}");
    assert_eq!(queue.sharers(&hop, "w1", LONG).await.expect("sharers"), (workers, 0));
}

async fn readers_are_told_what_happens(queue: Subject) {
    accept(&queue, &["mx:before"]).await;
    queue.settle(done(&lease_one(&queue, LONG).await)).await.expect("settle");
    let told = queue.events("r", 100).await.expect("events");
    assert!(told.events.is_empty() && !told.lost, "a reader starts when it is made known");
    let id = accept(&queue, &["mx:a"]).await;
    let leased = lease_one(&queue, LONG).await;
    queue.doubt(&leased.lease, "mx.example").await.expect("doubt");
    queue.settle(retry(&leased, Duration::from_millis(1))).await.expect("settle");
    operate(&queue, id, &hold()).await.expect("hold");
    operate(&queue, id, &Verb::Release).await.expect("release");
    queue.settle(done(&lease_one(&queue, LONG).await)).await.expect("settle");
    let expected = [
        (EventKind::Accepted, ""),
        (EventKind::InDoubt, "mx.example"),
        (EventKind::Deferred, "busy"),
        (EventKind::Held, "looks odd"),
        (EventKind::Released, ""),
        (EventKind::Delivered, ""),
    ];
    let told = queue.events("r", 100).await.expect("events");
    assert!(told.events.iter().all(|event| event.entry == format!("{id}.0") && event.at.0 > 0));
    let kinds: Vec<_> = told.events.iter().map(|event| (event.kind, event.detail.as_str())).collect();
    assert_eq!(kinds, expected);
    assert_eq!(queue.events("r", 100).await.expect("events"), told, "told once, they are gone");
    queue.passed("r", &told.cursor).await.expect("passed");
    assert!(queue.events("r", 100).await.expect("events").events.is_empty());
    accept(&queue, &["mx:b"]).await;
    let told = queue.events("r", 100).await.expect("events");
    assert_eq!(told.events.len(), 1);
    assert!(!told.lost);
    queue.forget_reader("r").await.expect("forget");
    assert!(
        queue.events("r", 100).await.expect("events").events.is_empty(),
        "a forgotten reader starts anew"
    );
}

async fn an_audit_finds_nothing_odd(queue: Subject) {
    for tenant in ["", "a", "b"] {
        accept_for(&queue, tenant, &["mx:a", "mx:b"]).await;
    }
    let held = accept(&queue, &["mx:c"]).await;
    operate(&queue, held, &hold()).await.expect("hold");
    let leased = lease(&queue, 3, LONG).await;
    queue.settle(retry(&leased[0], LONG)).await.expect("settle");
    queue.settle(done(&leased[1])).await.expect("settle");
    let (mut cursor, mut checked) = (None, 0);
    for _ in 0..50 {
        let page = queue.audit(cursor.as_deref()).await.expect("audit");
        assert_eq!(page.odd, []);
        checked += page.checked;
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!((checked, cursor), (6, None));
}
