//! The operator makes the certificates between the services, in a real Kubernetes API and with rights to just
//! these Secrets: the services work with them, they are renewed, their authority is succeeded, and what
//! somebody breaks is made good; all the while mail is taken at the first try.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use packetboat_tests::cluster::{Row, over_tls};
use packetboat_tests::estate::{Estate, STEP};
use packetboat_tests::steady::Steady;
use packetboat_tests::world::{HOSTED, PLAIN, World, at};
use testkit::authority::mount;
use testkit::kubernetes::ApiServer;
use testkit::process::Role;
use testkit::redis::RedisServer;
use testkit::wait;
use tokio::process::Command;

const ROLES: [&str; 3] = ["edge", "verifier", "delivery"];
/// Two thirds of an authority's life of 72 s, and three times what has to be waited out.
const SUCCESSION: Duration = Duration::from_secs(180);
/// How often mounted Secrets are brought up to date.
const KUBELET: Duration = Duration::from_millis(500);
const SETTINGS: &str = "operator:
  lease_namespace: peers
  lease_duration: 5s
  peer_certificates: {enabled: true, secret_prefix: peer, lifetime: 48s, authority_lifetime: 72s, propagation: 8s}
";
/// Empty Secrets, and an account that may read and replace them, and no others.
const RIGHTS: &str = "
{apiVersion: v1, kind: Secret, metadata: {name: peer-authority, namespace: peers}}
---
{apiVersion: v1, kind: Secret, metadata: {name: peer-edge, namespace: peers}}
---
{apiVersion: v1, kind: Secret, metadata: {name: peer-verifier, namespace: peers}}
---
{apiVersion: v1, kind: Secret, metadata: {name: peer-delivery, namespace: peers}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: operator, namespace: peers}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: operator, namespace: peers}
rules:
  - apiGroups: ['']
    resources: [secrets]
    resourceNames: [peer-authority, peer-edge, peer-verifier, peer-delivery]
    verbs: [get, update]
  - {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, list, watch, create, patch, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: operator, namespace: peers}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: operator}
subjects: [{kind: ServiceAccount, name: operator, namespace: peers}]
";

/// Shows the Secrets as files, as the kubelet does; gives what each role trusts.
async fn mount_all(api: &ApiServer, site: &Path) -> Result<BTreeSet<String>> {
    let mut trusted = BTreeSet::new();
    for role in ROLES {
        let secret = api.secret("peers", &format!("peer-{role}")).await?;
        let value = |key: &str| secret.get(key).map(String::as_str).with_context(|| format!("no {key}"));
        let files =
            [("tls.crt", value("tls.crt")?), ("tls.key", value("tls.key")?), ("ca.crt", value("ca.crt")?)];
        ensure!(secret.len() == files.len(), "{role} has more than its own: {:?}", secret.keys());
        mount(&site.join(format!("peer-{role}")), &files)?;
        trusted.insert(files[2].1.to_owned());
    }
    Ok(trusted)
}

/// The addresses that a process listens on.
async fn listening(pid: u32) -> Result<Vec<String>> {
    let output = Command::new("ss").args(["-H", "-l", "-t", "-n", "-p"]).output().await?;
    let text = String::from_utf8(output.stdout)?;
    let mine = text.lines().filter(|line| line.contains(&format!("pid={pid},")));
    Ok(mine.filter_map(|line| line.split_whitespace().nth(3)).map(str::to_owned).collect())
}

fn authorities(bundle: &str) -> usize {
    bundle.matches("BEGIN CERTIFICATE").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn from_nothing_to_the_next_authority() -> Result<()> {
    let estate = Arc::new(Estate::new().await?);
    let world = World::new().await?;
    estate.api.kubectl(&["create", "namespace", "peers"], None).await?;
    estate.api.apply(RIGHTS).await?;
    let mut settings = estate.site.settings(Role::Operator)?;
    settings.kubeconfig = Some(estate.api.kubeconfig_of("peers", "operator").await?);
    settings.extra = SETTINGS.to_owned();
    let operator = estate.site.start(&settings).await?;

    let site = world.site.path().to_owned();
    let made = wait::until("certificates", STEP, async || mount_all(&estate.api, &site).await.ok()).await;
    let first = made.with_context(|| operator.log())?;
    ensure!(first.len() == 1 && first.iter().all(|bundle| authorities(bundle) == 1), "{first:?}");
    let first = first.into_iter().next().context("no bundle")?;
    let certificate = std::fs::read_to_string(site.join("peer-edge/tls.crt"))?;

    let redis = RedisServer::start().await?;
    let row = Row::start(&world, &redis, "a", &over_tls).await?;
    let mut mail = Steady::start(row.edge.0.mx, &at("dave", PLAIN), &at("alice", HOSTED), 4);
    mail.go_on(20).await?;

    // Somebody empties a Secret: it is made good.
    let empty = ["-n", "peers", "patch", "secret", "peer-delivery", "--type=json", "-p"];
    let patch = r#"[{"op": "remove", "path": "/data"}]"#;
    estate.api.kubectl(&[&empty[..], &[patch]].concat(), None).await?;
    let good = async || estate.api.secret("peers", "peer-delivery").await.is_ok_and(|all| all.len() == 3);
    wait::until_true("the Secret to be made good", STEP, good).await?;

    // Renewal, and then succession: both are trusted for a while, then only the next.
    let (mut renewed, mut both) = (false, false);
    let succeeded = async || {
        tokio::time::sleep(KUBELET).await;
        let Ok(trusted) = mount_all(&estate.api, &site).await else { return false };
        let shown = std::fs::read_to_string(site.join("peer-edge/tls.crt")).unwrap_or_default();
        renewed |= shown != certificate && trusted.contains(&first);
        both |= trusted.iter().any(|bundle| authorities(bundle) == 2);
        trusted.len() == 1 && trusted.iter().all(|bundle| authorities(bundle) == 1 && *bundle != first)
    };
    let outcome = wait::until_true("another authority", SUCCESSION, succeeded).await;
    outcome.with_context(|| operator.log())?;
    ensure!(renewed && both, "renewed: {renewed}, both trusted: {both}");
    mail.go_on(20).await?;
    let taken = mail.finish().await?;
    for (what, process) in
        [("edge", &row.edge.1), ("verifier", &row.verifier.1), ("delivery", &row.delivery.1)]
    {
        ensure!(!process.log().contains("caller refused"), "{what} refused somebody:\n{}", process.log());
    }
    ensure!(!operator.log().contains("PRIVATE KEY"), "a private key is in the log");
    // Whoever holds a certificate finds nothing to call at the operator.
    ensure!(listening(operator.child().pid()).await? == [settings.admin.to_string()]);
    println!("{taken} messages, none refused");
    Ok(())
}
