//! `packetboat check` and the start of a role say what is wrong, where, and what to do.

use anyhow::{Result, ensure};
use packetboat_tests::world::World;
use testkit::process::{Role, Settings};

/// What `check` prints for these settings, which must not be right.
async fn complaint(world: &World, settings: &Settings) -> Result<String> {
    let output = world.site.run(settings, &["check"]).await?;
    let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(!output.status.success(), "check was content: {printed}");
    ensure!(!printed.contains("panicked"), "{printed}");
    Ok(printed)
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_what_is_wrong() -> Result<()> {
    let world = World::new().await?;
    let good = world.site.settings(Role::All)?;
    let output = world.site.run(&good, &["check"]).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let unknown_key = Settings { extra: "listenerz: []\n".to_owned(), ..good.clone() };
    let printed = complaint(&world, &unknown_key).await?;
    ensure!(printed.contains("listenerz"), "{printed}");

    let bad_value =
        Settings { extra: "tls: {certificate: missing.pem, key: missing.pem}\n".to_owned(), ..good.clone() };
    let printed = complaint(&world, &bad_value).await?;
    ensure!(printed.contains("missing.pem"), "{printed}");

    world.site.domain("broken.test", "inbound: {recipients: {mode: Sometimes}}\n")?;
    let printed = complaint(&world, &good).await?;
    ensure!(printed.contains("broken-test.yaml") && printed.contains("Sometimes"), "{printed}");

    world
        .site
        .domain("broken.test", "dkim: {imported: [{selector: s, secretRef: {name: nowhere, key: k}}]}\n")?;
    let printed = complaint(&world, &good).await?;
    ensure!(printed.contains("nowhere"), "{printed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_cannot_succeed_says_why() -> Result<()> {
    let world = World::new().await?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let mut settings = world.site.settings(Role::All)?;
    settings.mx = taken.local_addr()?;
    let mut process = world.site.launch(&settings).await?;
    let status = process.wait(std::time::Duration::from_secs(30)).await?;
    ensure!(!status.success(), "it cannot listen on a taken address");
    ensure!(process.log().contains(&settings.mx.to_string()), "{}", process.log());
    ensure!(!process.log().contains("panicked"), "{}", process.log());
    Ok(())
}
