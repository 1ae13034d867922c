//! What the binary is made of: locked, from crates.io alone, without a second TLS library, listed with licence and
//! version in the bill of materials; and none of our own crates has unsafe code.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// What cargo knows of the build, by the lock file as it is.
async fn metadata() -> Result<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[test]
fn crates_are_locked_and_come_from_the_registry() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let packages = lock.split("[[package]]\n").skip(1);
    let field = |package: &str, key: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(&format!("{key} = \"")));
        line.map(|rest| rest.trim_end_matches('"').to_owned())
    };
    let mut count = 0;
    for package in packages {
        let name = field(package, "name").unwrap();
        match field(package, "source") {
            None => assert!(!package.contains("checksum"), "{name}"),
            Some(source) => {
                assert_eq!(source, REGISTRY, "{name}");
                assert_eq!(field(package, "checksum").unwrap().len(), 64, "{name}");
            }
        }
        count += 1;
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
async fn the_bill_of_materials_has_everything() -> Result<()> {
    let metadata = metadata().await?;
    let mut script = Command::new("python3")
        .arg(root().join("scripts/sbom.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut input = script.stdin.take().context("no input")?;
    input.write_all(&serde_json::to_vec(&metadata)?).await?;
    drop(input);
    let output = script.wait_with_output().await?;
    let bill: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(bill["bomFormat"] == "CycloneDX" && bill["metadata"]["component"]["name"] == "packetboat");
    let components = bill["components"].as_array().context("no components")?;
    let text = |component: &Value, key: &str| component[key].as_str().unwrap_or_default().to_owned();
    let listed: BTreeSet<String> =
        components.iter().map(|one| format!("{} {}", text(one, "name"), text(one, "version"))).collect();
    for component in components {
        let name = text(component, "name");
        ensure!(component["licenses"][0]["expression"].is_string(), "{name} has no licence");
        ensure!(!["ring", "openssl", "openssl-sys", "native-tls"].contains(&name.as_str()), "{name} is in");
    }

    // The same by cargo's own reckoning.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let tree = Command::new(cargo)
        .args(["tree", "--locked", "-p", "packetboat", "-e", "normal,no-proc-macro", "--prefix", "none"])
        .args(["--target", "x86_64-unknown-linux-gnu", "--format", "{p}"])
        .current_dir(root())
        .output()
        .await?;
    ensure!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout)?;
    let mut count = 0;
    for line in tree.lines().skip(1).filter(|line| !line.is_empty()) {
        let mut words = line.split(' ');
        let (name, version) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let wanted = format!("{name} {}", version.trim_start_matches('v'));
        ensure!(listed.contains(&wanted), "{wanted} is not in the bill of materials");
        count += 1;
    }
    ensure!(count > 100, "{count} crates");
    Ok(())
}
