//! `packetboat queue` lists, shows, retries and removes what waits.

use anyhow::{Context, Result, ensure};
use packetboat_tests::world::{ARRIVAL, HOSTED, REMOTE, World, at, queue_id, submit};
use testkit::corpus::Message;
use testkit::process::Settings;
use testkit::smtp::{Sink, Verb};
use testkit::wait;

/// What a `queue` command prints; it must succeed.
async fn queue(world: &World, settings: &Settings, arguments: &[&str]) -> Result<String> {
    let output = world.site.run(settings, &[&["queue"], arguments].concat()).await?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "queue {arguments:?}: {error}");
    String::from_utf8(output.stdout).context("reading what queue printed")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_can_be_held_released_and_returned() -> Result<()> {
    let world = World::new().await?;
    let sink = Sink::smtp().await?;
    sink.reply(Verb::Rcpt, "450 4.2.0 not now");
    let port = sink.address().port();
    let (settings, process) = world.start_all(|settings| settings.outbound_port = port).await?;
    let (alice, carol) = (at("alice", HOSTED), at("carol", REMOTE));
    let mut ids = Vec::new();
    for name in ["kept", "returned"] {
        let reply = submit(&settings, &[&carol], &Message::new(&alice, &carol, name).text()).await?;
        ids.push(queue_id(&reply)?);
        queue(&world, &settings, &["hold", ids.last().context("an id")?, "--why", "looks odd"]).await?;
    }
    let held = async || {
        let listed = queue(&world, &settings, &["list", "--state", "held"]).await.unwrap_or_default();
        ids.iter().all(|id| listed.contains(id)) && listed.contains("held: looks odd")
    };
    wait::until_true("both to be held", ARRIVAL, held).await?;
    sink.behave();

    queue(&world, &settings, &["bounce", &ids[1], "--why", "it was a mistake"]).await?;
    let bounce = world.mailbox("alice").wait_for("it was a mistake", ARRIVAL).await?;
    ensure!(bounce.contains("carol@remote.test") && bounce.contains("Status: 5.0.0"), "{bounce}");
    ensure!(sink.count() == 0, "what is held is not sent");
    queue(&world, &settings, &["release", &ids[0]]).await?;
    sink.wait_for("kept", ARRIVAL).await?;
    ensure!(sink.count() == 1, "what was returned is not sent");

    let settled = async || {
        let told = queue(&world, &settings, &["account"]).await.unwrap_or_default();
        told.contains("accepted   3\ndelivered  2\nbounced    1\n") && told.contains("accounted for.")
    };
    wait::until_true("the account to be closed", ARRIVAL, settled).await?;
    ensure!(process.metric("mail_unaccounted_messages").await? == 0.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_can_be_worked_on() -> Result<()> {
    let world = World::new().await?;
    let sink = Sink::smtp().await?;
    sink.reply(Verb::Rcpt, "450 4.2.0 the mailbox is being moved");
    let port = sink.address().port();
    let adjust = |settings: &mut Settings| {
        settings.outbound_port = port;
        settings.retry_initial = "10m";
        settings.retry_max_age = "1h";
    };
    let (settings, _process) = world.start_all(adjust).await?;
    let (alice, carol) = (at("alice", HOSTED), at("carol", REMOTE));

    let mut ids = Vec::new();
    for name in ["first", "second"] {
        let reply = submit(&settings, &[&carol], &Message::new(&alice, &carol, name).text()).await?;
        ensure!(reply.code == 250, "{reply}");
        ids.push(queue_id(&reply)?);
    }
    let deferred = async || {
        let shown = queue(&world, &settings, &["show", &ids[1]]).await.ok()?;
        shown.contains("being moved").then_some(shown)
    };
    let shown = wait::until("the deferral in queue show", ARRIVAL, deferred).await?;
    ensure!(shown.contains("carol@remote.test") && shown.contains(&ids[1]), "{shown}");
    let listed = queue(&world, &settings, &["list"]).await?;
    ensure!(ids.iter().all(|id| listed.contains(id)), "{listed}");

    queue(&world, &settings, &["remove", &ids[0]]).await?;
    let listed = queue(&world, &settings, &["list"]).await?;
    ensure!(!listed.contains(&ids[0]) && listed.contains(&ids[1]), "{listed}");

    sink.behave();
    queue(&world, &settings, &["retry", &ids[1]]).await?;
    sink.wait_for("second", ARRIVAL).await?;
    ensure!(sink.count() == 1, "what was removed is not sent");
    wait::until_true("an empty queue", ARRIVAL, async || {
        queue(&world, &settings, &["list"]).await.is_ok_and(|listed| !listed.contains(&ids[1]))
    })
    .await?;

    let missing = world.site.run(&settings, &["queue", "show", &ids[0]]).await?;
    ensure!(!missing.status.success(), "a message that is not there is an error");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_entries_are_worked_on_at_once() -> Result<()> {
    let world = World::new().await?;
    let sink = Sink::smtp().await?;
    let port = sink.address().port();
    let (settings, _process) = world.start_all(|settings| settings.outbound_port = port).await?;
    let run = async |arguments: &[&str]| queue(&world, &settings, arguments).await;
    let (alice, carol) = (at("alice", HOSTED), at("carol", REMOTE));
    let hop = format!("mx:{REMOTE}");

    run(&["suspend", "--next-hop", &hop, "--why", "they asked us to"]).await?;
    let listed = run(&["suspensions"]).await?;
    ensure!(listed.contains(&hop) && listed.contains("they asked us to"), "{listed}");
    run(&["events", "--reader", "test", "--once"]).await?;
    for name in ["one", "two", "three"] {
        submit(&settings, &[&carol], &Message::new(&alice, &carol, name).text()).await?;
    }
    let bulk = run(&["bulk", "hold", "--tenant", HOSTED, "--why", "looks odd"]).await?;
    ensure!(bulk.contains("done: 3 entries found, 3 changed"), "{bulk}");
    let none = run(&["bulk", "release", "--next-hop", "mx:elsewhere.test"]).await?;
    ensure!(none.contains("done: 0 entries found"), "{none}");
    ensure!(run(&["list", "--domain", REMOTE, "--state", "held"]).await?.matches("looks odd").count() == 3);
    ensure!(run(&["list", "--older-than", "1h"]).await?.contains("empty"));
    let audit = run(&["audit"]).await?;
    ensure!(audit.contains("Nothing is odd, and every entry is accounted for."), "{audit}");
    ensure!(sink.count() == 0, "what is suspended is not sent");

    run(&["bulk", "release", "--state", "held"]).await?;
    let resumed = run(&["resume", "--next-hop", &hop]).await?;
    ensure!(resumed.contains("goes on"), "{resumed}");
    for name in ["one", "two", "three"] {
        sink.wait_for(name, ARRIVAL).await?;
    }
    let mut told = String::new();
    let all_told = async || {
        told += &run(&["events", "--reader", "test", "--once"]).await.unwrap_or_default();
        told.matches(" delivered").count() == 3
    };
    wait::until_true("the events to tell of three deliveries", ARRIVAL, all_told).await?;
    ensure!(run(&["events", "--reader", "test", "--forget"]).await?.contains("nothing is kept"));
    let verbs = run(&["verbs"]).await?;
    for done in ["suspend", "resume", "hold", "release", "they asked us to", "state=held"] {
        ensure!(verbs.contains(done), "{done} in {verbs}");
    }
    Ok(())
}
