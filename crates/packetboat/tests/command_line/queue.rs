//! `packetboat queue`: what it tells of a queue, and does to it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use message::QueueId;
use proto::accept_request::Frame;
use proto::client::{DeliveryClient, Peers};
use proto::{AcceptBegin, Commit, Delivery, Disposition, Envelope, Origin, frames_of};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::support::{DOMAIN, Site, free};

#[test]
fn it_must_be_told_which_process_is_meant() {
    let said = Site::new().run(&["queue", "list"]);
    assert!(!said.success && said.err.contains("--config FILE"), "{}", said.err);
}

#[test]
fn it_says_when_nothing_listens_there() {
    let (site, admin) = (Site::new(), free());
    site.config("p.yaml", &format!("admin: {{address: \"{admin}\"}}\n"));
    for target in [["--config", "p.yaml"], ["--admin", &admin.to_string()]] {
        let said = site.run(&[["queue", "list"], target].concat());
        assert!(
            !said.success && said.err.contains(&format!("nothing answers at http://{admin}")),
            "{}",
            said.err
        );
    }
}

#[test]
fn an_empty_queue_is_told_and_what_is_not_there_is_an_error() {
    let (site, admin, listen) = (Site::new(), free(), free());
    let wires = "verifier: {endpoint: \"http://127.0.0.1:1\"}\ndelivery: {listen: ";
    let config = site.config("p.yaml", &format!("admin: {{address: \"{admin}\"}}\n{wires}\"{listen}\"}}\n"));
    let mut delivery = site.start("delivery", &config, admin);
    delivery.wait_for_readiness(200);

    // Another fault in the file must not keep an operator from the queue.
    site.config("p.yaml", &format!("admin: {{address: \"{admin}\"}}\nlistenerz: []\n"));
    let said = site.run(&["queue", "list", "--config", "p.yaml"]);
    assert!(said.success && said.out == "The queue is empty.\n", "{}{}", said.out, said.err);
    let said = site.run(&["queue", "list", "-o", "json", "--config", "p.yaml"]);
    assert_eq!(serde_json::from_str::<Json>(&said.out).unwrap()["entries"], Json::Array(Vec::new()));

    let id = "01kc0000000000000000000000";
    for verb in ["show", "retry", "remove"] {
        let said = site.run(&["queue", verb, id, "--config", "p.yaml"]);
        assert!(
            !said.success && said.err.contains(&format!("message {id} is not in the queue")),
            "{}",
            said.err
        );
        let said = site.run(&["queue", verb, "no/id", "--config", "p.yaml"]);
        assert!(!said.success && said.err.contains("not a queue id"), "{}", said.err);
    }
}

/// Hands a message over to the delivery service as the edge does.
async fn hand_over(endpoint: String, to: &str) -> QueueId {
    let id = QueueId::generate();
    let content = Bytes::from_static(b"From: x@a.example\r\n\r\nHello\r\n");
    let envelope = Envelope {
        reverse_path: String::new(),
        forward_paths: vec![to.to_owned()],
        smtputf8: false,
        eight_bit: false,
        user: String::new(),
        origin: Origin::Mx.into(),
    };
    let commit = Commit {
        size: content.len() as u64,
        sha256: Bytes::copy_from_slice(&Sha256::digest(&content)),
        prepend: Bytes::new(),
        cuts: Vec::new(),
        disposition: Disposition::Deliver.into(),
    };
    let begin = AcceptBegin { queue_id: id.to_string(), envelope: Some(envelope), declared_size: 0 };
    let peers = Peers::watch(
        &[endpoint],
        tls::PeerRole::Delivery,
        None,
        Duration::from_secs(300),
        CancellationToken::new(),
    )
    .await
    .unwrap();
    let frames = vec![Frame::Begin(begin), Frame::Chunk(content), Frame::Commit(commit)];
    assert!(DeliveryClient(peers).accept(frames_of(frames)).await.unwrap().fresh);
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_told_and_worked_on() {
    let (site, admin, listen, store) = (Site::new(), free(), free(), free());
    let route = format!("{{lmtp: {{address: \"{store}\"}}}}");
    site.write("domains/a.yaml", &DOMAIN.replace("{maildir: {path: mail}}", &route));
    let lines = format!(
        "admin: {{address: \"{admin}\"}}\ndelivery: {{listen: \"{listen}\"}}\nverifier: {{endpoint: \"http://127.0.0.1:1\"}}\n"
    );
    let mut delivery = site.start("delivery", &site.config("p.yaml", &lines), admin);
    delivery.wait_for_readiness(200);
    let queue = |arguments: &[&str]| {
        let said = site.run(&[&["queue"], arguments, &["--config", "p.yaml"]].concat());
        assert!(said.success, "{}", said.err);
        said.out
    };
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(hand_over(format!("http://{listen}"), "carol@a.example").await.to_string());
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    let shown = loop {
        let shown = queue(&["show", &ids[0]]);
        if shown.contains("last error") {
            break shown;
        }
        assert!(Instant::now() < deadline, "{shown}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    for part in [&ids[0], "from       <>", "carol@a.example: deferred: ", "due in ", "tries      1"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }

    let listed = queue(&["list"]);
    assert!(ids.iter().all(|id| listed.contains(id)), "{listed}");
    assert!(listed.starts_with("MESSAGE") && listed.contains("carol@a.example"), "{listed}");
    let first = queue(&["list", "--limit", "2"]);
    let cursor = first.split("--cursor ").nth(1).and_then(|rest| rest.split(',').next()).unwrap();
    let second = queue(&["list", "--limit", "2", "--cursor", cursor]);
    let all = queue(&["list", "--limit", "2", "--all"]);
    for id in &ids {
        assert!(first.contains(id) != second.contains(id), "{id} in {first}{second}");
        assert!(all.contains(id), "{id} in {all}");
    }
    let json: Json = serde_json::from_str(&queue(&["show", &ids[1], "-o", "json"])).unwrap();
    assert_eq!(json["entries"][0]["recipients"][0]["address"], "carol@a.example");

    assert!(queue(&["remove", &ids[0]]).contains("is removed"), "it says what it did");
    assert!(!queue(&["list"]).contains(&ids[0]));
    // A worker may have it in hand just now; then it says so.
    assert!(queue(&["retry", &ids[1]]).contains(&ids[1]));
    delivery.terminate();
    assert!(delivery.wait().success(), "{}", delivery.log());
}
