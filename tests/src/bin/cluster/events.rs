//! What clusters do to pods, under load.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tokio::time::timeout;

use crate::kube::{kubectl, run};
use crate::load::{Balance, Load};
use crate::place::{UIDS, crds};
use crate::release::role;
use crate::scenes::{policies, second_release};
use crate::test::Test;

/// All steps of an event have happened within this.
const LIMIT: Duration = Duration::from_secs(400);
/// Fewer messages a second are not the load that is promised. They are fifty, less what the last interval is rounded by.
const SLOWEST: f64 = 49.0;

/// What holds during an event. Nothing is ever lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// Nobody notices: no connection is refused, every session ends with a message taken, none comes twice.
    Seamless,
    /// No connection is refused; messages come twice that were being written down or handed over.
    InDoubt,
    /// Connections may be refused; a message comes twice only if its client had to send it again.
    Resent,
    /// There is a time without a server, and messages come twice that were being handed over: a second time, not a
    /// third.
    Outage,
}

/// The Deployments of a release. Each has two pods, or more, and a disruption budget.
const ROLES: [&str; 5] = ["edge", "verifier", "delivery", "operator", "mta-sts"];

/// One thing that happens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// `kubectl rollout restart`, and all pods are new.
    Restart(&'static str),
    /// `kubectl scale`, and all pods are there, or gone.
    Scale(&'static str, usize),
    /// One pod of the role ends without grace.
    KillOne(&'static str),
    /// All pods of the role end without grace.
    KillAll(&'static str),
    /// The pod of Redis is deleted.
    RestartRedis,
    /// `helm upgrade` with other values; spans go to a Jaeger from then on.
    Upgrade,
    /// The node is drained as far as one node can be, and comes back.
    Drain,
    /// A release in another namespace is installed, used and uninstalled.
    SecondRelease,
    /// Pods that nobody has listed knock at every door.
    Policies,
}

/// A name, what is promised, and what happens.
pub(crate) type Event = (&'static str, Promise, &'static [Step]);

/// All events under load, in their order.
pub(crate) const EVENTS: [Event; 18] = [
    ("quiet", Promise::Seamless, &[]),
    ("restart-edge", Promise::Seamless, &[Step::Restart("edge")]),
    ("restart-verifier", Promise::Seamless, &[Step::Restart("verifier")]),
    ("restart-delivery", Promise::Seamless, &[Step::Restart("delivery")]),
    ("restart-operator", Promise::Seamless, &[Step::Restart("operator")]),
    ("restart-mta-sts", Promise::Seamless, &[Step::Restart("mta-sts")]),
    ("scale-edge-2-4-2", Promise::Seamless, &[Step::Scale("edge", 4), Step::Scale("edge", 2)]),
    (
        "scale-delivery-2-4-1",
        Promise::Seamless,
        &[Step::Scale("delivery", 4), Step::Scale("delivery", 1), Step::Scale("delivery", 2)],
    ),
    ("kill-an-edge", Promise::Resent, &[Step::KillOne("edge")]),
    ("kill-a-verifier", Promise::Seamless, &[Step::KillOne("verifier")]),
    ("kill-all-verifiers", Promise::Resent, &[Step::KillAll("verifier")]),
    ("kill-all-delivery", Promise::Outage, &[Step::KillAll("delivery")]),
    ("kill-all-edges", Promise::Resent, &[Step::KillAll("edge")]),
    ("restart-redis", Promise::InDoubt, &[Step::RestartRedis]),
    ("drain", Promise::Seamless, &[Step::Drain]),
    ("second-release", Promise::Seamless, &[Step::SecondRelease]),
    ("network-policies", Promise::Seamless, &[Step::Policies]),
    ("upgrade", Promise::Seamless, &[Step::Upgrade]),
];

/// Runs the event under load and prints its line; whether it is as promised.
pub(crate) async fn under_load((name, promise, steps): Event, test: &mut Test) -> Result<bool> {
    let address = test.release.service(&test.place, "smtp").await?;
    let load = Load::start(name, address);
    let outcome = timeout(LIMIT, shake(steps, test)).await;
    let (balance, arrived) = load.balance(&test.world.store, test.release.namespace).await?;
    balance.print(name);
    test.ledger.enter(name, balance, arrived);
    outcome.with_context(|| format!("{name} takes longer than {LIMIT:?}"))??;
    let kept = is_kept(promise, &balance);
    if !kept {
        println!("cluster: {name} BROKE its promise, {promise:?}: {balance:?}");
    }
    Ok(kept)
}

fn is_kept(promise: Promise, balance: &Balance) -> bool {
    let Balance { lost, doubled, refused, deferred, broken, in_doubt, repeated, queued, per_second, .. } =
        *balance;
    (lost, queued) == (0, 0)
        && per_second >= SLOWEST
        && match promise {
            Promise::Seamless => [refused, deferred, broken, in_doubt, doubled] == [0; 5],
            Promise::InDoubt => refused == 0 && repeated <= 1,
            Promise::Resent => repeated == 0,
            Promise::Outage => repeated <= 1,
        }
}

async fn shake(steps: &[Step], test: &mut Test) -> Result<()> {
    for step in steps {
        happen(*step, test).await.with_context(|| format!("{step:?}"))?;
    }
    Ok(())
}

async fn happen(step: Step, test: &mut Test) -> Result<()> {
    let namespace = test.release.namespace;
    match step {
        Step::Restart(name) => {
            let deployment = format!("deploy/packetboat-{name}");
            let count = namespace.pods(&role(name)).await?.len();
            namespace.kubectl(&["rollout", "restart", &deployment], 20).await?;
            namespace.rolled_out(&deployment).await?;
            // The old ones are still ending.
            namespace.has_pods(&role(name), count).await
        }
        Step::Scale(role, replicas) => scale(test, role, replicas).await,
        Step::KillOne(name) => {
            let pods = namespace.pods(&role(name)).await?;
            let first = pods.first().context("there is no such pod")?;
            namespace.kubectl(&["delete", "pod", first, "--grace-period=0", "--force"], 60).await?;
            namespace.rolled_out(&format!("deploy/packetboat-{name}")).await
        }
        Step::KillAll(name) => {
            let label = role(name);
            namespace.kubectl(&["delete", "pod", "--grace-period=0", "--force", "-l", &label], 60).await?;
            namespace.rolled_out(&format!("deploy/packetboat-{name}")).await
        }
        Step::RestartRedis => {
            namespace.kubectl(&["delete", "pod", "packetboat-redis-0"], 100).await?;
            namespace.rolled_out("statefulset/packetboat-redis").await
        }
        Step::Upgrade => upgrade(test).await,
        Step::Drain => drain(test).await,
        Step::SecondRelease => second_release(test).await,
        Step::Policies => policies(test).await,
    }
}

/// Until there are so many, and those too many are gone.
async fn scale(test: &Test, name: &str, replicas: usize) -> Result<()> {
    let namespace = test.release.namespace;
    let deployment = format!("deploy/packetboat-{name}");
    namespace.kubectl(&["scale", &deployment, &format!("--replicas={replicas}")], 20).await?;
    namespace.rolled_out(&deployment).await?;
    namespace.has_pods(&role(name), replicas).await
}

async fn upgrade(test: &mut Test) -> Result<()> {
    let otlp = test.jaeger.otlp();
    let more = json!({"telemetry": {"otlp": otlp, "logFormat": "text"}, "edge": {"replicas": 3}});
    let before = kept(test).await?;
    test.release.upgrade(&more).await?;
    let after = kept(test).await?;
    ensure!(before.len() >= 3 && after == before, "the upgrade made others of {before:?}: {after:?}");
    let ready = ["wait", "--for=condition=Ready", "mdom", "--all", "--timeout=60s"];
    test.release.namespace.kubectl(&ready, 70).await.map(drop)
}

/// What outlives an upgrade: CRDs and MailDomains, with their uids. Those of one that was made anew would differ.
async fn kept(test: &Test) -> Result<Vec<String>> {
    let domains = test.release.namespace.kubectl(&["get", "mdom", "-o", UIDS], 20).await?;
    Ok(crds().await?.into_iter().chain(domains.lines().map(str::to_owned)).collect())
}

/// Cordons every node, evicts pods as far as the disruption budgets let it, and uncordons.
async fn drain(test: &Test) -> Result<()> {
    let nodes = kubectl(&["get", "nodes", "-o", "name"], 20).await?;
    for node in nodes.lines() {
        kubectl(&["cordon", node], 20).await?;
    }
    let evicted = evict_what_may_go(test).await;
    for node in nodes.lines() {
        kubectl(&["uncordon", node], 20).await?;
    }
    evicted?;
    for role in ROLES {
        test.release.namespace.rolled_out(&format!("deploy/packetboat-{role}")).await?;
    }
    Ok(())
}

/// One pod of each role goes; the next one has to stay, since no other can come.
async fn evict_what_may_go(test: &Test) -> Result<()> {
    let namespace = test.release.namespace;
    for name in ROLES {
        let pods = namespace.pods(&role(name)).await?;
        let (Some(first), Some(second)) = (pods.first(), pods.get(1)) else {
            bail!("{name} has {} pods", pods.len())
        };
        evict(test, first).await.with_context(|| format!("evicting {first}"))?;
        let gone = format!("pod/{first}");
        namespace.kubectl(&["wait", "--for=delete", &gone, "--timeout=150s"], 160).await?;
        let refused = evict(test, second).await.err().context("both pods were evicted")?.to_string();
        ensure!(refused.contains("disruption budget"), "{refused}");
    }
    Ok(())
}

async fn evict(test: &Test, pod: &str) -> Result<()> {
    let namespace = test.release.namespace.0;
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/eviction");
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace},
    });
    run("kubectl", &["create", "--raw", &path, "-f", "-"], Some(&eviction.to_string()), 60).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Balance {
        Balance { per_second: 50.0, ..Balance::of(400) }
    }

    #[test]
    fn nothing_is_lost_and_the_load_is_kept_up_whatever_is_promised() {
        for promise in [Promise::Seamless, Promise::InDoubt, Promise::Resent, Promise::Outage] {
            assert!(is_kept(promise, &good()), "{promise:?}");
            for bad in [
                Balance { lost: 1, ..good() },
                Balance { queued: 1, ..good() },
                Balance { per_second: 48.9, ..good() },
                Balance { doubled: 2, repeated: 2, ..good() },
            ] {
                assert!(!is_kept(promise, &bad), "{promise:?} {bad:?}");
            }
        }
    }

    #[test]
    fn promises_differ_in_what_clients_notice() {
        let (refused, deferred) = (Balance { refused: 1, ..good() }, Balance { deferred: 1, ..good() });
        let (broken, in_doubt) = (Balance { broken: 1, ..good() }, Balance { in_doubt: 1, ..good() });
        let (resent, again) =
            (Balance { in_doubt: 1, doubled: 1, ..good() }, Balance { doubled: 1, repeated: 1, ..good() });
        let all = [refused, deferred, broken, in_doubt, resent, again];
        let kept = |promise| all.map(|balance| is_kept(promise, &balance));
        assert_eq!(kept(Promise::Seamless), [false; 6]);
        assert_eq!(kept(Promise::InDoubt), [false, true, true, true, true, true]);
        assert_eq!(kept(Promise::Resent), [true, true, true, true, true, false]);
        assert_eq!(kept(Promise::Outage), [true; 6]);
    }
}
