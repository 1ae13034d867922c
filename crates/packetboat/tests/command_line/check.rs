//! `packetboat check` says what is wrong, where, and what to do.

use serde_json::Value as Json;

use crate::support::{DOMAIN, Said, Site};

const LISTENERS: &str = "listeners: [{name: mx, kind: mx, address: \"127.0.0.1:2525\"}]\n";

fn check(site: &Site, arguments: &[&str]) -> Said {
    let said = site.run(&[&["check", "--config", "p.yaml"], arguments].concat());
    assert!(!said.err.contains("panicked"), "{}", said.err);
    said
}

#[test]
fn a_good_file_is_told_as_a_table() {
    let site = Site::new();
    site.config("p.yaml", LISTENERS);
    let said = check(&site, &[]);
    assert!(said.success, "{}{}", said.out, said.err);
    for part in ["suffices for", "all", "mx.a.example", "a.example", "127.0.0.1:2525", "No problems"] {
        assert!(said.out.contains(part), "{part} in {}", said.out);
    }
    assert!(!site.path().join("data").exists(), "nothing is made by a check");
}

#[test]
fn a_good_file_is_told_to_programs() {
    let site = Site::new();
    site.config("p.yaml", LISTENERS);
    let said = check(&site, &["-o", "json"]);
    let report: Json = serde_json::from_str(&said.out).unwrap();
    assert_eq!(report["problems"], Json::Array(Vec::new()));
    assert_eq!(report["roles"], serde_json::json!(["all"]));
    assert_eq!(report["others"][0]["role"], "edge");
}

#[test]
fn all_faults_are_told_with_their_places() {
    let site = Site::new();
    site.config("p.yaml", "listenerz: []\nadmin: {address: here}\n");
    let said = check(&site, &[]);
    assert!(!said.success);
    assert!(
        said.out.contains("p.yaml:3:1: listenerz: there is no such key; did you mean listeners?"),
        "{}",
        said.out
    );
    assert!(said.out.contains("p.yaml:4:18: admin.address: "), "{}", said.out);
    assert!(said.err.contains("2 problems"), "{}", said.err);

    let said = check(&site, &["-o", "json"]);
    assert!(!said.success);
    let report: Json = serde_json::from_str(&said.out).unwrap();
    assert_eq!(report["problems"][0]["location"], "p.yaml:3:1");
    assert_eq!(report["problems"][1]["key"], "admin.address");
}

#[test]
fn a_role_that_lacks_something_is_told() {
    let site = Site::new();
    site.config("p.yaml", LISTENERS);
    let said = check(&site, &["--role", "edge"]);
    assert!(!said.success);
    assert!(said.out.contains("edge wants verifier.endpoint and delivery.endpoint"), "{}", said.out);
    let said = site.run(&["verifier", "--config", "p.yaml"]);
    assert!(!said.success && said.err.contains("verifier.listen"), "{}", said.err);
}

#[test]
fn faults_in_mail_domains_are_told_by_file_and_line() {
    let site = Site::new();
    site.config("p.yaml", LISTENERS);
    site.write("domains/b.yaml", &DOMAIN.replace("a.example", "b.example").replace("AcceptAll", "Sometimes"));
    let said = check(&site, &[]);
    assert!(!said.success);
    assert!(said.out.contains("b.yaml:6: ") && said.out.contains("Sometimes"), "{}", said.out);
}

#[test]
fn keys_and_certificates_are_looked_at() {
    let site = Site::new();
    site.config("p.yaml", &format!("{LISTENERS}tls: {{certificate: missing.pem, key: missing.key}}\n"));
    let secret = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: k, namespace: mail}\nstringData: {tls.key: sesame}\n";
    let signing = "  dkim: {imported: [{selector: s1, secretRef: {name: k}}]}\n";
    site.write("domains/a.yaml", &format!("{DOMAIN}{signing}{secret}"));
    let said = check(&site, &[]);
    assert!(!said.success);
    assert!(said.out.contains("missing.pem"), "{}", said.out);
    assert!(said.out.contains("mail/k cannot sign"), "{}", said.out);
    assert!(!said.out.contains("sesame"), "{}", said.out);
}

#[test]
fn the_sample_is_good() {
    let site = Site::new();
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../../sample/packetboat.yaml");
    let said = site.run(&["check", "--config", sample]);
    assert!(said.success, "{}{}", said.out, said.err);
}
