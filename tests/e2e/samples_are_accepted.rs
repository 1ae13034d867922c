//! Every sample under `k8s/samples` is taken by a real API server with its CRDs, in a namespace of restricted pods; and
//! of a sample that names a field which does not exist nothing is.

use anyhow::{Context, Result, ensure};
use packetboat_tests::chart::{api_with_all_kinds, apply, root};

/// What is no Kubernetes object: a collector's own configuration.
const OTHERS: [&str; 1] = ["otel-collector.yaml"];

#[tokio::test(flavor = "multi_thread")]
async fn by_a_real_api_server() -> Result<()> {
    let api = api_with_all_kinds().await?;
    let crds = root().join("k8s/crds");
    let told =
        api.kubectl(&["apply", "--server-side", "-k", &crds.to_string_lossy(), "-o", "name"], None).await?;
    for crd in told.lines() {
        api.kubectl(&["wait", "--for=condition=Established", crd, "--timeout=20s"], None).await?;
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root().join("k8s/samples"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if OTHERS.contains(&name.as_str()) || path.is_dir() {
            continue;
        }
        let yaml = std::fs::read_to_string(&path)?;
        apply(&api, &yaml).await.with_context(|| name.clone())?;
        if yaml.contains("kind: MailDomain\n") {
            let wrong = yaml.replace("  domain: example", "  domane: x\n  domain: example");
            ensure!(apply(&api, &wrong).await.is_err(), "{name}: a field that does not exist is taken");
        }
        names.push(name);
    }
    for wanted in ["maildomain", "rfc2136", "cloudflare", "route53", "external-dns", "dovecot"] {
        ensure!(names.contains(&format!("{wanted}.yaml")), "{wanted} is not among {names:?}");
    }
    Ok(())
}
