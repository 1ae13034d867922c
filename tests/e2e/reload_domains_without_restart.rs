//! Domains come, change and go while the process runs; a broken file leaves the last good state.

use std::time::Duration;

use anyhow::{Result, ensure};
use packetboat_tests::world::{FRIEND, HOSTED, World, at};
use testkit::process::Settings;
use testkit::smtp::Client;
use testkit::wait;

const RELOAD: Duration = Duration::from_secs(20);

async fn reply_code_for(settings: &Settings, recipient: &str) -> Result<u16> {
    let mut client = Client::connect(settings.mx).await?;
    client.expect(250, "EHLO mail.friend.test").await?;
    client.expect(250, &format!("MAIL FROM:<{}>", at("dave", FRIEND))).await?;
    Ok(client.command(&format!("RCPT TO:<{recipient}>")).await?.code)
}

async fn wait_for_code(settings: &Settings, recipient: &str, code: u16) -> Result<()> {
    let what = format!("{code} for {recipient}");
    wait::until_true(&what, RELOAD, async || {
        reply_code_for(settings, recipient).await.is_ok_and(|got| got == code)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_seen() -> Result<()> {
    let world = World::new().await?;
    let (settings, process) = world.start_all(|_| {}).await?;
    wait_for_code(&settings, "zoe@packetboat.test", 550).await?;

    world.host("recipients: {mode: List, addresses: [alice, bob, zoe]}", "{maildir: {path: mail}}")?;
    wait_for_code(&settings, "zoe@packetboat.test", 250).await?;

    world.site.domain(
        "second.test",
        "inbound: {recipients: {mode: AcceptAll}, route: {maildir: {path: mail}}}\n",
    )?;
    wait_for_code(&settings, "anybody@second.test", 250).await?;

    world.site.write("domains/packetboat-test.yaml", "kind: MailDomain\nspec: {domain: [broken\n")?;
    process.child().wait_for_log("packetboat-test.yaml", RELOAD).await?;
    ensure!(reply_code_for(&settings, &at("zoe", HOSTED)).await? == 250, "the last good state stays");

    world.host("recipients: {mode: List, addresses: [alice]}", "{maildir: {path: mail}}")?;
    wait_for_code(&settings, "zoe@packetboat.test", 550).await?;
    Ok(())
}
