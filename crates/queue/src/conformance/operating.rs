//! What operators do to entries.

use std::collections::HashSet;
use std::future::Future;
use std::time::Duration;

use message::QueueId;
use tokio::time::sleep;

use super::{
    LONG, SHORT, Subject, accept, done, hold, is_stale, lease, lease_one, only_entry, operate, retry,
};
use crate::{EntryState, ListFilter, Verb};

pub(super) async fn run<F, Fut>(make: &F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Subject>,
{
    checks!(make:
        operators_see_and_move_entries,
        a_removed_entry_cannot_be_settled,
        held_entries_wait_for_their_release,
        a_leased_entry_is_held_when_its_lease_ends,
        a_bounce_asked_for_reaches_the_next_worker,
    );
}

async fn operators_see_and_move_entries(queue: Subject) {
    let mut ids = HashSet::new();
    for _ in 0..7 {
        ids.insert(accept(&queue, &["mx:a"]).await);
    }
    accept(&queue, &["mx:b"]).await;
    let mut filter = ListFilter { next_hop: Some("mx:a".to_owned()), limit: 3, ..ListFilter::default() };
    let mut seen = HashSet::new();
    for _ in 0..50 {
        let page = queue.list(filter.clone()).await.expect("list");
        assert!(page.entries.len() <= 3);
        seen.extend(page.entries.iter().map(|(entry, _)| entry.id.message));
        filter.cursor = page.next;
        if filter.cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, ids);
    let leased = lease(&queue, 100, LONG).await;
    let one = leased.iter().find(|leased| ids.contains(&leased.message.id)).expect("leased");
    queue.settle(retry(one, LONG)).await.expect("settle");
    let queued = ListFilter { state: Some(EntryState::Queued), limit: 10, ..ListFilter::default() };
    let page = queue.list(queued).await.expect("list");
    assert_eq!(page.entries.iter().map(|(entry, _)| entry.id).collect::<Vec<_>>(), [one.entry.id]);
    assert_eq!(operate(&queue, one.message.id, &Verb::RetryNow).await.expect("retry"), 1);
    assert_eq!(lease_one(&queue, LONG).await.entry.id, one.entry.id);
    assert_eq!(
        operate(&queue, one.message.id, &Verb::RetryNow).await.expect("retry"),
        0,
        "a leased entry was moved"
    );
    assert!(queue.show(QueueId::generate()).await.expect("show").is_none());
}

async fn a_removed_entry_cannot_be_settled(queue: Subject) {
    let id = accept(&queue, &["mx:a"]).await;
    let leased = lease_one(&queue, LONG).await;
    assert_eq!(operate(&queue, id, &Verb::Remove).await.expect("remove"), 1);
    assert!(is_stale(queue.settle(done(&leased)).await), "a removed entry was settled");
    assert!(is_stale(queue.settle(retry(&leased, SHORT)).await), "a removed entry came back");
    assert!(queue.show(id).await.expect("show").is_none());
    assert!(queue.inline_content(id).await.is_err());
    assert_eq!(operate(&queue, id, &Verb::Remove).await.expect("remove"), 0);
}

async fn held_entries_wait_for_their_release(queue: Subject) {
    let id = accept(&queue, &["mx:a"]).await;
    assert_eq!(operate(&queue, id, &hold()).await.expect("hold"), 1);
    assert!(lease(&queue, 10, LONG).await.is_empty(), "a held entry was leased");
    assert_eq!(operate(&queue, id, &Verb::RetryNow).await.expect("retry"), 0, "a retry is no release");
    let entry = only_entry(&queue, id).await;
    assert_eq!((entry.state, entry.held.as_deref()), (EntryState::Held, Some("looks odd")));
    let depth = queue.depth().await.expect("depth");
    assert_eq!((depth.queued, depth.leased, depth.held), (0, 0, 1));
    let filter = ListFilter { state: Some(EntryState::Held), limit: 10, ..ListFilter::default() };
    assert_eq!(queue.list(filter).await.expect("list").entries.len(), 1);
    assert_eq!(operate(&queue, id, &Verb::Release).await.expect("release"), 1);
    assert_eq!(operate(&queue, id, &Verb::Release).await.expect("release"), 0, "released twice");
    let leased = lease_one(&queue, LONG).await;
    assert_eq!(leased.entry.held, None);
    queue.settle(done(&leased)).await.expect("settle");
    assert_eq!(queue.depth().await.expect("depth"), crate::Depth::default());
}

async fn a_leased_entry_is_held_when_its_lease_ends(queue: Subject) {
    let id = accept(&queue, &["mx:a"]).await;
    let leased = lease_one(&queue, LONG).await;
    assert_eq!(operate(&queue, id, &hold()).await.expect("hold"), 1);
    assert_eq!(only_entry(&queue, id).await.state, EntryState::Leased);
    queue.settle(retry(&leased, Duration::from_millis(1))).await.expect("the attempt may end");
    sleep(SHORT).await;
    assert!(lease(&queue, 10, LONG).await.is_empty(), "it was leased again");
    assert_eq!(only_entry(&queue, id).await.state, EntryState::Held);
    assert_eq!(operate(&queue, id, &Verb::Remove).await.expect("remove"), 1);
    assert_eq!(queue.depth().await.expect("depth"), crate::Depth::default());
}

async fn a_bounce_asked_for_reaches_the_next_worker(queue: Subject) {
    let id = accept(&queue, &["mx:a"]).await;
    let leased = lease_one(&queue, LONG).await;
    queue.settle(retry(&leased, LONG)).await.expect("settle");
    operate(&queue, id, &hold()).await.expect("hold");
    let verb = Verb::Bounce { why: "not wanted".to_owned() };
    assert_eq!(operate(&queue, id, &verb).await.expect("bounce"), 1);
    let leased = lease_one(&queue, LONG).await;
    assert_eq!(leased.entry.doomed.as_deref(), Some("not wanted"));
}
