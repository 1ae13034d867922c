//! Where ownership is to be proven, a MailDomain takes no mail, and draws none of other tenants', before the operator
//! has seen the proof. After that it goes on, even while the proof cannot be seen.

use anyhow::{Result, ensure};
use packetboat_tests::world::{ARRIVAL, World, code_of_rcpt};
use testkit::kubernetes::ApiServer;
use testkit::wait;

const CRD: &str = include_str!("../../k8s/crds/maildomains.yaml");
const ALICE: &str = "alice@packetboat.test";

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_counts_once_it_is_proven() -> Result<()> {
    let world = World::new().await?;
    let api = ApiServer::start().await?;
    api.define(CRD).await?;
    let folder = world.site.path().join("domains");
    api.kubectl(&["create", "namespace", "mail"], None).await?;
    api.kubectl(&["apply", "-f", &folder.to_string_lossy()], None).await?;
    let kubeconfig = api.kubeconfig()?;
    let (settings, process) = world
        .start_all(|settings| {
            settings.kubeconfig = Some(kubeconfig);
            settings.extra.push_str("operator: {require_ownership: true}\n");
        })
        .await?;
    ensure!(code_of_rcpt(settings.mx, ALICE).await == Some(550), "a domain that is not proven is hosted");
    ensure!(process.log().contains("ownership of packetboat.test is not proven"), "{}", process.log());

    let condition = |status: &str, reason: &str| {
        format!(
            r#"{{"type":"OwnershipVerified","status":"{status}","reason":"{reason}","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}}"#
        )
    };
    let tell = async |status: String| {
        let patching = ["-n", "mail", "patch", "maildomain", "packetboat-test", "--subresource=status"];
        api.kubectl(&[&patching[..], &["--type=merge", "-p", &status]].concat(), None).await
    };
    let proven = condition("True", "OwnershipProven");
    let at = "2026-01-01T00:00:00Z";
    tell(format!(r#"{{"status":{{"ownershipProvenAt":"{at}","conditions":[{proven}]}}}}"#)).await?;
    let hosted = async || code_of_rcpt(settings.mx, ALICE).await == Some(250);
    wait::until_true("the proof to take effect", ARRIVAL, hosted).await?;

    let gone = condition("False", "ChallengeMissing");
    tell(format!(r#"{{"status":{{"conditions":[{gone}]}}}}"#)).await?;
    // A change that is seen after it tells that the one before was seen, too.
    let patch = r#"{"spec":{"inbound":{"recipients":{"mode":"List","addresses":["alice","carol"]}}}}"#;
    let patching = ["-n", "mail", "patch", "maildomain", "packetboat-test", "--type=merge", "-p", patch];
    api.kubectl(&patching, None).await?;
    let changed = async || code_of_rcpt(settings.mx, "carol@packetboat.test").await == Some(250);
    wait::until_true("the change to take effect", ARRIVAL, changed).await?;
    ensure!(code_of_rcpt(settings.mx, ALICE).await == Some(250), "mail stops when the proof cannot be seen");
    Ok(())
}
