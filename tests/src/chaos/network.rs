//! Networks that are slow, silent or lossy, and clocks that jump.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::process::{Role, Settings};
use testkit::proxy::{Proxy, Weather};
use testkit::redis::RedisServer;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::{LASTS, Outcome, under_load};
use crate::world::World;

/// The way to Redis takes two seconds each way, then nothing passes.
pub async fn redis_slow_then_black_hole() -> Result<Outcome> {
    let redis = RedisServer::start().await?;
    let proxy = Proxy::start(redis.address()).await?;
    let url = format!("redis://{}", proxy.address());
    under_load(
        redis,
        |settings: &mut Settings| settings.redis = Some(url.clone()),
        async |_, _, _| {
            for weather in [Weather::Slow(Duration::from_secs(2)), Weather::BlackHole, Weather::Broken] {
                proxy.set(weather);
                sleep(LASTS).await;
            }
            proxy.set(Weather::Fair);
            Ok(())
        },
    )
    .await
}

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

/// In a network of its own: for half a minute one packet in three to and from Redis is lost.
pub async fn packets_lost() -> Result<Outcome> {
    let redis = RedisServer::start().await?;
    let port = redis.address().port();
    under_load(redis, |_| {}, async |_, _, _| {
        let lossy = format!(
            "table inet chaos {{\n chain in {{\n type filter hook input priority 0\n \
             tcp dport {port} numgen random mod 3 == 0 drop\n tcp sport {port} numgen random mod 3 == 0 drop\n }}\n}}\n"
        );
        nft(&lossy).await?;
        sleep(Duration::from_secs(30)).await;
        nft("delete table inet chaos").await
    })
    .await
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

/// The clock of Redis jumps an hour ahead.
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
    under_load(redis, |_| {}, async |_, _, _| Ok(std::fs::write(&file, "+3600")?)).await
}
