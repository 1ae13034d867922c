//! The operator is killed (SIGKILL) as soon as a step of a rotation is seen, at each step, and then at any moment;
//! frozen and thawed while another leads. A witness outside sees that signing is never interrupted, that nothing
//! signs before its record is at every name server, and that no key goes while it is needed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use packetboat_tests::estate::{DOMAIN, Estate, STEP};
use packetboat_tests::witness::{Times, Witness};
use testkit::bind::texts;
use testkit::process::{Packetboat, Settings};
use testkit::wait;

const TIMES: Times = Times { min_propagation: Duration::from_secs(2), retire_after: Duration::from_secs(4) };
const KEYS: &str = "\x20 dkim: {algorithms: [rsa-sha256, ed25519-sha256], \
    rotation: {interval: 1h, minPropagation: 2s, retireAfter: 4s, revokeFor: 2s}}";
/// How often it is killed at any moment of a rotation.
const RANDOM_KILLS: u64 = 6;

/// A step of a rotation, as it is seen from outside.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A new key comes to this stage.
    New(&'static str),
    /// The primary shows a record of a new key.
    Shown,
    /// A former key comes to this stage; `Gone` when nothing of it is left.
    Former(&'static str),
    /// The primary shows that a former key is revoked.
    ShownRevoked,
}

const STEPS: [Step; 9] = [
    Step::New("Generated"),
    Step::New("Publishing"),
    Step::Shown,
    Step::New("Propagating"),
    Step::New("Active"),
    Step::Former("Retiring"),
    Step::Former("Revoked"),
    Step::ShownRevoked,
    Step::Former("Gone"),
];

struct Scene {
    estate: Estate,
    witness: Witness,
    settings: Settings,
    operator: Packetboat,
}

impl Scene {
    /// Waits for a step of the rotation away from `former`.
    async fn see(&self, step: Step, former: &[String]) -> Result<()> {
        let is_former = |selector: &str| former.iter().any(|one| one == selector);
        let limit = STEP * 2;
        match step {
            // A short stage may be over before it is looked for.
            Step::New(stage) => {
                let seen = async || {
                    let story = self.witness.story();
                    let line = |line: &str| {
                        line.split_once(": ")
                            .is_some_and(|(selector, now)| now == stage && !is_former(selector))
                    };
                    story.lines().any(line)
                };
                wait::until_true(&format!("a new key to be {stage}"), limit, seen).await
            }
            Step::Former(stage) => self.witness.wait_for(stage, limit, is_former).await.map(drop),
            Step::Shown => {
                let seen = async || self.shows("v=DKIM1; k=", |selector| !is_former(selector)).await;
                wait::until_true("the record of a new key", limit, seen).await
            }
            Step::ShownRevoked => {
                let seen = async || self.shows("v=DKIM1; p=", is_former).await || self.are_gone(former);
                wait::until_true("the record of a revoked key", limit, seen).await
            }
        }
    }

    async fn shows(&self, text: &str, which: impl Fn(&str) -> bool) -> bool {
        for selector in self.witness.selectors().iter().filter(|selector| which(selector)) {
            let shown = texts(self.estate.bind.primary(), &format!("{selector}._domainkey.{DOMAIN}")).await;
            if shown.is_ok_and(|shown| shown.iter().any(|one| one.starts_with(text))) {
                return true;
            }
        }
        false
    }

    fn are_gone(&self, former: &[String]) -> bool {
        let story = self.witness.story();
        former.iter().all(|selector| story.contains(&format!("{selector}: forgotten")))
    }

    /// Ends the operator as a power cut would, and starts another.
    async fn kill_and_start(&mut self) -> Result<()> {
        self.operator.kill9().await?;
        self.operator = self.estate.site.launch(&self.settings).await?;
        Ok(())
    }

    /// The keys that sign; two of them once nothing is on its way.
    async fn settled(&self) -> Result<Vec<String>> {
        let settled = async || {
            let active = self.witness.in_stage("Active");
            let others = ["Generated", "Publishing", "Propagating", "Retiring", "Revoked"];
            (active.len() == 2 && others.iter().all(|stage| self.witness.in_stage(stage).is_empty()))
                .then_some(active)
        };
        wait::until("the rotation to come to its end", STEP * 2, settled)
            .await
            .with_context(|| format!("{}\n{}", self.witness.story(), self.operator.log()))
    }
}

async fn scene() -> Result<Scene> {
    let estate = Estate::new().await?;
    let (settings, operator) = estate.operator().await?;
    let witness = estate.witness(TIMES).await?;
    estate.api.apply(&estate.mail_domain(KEYS)).await?;
    estate.wait_for("Ready", "True", "Ready").await?;
    Ok(Scene { estate, witness, settings, operator })
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_where_it_was() -> Result<()> {
    let mut scene = scene().await?;
    let mut former = scene.settled().await?;

    // One rotation, and a death at each of its steps.
    scene.estate.annotate("rotate-now=at-each-step").await?;
    for step in STEPS {
        scene.see(step, &former).await.with_context(|| format!("{step:?}"))?;
        scene.kill_and_start().await?;
    }
    let now = scene.settled().await?;
    ensure!(now.iter().all(|selector| !former.contains(selector)), "it has not rotated: {now:?}");
    let made = scene.witness.selectors().len();
    ensure!(made == 4, "{made} keys were made instead of 4:\n{}", scene.witness.story());
    scene.witness.judge()?;

    // At any moment: deaths come at other distances from the beginning each time.
    former = now;
    for round in 0..RANDOM_KILLS {
        if round % 3 == 0 {
            former = scene.settled().await?;
            scene.estate.annotate(&format!("rotate-now=round-{round}")).await?;
        }
        let moment = Duration::from_millis(1500 + (round * 1237 + u64::from(std::process::id())) % 6000);
        tokio::time::sleep(moment).await;
        scene.kill_and_start().await?;
    }
    let now = scene.settled().await?;
    ensure!(now.iter().all(|selector| !former.contains(selector)), "it has not rotated: {now:?}");
    scene.estate.wait_for("DNSVerified", "True", "Verified").await?;
    scene.witness.judge()?;
    let log = scene.operator.log();
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_asleep_does_not_undo_what_another_did() -> Result<()> {
    let scene = scene().await?;
    let former = scene.settled().await?;
    let (_, other) = scene.estate.operator().await?;
    scene.estate.annotate("rotate-now=asleep").await?;
    scene.see(Step::Shown, &former).await?;

    // The one that leads is frozen in the middle; the other brings the rotation to its end.
    scene.operator.child().freeze()?;
    scene.see(Step::New("Active"), &former).await.with_context(|| other.log())?;
    scene.see(Step::Former("Retiring"), &former).await?;
    scene.operator.child().thaw()?;
    let leads = async || {
        let (first, second) = (
            scene.operator.metric("packetboat_operator_leads").await,
            other.metric("packetboat_operator_leads").await,
        );
        first.is_ok_and(|leads| leads == 0.0) && second.is_ok_and(|leads| leads == 1.0)
    };
    wait::until_true("the one that slept to notice that it leads no more", STEP, leads).await?;
    let now = scene.settled().await?;
    ensure!(now.iter().all(|selector| !former.contains(selector)), "{now:?}");
    ensure!(scene.witness.selectors().len() == 4, "{}", scene.witness.story());
    scene.witness.judge()
}
