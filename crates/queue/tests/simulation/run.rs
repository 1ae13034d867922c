//! One run: steps from the workload, faults from the schedule, each outcome held against the model.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use message::{Content, Envelope, Origin, QueueId, Recipient, Standing};
use queue::invariants::Witness;
use queue::{
    Closing, LeaseRequest, Leased, MessageRecord, NewEntry, NewMessage, Next, NextHop, Policy, Queue,
    QueueError, Scope, Settlement, Target, Tenant, Timestamp, Verb,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use smtp::ReversePath;

use crate::checkers;
use crate::faults::{Fault, Schedule};
use crate::model::Model;
use crate::workload::{Message, Outcome, Step, Workload, millis};
use crate::worlds::World;

/// When a run begins, by the store's clock.
pub(crate) const BEGIN: u64 = 1_767_225_600_000;
/// Steps of a run.
const STEPS: usize = 150;
/// The last steps, which a failure tells.
const TOLD: usize = 25;
/// Who reads the outbox.
const READER: &str = "simulation";
const OCTETS: &[u8] = b"Subject: simulated\r\n\r\nbody\r\n";

/// What is suspended to learn the store's clock.
pub(crate) fn probe() -> Scope {
    Scope::NextHop("clock".to_owned())
}

/// A run on its way.
pub(crate) struct Run<'a> {
    world: &'a mut dyn World,
    workload: Workload,
    schedule: Schedule,
    /// When the queue is looked at as a whole.
    looks: StdRng,
    model: Model,
    witness: Witness,
    /// The machine's clock. The store may have a time of its own, once this has been set.
    clock: u64,
    trace: VecDeque<String>,
}

impl<'a> Run<'a> {
    /// `cuts` of a thousand steps have the power cut.
    pub(crate) fn new(seed: u64, world: &'a mut dyn World, cuts: u32) -> Self {
        let stream = |number: u64| StdRng::seed_from_u64(seed.wrapping_mul(4).wrapping_add(number));
        // Of five runs one has limits, and one a clock that is set.
        let (limits, steps_clock) = (seed % 5 == 3, seed % 5 == 4);
        let steady = !steps_clock || world.set_back_by().is_some();
        let model = Model::new(BEGIN, world.keeps_leases(), steady);
        Self {
            world,
            workload: Workload::new(stream(0), limits),
            schedule: Schedule::new(stream(1), steps_clock, cuts),
            looks: stream(2),
            model,
            witness: Witness::default(),
            clock: BEGIN,
            trace: VecDeque::new(),
        }
    }

    /// Makes all steps, heals everything, and sees the queue drain. Gives how many steps were made.
    pub(crate) async fn finish(mut self) -> Result<usize> {
        let outcome = match self.steps().await {
            Ok(()) => self.drain().await,
            failed => failed,
        };
        let trace = self.trace.make_contiguous().join("\n  ");
        outcome.map(|()| STEPS).map_err(|error| anyhow!("{error:#}\nthe last steps:\n  {trace}"))
    }

    fn queue(&self) -> &dyn Queue {
        self.world.queue()
    }

    fn tell(&mut self, what: String) {
        if self.trace.len() == TOLD {
            self.trace.pop_front();
        }
        self.trace.push_back(what);
    }

    async fn steps(&mut self) -> Result<()> {
        self.queue().events(READER, 1).await?;
        for _ in 0..STEPS {
            if self.looks.random_bool(0.3) {
                self.set_clock(self.clock + 1).await?;
            }
            let (step, fault) = (self.workload.step(), self.schedule.next());
            self.tell(format!("{} {fault:?} {step}", self.model.now));
            match fault {
                // Of these two nobody can see afterwards whether they were made.
                Fault::PowerCut(part) if !matches!(step, Step::Stage(_) | Step::SetPolicy(_)) => {
                    self.cut_off(&step, part).await?;
                }
                _ => {
                    self.fault(fault).await?;
                    self.make(&step, fault == Fault::AnswerLost).await?;
                }
            }
            if fault == Fault::AnswerLost {
                self.make(&step, false).await?;
            }
            if self.looks.random_bool(0.2) || !matches!(fault, Fault::None | Fault::AnswerLost) {
                checkers::look(&mut self.witness, self.world.queue(), &self.model).await?;
            }
        }
        checkers::outbox(self.world.queue(), READER, &self.model).await
    }

