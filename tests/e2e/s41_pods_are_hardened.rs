//! S-41: every pod that the chart makes, with any of its values, runs as nobody, in a file system that it cannot write,
//! without capabilities, within limits, and behind NetworkPolicies that deny what is not named.

use anyhow::{Context, Result, ensure};
use packetboat_tests::chart::{VALUES, objects, pod, render, root};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn every_pod_of_every_rendering() -> Result<()> {
    let mut checked = 0;
    for name in VALUES {
        checked += hardened(&objects(&render(name, &[]).await?)?).context(name)?;
    }
    let base = std::fs::read_to_string(root().join("k8s/base/packetboat.yaml"))?;
    checked += hardened(&objects(&base)?).context("k8s/base")?;
    ensure!(checked >= 4 * 4, "only {checked} pods were found");
    Ok(())
}

/// How many pods there are, all of them hardened.
fn hardened(objects: &[Value]) -> Result<usize> {
    let policies: Vec<&Value> = objects.iter().filter(|object| object["kind"] == "NetworkPolicy").collect();
    let pods: Vec<_> = objects.iter().filter_map(|object| Some((object, pod(object)?))).collect();
    for (object, (metadata, spec)) in &pods {
        let name = &object["metadata"]["name"];
        restricted(spec).with_context(|| name.to_string())?;
        let test = object["kind"] == "Pod";
        ensure!(test || denied(metadata, &policies), "no NetworkPolicy denies {name} both ways");
    }
    Ok(pods.len())
}

fn restricted(spec: &Value) -> Result<()> {
    let security = &spec["securityContext"];
    ensure!(security["runAsNonRoot"] == true && security["runAsUser"].as_u64().is_some_and(|user| user > 0));
    ensure!(security["seccompProfile"]["type"] == "RuntimeDefault");
    for key in ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"] {
        ensure!(spec[key].is_null(), "{key}");
    }
    ensure!(spec["enableServiceLinks"] == false, "variables of other Services");
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        ensure!(volume["hostPath"].is_null(), "{volume}");
    }
    let containers: Vec<&Value> = ["containers", "initContainers"]
        .iter()
        .flat_map(|kind| spec[kind].as_array().into_iter().flatten())
        .collect();
    ensure!(!containers.is_empty());
    for container in containers {
        let security = &container["securityContext"];
        ensure!(security["allowPrivilegeEscalation"] == false && security["privileged"].is_null());
        ensure!(security["readOnlyRootFilesystem"] == true);
        ensure!(security["capabilities"] == json!({"drop": ["ALL"]}), "{security}");
        ensure!(!container["resources"]["limits"]["memory"].is_null(), "no limit of memory");
        ensure!(!container["resources"]["requests"]["cpu"].is_null(), "no request of CPU");
        for port in container["ports"].as_array().into_iter().flatten() {
            ensure!(
                port["hostPort"].is_null() && port["containerPort"].as_u64().is_some_and(|port| port > 1023)
            );
        }
    }
    Ok(())
}

/// Whether a policy that selects these labels denies in and out what it does not name.
fn denied(metadata: &Value, policies: &[&Value]) -> bool {
    let selects = |policy: &&&Value| {
        let wanted = policy["spec"]["podSelector"]["matchLabels"].as_object();
        wanted.is_some_and(|wanted| wanted.iter().all(|(key, value)| metadata["labels"][key] == *value))
    };
    let both = |policy: &&Value| policy["spec"]["policyTypes"] == json!(["Ingress", "Egress"]);
    policies.iter().filter(selects).any(both)
}
