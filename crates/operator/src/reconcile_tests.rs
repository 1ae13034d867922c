use domains::Algorithm;
use serde_json::json;

use super::*;

fn mail_domain(name: &str, uid: &str, created: &str) -> MailDomain {
    serde_json::from_value(json!({
        "apiVersion": "mail.packetboat.dev/v1alpha1",
        "kind": "MailDomain",
        "metadata": {"name": name, "namespace": "mail", "uid": uid, "creationTimestamp": created},
        "spec": {"domain": "example.com", "dkim": {}},
    }))
    .unwrap()
}

fn active_for(time: Duration) -> StoredKey {
    let since = Timestamp::now().checked_sub(time).unwrap();
    let key = Key {
        selector: "s".to_owned(),
        algorithm: Algorithm::RsaSha256,
        stage: Stage::Active,
        since,
        waited: None,
        created: since,
        missed: 0,
        turn: 0,
        target: None,
        order: None,
    };
    StoredKey { key, object: "s".to_owned(), public_key: None, version: None }
}

#[test]
fn a_rotation_that_waits_for_a_person_is_not_looked_for_every_second() {
    let domain = mail_domain("one", "1", "2026-01-01T00:00:00Z");
    let interval = domain.spec.dkim.clone().unwrap().rotation.interval;
    let usual = Duration::from_secs(600);
    let wait = |time| again(&domain, &[active_for(time)], &[], false, usual);
    assert_eq!(wait(interval + Duration::from_secs(3600)), usual);
    assert_eq!(wait(interval + Duration::from_secs(5)), SHORTEST);
    assert_eq!(wait(Duration::ZERO), usual);
    let soon = wait(interval - Duration::from_secs(60));
    assert!(soon <= Duration::from_secs(60) && soon > Duration::from_secs(50), "{soon:?}");
}

#[test]
fn the_older_has_the_domain_until_it_goes() {
    let older = mail_domain("b", "1", "2026-01-01T00:00:00Z");
    let younger = mail_domain("a", "2", "2026-01-02T00:00:00Z");
    let mut all = vec![Arc::new(older.clone()), Arc::new(younger.clone())];
    assert!(!is_claimed_by_another(&older, &all, false));
    assert!(is_claimed_by_another(&younger, &all, false));
    let mut going = older;
    going.metadata.deletion_timestamp = going.metadata.creation_timestamp.clone();
    all[0] = Arc::new(going);
    assert!(!is_claimed_by_another(&younger, &all, false));
}

#[test]
fn what_is_not_proven_claims_nothing() {
    let squatter = mail_domain("b", "1", "2026-01-01T00:00:00Z");
    let mut owner = mail_domain("a", "2", "2026-01-02T00:00:00Z");
    let both = |owner: &MailDomain| vec![Arc::new(squatter.clone()), Arc::new(owner.clone())];
    let all = both(&owner);
    assert!(!is_claimed_by_another(&owner, &all, true) && !is_claimed_by_another(&squatter, &all, true));
    let proven = Some("2026-01-03T00:00:00Z".to_owned());
    owner.status =
        Some(domains::types::MailDomainStatus { ownership_proven_at: proven, ..Default::default() });
    let all = both(&owner);
    assert!(!is_claimed_by_another(&owner, &all, true) && is_claimed_by_another(&squatter, &all, true));
    assert!(is_claimed_by_another(&owner, &all, false));
}