    /// Sets the machine's clock; the model follows the store's.
    async fn set_clock(&mut self, clock: u64) -> Result<()> {
        self.clock = clock;
        self.world.set_clock(clock).await?;
        self.model.latest = self.model.latest.max(self.model.now);
        self.model.now = if self.schedule.steps_clock { self.store_clock().await?.0 } else { clock };
        if let Some(most) = self.world.set_back_by() {
            let back = self.model.latest.saturating_sub(self.model.now);
            ensure!(back <= most, "the store's time was set back by {back} ms");
        }
        Ok(())
    }

    /// What the store takes the time to be.
    async fn store_clock(&self) -> Result<Timestamp> {
        let probe = probe();
        self.queue().suspend(&probe, "", "simulation").await?;
        let told = self.queue().suspensions().await?;
        Ok(told.iter().find(|one| one.scope == probe).context("nothing is suspended")?.since)
    }

    /// What goes wrong between two steps.
    async fn fault(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::WorkerDies => self.workload.leases.clear(),
            Fault::Restart => {
                self.world.restart().await?;
                self.restarted();
            }
            Fault::ClockStep(by) => self.set_clock(self.clock.saturating_add_signed(by)).await?,
            Fault::None | Fault::AnswerLost | Fault::PowerCut(_) => {}
        }
        Ok(())
    }

    fn restarted(&mut self) {
        self.model.restart();
        if !self.world.keeps_leases() {
            self.workload.leases.clear();
            self.witness.restarted();
        }
    }

    /// The power goes while a step is being written: it is there as a whole, or not at all.
    async fn cut_off(&mut self, step: &Step, part: f64) -> Result<()> {
        self.world.mark()?;
        let (mut before, witness, leases) =
            (self.model.clone(), self.witness.clone(), self.workload.leases.clone());
        self.make(step, true).await?;
        self.world.cut_power(part).await?;
        self.workload.leases = leases;
        self.restarted();
        let (outbox_kept, mut after_witness) = (self.model.events.len(), self.witness.clone());
        let whole = checkers::look(&mut after_witness, self.world.queue(), &self.model).await;
        let whole = match whole {
            Ok(()) => checkers::outbox(self.world.queue(), READER, &self.model).await,
            no => no,
        };
        match whole {
            Ok(()) => self.witness = after_witness,
            Err(neither) => {
                self.tell(format!("of the step before nothing is there, {outbox_kept} events"));
                before.restart();
                (self.model, self.witness) = (before, witness);
                if !self.world.keeps_leases() {
                    self.witness.restarted();
                }
                checkers::look(&mut self.witness, self.world.queue(), &self.model)
                    .await
                    .with_context(|| format!("it is there in part: {neither:#}"))?;
            }
        }
        Ok(())
    }

    /// Makes a step on the queue and on the model; where its answer is lost, nobody works with it.
    async fn make(&mut self, step: &Step, lost: bool) -> Result<()> {
        match step {
            Step::Wait(time) => return self.set_clock(self.clock + time).await,
            Step::Stage(id) => {
                self.queue().stage(*id, 0, Bytes::from_static(OCTETS)).await?;
                if !self.model.seen.contains_key(id) {
                    self.model.staged.insert(*id);
                }
            }
            Step::Accept { message, lease } => self.accept(message, *lease, lost).await?,
            Step::Lease { max, duration, except } => self.lease(*max, *duration, except, lost).await?,
            Step::Renew { lease, duration } => {
                let told = self.queue().renew(lease, millis(*duration)).await;
                if proven(told, self.model.renew(*lease, *duration))? {
                    self.witness.renewed(lease.entry, Timestamp(self.model.now + duration));
                }
            }
            Step::Doubt { lease, peer } => {
                let told = self.queue().doubt(lease, peer).await;
                proven(told, self.model.doubt(*lease, peer))?;
            }
            Step::HandBack(lease) => {
                self.queue().hand_back(lease).await?;
                if self.model.hand_back(*lease) {
                    self.witness.given_up(lease.entry);
                }
            }
            Step::Settle { leased, outcome } => {
                let told = self.queue().settle(settlement(leased, outcome)).await;
                if proven(told, self.model.settle(leased.lease, outcome))? {
                    self.witness.given_up(leased.lease.entry);
                }
            }
            Step::Operate { target, verb } => {
                let told = self.queue().operate(*target, verb, "simulation").await?;
                let expected = self.model.operate(*target, verb);
                ensure!(told == expected, "{verb:?} concerned {told} entries, not {expected}");
            }
            Step::Suspend(scope) => {
                self.queue().suspend(scope, "simulated", "simulation").await?;
                self.model.suspend(scope);
            }
            Step::Resume(scope) => {
                let told = self.queue().resume(scope, "simulation").await?;
                ensure!(told == self.model.resume(scope), "{scope} was resumed: {told}");
            }
            Step::SetPolicy(policy) => {
                self.queue().set_policy(policy).await?;
                self.model.set_policy(policy);
            }
        }
        Ok(())
    }

    async fn accept(&mut self, message: &Message, lease: Option<(usize, u64)>, lost: bool) -> Result<()> {
        let known = self.model.seen.contains_key(&message.id);
        if known && self.schedule.steps_clock && !self.model.is_open(message.id) {
            // It is remembered for an hour or more; how long that is, nobody knows by such a clock.
            return Ok(());
        }
        let request = lease.map(|(max, duration)| request(max, duration, &[]));
        let told = self.queue().accept(new_message(message), request).await;
        if self.schedule.steps_clock && message.long && matches!(told, Err(QueueError::Gone(_))) {
            // A staged part is kept for an hour by the server's clock as it stands.
            self.model.staged.remove(&message.id);
            return Ok(());
        }
        let (told, fresh) = match (told, self.model.accept(message)) {
            (Ok(told), Some(fresh)) => (told, fresh),
            (Err(QueueError::Gone(_)), None) => return Ok(()),
            (told, expected) => bail!("accepting gave {told:?}, it is fresh: {expected:?}"),
        };
        ensure!(told.fresh == fresh, "fresh is {}, not {fresh}", told.fresh);
        ensure!(fresh || told.leased.is_empty(), "what is not fresh was leased: {told:?}");
        let (max, duration) = lease.unwrap_or_default();
        ensure!(told.leased.is_empty() || message.places.len() <= max, "too many were leased: {told:?}");
        self.take(told.leased, duration, &[], lost)
    }

    async fn lease(&mut self, max: usize, duration: u64, except: &[String], lost: bool) -> Result<()> {
        let given = self.queue().lease(request(max, duration, except)).await?;
        if max > 0 || self.queue().depth().await?.leased == 0 {
            self.model.end_leases();
        } else {
            self.end_leases_if_seen().await?;
        }
        let due = self.model.due(except).min(max);
        ensure!((due..=max).contains(&given.len()), "{} were leased, {due} to {max} are due", given.len());
        self.take(given, duration, except, lost)
    }

    /// A lease of nothing may return ended leases, or leave that to the next.
    async fn end_leases_if_seen(&mut self) -> Result<()> {
        let mut ended = self.model.clone();
        ended.end_leases();
        let entries =
            Witness::default().look(self.world.queue()).await.map_err(|broken| anyhow!("{broken}"))?;
        if checkers::agrees(&entries, &ended).is_ok() {
            self.model = ended;
        }
        Ok(())
    }

    /// Leases were given.
    fn take(&mut self, given: Vec<Leased>, duration: u64, except: &[String], lost: bool) -> Result<()> {
        self.model.leased(&given, duration, except).map_err(|what| anyhow!(what))?;
        for leased in &given {
            let stepped = self.schedule.steps_clock;
            let seen = self.witness.leased(leased);
            // By a clock that was set back a lease may end before its time.
            if let Err(broken) = seen {
                ensure!(stepped && broken.found.contains("had ended"), "{broken}");
            }
        }
        if !lost {
            self.workload.leases.extend(given);
        }
        Ok(())
    }

    /// Everything is well again, and operators let everything go: the queue drains.
    async fn drain(&mut self) -> Result<()> {
        for scope in self.model.suspended.clone() {
            self.make(&Step::Resume(scope), false).await?;
        }
        self.make(&Step::SetPolicy(Policy::default()), false).await?;
        let messages: Vec<QueueId> = self.model.seen.keys().copied().collect();
        for id in messages {
            self.make(&Step::Operate { target: queue::Target::Message(id), verb: Verb::Release }, false)
                .await?;
        }
        let long: Vec<QueueId> =
            self.workload.messages.iter().filter(|message| message.long).map(|message| message.id).collect();
        checkers::contents(self.world.queue(), &self.model, &long).await?;
        for _ in 0..2000 {
            if self.model.entries.is_empty() {
                break;
            }
            self.workload.leases.clear();
            self.make(&Step::Lease { max: 100, duration: 60_000, except: Vec::new() }, false).await?;
            let given = std::mem::take(&mut self.workload.leases);
            for leased in given.iter().cloned() {
                let outcome = Outcome::Done { closing: Closing::Delivered, bounce: None };
                self.make(&Step::Settle { leased: Box::new(leased), outcome }, false).await?;
            }
            if given.is_empty() {
                self.release_all().await?;
                let next = self.model.next_due().unwrap_or_default().saturating_sub(self.model.now);
                self.set_clock(self.clock + next.clamp(10_000, 600_000)).await?;
            }
        }
        checkers::look(&mut self.witness, self.world.queue(), &self.model).await?;
        ensure!(self.model.entries.is_empty(), "it does not drain: {:?}", self.model.entries);
        checkers::contents(self.world.queue(), &self.model, &long).await?;
        checkers::outbox(self.world.queue(), READER, &self.model).await?;
        let left = self.world.leftovers().await?;
        ensure!(left.is_empty(), "it leaves {left:?}");
        Ok(())
    }

    async fn release_all(&mut self) -> Result<()> {
        let held = self.model.entries.iter().filter(|(_, known)| known.held).map(|(id, _)| *id);
        for id in held.collect::<Vec<_>>() {
            self.make(&Step::Operate { target: Target::Entry(id), verb: Verb::Release }, false).await?;
        }
        Ok(())
    }
}

