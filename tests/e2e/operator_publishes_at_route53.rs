//! A DNSProvider names Route 53: records go there, by batch, and nothing is asked while DNS shows them.

use anyhow::{Result, ensure};
use packetboat_tests::estate::{DOMAIN, Estate, STEP};
use testkit::route53::{KEY_ID, Route53Server, SECRET};
use testkit::wait;

const KEYS: &str = "\
\x20 dkim: {algorithms: [rsa-sha256], rotation: {interval: 1h, minPropagation: 1s, retireAfter: 3s, revokeFor: 3s}}";

async fn access_key(estate: &Estate, id: &str, secret: &str) -> Result<()> {
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: aws, namespace: mail}}\n\
         stringData: {{access-key-id: \"{id}\", secret-access-key: \"{secret}\"}}\n"
    );
    estate.api.apply(&secret).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_missing_access_key_to_a_key_that_signs() -> Result<()> {
    let estate = Estate::new().await?;
    let (_, process) = estate.operator().await?;
    // The zone is found by name servers; in this test there are two stories of it.
    let server = Route53Server::start(DOMAIN).await?;
    let provider = format!(
        "apiVersion: mail.packetboat.dev/v1alpha1\nkind: DNSProvider\nmetadata: {{name: aws, namespace: mail}}\n\
         spec: {{route53: {{accessKeySecretRef: {{name: aws}}, region: us-east-1, endpoint: \"{}\"}}}}\n",
        server.endpoint()
    );
    estate.api.apply(&provider).await?;
    estate.api.apply(&estate.mail_domain_by("mode: Provider, providerRef: {name: aws}", KEYS)).await?;
    estate.wait_for("Accepted", "False", "CredentialsMissing").await?;
    access_key(&estate, "AKIANOTTHERE", "another-key-of-a-test").await?;
    estate.wait_for("DNSPublished", "False", "PublishFailed").await?;
    access_key(&estate, KEY_ID, SECRET).await?;
    estate.wait_for("DNSPublished", "True", "Published").await?;

    let mut record = (String::new(), Vec::new());
    let there = async || {
        let Ok(domain) = estate.read().await else { return false };
        let name = domain["status"]["records"][0]["name"].as_str().unwrap_or_default().to_owned();
        let Ok(values) = server.values("TXT", &name).await else { return false };
        record = (name, values);
        record.1.len() == 1
    };
    wait::until_true("the key's record at Route 53", STEP, there).await?;
    let (name, values) = record;
    estate.bind.by_hand(&format!("update add {name} 60 TXT {}", values[0])).await?;
    estate.wait_for("Ready", "True", "Ready").await?;
    estate.wait_for("DNSVerified", "True", "Verified").await?;

    // Many looks later it has been asked nothing more.
    let asked = server.requests();
    let looks = process.metric("packetboat_operator_reconcile_seconds_count").await?;
    let looked = async || {
        process.metric("packetboat_operator_reconcile_seconds_count").await.is_ok_and(|now| now > looks + 3.0)
    };
    wait::until_true("some more looks", STEP, looked).await?;
    ensure!(server.requests() == asked, "{} requests more", server.requests() - asked);
    ensure!(!process.log().contains("key-of-a-test"), "an access key is in the log");
    Ok(())
}
