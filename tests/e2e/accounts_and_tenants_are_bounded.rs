//! What the chart's service accounts may do, asked with their own tokens of a real API server and tried; what tenants
//! may do to each other; and how far the operator's hand reaches in DNS.

use anyhow::{Result, ensure};
use packetboat_tests::accounts::{self, kubeconfig};
use packetboat_tests::estate::{DOMAIN, Estate, STEP};
use serde_json::Value;
use testkit::bind::SECRET;
use testkit::kubernetes::kubectl;
use testkit::process::{Packetboat, Role, Settings};
use testkit::wait;

const KEYS: &str = "\
\x20 dkim: {algorithms: [rsa-sha256], rotation: {interval: 1h, minPropagation: 1s, retireAfter: 3s, revokeFor: 3s}}
  dmarc: {policy: reject}";

/// The values that have the chart make every account there is.
const ALL: [&str; 3] = ["domains.usersSecrets={users}", "mtaSts.enabled=true", "mtaSts.plain=true"];

/// What an account is told when it does something in the namespace.
async fn does(
    estate: &Estate,
    role: &str,
    arguments: &[&str],
) -> Result<std::result::Result<String, String>> {
    let kubeconfig = kubeconfig(&estate.api, role).await?;
    let outcome = kubectl(&kubeconfig, &[&["-n", "mail"], arguments].concat(), None).await;
    Ok(outcome.map_err(|error| format!("{error:#}")))
}

/// It is refused by the API server: not for another reason.
async fn refused(estate: &Estate, role: &str, arguments: &[&str]) -> Result<()> {
    let told = does(estate, role, arguments).await?;
    let forbidden = |error: &String| error.contains("Forbidden") || error.contains("forbidden");
    ensure!(told.as_ref().is_err_and(forbidden), "{role}: {arguments:?}: {told:?}");
    Ok(())
}

/// It is allowed.
async fn allowed(estate: &Estate, role: &str, arguments: &[&str]) -> Result<String> {
    let told = does(estate, role, arguments).await?;
    told.map_err(|error| anyhow::anyhow!("{role}: {arguments:?}: {error}"))
}

async fn estate_with_accounts() -> Result<Estate> {
    let estate = Estate::new().await?;
    accounts::make(&estate.api, &ALL).await?;
    estate.mail(&["create", "secret", "generic", "users", "--from-literal=alice=x"]).await?;
    Ok(estate)
}