/// What the queue says of a lease, where the model says whether it is the present one.
fn proven(told: Result<(), QueueError>, present: bool) -> Result<bool> {
    match (told, present) {
        (Ok(()), true) => Ok(true),
        (Err(QueueError::StaleLease), false) => Ok(false),
        (told, present) => bail!("{told:?}, and the lease is the present one: {present}"),
    }
}

fn request(max: usize, duration: u64, except: &[String]) -> LeaseRequest {
    let except = except.iter().map(|hop| NextHop(hop.clone())).collect();
    LeaseRequest {
        worker: "simulation".to_owned(),
        max,
        duration: millis(duration),
        except,
        except_pools: Vec::new(),
    }
}

fn recipients() -> Vec<Recipient> {
    let recipient = |text: &str| -> Option<Recipient> {
        Some(Recipient {
            address: text.parse().ok()?,
            original: None,
            standing: Standing::Pending,
            attempt: None,
        })
    };
    ["a@b.example", "b@b.example"].into_iter().filter_map(recipient).collect()
}

fn new_message(message: &Message) -> NewMessage {
    let size = OCTETS.len() as u64;
    let entry = |(tenant, hop): &(&str, &str)| NewEntry {
        next_hop: NextHop((*hop).to_owned()),
        tenant: Tenant((*tenant).to_owned()),
        recipients: recipients(),
        max_age: Duration::from_millis(message.max_age),
    };
    NewMessage {
        record: MessageRecord {
            id: message.id,
            envelope: Envelope {
                reverse_path: ReversePath::Null,
                recipients: recipients().into_iter().map(|one| one.address).collect(),
                smtputf8: false,
                eight_bit: false,
                user: None,
                origin: Origin::Mx,
            },
            size: size + if message.long { size } else { 0 },
            inline_size: size,
            parts: u32::from(message.long),
            traceparent: None,
            quarantine: false,
            accepted_at: Timestamp::default(),
        },
        inline: Content::from(Bytes::from_static(OCTETS)),
        entries: message.places.iter().map(entry).collect(),
    }
}

fn settlement(leased: &Leased, outcome: &Outcome) -> Settlement {
    let mut recipients = leased.entry.recipients.clone();
    let (next, bounce) = match outcome {
        Outcome::Done { closing, bounce } => (Next::Done(*closing), bounce.as_ref().map(new_message)),
        Outcome::Retry { after, halfway } => {
            if *halfway {
                recipients[0].standing = Standing::Delivered;
            }
            (Next::Retry { after: millis(*after), error: "busy".to_owned() }, None)
        }
    };
    Settlement { lease: leased.lease, recipients, next, bounce }
}
