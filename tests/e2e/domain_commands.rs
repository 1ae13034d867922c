//! `packetboat domain` tells what a domain's DNS should say, and what is wrong with what it says.

use anyhow::{Context, Result, ensure};
use packetboat_tests::world::{HOSTED, World};
use testkit::dns::DnsServer;
use testkit::process::{Role, Settings, Site};

const ZONE: &str = r#"
    good.test. 300 IN MX 10 mx.good.test.
    mx.good.test. 300 IN A 192.0.2.7
    7.2.0.192.in-addr.arpa. 300 IN PTR mx.good.test.
    good.test. 300 IN TXT "v=spf1 mx -all"
    _dmarc.good.test. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:d@good.test"

    bad.test. 300 IN MX 10 nowhere.bad.test.
    bad.test. 300 IN TXT "v=spf1 mx -all"
    bad.test. 300 IN TXT "v=spf1 +all"
    _dmarc.bad.test. 300 IN TXT "v=DMARC1; p=none; rua=mailto:d@reports.test"
    s1._domainkey.bad.test. 300 IN TXT "v=DKIM1; p="
    _mta-sts.bad.test. 300 IN TXT "v=STSv1; id=1;"
    deep.test. 300 IN MX 0 .
    deep.test. 300 IN TXT "v=spf1 include:a.test include:b.test include:c.test include:d.test -all"
    a.test. 300 IN TXT "v=spf1 a mx ptr exists:x.test -all"
    b.test. 300 IN TXT "v=spf1 a mx ptr -all"
    c.test. 300 IN TXT "v=spf1 a -all"
    d.test. 300 IN TXT "v=spf1 a -all"
"#;

async fn domain(site: &Site, settings: &Settings, arguments: &[&str]) -> Result<(bool, String)> {
    let output = site.run(settings, &[&["domain"], arguments].concat()).await?;
    let told = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8(told).context("reading what domain printed")?))
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_what_is_wrong_and_what_to_do() -> Result<()> {
    let dns = DnsServer::start(ZONE).await?;
    let site = Site::new(dns.address())?;
    let settings = site.settings(Role::All)?;
    let (fine, told) = domain(&site, &settings, &["check", "good.test"]).await?;
    ensure!(fine, "{told}");
    ensure!(told.contains("mx.good.test") && told.contains("v=spf1 mx -all"), "{told}");

    let (fine, told) =
        domain(&site, &settings, &["check", "bad.test", "--selector", "s1", "--selector", "s2"]).await?;
    ensure!(!fine, "{told}");
    for sentence in [
        "nowhere.bad.test has no address",
        "there are 2; two are an error",
        "s1 is revoked",
        "s2._domainkey.bad.test is not there",
        "reports.test has not agreed",
        "bad.test._report._dmarc.reports.test",
        "mta-sts.bad.test has no address",
        "p=none",
    ] {
        ensure!(told.contains(sentence), "{sentence:?} in {told}");
    }
    let (fine, told) = domain(&site, &settings, &["check", "deep.test"]).await?;
    ensure!(!fine && told.contains("more than 10 look-ups") && told.contains("a null MX"), "{told}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_ready_to_be_pasted() -> Result<()> {
    let world = World::new().await?;
    let settings = world.site.settings(Role::All)?;
    let (fine, told) = domain(&world.site, &settings, &["records", HOSTED]).await?;
    ensure!(fine, "{told}");
    for key in &world.our_keys {
        let name = format!("{}._domainkey.{HOSTED}. 300 IN TXT \"v=DKIM1; k=", key.selector);
        ensure!(told.contains(&name), "{name} in {told}");
        let public = key.record.split("p=").nth(1).context("a public key")?;
        ensure!(
            told.replace("\" \"", "").contains(public),
            "another key than that of {}: {told}",
            key.selector
        );
    }
    let (fine, told) = domain(&world.site, &settings, &["records", "elsewhere.test"]).await?;
    ensure!(!fine && told.contains("there is no MailDomain for elsewhere.test"), "{told}");
    Ok(())
}
