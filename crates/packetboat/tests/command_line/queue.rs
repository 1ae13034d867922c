//! `packetboat queue` where there is nothing to ask, or nothing in the queue.

use serde_json::Value as Json;

use crate::support::{Site, free};

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
