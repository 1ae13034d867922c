//! The key of a mail host's certificate is told by TLSA records: that of the present certificate and, where
//! cert-manager has one, of the next. At no moment does a resolver that may still have the old records in its cache
//! miss the key that is in use.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use packetboat_tests::estate::{DOMAIN, Estate, STEP};
use sha2::{Digest, Sha256};
use testkit::certificate::Certificate;
use testkit::wait;

const NAME: &str = "_25._tcp.mx.example.test";
const TTL: Duration = Duration::from_secs(10);
/// The kind of cert-manager, as far as it matters.
const CERTIFICATES: &str = r#"{
  "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
  "metadata": {"name": "certificates.cert-manager.io", "annotations": {"api-approved.kubernetes.io": "unapproved"}},
  "spec": {"group": "cert-manager.io", "scope": "Namespaced",
    "names": {"kind": "Certificate", "plural": "certificates", "singular": "certificate"},
    "versions": [{"name": "v1", "served": true, "storage": true,
      "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}}"#;

/// A certificate, and what TLSA is to say of its key: its SubjectPublicKeyInfo as rcgen has it.
fn certificate() -> Result<(Certificate, String)> {
    let made = Certificate::new(&["mx.example.test"])?;
    let digest: String =
        Sha256::digest(&made.public_key).iter().map(|octet| format!("{octet:02X}")).collect();
    Ok((made, digest))
}

/// The digests that a server shows; it prints long ones in parts.
async fn pins(estate: &Estate, secondary: bool) -> Result<BTreeSet<String>> {
    let server = if secondary { estate.bind.secondary() } else { estate.bind.primary() };
    let text = estate.bind.answer(server, "TLSA", NAME).await?;
    let pin = |line: &str| line.strip_prefix("3 1 1 ").map(|digest| digest.replace(' ', ""));
    text.lines().map(|line| pin(line).with_context(|| format!("{line:?} is no pin"))).collect()
}

async fn both_show(estate: &Estate, wanted: &[&String]) -> Result<()> {
    let wanted: BTreeSet<String> = wanted.iter().map(|&one| one.clone()).collect();
    let shown = async || {
        let (first, second) = (pins(estate, false).await, pins(estate, true).await);
        first.is_ok_and(|first| first == wanted) && second.is_ok_and(|second| second == wanted)
    };
    wait::until_true(&format!("{NAME} to be {wanted:?}"), STEP, shown).await
}

fn domain(estate: &Estate, records: &str, more: &str) -> String {
    let yaml = estate.mail_domain(more);
    yaml.replace("    rfc2136:", &format!("    ttl: 10\n    records: {{{records}}}\n    rfc2136:"))
}

const HOSTS: &str =
    "\x20 mx: [{host: mx.example.test, preference: 10}, {host: mx.other.test, preference: 20}]";
const PINNED: &str = "\n  tlsa: {certificateRef: {name: mx}, retireAfter: 2s}";

/// The certificate is replaced: the old key stays for a time to live after the new one is shown everywhere.
async fn replaced(estate: &Estate, old: &String, new: &String) -> Result<()> {
    let mut new_everywhere: Option<Instant> = None;
    let gone = async || {
        let (first, second) = match (pins(estate, false).await, pins(estate, true).await) {
            (Ok(first), Ok(second)) => (first, second),
            _ => return None,
        };
        let now = Instant::now();
        if first.contains(new) && second.contains(new) {
            new_everywhere.get_or_insert(now);
        }
        let gone = !first.contains(old) || !second.contains(old);
        gone.then(|| new_everywhere.map(|since| now.duration_since(since)))
    };
    let waited = wait::until("the old key to go", STEP, gone).await?;
    // What was seen of the new one is late by a look.
    let waited = waited.context("the old key went before the new one was shown everywhere")?;
    ensure!(waited > TTL - Duration::from_secs(1), "the old key went after {waited:?}");
    both_show(estate, &[new]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_set_is_never_shown() -> Result<()> {
    let mut estate = Estate::signed().await?;
    let (_, process) = estate.operator().await?;
    estate.api.apply(&domain(&estate, "", &format!("{HOSTS}{PINNED}"))).await?;
    estate.wait_for("TLSAReady", "False", "CertificateMissing").await?;
    let (first, first_key) = certificate()?;
    estate.api.apply(&first.secret("mail", "mx")).await?;
    let published = both_show(&estate, &[&first_key]).await;
    ensure!(published.is_ok(), "{published:?}: {}", process.log());

    // Signed, but nobody above knows: nobody would believe it.
    estate.wait_for("TLSAReady", "False", "NoDNSSEC").await?;
    ensure!(estate.read().await?.to_string().contains("no DS record"), "it is not told what lacks");
    estate.dns.add(&estate.bind.delegation_signer().await?)?;
    estate.wait_for("TLSAReady", "True", "Verified").await?;
    ensure!(estate.read().await?.to_string().contains("not below the domain: mx.other.test"));

    let (second, second_key) = certificate()?;
    estate.api.apply(&second.secret("mail", "mx")).await?;
    replaced(&estate, &first_key, &second_key).await?;

    // With cert-manager the next key is told before its certificate is there.
    estate.api.define(CERTIFICATES).await?;
    let (next, next_key) = certificate()?;
    estate.api.apply(&next.secret("mail", "mx-next")).await?;
    estate.api.apply(&second.secret("mail", "mx-tls")).await?;
    let issuing = |next: &str| {
        format!(
            "apiVersion: cert-manager.io/v1\nkind: Certificate\nmetadata: {{name: mx, namespace: mail}}\n\
             spec: {{secretName: mx-tls}}\nstatus: {{{next}}}\n"
        )
    };
    estate.api.apply(&issuing("nextPrivateKeySecretName: mx-next")).await?;
    both_show(&estate, &[&second_key, &next_key]).await?;
    estate.api.apply(&next.secret("mail", "mx-tls")).await?;
    estate.api.apply(&issuing("revision: 2")).await?;
    replaced(&estate, &second_key, &next_key).await?;
    estate.wait_for("TLSAReady", "True", "Verified").await?;

    // Where a person publishes, it is told what is wrong.
    estate.api.apply(&domain(&estate, "tlsa: Verify", &format!("{HOSTS}{PINNED}"))).await?;
    estate
        .bind
        .by_hand(&format!("update delete {NAME} TLSA\nupdate add {NAME} 10 TLSA 3 1 1 {first_key}"))
        .await?;
    estate.wait_for("TLSAReady", "False", "KeyMismatch").await?;
    estate.bind.by_hand(&format!("update delete {NAME} TLSA")).await?;
    estate.wait_for("TLSAReady", "False", "DNSActionRequired").await?;
    estate.api.apply(&domain(&estate, "tlsa: Manage", &format!("{HOSTS}{PINNED}"))).await?;
    both_show(&estate, &[&next_key]).await?;

    // What the spec does not want any more goes: left alone, it would be wrong with the next certificate.
    let elsewhere = "\x20 mx: [{host: mx.other.test, preference: 20}]";
    estate.api.apply(&domain(&estate, "tlsa: Manage", &format!("{elsewhere}{PINNED}"))).await?;
    estate.wait_for("TLSAReady", "False", "NoHost").await?;
    both_show(&estate, &[]).await?;
    estate.api.apply(&domain(&estate, "tlsa: Manage", &format!("{HOSTS}{PINNED}"))).await?;
    both_show(&estate, &[&next_key]).await?;
    estate.bind.stop_secondary().await?;
    estate.wait_for("TLSAReady", "Unknown", "LookupFailed").await?;
    estate.bind.start_secondary().await?;
    estate.wait_for("TLSAReady", "True", "Verified").await?;

    // Suspended, what is missing is told, and put back afterwards.
    estate.patch("{\"spec\":{\"suspend\":true}}").await?;
    estate.wait_for("Stalled", "True", "Suspended").await?;
    estate.bind.by_hand(&format!("update delete {NAME} TLSA")).await?;
    estate.wait_for("TLSAReady", "False", "Missing").await?;
    estate.patch("{\"spec\":{\"suspend\":false}}").await?;
    both_show(&estate, &[&next_key]).await?;
    estate.api.apply(&domain(&estate, "tlsa: Manage", HOSTS)).await?;
    both_show(&estate, &[]).await?;
    ensure!(estate.record("TXT", DOMAIN).await?.contains("theirs"));
    ensure!(!process.log().contains("PRIVATE KEY"), "a private key is in the log");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_that_is_not_signed_is_told() -> Result<()> {
    let estate = Estate::new().await?;
    let _operator = estate.operator().await?;
    // It does not look again by itself in the time of this test: the Secret wakes it.
    let domain = domain(&estate, "", &format!("{HOSTS}{PINNED}")).replace("interval: 2s", "interval: 10m");
    estate.api.apply(&domain).await?;
    estate.wait_for("TLSAReady", "False", "CertificateMissing").await?;
    estate.api.apply(&certificate()?.0.secret("mail", "mx")).await?;
    estate.wait_for("TLSAReady", "False", "NoDNSSEC").await?;
    let told = estate.read().await?.to_string();
    ensure!(told.contains("the zone example.test is not signed"), "{told}");
    Ok(())
}
