//! The chart renders what a real API server takes, in a namespace that enforces restricted pods; its
//! configuration is one that the binary takes; and its service accounts may do what they need and no more.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use testkit::kubernetes::{ApiServer, kubectl, program};
use testkit::process::binary;
use tokio::process::Command;

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/packetboat")
}

async fn helm(arguments: &[&str]) -> Result<String> {
    let output = Command::new(program("helm").await?).args(arguments).stdin(Stdio::null()).output().await?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "helm {arguments:?}: {error}");
    Ok(String::from_utf8(output.stdout)?)
}

async fn render(values: &str, more: &[&str]) -> Result<String> {
    let (chart, file) = (chart(), chart().join("ci").join(values));
    let (chart, file) = (chart.to_string_lossy(), file.to_string_lossy());
    let base = ["template", "mail", &chart, "-n", "mail", "-f", &file, "--kube-version", "1.34"];
    helm(&[&base, more].concat()).await
}

/// The documents of these kinds.
fn of_kinds(rendered: &str, kinds: &[&str]) -> String {
    let wanted = |document: &&str| {
        let kind = document.lines().find_map(|line| line.strip_prefix("kind: ")).unwrap_or_default();
        kinds.contains(&kind.trim())
    };
    rendered.split("\n---\n").filter(wanted).collect::<Vec<_>>().join("\n---\n")
}

const BUILT_IN: [&str; 14] = [
    "ConfigMap",
    "Deployment",
    "HorizontalPodAutoscaler",
    "NetworkPolicy",
    "Pod",
    "PodDisruptionBudget",
    "Role",
    "RoleBinding",
    "ClusterRole",
    "ClusterRoleBinding",
    "Service",
    "ServiceAccount",
    "StatefulSet",
    "CustomResourceDefinition",
];

#[tokio::test(flavor = "multi_thread")]
async fn it_is_accepted_and_its_accounts_are_bounded() -> Result<()> {
    let chart = chart();
    for values in ["small-values.yaml", "ha-values.yaml", "multi-tenant-values.yaml"] {
        let file = chart.join("ci").join(values);
        helm(&["lint", "--strict", &chart.to_string_lossy(), "-f", &file.to_string_lossy()]).await?;
    }
    for wrong in [["--set", "hostname="], ["--set", "edge.replica=3"]] {
        ensure!(render("small-values.yaml", &wrong).await.is_err(), "{wrong:?} is taken");
    }

    let api = ApiServer::start().await?;
    api.kubectl(&["create", "namespace", "mail"], None).await?;
    let enforce = "pod-security.kubernetes.io/enforce=restricted";
    api.kubectl(&["label", "namespace", "mail", enforce, "pod-security.kubernetes.io/warn=restricted"], None)
        .await?;
    for values in ["small-values.yaml", "ha-values.yaml", "multi-tenant-values.yaml"] {
        let rendered = of_kinds(&render(values, &[]).await?, &BUILT_IN);
        // The test's pod is a hook that Helm makes; its account would have to be there.
        let apply = ["apply", "--server-side", "--force-conflicts", "-n", "mail", "-f", "-"];
        let told = api.kubectl(&apply, Some(&rendered)).await.with_context(|| values.to_owned())?;
        ensure!(!told.contains("violate"), "{told}");
    }
    configuration_is_taken(&api).await?;
    accounts_are_bounded(&api).await
}

/// What `packetboat check` says of the configuration in the ConfigMap.
async fn configuration_is_taken(api: &ApiServer) -> Result<()> {
    let get =
        ["-n", "mail", "get", "configmap", "mail-packetboat", "-o", "jsonpath={.data.packetboat\\.yaml}"];
    let config = api.kubectl(&get, None).await?;
    let folder = tempfile::tempdir()?;
    let config = config.replace("/data", &folder.path().to_string_lossy());
    let config: String =
        config.lines().filter(|line| !line.contains("/tls/")).map(|line| format!("{line}\n")).collect();
    let config =
        config.replace("tls:\n", "edge: {}\n").replace("redis://mail-packetboat-redis", "redis://127.0.0.1");
    let file = folder.path().join("packetboat.yaml");
    std::fs::write(&file, &config)?;
    for role in ["edge", "verifier", "operator"] {
        let mut check = Command::new(binary().await?);
        check.args(["check", "--role", role, "--config"]).arg(&file);
        let output = check.output().await?;
        let told =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{role}: {told}\n{config}");
    }
    Ok(())
}

/// Asks the API, with each account's own token, what it may do.
async fn accounts_are_bounded(api: &ApiServer) -> Result<()> {
    let may = async |account: &str, verb: &str, resource: &str| -> Result<bool> {
        let kubeconfig = api.kubeconfig_of("mail", &format!("mail-packetboat-{account}")).await?;
        let asked = kubectl(&kubeconfig, &["auth", "can-i", verb, resource, "-n", "mail"], None).await;
        Ok(asked.is_ok_and(|answer| answer.trim() == "yes"))
    };
    for account in ["edge", "verifier", "delivery", "operator"] {
        ensure!(
            may(account, "watch", "maildomains.mail.packetboat.dev").await?,
            "{account} cannot follow domains"
        );
        ensure!(!may(account, "create", "pods").await?, "{account} may make pods");
        ensure!(!may(account, "get", "nodes").await?, "{account} may read nodes");
    }
    for account in ["edge", "delivery"] {
        ensure!(!may(account, "list", "secrets").await?, "{account} may list Secrets");
        ensure!(!may(account, "get", "secrets/dkim-example").await?, "{account} may read a key");
    }
    ensure!(may("edge", "get", "secrets/users").await?, "the edge cannot read the users it is given");
    ensure!(may("verifier", "list", "secrets").await? && !may("verifier", "create", "secrets").await?);
    ensure!(may("operator", "create", "secrets").await?);
    api.apply(include_str!("external_dns.yaml")).await?;
    let established = ["wait", "--for=condition=Established", "crd/dnsendpoints.externaldns.k8s.io"];
    api.kubectl(&established, None).await?;
    for kind in ["dnsproviders.mail.packetboat.dev", "dnsendpoints.externaldns.k8s.io"] {
        ensure!(may("operator", "watch", kind).await?, "the operator cannot follow {kind}");
        ensure!(!may("edge", "list", kind).await?, "the edge may read {kind}");
    }
    ensure!(!may("operator", "patch", "dnsproviders.mail.packetboat.dev").await?);
    ensure!(!may("operator", "delete", "maildomains.mail.packetboat.dev").await?);
    Ok(())
}
