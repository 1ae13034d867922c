//! Roles start, say when they are ready, and end in order.

use std::net::TcpListener;

use crate::support::{Site, free};

#[test]
fn a_verifier_starts_and_ends_in_order() {
    let (site, admin, listen) = (Site::new(), free(), free());
    let lines = format!("admin: {{address: \"{admin}\"}}\nverifier: {{listen: \"{listen}\"}}\n");
    let config = site.config("p.yaml", &lines);
    let mut verifier = site.start("verifier", &config, admin);
    verifier.wait_for_readiness(200);
    verifier.terminate();
    assert!(verifier.wait().success(), "{}", verifier.log());
    assert!(verifier.log().contains("ended in order"), "{}", verifier.log());
    let said = site.run(&["queue", "list", "--config", "p.yaml"]);
    assert!(!said.success);
}

#[test]
fn a_taken_address_is_named() {
    let (site, admin) = (Site::new(), free());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let lines = format!("admin: {{address: \"{admin}\"}}\nverifier: {{listen: \"{listen}\"}}\n");
    let config = site.config("p.yaml", &lines);
    let mut verifier = site.start("verifier", &config, admin);
    assert!(!verifier.wait().success());
    assert!(verifier.log().contains(&format!("cannot listen on {listen}")), "{}", verifier.log());
    assert!(!verifier.log().contains("panicked"), "{}", verifier.log());
}

#[test]
fn an_edge_is_ready_when_its_services_can_be_reached() {
    let (site, admin, mx) = (Site::new(), free(), free());
    let (verifier, delivery) = (TcpListener::bind("127.0.0.1:0").unwrap(), free());
    let lines = format!(
        "admin: {{address: \"{admin}\"}}\nlisteners: [{{name: mx, kind: mx, address: \"{mx}\"}}]\n\
         verifier: {{endpoint: \"http://{}\"}}\ndelivery: {{endpoint: \"http://{delivery}\"}}\n",
        verifier.local_addr().unwrap()
    );
    let config = site.config("p.yaml", &lines);
    let mut edge = site.start("edge", &config, admin);
    let complaint = edge.wait_for_readiness(503);
    assert!(complaint.starts_with(&format!("delivery: http://{delivery} cannot be reached")), "{complaint}");
    assert!(!complaint.contains("verifier"), "{complaint}");
    let _delivery = TcpListener::bind(delivery).unwrap();
    edge.wait_for_readiness(200);
    edge.terminate();
    assert!(edge.wait().success(), "{}", edge.log());
}

#[test]
fn two_processes_cannot_share_an_embedded_queue() {
    let site = Site::new();
    let start = |name: &str| {
        let (admin, mx) = (free(), free());
        let lines = format!(
            "admin: {{address: \"{admin}\"}}\nlisteners: [{{name: mx, kind: mx, address: \"{mx}\"}}]\n"
        );
        site.start("all", &site.config(name, &lines), admin)
    };
    let mut first = start("first.yaml");
    first.wait_for_readiness(200);
    let mut second = start("second.yaml");
    assert!(!second.wait().success());
    assert!(second.log().contains("only one process may use it"), "{}", second.log());
    first.terminate();
    assert!(first.wait().success(), "{}", first.log());
}
