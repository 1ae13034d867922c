//! What a real Jaeger shows of a rotation of keys: each round of the operator is a trace, with the look at the
//! name servers, the stages of keys, and the update of the zone.

use anyhow::{Result, ensure};
use packetboat_tests::estate::{Estate, STEP};
use testkit::jaeger::{Jaeger, Trace};
use testkit::wait;

const KEYS: &str = "\
\x20 dkim: {algorithms: [rsa-sha256, ed25519-sha256], rotation: {interval: 1h, minPropagation: 2s, retireAfter: 3s, revokeFor: 3s}}
  deletionPolicy: Delete";

/// Whether a round brought a key to this stage, and did so within its `keys`.
fn reaches(trace: &Trace, stage: &str) -> bool {
    let Some(root) = trace.span("reconcile").filter(|root| root.parent.is_empty()) else { return false };
    trace.0.iter().any(|span| {
        span.name == "stage"
            && span.attributes.get("mail.dkim.stage").is_some_and(|told| told.eq_ignore_ascii_case(stage))
            && trace.is_within(span, root)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn jaeger_shows_a_rotation() -> Result<()> {
    let estate = Estate::new().await?;
    let jaeger = Jaeger::start().await?;
    let (_, process) = estate.operator_with(&format!("telemetry: {{otlp: \"{}\"}}\n", jaeger.otlp())).await?;
    estate.api.apply(&estate.mail_domain(KEYS)).await?;
    let ready = estate.wait_for("Ready", "True", "Ready").await;
    ensure!(ready.is_ok(), "{ready:?}: {}", process.log());
    let before = estate.active().await?;
    let now = "mail.packetboat.dev/rotate-now=once";
    estate.api.kubectl(&["-n", "mail", "annotate", "--overwrite", "mdom", "example", now], None).await?;
    wait::until_true("another key to sign", STEP * 2, async || {
        estate.active().await.is_ok_and(|active| !active.is_empty() && active != before)
    })
    .await?;
    let stages = ["generated", "active", "retiring"];
    let mut traces = Vec::new();
    let shown = wait::until_true("the rotation in Jaeger", STEP, async || {
        traces = jaeger.all("packetboat-operator").await.unwrap_or_default();
        stages.iter().all(|stage| traces.iter().any(|trace| reaches(trace, stage)))
    })
    .await;
    ensure!(shown.is_ok(), "{:?}", traces.iter().map(Trace::names).collect::<Vec<_>>());
    for name in ["look", "keys", "update"] {
        let within = |trace: &Trace| {
            let (span, root) = (trace.span(name), trace.span("reconcile"));
            span.zip(root).is_some_and(|(span, root)| trace.is_within(span, root))
        };
        ensure!(traces.iter().any(within), "no round has {name}");
    }
    Ok(())
}
