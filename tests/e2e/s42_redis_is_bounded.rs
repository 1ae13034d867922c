//! S-42: the Redis that the chart brings lets in the delivery service alone, for what it needs and nothing else; and
//! what stands in its pod is not the password.

use anyhow::{Context, Result, ensure};
use packetboat_tests::chart::{objects, render};
use packetboat_tests::cluster::Row;
use packetboat_tests::world::{ARRIVAL, FRIEND, HOSTED, World, at};
use serde_json::Value;
use testkit::redis::RedisServer;
use testkit::smtp::Client;
use tokio::process::Command;

const PASSWORD: &str = "sesame";
/// Of [`PASSWORD`].
const SHA256: &str = "d0c04f4b1951e4aeaaec8223ed2039e542f3aae805a6fa7f6d794e5afff5d272";

/// The arguments of the rendered `redis-server`, but for where it listens and keeps its data.
async fn arguments() -> Result<Vec<String>> {
    let rendered = objects(&render("small-values.yaml", &["--show-only", "templates/redis.yaml"]).await?)?;
    let set = rendered.iter().find(|object| object["kind"] == "StatefulSet").context("no StatefulSet")?;
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    ensure!(container["command"] == serde_json::json!(["redis-server"]));
    ensure!(container["env"].as_array().is_some_and(|all| all.len() == 1), "{}", container["env"]);
    let mut words = container["args"].as_array().context("no arguments")?.iter().filter_map(Value::as_str);
    let mut arguments = Vec::new();
    while let Some(word) = words.next() {
        if ["--bind", "--dir"].contains(&word) {
            words.next();
        } else {
            arguments.push(word.replace("$(PASSWORD_SHA256)", SHA256));
        }
    }
    Ok(arguments)
}

/// What the server says to a command of a user; without one, of nobody.
async fn say(redis: &RedisServer, user: Option<(&str, &str)>, command: &[&str]) -> Result<String> {
    let mut cli = Command::new("redis-cli");
    cli.args(["-h", "127.0.0.1", "-p", &redis.address().port().to_string(), "--no-auth-warning"]);
    if let Some((user, password)) = user {
        cli.args(["--user", user, "-a", password]);
    }
    let output = cli.args(command).output().await?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn delivery_alone_and_no_more_than_it_needs() -> Result<()> {
    let arguments = arguments().await?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let redis = RedisServer::start_as(["redis-server"], &arguments).await?;

    for nobody in [None, Some(("default", PASSWORD)), Some(("delivery", "wrong"))] {
        let told = say(&redis, nobody, &["GET", "{q:0}:x"]).await?;
        ensure!(told.contains("NOAUTH"), "{nobody:?}: {told}");
    }
    let delivery = Some(("delivery", PASSWORD));
    ensure!(say(&redis, delivery, &["PING"]).await?.contains("PONG"));
    for command in [
        &["FLUSHALL"][..],
        &["FLUSHDB"],
        &["KEYS", "*"],
        &["SCAN", "0"],
        &["CONFIG", "SET", "appendfsync", "no"],
        &["ACL", "LIST"],
        &["MONITOR"],
        &["SHUTDOWN", "NOSAVE"],
        &["REPLICAOF", "NO", "ONE"],
        &["EVAL", "return 1", "0"],
        &["SUBSCRIBE", "all"],
        &["GET", "session:of:another"],
        &["SET", "other", "1"],
    ] {
        let told = say(&redis, delivery, command).await?;
        ensure!(told.contains("NOPERM") || told.contains("no permissions"), "{command:?}: {told}");
    }
    let kept = say(&redis, delivery, &["CONFIG", "GET", "appendfsync"]).await?;
    ensure!(kept.contains("always"), "{kept}");
    let kept = say(&redis, delivery, &["CONFIG", "GET", "maxmemory-policy"]).await?;
    ensure!(kept.contains("noeviction"), "{kept}");

    // With these rights mail goes through, by processes of their own.
    let world = World::new().await?;
    let url = redis.url().replace("redis://", &format!("redis://delivery:{PASSWORD}@"));
    let row = Row::start(&world, &redis, "a", &|settings: &mut testkit::process::Settings| {
        settings.redis = Some(url.clone());
    })
    .await?;
    let message = world.friendly_message("bounded").await?;
    let reply =
        Client::deliver(row.edge.0.mx, &at("dave", FRIEND), &[&at("alice", HOSTED)], &message).await?;
    ensure!(reply.code == 250, "{reply}");
    world.mailbox("alice").wait_for("bounded", ARRIVAL).await?;
    Ok(())
}
