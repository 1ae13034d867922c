//! What keeps a policy from being enforced, and what is wrong with one that is: each is told, and nothing follows
//! that would keep senders from delivering.

use anyhow::{Context, Result, ensure};
use packetboat_tests::estate::{DOMAIN, STEP};
use packetboat_tests::policies::PolicyEstate;
use serde_json::json;
use testkit::bind::Serving;
use testkit::process::Role;
use testkit::wait;

/// What the status says that is to be served.
async fn served(world: &PolicyEstate) -> Result<String> {
    let domain = world.estate.read().await?;
    Ok(domain["status"]["mtaSts"]["policy"].as_str().context("no policy in the status")?.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn enforce_waits_for_what_speaks_against_it() -> Result<()> {
    let world = PolicyEstate::new().await?;
    let estate = &world.estate;
    let mut operator = world.operator().await?;
    let mut server = world.server().await?;

    // MX, which a person looks after, names a host that is not declared.
    estate.bind.by_hand(&format!("update add {DOMAIN} 2 MX 10 old.example.test.")).await?;
    let enforce = "{mode: enforce, maxAge: 15}";
    estate.api.apply(&world.mail_domain(enforce, "mx.example.test", "Verify")).await?;
    estate.wait_for("MTASTSReady", "False", "EnforceHeldBack").await?;
    ensure!(served(&world).await?.contains("mode: testing"), "{}", served(&world).await?);
    let id = estate.record("TXT", &format!("_mta-sts.{DOMAIN}")).await?;

    // Now it names the declared one; but one of the declared hosts shows a certificate of another name.
    let mx =
        |hosts: &[&str]| hosts.iter().map(|host| json!({"host": host, "preference": 10})).collect::<Vec<_>>();
    world.patch(json!({"mx": mx(&["mx.example.test", "mx3.example.test"])})).await?;
    let change = format!("update delete {DOMAIN} MX\nupdate add {DOMAIN} 2 MX 10 mx.example.test.");
    estate.bind.by_hand(&change).await?;
    let told = async || {
        let domain = estate.read().await.unwrap_or_default().to_string();
        domain.contains("the certificate of mx3.example.test is not trusted")
    };
    wait::until_true("the certificate to be told", STEP, told).await?;
    estate.wait_for("MTASTSReady", "False", "EnforceHeldBack").await?;
    world.patch(json!({"mx": mx(&["mx.example.test"])})).await?;
    estate.wait_for("MTASTSReady", "True", "PolicyServed").await?;
    ensure!(served(&world).await?.contains("mode: enforce"));
    ensure!(estate.record("TXT", &format!("_mta-sts.{DOMAIN}")).await? != id, "another policy, the same id");

    // Enforced, it stays so, whatever MX names; and that is told.
    estate.bind.by_hand(&format!("update add {DOMAIN} 2 MX 20 old.example.test.")).await?;
    estate.wait_for("MTASTSReady", "False", "MXNotCovered").await?;
    ensure!(
        served(&world).await?.contains("mode: enforce") && !served(&world).await?.contains("old.example")
    );
    estate.bind.by_hand(&format!("update delete {DOMAIN} MX 20 old.example.test.")).await?;
    estate.wait_for("MTASTSReady", "True", "PolicyServed").await?;

    // The certificate of the mail exchanger becomes another's.
    world.authority.issue("mx", &["other.example.test"])?;
    operator.terminate().await?;
    operator = world.operator().await?;
    estate.wait_for("MTASTSReady", "False", "CertificateInvalid").await?;
    world.authority.issue("mx", &["mx.example.test"])?;
    estate.wait_for("MTASTSReady", "True", "PolicyServed").await?;

    // Somebody serves another policy, and then one under a certificate that nobody trusts.
    server.terminate().await?;
    let mut settings = estate.site.settings(Role::MtaSts)?;
    let spec = "mtaSts: {mode: testing, maxAge: 86400}\nmx: [{host: mx.example.test, preference: 10}]\n";
    estate.site.domain(DOMAIN, spec)?;
    let serve = |name: &str| {
        format!(
            "mta_sts: {{listen: \"{}\", certificates: [{{certificate: {name}.pem, key: {name}.key}}]}}\n",
            world.web
        )
    };
    settings.extra = serve("policies");
    server = estate.site.start(&settings).await?;
    estate.wait_for("MTASTSReady", "False", "PolicyMismatch").await?;
    server.terminate().await?;
    settings.extra = serve("other");
    server = estate.site.start(&settings).await?;
    estate.wait_for("MTASTSReady", "False", "PolicyUnreachable").await?;
    let message = estate.read().await?["status"]["conditions"].to_string();
    ensure!(message.contains("certificate"), "{message}");
    ensure!(!operator.log().contains("panicked") && !server.log().contains("panicked"), "{}", operator.log());

    // The MailDomain goes, with its record; whoever deletes it is told what senders will do.
    estate.api.kubectl(&["-n", "mail", "delete", "mdom", "example", "--timeout=60s"], None).await?;
    let events = estate.api.kubectl(&["-n", "mail", "get", "events"], None).await?;
    ensure!(events.contains("PolicyRemembered"), "{events}");
    Ok(())
}

/// Seconds by which the secondary lags: longer than it takes to look at the status.
const LAG: u32 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_told_to_be_served_only_when_every_name_server_says_so() -> Result<()> {
    let mut world = PolicyEstate::lagging(LAG).await?;
    let operator = world.operator().await?;
    let server = world.server().await?;
    let record = format!("_mta-sts.{DOMAIN}");
    let testing = "{mode: testing, maxAge: 15}";
    world.estate.api.apply(&world.mail_domain(testing, "mx.example.test", "Manage")).await?;

    // The primary has the record, and the secondary not yet.
    let announced = async || {
        let bind = &world.estate.bind;
        bind.texts(bind.primary(), &record).await.is_ok_and(|texts| !texts.is_empty())
    };
    wait::until_true("the policy to be announced", STEP, announced).await?;
    let bind = &world.estate.bind;
    ensure!(bind.texts(bind.secondary(), &record).await?.is_empty(), "the secondary does not lag");
    world.estate.wait_for("MTASTSReady", "False", "WaitingForPropagation").await?;
    world.estate.wait_for("MTASTSReady", "True", "PolicyServed").await?;
    let bind = &world.estate.bind;
    ensure!(!bind.texts(bind.secondary(), &record).await?.is_empty(), "the secondary was not waited for");
    let policy = served(&world).await?;

    // A server that does not answer says neither that the record is there, nor that it is not.
    world.estate.bind.secondary_serves(Serving::Failing).await?;
    world.estate.wait_for("MTASTSReady", "Unknown", "LookupFailed").await?;
    ensure!(served(&world).await? == policy, "nothing follows from silence");
    world.estate.bind.secondary_serves(Serving::Well).await?;
    world.estate.wait_for("MTASTSReady", "True", "PolicyServed").await?;
    ensure!(!operator.log().contains("panicked") && !server.log().contains("panicked"), "{}", operator.log());
    Ok(())
}
