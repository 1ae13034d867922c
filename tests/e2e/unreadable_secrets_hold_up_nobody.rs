//! A MailDomain that names a Secret which the edge may not read takes mail at once, and others do, too; when the right
//! is given, its users may submit.

use std::time::Duration;

use anyhow::{Result, ensure};
use packetboat_tests::cluster::Cluster;
use packetboat_tests::world::{ARRIVAL, PASSWORD, World, admitted, code_of_rcpt};
use testkit::corpus;
use testkit::kubernetes::ApiServer;
use testkit::process::Role;
use testkit::wait;

const CRD: &str = include_str!("../../k8s/crds/maildomains.yaml");
const RIGHTS: &str = "\
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: edge, namespace: mail}
rules:
  - {apiGroups: [mail.packetboat.dev], resources: [maildomains], verbs: [get, list, watch]}
";
/// Less than what one Secret that never answers would be waited for.
const AT_ONCE: Duration = Duration::from_secs(10);

fn mail_domain(name: &str) -> String {
    format!(
        "apiVersion: mail.packetboat.dev/v1alpha1\nkind: MailDomain\nmetadata: {{name: {name}, namespace: mail}}\n\
         spec:\n  domain: {name}.test\n  submission: {{usersSecretRef: {{name: {name}-users}}}}\n  \
         inbound: {{recipients: {{addresses: [bob]}}, route: {{maildir: {{path: m}}}}}}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_may_not_be_read() -> Result<()> {
    let world = World::new().await?;
    let api = ApiServer::start().await?;
    api.define(CRD).await?;
    api.kubectl(&["create", "namespace", "mail"], None).await?;
    api.kubectl(&["-n", "mail", "create", "serviceaccount", "edge"], None).await?;
    api.apply(RIGHTS).await?;
    let account = "--serviceaccount=mail:edge";
    api.kubectl(&["-n", "mail", "create", "rolebinding", "edge", "--role=edge", account], None).await?;
    let kubeconfig = api.kubeconfig_of("mail", "edge").await?;
    let cluster = Cluster::start(&world, |settings| {
        if settings.role == Role::Edge {
            settings.kubeconfig = Some(kubeconfig.clone());
            settings.namespaces = vec!["mail".to_owned()];
        }
    })
    .await?;
    let (settings, edge) = &cluster.rows[0].edge;
    let rcpt = async |address: &str| code_of_rcpt(settings.mx, address).await;
    for name in ["first", "second", "third"] {
        api.apply(&mail_domain(name)).await?;
        let bob = format!("bob@{name}.test");
        let hosted = async || rcpt(&bob).await == Some(250);
        let taken = wait::until_true("its mail to be taken", AT_ONCE, hosted).await;
        ensure!(taken.is_ok(), "{name}: {taken:?}: {}", edge.log());
    }
    ensure!(edge.log().contains("Secret first-users, or it may not be read"), "{}", edge.log());

    // What the chart does for `domains.usersSecrets`.
    let literal = format!("--from-literal=bob={}", corpus::password_hash(PASSWORD)?);
    api.kubectl(&["-n", "mail", "create", "secret", "generic", "first-users", &literal], None).await?;
    let grant = r#"[{"op":"add","path":"/rules/-","value":{"apiGroups":[""],"resources":["secrets"],
        "resourceNames":["first-users"],"verbs":["get","list","watch"]}}]"#;
    api.kubectl(&["-n", "mail", "patch", "role", "edge", "--type=json", "-p", grant], None).await?;
    admitted(settings.submission, "bob@first.test", PASSWORD, ARRIVAL * 2).await.map(drop)
}
