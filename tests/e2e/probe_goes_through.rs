//! `packetboat probe` sends a message through, and tells by its exit code whether it came out at the other end.

use std::process::Output;

use anyhow::{Result, ensure};
use packetboat_tests::world::World;
use testkit::net;
use testkit::process::binary;
use tokio::process::Command;

const DOMAIN: &str = "probe.test";

async fn probe(smtp: &str, listen: &str, to: &str, timeout: &str) -> Result<Output> {
    let arguments = ["probe", "--smtp", smtp, "--listen", listen, "--to", to, "--timeout", timeout];
    Ok(Command::new(binary().await?).args(arguments).output().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn and_what_does_not_is_told() -> Result<()> {
    let world = World::new().await?;
    let (here, elsewhere) = (net::free_address()?.to_string(), net::free_address()?.to_string());
    let inbound =
        format!("inbound: {{recipients: {{addresses: [probe]}}, route: {{lmtp: {{address: \"{here}\"}}}}}}");
    world.site.domain(DOMAIN, &inbound)?;
    let (settings, _process) = world.start_all(|_| {}).await?;
    let (smtp, to) = (settings.mx.to_string(), format!("probe@{DOMAIN}"));

    let output = probe(&smtp, &here, &to, "30s").await?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && told.contains("accepted after"), "{output:?}");
    ensure!(told.contains("arrived after") && told.contains("Authentication-Results"), "{told}");

    let output = probe(&smtp, &elsewhere, &to, "3s").await?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && told.contains("did not arrive"), "{output:?}");

    let output = probe(&smtp, &elsewhere, &format!("nobody@{DOMAIN}"), "3s").await?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && told.contains("550"), "{output:?}");
    Ok(())
}
