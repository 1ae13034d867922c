//! The chart renders what a real API server takes, in a namespace that enforces restricted pods; its
//! configuration is one that the binary takes; and its service accounts may do what they need and no more.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use packetboat_tests::chart::{
    VALUES, api_with_all_kinds, apply, chart, helm, objects, render, root, run, schemas, values,
};
use serde_json::Value;
use testkit::kubernetes::{ApiServer, kubectl, program};
use testkit::process::binary;
use testkit::wait;
use tokio::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn its_own_tests_pass() -> Result<()> {
    let chart = chart();
    let chart = chart.to_string_lossy();
    for name in VALUES {
        helm(&["lint", "--strict", &chart, "-f", &values(name)]).await?;
    }
    let told = run(&program("helm-unittest").await?, &[&chart]).await?;
    ensure!(told.contains("0 failed") || !told.contains("FAIL"), "{told}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_from_other_files_is_up_to_date() -> Result<()> {
    run(&root().join("scripts/chart-readme.py"), &["--check"]).await?;
    let same = |one: &str, other: &str| -> Result<()> {
        let read = |path: &str| std::fs::read_to_string(root().join(path)).with_context(|| path.to_owned());
        ensure!(read(one)? == read(other)?, "{other} is not {one}: make chart");
        Ok(())
    };
    same("crates/queue/src/redis/users.acl", "charts/packetboat/files/users.acl")?;
    let named = std::fs::read_to_string(root().join("k8s/crds/kustomization.yaml"))?;
    for entry in std::fs::read_dir(root().join("k8s/crds"))? {
        let crd = entry?.file_name().to_string_lossy().into_owned();
        if crd != "kustomization.yaml" {
            same(&format!("k8s/crds/{crd}"), &format!("charts/packetboat/files/crds/{crd}"))?;
            ensure!(named.contains(&crd), "k8s/crds/kustomization.yaml does not name {crd}");
        }
    }
    run(&root().join("scripts/kustomize-base"), &["--check"]).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_accepted_and_its_accounts_are_bounded() -> Result<()> {
    for wrong in [["--set", "hostname="], ["--set", "edge.replica=3"]] {
        ensure!(render("small-values.yaml", &wrong).await.is_err(), "{wrong:?} is taken");
    }
    let api = api_with_all_kinds().await?;
    for name in VALUES {
        let rendered = render(name, &[]).await?;
        // What the chart's test needs is made first: its kinds are among the CRDs.
        apply(&api, &render(name, &["--show-only", "templates/definitions.yaml"]).await?).await?;
        api.kubectl(&["wait", "--for=condition=Established", "crd/maildomains.mail.packetboat.dev"], None)
            .await?;
        apply(&api, &rendered).await.with_context(|| name.to_owned())?;
    }
    base_is_accepted(&api).await?;
    conforms(&api).await?;
    configuration_is_taken().await?;
    accounts_are_bounded(&api).await
}

/// The kustomize base, and an overlay of it in another namespace.
async fn base_is_accepted(api: &ApiServer) -> Result<()> {
    let kubectl = program("kubectl").await?;
    let base = root().join("k8s/base");
    let built = run(&kubectl, &["kustomize", &base.to_string_lossy()]).await?;
    apply(api, &built).await.context("k8s/base")?;
    let overlay = tempfile::tempdir_in(root().join("k8s"))?;
    let text = "namespace: other\nresources: [../base]\n";
    std::fs::write(overlay.path().join("kustomization.yaml"), text)?;
    let built = run(&kubectl, &["kustomize", &overlay.path().to_string_lossy()]).await?;
    for object in objects(&built)? {
        let namespace = object["metadata"]["namespace"].as_str();
        ensure!(namespace.is_none_or(|name| name == "other"), "{object:#}");
        for subject in object["subjects"].as_array().into_iter().flatten() {
            ensure!(subject["namespace"] == "other", "{object:#}");
        }
    }
    Ok(())
}

/// What kubeconform says of every rendering, by the schemas of the API server.
async fn conforms(api: &ApiServer) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let known = async || {
        let told = api.kubectl(&["get", "--raw", "/openapi/v2"], None).await.unwrap_or_default();
        ["ScaledObject", "TLSRoute", "PodMonitor", "MailDomain"].iter().all(|kind| told.contains(kind))
    };
    wait::until_true("the API to describe the kinds", Duration::from_secs(60), known).await?;
    let names = schemas(api, folder.path()).await?;
    let kubeconform = program("kubeconform").await?;
    for name in VALUES {
        let file = folder.path().join(name);
        std::fs::write(&file, render(name, &[]).await?)?;
        let file = file.to_string_lossy();
        let told = run(&kubeconform, &["-strict", "-summary", "-schema-location", &names, &file]).await?;
        ensure!(told.contains("Invalid: 0, Errors: 0, Skipped: 0"), "{name}: {told}");
        // It can tell what is wrong.
        let wrong = std::fs::read_to_string(&*file)?.replace("revisionHistoryLimit:", "revisionHistory:");
        std::fs::write(&*file, wrong)?;
        let refused = run(&kubeconform, &["-strict", "-schema-location", &names, &file]).await;
        ensure!(refused.is_err(), "{name}: a field that does not exist is taken");
    }
    Ok(())
}

/// What `packetboat check` says of the configuration in the ConfigMap, in the environment of each role's pod.
async fn configuration_is_taken() -> Result<()> {
    for name in VALUES {
        let rendered = objects(&render(name, &[]).await?)?;
        let of_kind = |kind: &str, object: &Value| object["kind"] == kind;
        let map = rendered.iter().find(|object| of_kind("ConfigMap", object)).context("no ConfigMap")?;
        let text = map["data"]["packetboat.yaml"].as_str().context("no configuration")?;
        let mut config: Value = serde_saphyr::from_str(text)?;
        // The certificates are not here.
        config.as_object_mut().context("no map")?.remove("tls");
        if let Some(policies) = config.get_mut("mta_sts").and_then(Value::as_object_mut) {
            policies.remove("certificates");
        }
        for service in ["verifier", "delivery"] {
            let endpoint =
                config[service]["endpoint"].as_str().context("no endpoint")?.replace("https:", "http:");
            config[service]["endpoint"] = endpoint.into();
        }
        let folder = tempfile::tempdir()?;
        config["data_dir"] = folder.path().to_string_lossy().into();
        let file = folder.path().join("packetboat.yaml");
        std::fs::write(&file, config.to_string())?;
        for deployment in rendered.iter().filter(|object| of_kind("Deployment", object)) {
            let container = &deployment["spec"]["template"]["spec"]["containers"][0];
            let role = container["args"][0].as_str().context("no role")?;
            let mut check = Command::new(binary().await?);
            check.args(["check", "--role", role, "--config"]).arg(&file).envs(environment(container));
            let output = check.output().await?;
            let told = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
            ensure!(output.status.success(), "{name} {role}: {told}\n{config:#}");
        }
    }
    Ok(())
}

/// The variables of a container, with something in the place of what only a cluster knows.
fn environment(container: &Value) -> Vec<(String, String)> {
    let variable = |one: &Value| {
        let name = one["name"].as_str()?.to_owned();
        let value = match one["value"].as_str() {
            Some(value) => value
                .replace("$(REDIS_PASSWORD)", "sesame")
                .replace("$(SENTINEL_USERNAME)", "watcher")
                .replace("$(SENTINEL_PASSWORD)", "sesame"),
            None => "something".to_owned(),
        };
        Some((name, value))
    };
    container["env"].as_array().into_iter().flatten().filter_map(variable).collect()
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
    for kind in ["dnsproviders.mail.packetboat.dev", "dnsendpoints.externaldns.k8s.io"] {
        ensure!(may("operator", "watch", kind).await?, "the operator cannot follow {kind}");
        ensure!(!may("edge", "list", kind).await?, "the edge may read {kind}");
    }
    ensure!(!may("operator", "patch", "dnsproviders.mail.packetboat.dev").await?);
    ensure!(!may("operator", "delete", "maildomains.mail.packetboat.dev").await?);
    Ok(())
}
