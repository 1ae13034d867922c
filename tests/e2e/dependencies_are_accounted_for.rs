//! What the binary is made of: locked, from crates.io alone, without a second TLS library, listed with licence and
//! version in the bill of materials; and none of our own crates has unsafe code.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::Command;

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The packages of the lock file.
fn locked() -> Vec<(String, String)> {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    lock.split("[[package]]\n").skip(1).map(|text| (field(text, "name").unwrap(), text.to_owned())).collect()
}

fn field(package: &str, key: &str) -> Option<String> {
    let line = package.lines().find_map(|line| line.strip_prefix(&format!("{key} = \"")));
    line.map(|rest| rest.trim_end_matches('"').to_owned())
}

#[test]
fn crates_are_locked_and_come_from_the_registry() {
    let packages = locked();
    let count = packages.len();
    for (name, package) in packages {
        match field(&package, "source") {
            None => assert!(!package.contains("checksum"), "{name}"),
            Some(source) => {
                assert_eq!(source, REGISTRY, "{name}");
                assert_eq!(field(&package, "checksum").unwrap().len(), 64, "{name}");
            }
        }
    }
    assert!(count > 100, "{count} packages");
    let dockerfile = std::fs::read_to_string(root().join("Dockerfile")).unwrap();
    let script = std::fs::read_to_string(root().join("scripts/image")).unwrap();
    assert!(
        dockerfile.contains("--locked") && script.contains("--locked"),
        "images are built by the lock file"
    );
}

#[test]
fn none_of_our_crates_is_unsafe() {
    let workspace = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(workspace.contains("unsafe_code = \"forbid\""));
    let mut crates: Vec<_> =
        std::fs::read_dir(root().join("crates")).unwrap().map(|entry| entry.unwrap().path()).collect();
    crates.push(root().join("tests"));
    assert!(crates.len() > 10);
    for folder in crates {
        let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{folder:?} does not take the lints");
    }
}

#[tokio::test]
async fn the_bill_of_materials_is_what_is_compiled() -> Result<()> {
    let mut script = Command::new("python3");
    script.arg(root().join("scripts/sbom.py")).arg("x86_64-unknown-linux-gnu").current_dir(root());
    let output = script.output().await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bill: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(bill["bomFormat"] == "CycloneDX" && bill["metadata"]["component"]["name"] == "packetboat");
    let components = bill["components"].as_array().context("no components")?;
    let locked: BTreeSet<_> =
        locked().iter().map(|(name, text)| (name.clone(), field(text, "version"))).collect();
    let mut listed = BTreeSet::new();
    for component in components {
        let text = |key: &str| component[key].as_str().map(str::to_owned);
        let name = text("name").context("a part without a name")?;
        ensure!(component["licenses"][0]["expression"].is_string(), "{name} has no licence");
        ensure!(locked.contains(&(name.clone(), text("version"))), "{component} is not in the lock file");
        listed.insert(name);
    }
    ensure!(listed.len() > 100, "{} crates", listed.len());
    for name in ["edge", "queue", "operator", "tokio", "rustls", "aws-lc-rs", "aws-lc-sys", "tonic", "fjall"]
    {
        ensure!(listed.contains(name), "{name} is not listed");
    }
    // Another TLS library, what only tests have, what only the build has, a macro.
    for name in ["ring", "openssl-sys", "native-tls", "testkit", "proptest", "protox", "async-trait"] {
        ensure!(!listed.contains(name), "{name} is listed");
    }
    Ok(())
}
