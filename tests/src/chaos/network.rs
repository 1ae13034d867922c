//! Networks that are slow, silent or lossy, and clocks that jump.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::corpus;
use testkit::ledger::Ledger;
use testkit::process::{Role, Settings};
use testkit::proxy::{Proxy, Weather};
use testkit::redis::RedisServer;
use testkit::smtp::Sink;
use testkit::wait;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::{LASTS, MESSAGES, Outcome, SETTLED, under_load};
use crate::cluster::Cluster;
use crate::load::{Load, collect};
use crate::world::{HOSTED, World, at};

/// The way to Redis takes two seconds each way, then nothing passes.
pub async fn redis_slow_then_black_hole() -> Result<Outcome> {
    let redis = RedisServer::start().await?;
    let proxy = Proxy::start(redis.address()).await?;
    let url = format!("redis://{}", proxy.address());
    under_load(
        redis,
        |settings: &mut Settings| settings.redis = Some(url.clone()),
        async |_, cluster, _| {
            for weather in [Weather::Slow(Duration::from_secs(2)), Weather::BlackHole, Weather::Broken] {
                proxy.set(weather);
                sleep(LASTS).await;
            }
            proxy.set(Weather::Fair);
            for row in &cluster.rows {
                for process in [&row.edge.1, &row.delivery.1] {
                    let peak = process.child().peak_memory()?;
                    ensure!(peak < MEMORY, "a process has had {peak} octets resident");
                }
            }
            Ok(())
        },
    )
    .await
}

/// What a service may have resident while it waits for a queue that does not answer, in octets. (It is about a
/// third of this, in a debug build.)
const MEMORY: u64 = 256 * 1024 * 1024;

/// The name servers fail, then are silent, then are well again. Nobody is refused for good.
pub async fn name_servers_fail() -> Result<Outcome> {
    under_load(
        RedisServer::start().await?,
        |_| {},
        async |world: &World, _, _| {
            for domain in [crate::world::PLAIN, crate::world::HOSTED] {
                world.dns.servfail(domain)?;
            }
            sleep(LASTS).await;
            world.dns.ignore_all();
            sleep(LASTS).await;
            world.dns.heal();
            Ok(())
        },
    )
    .await
}

/// Messages to each kind of name.
const OF_EACH: usize = 20;

/// For each of four next hops the name servers have another fault: they fail, are silent, deny the name, or
/// answer in full over TCP alone. What is denied bounces, the others arrive; none of them twice.
pub async fn name_servers_answer_wrongly() -> Result<Outcome> {
    let (world, sink) = (World::new().await?, Sink::smtp().await?);
    let names = ["fails", "silent", "denied", "truncated"];
    for name in names {
        world.dns.add(&format!(
            "{name}.test. 300 IN MX 10 mx.{name}.test.\nmx.{name}.test. 300 IN A 127.0.0.1\n"
        ))?;
    }
    let aliases: Vec<String> = names.iter().map(|name| format!("{name}: [user@{name}.test]")).collect();
    world.host(
        &format!("recipients: {{mode: List, addresses: [alice], aliases: {{{}}}}}", aliases.join(", ")),
        "{maildir: {path: mail}}",
    )?;
    let port = sink.address().port();
    let cluster = Cluster::start(&world, |settings| settings.outbound_port = port).await?;
    world.dns.servfail("fails.test")?;
    world.dns.ignore("silent.test")?;
    world.dns.deny("denied.test")?;
    world.dns.truncate("truncated.test")?;
    let (ledger, alice) = (Arc::new(Ledger::new()), at("alice", HOSTED));
    for (number, name) in names.iter().enumerate() {
        let targets = [cluster.rows[0].edge.0.mx, cluster.rows[1].edge.0.mx];
        let load = Load::of_500(&targets, &alice, &at(name, HOSTED));
        Load { messages: OF_EACH, first: number * OF_EACH, ..load }.start(&ledger).finish().await?;
    }
    let (nowhere, bounces) = (world.mailbox("nobody"), world.mailbox("alice"));
    let wait_for = async |what: &str, arrived: usize, bounced: usize| {
        wait::until_true(what, SETTLED, async || {
            ledger.forget_arrivals();
            sink.received()
                .iter()
                .filter_map(|one| corpus::id_of(&one.message))
                .for_each(|id| ledger.arrived(id));
            let Ok(balance) = collect(&ledger, &nowhere, &bounces) else { return false };
            (balance.arrived, balance.bounced) == (arrived, bounced)
        })
        .await
    };
    wait_for("the denied to bounce, and the truncated to arrive", OF_EACH, OF_EACH).await?;
    world.dns.heal();
    wait_for("the others to arrive", 3 * OF_EACH, OF_EACH).await?;
    let note =
        "NXDOMAIN bounced, a truncated answer was asked for again over TCP, the others waited".to_owned();
    Ok(Outcome { note, ..(ledger.balance(), Duration::ZERO).into() })
}

