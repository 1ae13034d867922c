//! A process that holds private keys and passwords leaves none of them in a core dump, whatever limit it runs under.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use packetboat_tests::world::World;
use tokio::process::Command;

const LIMIT: Duration = Duration::from_secs(20);

/// Lets the process write core dumps of any size, and has it abort.
async fn abort(id: Option<u32>) -> Result<()> {
    let id = id.context("it has ended already")?.to_string();
    for command in [&["prlimit", "--core=unlimited:unlimited", "--pid", &id][..], &["kill", "-ABRT", &id]] {
        let ended = Command::new(command[0]).args(&command[1..]).status().await?;
        ensure!(ended.success(), "{command:?}");
    }
    Ok(())
}

fn was_aborted(status: ExitStatus) -> Result<()> {
    ensure!(status.signal() == Some(6), "{status}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_process_is_not_dumped() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut other = Command::new("sleep").arg("60").current_dir(folder.path()).kill_on_drop(true).spawn()?;
    abort(other.id()).await?;
    let status = tokio::time::timeout(LIMIT, other.wait()).await??;
    was_aborted(status)?;
    ensure!(status.core_dumped(), "this machine dumps no process, so nothing can be told (core_pattern)");

    let world = World::new().await?;
    let (_, mut process) = world.start_all(|_| ()).await?;
    abort(Some(process.child().pid())).await?;
    let status = process.wait(LIMIT).await?;
    was_aborted(status)?;
    ensure!(!status.core_dumped(), "a core dump was written, with all that the process held");
    Ok(())
}