#[tokio::test(flavor = "multi_thread")]
async fn private_keys_are_read_by_the_verifier_alone() -> Result<()> {
    let estate = estate_with_accounts().await?;
    let (_, operator) = estate.operator().await?;
    estate.api.apply(&estate.mail_domain(KEYS)).await?;
    estate.wait_for("Ready", "True", "Ready").await?;
    let key = estate.key_secrets().await?.concat().replace("secret/", "");
    for role in ["edge", "delivery", "mta-sts"] {
        refused(&estate, role, &["get", "secret", &key]).await?;
        refused(&estate, role, &["get", "secret", "tsig"]).await?;
        refused(&estate, role, &["get", "secrets"]).await?;
        refused(&estate, role, &["get", "secrets", "-l", "mail.packetboat.dev/dkim-selector"]).await?;
        refused(&estate, role, &["get", "secrets", "--all-namespaces"]).await?;
    }
    allowed(&estate, "edge", &["get", "secret", "users"]).await?;
    for role in ["delivery", "mta-sts"] {
        refused(&estate, role, &["get", "secret", "users"]).await?;
    }
    allowed(&estate, "verifier", &["get", "secret", &key]).await?;
    for verb in [["delete", "secret", &key], ["label", "secret", &key]] {
        let arguments = if verb[0] == "label" { [&verb[..], &["a=b"]].concat() } else { verb.to_vec() };
        refused(&estate, "verifier", &arguments).await?;
    }
    refused(&estate, "verifier", &["create", "secret", "generic", "other"]).await?;
    refused(&estate, "verifier", &["get", "secrets", "--all-namespaces"]).await?;

    // It is immutable: even who may write Secrets cannot exchange it in place.
    let patch = "{\"data\":{\"tls.key\":\"eA==\"}}";
    let exchanged = estate.mail(&["patch", "secret", &key, "--type=merge", "-p", patch]).await;
    ensure!(exchanged.is_err_and(|error| format!("{error:#}").contains("immutable")));
    let log = operator.log();
    ensure!(!log.contains("PRIVATE KEY") && !log.contains(SECRET), "a secret is in the log");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_may_do_what_they_need_and_no_more() -> Result<()> {
    let estate = estate_with_accounts().await?;
    for role in accounts::objects(&["Role", "ClusterRole"], &ALL).await? {
        let rules = role["rules"].to_string();
        for word in ["\"*\"", "escalate", "impersonate", "\"bind\""] {
            ensure!(!rules.contains(word), "{word} stands in {role}");
        }
    }
    let wide = accounts::objects(&["ClusterRoleBinding"], &ALL).await?;
    ensure!(wide.is_empty(), "more than the namespace: {wide:?}");
    estate.api.apply(&estate.mail_domain("")).await?;
    for role in ["edge", "verifier", "delivery", "mta-sts", "operator"] {
        allowed(&estate, role, &["get", "mdom", "example"]).await?;
        let forbidden: [&[&str]; 9] = [
            &["get", "pods"],
            &["get", "nodes"],
            &["get", "serviceaccounts"],
            &["create", "token", "mail-packetboat-verifier"],
            &["get", "mdom", "--all-namespaces"],
            &["-n", "default", "get", "secrets"],
            &["delete", "mdom", "example"],
            &["create", "rolebinding", "more", "--role=mail-packetboat-verifier", "--user=x"],
            &["get", "crds"],
        ];
        for arguments in forbidden {
            refused(&estate, role, arguments).await?;
        }
    }
    for role in ["edge", "verifier", "delivery", "mta-sts"] {
        refused(&estate, role, &["annotate", "mdom", "example", "a=b"]).await?;
        let status =
            ["patch", "mdom", "example", "--subresource=status", "--type=merge", "-p", "{\"status\":null}"];
        refused(&estate, role, &status).await?;
        refused(&estate, role, &["get", "configmaps"]).await?;
        refused(&estate, role, &["create", "configmap", "any"]).await?;
        refused(&estate, role, &["get", "lease", accounts::LEASE]).await?;
    }
    refused(&estate, "operator", &["get", "lease", "other"]).await?;
    refused(
        &estate,
        "operator",
        &["patch", "crd", "maildomains.mail.packetboat.dev", "--type=merge", "-p", "{}"],
    )
    .await?;

    // And with that, they work: the operator brings a domain to its end by its own account.
    let (_, operator) = operator_by_its_account(&estate).await?;
    estate.api.apply(&estate.mail_domain(KEYS)).await?;
    let ready = estate.wait_for("Ready", "True", "Ready").await;
    ensure!(ready.is_ok(), "{ready:?}: {}", operator.log());
    ensure!(!operator.log().contains("orbidden"), "it asks for more than it may:\n{}", operator.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_cannot_take_what_is_anothers() -> Result<()> {
    let estate = Estate::new().await?;
    let (_, operator) = estate.operator().await?;
    estate.api.apply(&estate.mail_domain(KEYS)).await?;
    estate.wait_for("Ready", "True", "Ready").await?;
    let signing = estate.active().await?;
    estate.api.kubectl(&["create", "namespace", "rival"], None).await?;
    let secret = format!("--from-literal=secret={SECRET}");
    estate.api.kubectl(&["-n", "rival", "create", "secret", "generic", "tsig", &secret], None).await?;

    // The same domain, with a Secret that says it is a key of the domain: it changes nothing, and nothing of it goes.
    let claim = estate
        .mail_domain(&format!("{KEYS}\n  deletionPolicy: Delete"))
        .replace("namespace: mail", "namespace: rival");
    estate.api.apply(&claim).await?;
    let forged = format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: forged\n  namespace: rival\n  labels: {{mail.packetboat.dev/dkim-selector: forged}}\n  \
         annotations: {{mail.packetboat.dev/domain: {DOMAIN}, mail.packetboat.dev/stage: Active}}\nstringData: {{tls.key: x}}\n"
    );
    estate.api.apply(&forged).await?;
    let told = async || {
        let text = estate.api.kubectl(&["-n", "rival", "get", "mdom", "example", "-o", "yaml"], None).await;
        text.is_ok_and(|text| text.contains("reason: Conflict") && !text.contains("mail/example"))
    };
    wait::until_true("the claim to be refused", STEP, told).await?;
    estate.api.kubectl(&["-n", "rival", "delete", "mdom", "example", "--timeout=18s"], None).await?;
    estate.api.kubectl(&["-n", "rival", "get", "secret", "forged"], None).await?;
    estate.wait_for("Ready", "True", "Ready").await?;
    ensure!(estate.active().await? == signing, "something else signs");
    let record = estate.record("TXT", &format!("{}._domainkey.{DOMAIN}", signing.concat())).await?;
    ensure!(record.contains("v=DKIM1; k="), "{record}");

    ensure!(!operator.log().contains("panicked"), "{}", operator.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finalizer_never_hangs() -> Result<()> {
    let estate = estate_with_accounts().await?;
    let (_, operator) = operator_by_its_account(&estate).await?;
    let yaml = estate.mail_domain(&format!("{KEYS}\n  deletionPolicy: Delete"));

    // Without the way to withdraw its records the object goes, and it is told what is left.
    estate.api.apply(&yaml).await?;
    estate.wait_for("Ready", "True", "Ready").await?;
    estate.api.apply(&yaml.replace("{name: tsig}", "{name: lost}")).await?;
    estate.wait_for("Accepted", "False", "CredentialsMissing").await?;
    ensure!(estate.active().await?.len() == 1, "what signs is not told any more");
    estate.mail(&["delete", "mdom", "example", "--timeout=18s"]).await?;
    let events = estate.mail(&["get", "events"]).await?;
    ensure!(events.contains("RecordsLeft") && events.contains("remove them by hand"), "{events}");
    ensure!(estate.key_secrets().await?.is_empty(), "the keys are left");

    // Nor does it hang where the operator may not delete a key.
    estate.bind.by_hand(&format!("update delete _packetboat.{DOMAIN} TXT")).await?;
    estate.api.apply(&yaml).await?;
    estate.wait_for("Ready", "True", "Ready").await?;
    let role = estate.mail(&["get", "role", "mail-packetboat-operator", "-o", "json"]).await?;
    estate.api.apply(&without_deletion(&role)?).await?;
    estate.mail(&["delete", "mdom", "example", "--wait=false"]).await?;
    let gone = async || estate.mail(&["get", "mdom", "example"]).await.is_err();
    wait::until_true("the object to be let go", STEP * 2, gone).await?;
    let events = estate.mail(&["get", "events"]).await?;
    ensure!(events.contains("CleanUpFailed"), "{events}\n{}", operator.log());
    Ok(())
}

/// A role that may delete nothing.
fn without_deletion(role: &str) -> Result<String> {
    let mut role: Value = serde_json::from_str(role)?;
    let name = role["metadata"]["name"].clone();
    role["metadata"] = serde_json::json!({"name": name, "namespace": accounts::NAMESPACE});
    for rule in role["rules"].as_array_mut().into_iter().flatten() {
        if let Some(verbs) = rule["verbs"].as_array_mut() {
            verbs.retain(|verb| verb != "delete");
        }
    }
    Ok(role.to_string())
}

/// An operator with the token of the chart's account.
async fn operator_by_its_account(estate: &Estate) -> Result<(Settings, Packetboat)> {
    let mut settings = estate.site.settings(Role::Operator)?;
    settings.kubeconfig = Some(kubeconfig(&estate.api, "operator").await?);
    settings.namespaces = vec![accounts::NAMESPACE.to_owned()];
    let (lease, namespace) = (accounts::LEASE, accounts::NAMESPACE);
    settings.extra =
        format!("operator: {{lease_duration: 5s, lease_name: {lease}, lease_namespace: {namespace}}}\n");
    let operator = estate.site.start(&settings).await?;
    Ok((settings, operator))
}

#[tokio::test(flavor = "multi_thread")]
async fn in_dns_nothing_of_others_is_touched() -> Result<()> {
    let estate = Estate::new().await?;
    let (_, operator) = estate.operator().await?;
    let weak = estate.mail_domain("").replace("hmac-sha256", "hmac-md5");
    let told = estate.api.apply(&weak).await;
    ensure!(
        told.is_err_and(|error| format!("{error:#}").contains("hmac-sha256")),
        "a weak algorithm is taken"
    );

    // Of another Packetboat: the record says so, and it is left.
    let theirs = "packetboat owner=another";
    estate.bind.by_hand(&format!("update add _packetboat.{DOMAIN} 60 TXT \"{theirs}\"")).await?;
    estate.bind.by_hand(&format!("update add _dmarc.{DOMAIN} 60 TXT \"v=DMARC1; p=none\"")).await?;
    let yaml = estate
        .mail_domain(&format!("{KEYS}\n  deletionPolicy: Delete\n  spf: {{mechanisms: [mx], all: -all}}"));
    let yaml = yaml.replace("    rfc2136:", "    records: {spf: Manage}\n    rfc2136:");
    estate.api.apply(&yaml).await?;
    estate.wait_for("DNSPublished", "False", "PublishFailed").await?;
    let dmarc = estate.record("TXT", &format!("_dmarc.{DOMAIN}")).await?;
    ensure!(dmarc.contains("p=none"), "{dmarc}");
    ensure!(estate.active().await?.is_empty(), "it signs");

    // Given away by a person, it is taken over; texts of others at the apex stay where they are, to the end.
    estate.bind.by_hand(&format!("update delete _packetboat.{DOMAIN} TXT")).await?;
    estate.bind.by_hand(&format!("update add {DOMAIN} 60 TXT \"other-verification=1\"")).await?;
    estate.wait_for("Ready", "True", "Ready").await?;
    estate.wait_for("DNSVerified", "True", "Verified").await?;
    estate.mail(&["delete", "mdom", "example", "--timeout=18s"]).await?;
    let withdrawn = async || estate.record("TXT", DOMAIN).await.is_ok_and(|apex| !apex.contains("spf1"));
    wait::until_true("the records to be withdrawn", STEP, withdrawn).await?;
    let apex = estate.record("TXT", DOMAIN).await?;
    for text in ["google-site-verification=theirs", "other-verification=1"] {
        ensure!(apex.contains(text), "{text} is gone: {apex}");
    }
    ensure!(!operator.log().contains("panicked"), "{}", operator.log());
    Ok(())
}