/// In a network of its own: for a while one packet in three to and from Redis is lost.
pub async fn packets_lost() -> Result<Outcome> {
    let redis = RedisServer::start().await?;
    let port = redis.address().port();
    let outcome = under_load(redis, |_| {}, async |_, _, _| {
        let lossy = format!(
            "table inet chaos {{\n chain in {{\n type filter hook input priority 0\n \
             tcp dport {port} numgen random mod 3 == 0 drop\n tcp sport {port} numgen random mod 3 == 0 drop\n }}\n}}\n"
        );
        nft(&lossy).await?;
        sleep(loss_lasts()?).await;
        nft("delete table inet chaos").await
    })
    .await?;
    // Mail that is here once is tried once: nobody tries harder for not being heard.
    let most = (outcome.accepted + outcome.duplicated) * 11 / 10;
    ensure!(
        (outcome.accepted..=most).contains(&outcome.attempts),
        "{} attempts: {outcome}",
        outcome.attempts
    );
    Ok(outcome)
}

/// `LOSS_SECONDS` of the environment; half a minute without it.
fn loss_lasts() -> Result<Duration> {
    let text = std::env::var("LOSS_SECONDS").unwrap_or_else(|_| "30".to_owned());
    Ok(Duration::from_secs(text.parse().context("LOSS_SECONDS is no number")?))
}

async fn nft(rules: &str) -> Result<()> {
    let output = timeout(LASTS, Command::new("nft").arg(rules).output()).await.context("nft hangs")??;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// Variables under which a process has the clock that `file` says.
fn clock(file: &Path) -> Vec<(String, String)> {
    [
        ("LD_PRELOAD", FAKETIME),
        ("FAKETIME_TIMESTAMP_FILE", &file.display().to_string()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

/// The clocks of all services jump an hour ahead, then two back, then are right. Redis's stays.
pub async fn clocks_of_services_jump() -> Result<Outcome> {
    ensure!(Path::new(FAKETIME).exists(), "{FAKETIME} is not there (package faketime)");
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("clock");
    std::fs::write(&file, "+0")?;
    let variables = clock(&file);
    let adjust = |settings: &mut Settings| {
        if settings.role != Role::All {
            settings.environment.extend(variables.iter().cloned());
        }
    };
    under_load(RedisServer::start().await?, adjust, async |_, _, _| {
        for offset in ["+3600", "-3600", "+0"] {
            std::fs::write(&file, offset)?;
            sleep(LASTS / 2).await;
        }
        Ok(())
    })
    .await
}

/// The clock of Redis jumps an hour ahead, then two back.
pub async fn clock_of_redis_jumps() -> Result<Outcome> {
    ensure!(Path::new(FAKETIME).exists(), "{FAKETIME} is not there (package faketime)");
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("clock");
    std::fs::write(&file, "+0")?;
    let mut program: Vec<OsString> = vec!["env".into()];
    program.extend(clock(&file).into_iter().map(|(name, value)| format!("{name}={value}").into()));
    // Debian's Redis does not start with an allocator of its own under such a clock; Valkey does.
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/valkey-server");
    let found = timeout(Duration::from_secs(300), Command::new(script).output()).await??;
    ensure!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    program.push(String::from_utf8(found.stdout)?.trim().into());
    let redis = RedisServer::start_as(program, &[]).await?;
    under_load(
        redis,
        |_| {},
        async |_, _, load| {
            for (offset, next) in [("+3600", 500), ("-3600", MESSAGES)] {
                std::fs::write(&file, offset)?;
                load.wait_until_accepted(next).await?;
            }
            Ok(())
        },
    )
    .await
}
