//! `packetboat crds` prints what Kubernetes takes.

use serde_json::Value as Json;

use crate::support::Site;

#[test]
fn definitions_are_printed_as_yaml_documents() {
    let said = Site::new().run(&["crds"]);
    assert!(said.success, "{}", said.err);
    let documents: Vec<&str> = said.out.split("---\n").filter(|document| !document.is_empty()).collect();
    assert!(!documents.is_empty());
    for document in documents {
        let crd: Json = serde_saphyr::from_str(document).unwrap();
        assert_eq!(crd["kind"], "CustomResourceDefinition");
        assert_eq!(crd["spec"]["group"], "mail.packetboat.dev");
    }
    assert!(said.out.contains("name: maildomains.mail.packetboat.dev\n"), "{}", said.out);
}

#[test]
fn the_files_in_the_repository_are_those_of_the_types() {
    let site = Site::new();
    assert!(site.run(&["crds", "--folder", "crds"]).success);
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/../../k8s/crds");
    for file in std::fs::read_dir(site.path().join("crds")).unwrap() {
        let file = file.unwrap();
        let now = std::fs::read_to_string(file.path()).unwrap();
        let before = std::fs::read_to_string(std::path::Path::new(kept).join(file.file_name()));
        assert!(
            before.is_ok_and(|before| before == now),
            "{:?} is out of date: run make crds",
            file.file_name()
        );
    }
}
