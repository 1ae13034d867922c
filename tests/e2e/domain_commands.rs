//! `packetboat domain` tells what a domain's DNS should say, and what is wrong with what it says.

use anyhow::{Context, Result, ensure};
use packetboat_tests::world::{HOSTED, World};
use testkit::authority::AuthorityFolder;
use testkit::certificate::Certificate;
use testkit::dns::DnsServer;
use testkit::net::free_address;
use testkit::process::{Role, Settings, Site};

const ZONE: &str = r#"
    good.test. 300 IN MX 10 mx.good.test.
    mx.good.test. 300 IN A 192.0.2.7
    7.2.0.192.in-addr.arpa. 300 IN PTR mx.good.test.
    good.test. 300 IN TXT "v=spf1 mx -all"
    _25._tcp.mx.good.test. 300 IN TLSA 3 1 1 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
    _dmarc.good.test. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:d@good.test"

    bad.test. 300 IN MX 10 nowhere.bad.test.
    bad.test. 300 IN TXT "v=spf1 mx -all"
    bad.test. 300 IN TXT "v=spf1 +all"
    _dmarc.bad.test. 300 IN TXT "v=DMARC1; p=none; rua=mailto:d@reports.test"
    s1._domainkey.bad.test. 300 IN TXT "v=DKIM1; p="
    _mta-sts.bad.test. 300 IN TXT "v=STSv1; id=1;"
    s3._domainkey.bad.test. 300 IN CNAME s3.bad.test.dkim.test.
    _25._tcp.nowhere.bad.test. 300 IN TLSA 1 1 1 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
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
    ensure!(told.contains("nobody believes it: its zone is not signed"), "{told}");
    ensure!(told.contains("mx.good.test") && told.contains("v=spf1 mx -all"), "{told}");

    let (fine, told) = domain(
        &site,
        &settings,
        &["check", "bad.test", "--selector", "s1", "--selector", "s2", "--selector", "s3"],
    )
    .await?;
    ensure!(!fine, "{told}");
    for sentence in [
        "nowhere.bad.test has no address",
        "there are 2; two are an error",
        "s1 is revoked",
        "s2._domainkey.bad.test is not there",
        "s3._domainkey.bad.test leads by CNAME to s3.bad.test.dkim.test",
        "the usage 1, which means nothing for mail",
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

const POLICIES: &str = r#"
    _mta-sts.kept.test. 300 IN TXT "v=STSv1; id=1;"
    mta-sts.kept.test. 300 IN A 127.0.0.1
    kept.test. 300 IN MX 10 mx.kept.test.
    kept.test. 300 IN MX 20 other.kept.test.
    mx.kept.test. 300 IN A 127.0.0.1
    other.kept.test. 300 IN A 127.0.0.1
    _mta-sts.elsewhere.test. 300 IN TXT "v=STSv1; id=1;"
    mta-sts.elsewhere.test. 300 IN A 127.0.0.1
    elsewhere.test. 300 IN MX 10 mx.kept.test.
    _mta-sts.odd.test. 300 IN TXT "v=STSv1; id=1-1;"
    odd.test. 300 IN MX 10 mx.kept.test.
"#;

#[tokio::test(flavor = "multi_thread")]
async fn check_fetches_and_judges_policies() -> Result<()> {
    let dns = DnsServer::start(POLICIES).await?;
    let site = Site::new(dns.address())?;
    let authority = AuthorityFolder::new(site.path())?;
    authority.issue("web", &["mta-sts.kept.test"])?;
    authority.issue("mx", &["mx.kept.test"])?;
    let spec = "mtaSts: {mode: enforce, maxAge: 86400}\nmx: [{host: mx.kept.test, preference: 10}]\n";
    site.domain("kept.test", spec)?;
    let mut server = site.settings(Role::MtaSts)?;
    let web = free_address()?;
    server.extra =
        format!("mta_sts: {{listen: \"{web}\", certificates: [{{certificate: web.pem, key: web.key}}]}}\n");
    let _server = site.start(&server).await?;
    let mut exchanger = site.settings(Role::All)?;
    exchanger.extra = "tls: {certificate: mx.pem, key: mx.key}\n".to_owned();
    let mut process = site.start(&exchanger).await?;

    let mut settings = site.settings(Role::All)?;
    settings.extra = format!(
        "operator: {{mta_sts: {{fetch: {{authorities: authority.pem, https_port: {}, smtp_port: {}, allow_loopback: true}}}}}}\n",
        web.port(),
        exchanger.mx.port()
    );
    let (fine, told) = domain(&site, &settings, &["check", "kept.test"]).await?;
    ensure!(!fine, "{told}");
    for sentence in [
        "mode enforce, mx mx.kept.test, max_age 86400",
        "max_age 86400 is short",
        "mx.kept.test shows a certificate that senders trust",
        "the policy does not name other.kept.test",
        "add \"mx: other.kept.test\" to the policy",
    ] {
        ensure!(told.contains(sentence), "{sentence:?} in {told}");
    }
    let (_, told) = domain(&site, &settings, &["check", "elsewhere.test"]).await?;
    ensure!(told.contains("no sender gets the policy") && told.contains("get a certificate for"), "{told}");
    let (_, told) = domain(&site, &settings, &["check", "odd.test"]).await?;
    ensure!(told.contains("is not 1 to 32 letters and digits"), "{told}");
    let (_, records) = domain(&site, &settings, &["records", "kept.test"]).await?;
    ensure!(records.contains("_mta-sts.kept.test. 300 IN TXT \"v=STSv1; id="), "{records}");

    process.terminate().await?;
    let (_, told) = domain(&site, &settings, &["check", "kept.test"]).await?;
    ensure!(told.contains("could not be looked at"), "{told}");
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
    // What a MailDomain names beside: CNAMEs of selectors, and the keys of mail hosts.
    let certificate = Certificate::new(&["mx.delegated.test"])?;
    let declared = "{domain: delegated.test, mx: [{host: mx.delegated.test, preference: 10}], \
        tlsa: {certificateRef: {name: mx}}, dkim: {delegation: {cname: true, targetZone: dkim.test, slots: 3, \
        providerRef: {name: keys}}}}";
    world.site.write(
        "domains/delegated.yaml",
        &format!(
            "apiVersion: mail.packetboat.dev/v1alpha1\nkind: MailDomain\nmetadata: {{name: delegated}}\nspec: {declared}\n\
             ---\n{}\n",
            certificate.secret("default", "mx")
        ),
    )?;
    let (fine, told) = domain(&world.site, &settings, &["records", "delegated.test"]).await?;
    ensure!(fine, "{told}");
    let alias = "s3._domainkey.delegated.test. 300 IN CNAME s3.delegated.test.dkim.test.";
    ensure!(told.contains(alias), "{alias} in {told}");
    let pin =
        told.lines().find_map(|line| line.strip_prefix("_25._tcp.mx.delegated.test. 300 IN TLSA 3 1 1 "));
    ensure!(pin.is_some_and(|digest| digest.len() == 64), "{told}");
    let (fine, told) = domain(&world.site, &settings, &["records", "elsewhere.test"]).await?;
    ensure!(!fine && told.contains("there is no MailDomain for elsewhere.test"), "{told}");
    Ok(())
}
