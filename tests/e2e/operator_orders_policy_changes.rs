//! An MTA-STS policy from testing over enforce and another MX to its end. Somebody looks from outside all the time:
//! no id is shown whose policy is not served, and no enforced policy forbids a host that MX names.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use packetboat_tests::estate::STEP;
use packetboat_tests::policies::PolicyEstate;
use packetboat_tests::senders::{Look, Senders};
use serde_json::json;
use testkit::wait;

/// Seconds that senders remember a policy.
const MAX_AGE: u64 = 15;

/// Waits until something is seen from outside; nothing wrong may be seen meanwhile.
async fn wait_for(
    world: &PolicyEstate,
    senders: &Senders,
    what: &str,
    holds: impl Fn(&Look) -> bool,
) -> Result<()> {
    let seen = async || senders.check().is_err() || senders.last().is_some_and(|look| holds(&look));
    let outcome = wait::until_true(what, STEP, seen).await;
    senders.check()?;
    if let Err(error) = outcome {
        let status = world.estate.read().await?["status"].clone();
        return Err(error.context(format!("{:#?}\n{status:#}\n{}", senders.last(), world.memory().await?)));
    }
    Ok(())
}

fn mode_is(look: &Look, mode: &str) -> bool {
    look.served.as_ref().is_some_and(|served| {
        served.mode == mode && look.telling == 2 && look.ids.iter().all(|id| served.is_told_by(id))
    })
}

fn mx_is(look: &Look, host: &str) -> bool {
    look.mx.len() == 1 && look.mx.contains(host)
}

fn covers_just(look: &Look, hosts: &[&str]) -> bool {
    look.served.as_ref().is_some_and(|served| served.mx.iter().map(String::as_str).eq(hosts.iter().copied()))
}

#[tokio::test(flavor = "multi_thread")]
async fn from_testing_to_the_end_no_sender_is_kept_from_delivering() -> Result<()> {
    let world = PolicyEstate::new().await?;
    let estate = &world.estate;
    let servers = [estate.bind.primary(), estate.bind.secondary()];
    let senders = Senders::look(&servers, world.web, &world.authority.certificate());
    let mut operator = world.operator().await?;

    // While nobody serves the policy its id is not published.
    let testing = format!("{{mode: testing, maxAge: {MAX_AGE}}}");
    estate.api.apply(&world.mail_domain(&testing, "mx.example.test", "Manage")).await?;
    estate.wait_for("MTASTSReady", "False", "PolicyUnreachable").await?;
    wait_for(&world, &senders, "MX to be published", |look| mx_is(look, "mx.example.test")).await?;
    ensure!(senders.last().is_some_and(|look| look.ids.is_empty()), "{:?}", senders.last());
    let server = world.server().await?;
    wait_for(&world, &senders, "the policy to be announced", |look| mode_is(look, "testing")).await?;
    estate.wait_for("MTASTSReady", "True", "PolicyServed").await?;

    world.patch(json!({"mtaSts": {"mode": "enforce"}})).await?;
    wait_for(&world, &senders, "the policy to be enforced", |look| mode_is(look, "enforce")).await?;
    estate.wait_for("MTASTSReady", "True", "PolicyServed").await?;

    // Another host; meanwhile the status is erased, and the operator killed.
    world.patch(json!({"mx": [{"host": "mx2.example.test", "preference": 10}]})).await?;
    let both = ["mx.example.test", "mx2.example.test"];
    wait_for(&world, &senders, "both hosts to be in the policy", |look| covers_just(look, &both)).await?;
    let erase = ["-n", "mail", "patch", "mdom", "example", "--subresource=status", "--type=merge"];
    estate.api.kubectl(&[&erase[..], &["-p", "{\"status\":null}"]].concat(), None).await?;
    operator.kill9().await?;
    operator = world.operator().await?;
    wait_for(&world, &senders, "MX to name the other host", |look| mx_is(look, "mx2.example.test")).await?;
    let narrow = |look: &Look| mode_is(look, "enforce") && covers_just(look, &["mx2.example.test"]);
    wait_for(&world, &senders, "the policy to leave the first host out", narrow).await?;
    let before = senders.last_of(|look| look.mx.contains("mx.example.test")).context("the first host")?;
    let union = senders.last_of(|look| covers_just(look, &both)).context("both hosts")?;
    ensure!(union.at > before.at, "the policy was narrowed while MX named the first host");

    // A host whose certificate senders refuse does not come into MX while the policy is enforced.
    let mx =
        |hosts: &[&str]| hosts.iter().map(|host| json!({"host": host, "preference": 10})).collect::<Vec<_>>();
    world.patch(json!({"mx": mx(&["mx2.example.test", "mx3.example.test"])})).await?;
    estate.wait_for("MTASTSReady", "False", "MXHeldBack").await?;
    ensure!(senders.last().is_some_and(|look| mx_is(&look, "mx2.example.test")), "{:?}", senders.last());
    world.patch(json!({"mx": mx(&["mx2.example.test"])})).await?;
    wait_for(&world, &senders, "the policy to leave it out again", narrow).await?;
    estate.wait_for("MTASTSReady", "True", "PolicyServed").await?;

    // Wanted no more, it says none for as long as senders may remember what it said before.
    world.patch(json!({"mtaSts": null})).await?;
    wait_for(&world, &senders, "the policy to say none", |look| mode_is(look, "none")).await?;
    estate.wait_for("MTASTSReady", "False", "Withdrawing").await?;
    wait_for(&world, &senders, "the record to go", |look| look.telling == 0).await?;
    let enforced = |look: &Look| look.served.as_ref().is_some_and(|served| served.mode == "enforce");
    let enforced = senders.last_of(enforced).context("an enforced policy")?.at;
    let gone = senders.last().context("a look")?.at;
    ensure!(
        gone.duration_since(enforced) >= Duration::from_secs(MAX_AGE),
        "it went after {:?}",
        gone - enforced
    );
    wait_for(&world, &senders, "the policy to be served no more", |look| look.served.is_none()).await?;
    ensure!(world.memory().await?.is_empty(), "a memory is left");
    let conditions = estate.read().await?["status"]["conditions"].to_string();
    ensure!(!conditions.contains("MTASTSReady"), "{conditions}");

    let modes: Vec<String> = senders.served().into_iter().map(|served| served.mode).collect();
    ensure!(modes == ["testing", "enforce", "enforce", "enforce", "enforce", "enforce", "none"], "{modes:?}");
    let events = estate.api.kubectl(&["-n", "mail", "get", "events"], None).await?;
    for reason in ["PolicyChanged", "PolicyAnnounced", "PolicyWithdrawn", "PolicyUnreachable"] {
        ensure!(events.contains(reason), "{reason} in {events}");
    }
    for process in [&operator, &server] {
        ensure!(!process.log().contains("panicked"), "{}", process.log());
    }
    ensure!(server.metric("packetboat_mta_sts_requests_total").await? > 10.0);
    senders.check()
}
