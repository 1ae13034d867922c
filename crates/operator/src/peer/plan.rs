//! What is due, by what there is. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::Config;

/// When a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) since: Timestamp,
    pub(super) until: Timestamp,
}

/// What is known of the authorities.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Authorities {
    /// The one that issues.
    pub(super) current: Option<Validity>,
    /// The one that is to issue, trusted already.
    pub(super) next: Option<Validity>,
    /// Whether the one before is trusted still.
    pub(super) previous: bool,
}

/// What is known of a role's Secret.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Service {
    /// Its certificate, when it can be used: it names the role, and its key is there.
    pub(super) certificate: Option<Validity>,
    /// Whether the present authority has issued it.
    pub(super) of_current: bool,
    /// Since when it trusts all authorities that it should.
    pub(super) trusts_since: Option<Timestamp>,
}

/// What happens to the authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It is as it should be, or something has to be waited out.
    Nothing,
    /// There is none that could be used: a new one is made, and issues at once.
    Begin,
    /// The next one is made, to be trusted by all.
    Prepare,
    /// All trust the next one: it issues from now on.
    Succeed,
    /// Nobody shows a certificate of the one before: it is trusted no more.
    Forget,
}

impl Step {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Begin => "begin",
            Self::Prepare => "prepare",
            Self::Succeed => "succeed",
            Self::Forget => "forget",
        }
    }
}

impl Validity {
    /// Whether two thirds of it are over.
    fn ages(self, now: Timestamp) -> bool {
        let whole = self.until.duration_since(self.since);
        now.duration_since(self.since) >= whole / 3 * 2
    }

    fn holds(self, now: Timestamp) -> bool {
        self.since <= now && now < self.until
    }
}

/// The authority's next step.
pub(super) fn step(now: Timestamp, config: &Config, authorities: &Authorities, services: &[Service]) -> Step {
    let waited = |since: Timestamp| {
        Duration::try_from(now.duration_since(since)).is_ok_and(|waited| waited >= config.propagation)
    };
    let all_trust = services.iter().all(|service| service.trusts_since.is_some_and(waited));
    let all_show = services.iter().all(|service| {
        service.of_current && service.certificate.is_some_and(|certificate| waited(certificate.since))
    });
    match authorities {
        Authorities { current: None, .. } => Step::Begin,
        Authorities { current: Some(current), .. } if !current.holds(now) => Step::Begin,
        Authorities { next: Some(_), .. } if all_trust => Step::Succeed,
        Authorities { previous: true, next: None, .. } if all_show => Step::Forget,
        Authorities { current: Some(current), next: None, previous: false } if current.ages(now) => {
            Step::Prepare
        }
        _ => Step::Nothing,
    }
}

/// Whether a role needs another certificate.
pub(super) fn is_due(now: Timestamp, config: &Config, service: &Service) -> bool {
    match service.certificate {
        Some(certificate) if service.of_current && certificate.holds(now) => {
            // A life that was shortened in the settings counts for what is there, too.
            let shortest = certificate.until.duration_since(certificate.since);
            let ordered = jiff::SignedDuration::try_from(config.lifetime).unwrap_or(shortest);
            let counted = Validity { until: certificate.since + shortest.min(ordered), ..certificate };
            counted.ages(now)
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * 3600;

    fn day(number: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + number * DAY).unwrap()
    }

    fn days(since: i64, until: i64) -> Option<Validity> {
        Some(Validity { since: day(since), until: day(until) })
    }

    /// Runs a world in which each look does what is due, hour by hour: no certificate is ever shown that
    /// somebody does not trust, and none runs out.
    #[test]
    fn nobody_ever_meets_a_stranger() {
        let config = Config::default();
        let hour = |number: i64| Timestamp::from_second(1_800_000_000 + number * 3600).unwrap();
        let life = |since: Timestamp, life: Duration| Validity {
            since,
            until: since + jiff::SignedDuration::try_from(life).unwrap(),
        };
        // Authorities by number; what is trusted as numbers.
        let (mut authorities, mut issuing, mut made) = (Authorities::default(), 0_u32, 0_u32);
        let mut services = [Service::default(); 3];
        let mut issuers = [0_u32; 3];
        let mut trusted = [Vec::<u32>::new(), Vec::new(), Vec::new()];
        let mut successions = 0;
        for at in 0..24 * 365 * 5 {
            let now = hour(at);
            match step(now, &config, &authorities, &services) {
                Step::Nothing => {}
                Step::Begin => {
                    assert_eq!(at, 0, "an authority ran out");
                    made += 1;
                    issuing = made;
                    authorities.current = Some(life(now, config.authority_lifetime));
                }
                Step::Prepare => {
                    made += 1;
                    authorities.next = Some(life(now, config.authority_lifetime));
                }
                Step::Succeed => {
                    issuing = made;
                    authorities = Authorities { current: authorities.next, next: None, previous: true };
                    services.iter_mut().for_each(|service| service.of_current = false);
                    successions += 1;
                }
                Step::Forget => authorities.previous = false,
            }
            let mut wanted = vec![issuing];
            wanted.extend(authorities.next.map(|_| made));
            wanted.extend(authorities.previous.then(|| issuing - 1));
            for (index, service) in services.iter_mut().enumerate() {
                if is_due(now, &config, service) {
                    service.certificate = Some(life(now, config.lifetime));
                    service.of_current = true;
                    issuers[index] = issuing;
                }
                if trusted[index] != wanted {
                    trusted[index].clone_from(&wanted);
                    service.trusts_since = Some(now);
                }
                // Pods see a Secret later: whoever has not yet must know the issuer all the same.
                assert!(service.certificate.unwrap().holds(now));
            }
            for issuer in issuers {
                assert!(trusted.iter().all(|trusted| trusted.contains(&issuer)), "at {at}");
            }
        }
        assert!(successions >= 2, "{successions} successions");
    }

    #[test]
    fn a_next_authority_waits_until_all_trust_it() {
        let config = Config::default();
        let authorities = Authorities { current: days(0, 730), next: days(500, 1230), previous: false };
        let service = Service { certificate: days(450, 540), of_current: true, trusts_since: Some(day(500)) };
        let late = Service { trusts_since: None, ..service };
        assert_eq!(step(day(500), &config, &authorities, &[service]), Step::Nothing);
        assert_eq!(step(day(501), &config, &authorities, &[service, late]), Step::Nothing);
        assert_eq!(step(day(501), &config, &authorities, &[service, service]), Step::Succeed);
    }

    #[test]
    fn the_one_before_is_kept_while_somebody_shows_its_certificate() {
        let config = Config::default();
        let authorities = Authorities { current: days(500, 1230), next: None, previous: true };
        let new = Service { certificate: days(501, 591), of_current: true, trusts_since: Some(day(500)) };
        let old = Service { of_current: false, ..new };
        assert_eq!(step(day(502), &config, &authorities, &[new, old]), Step::Nothing);
        assert_eq!(step(day(501), &config, &authorities, &[new, new]), Step::Nothing);
        assert_eq!(step(day(502), &config, &authorities, &[new, new]), Step::Forget);
    }

    #[test]
    fn certificates_are_due_at_two_thirds() {
        let config = Config::default();
        let service = Service { certificate: days(0, 90), of_current: true, trusts_since: None };
        assert!(!is_due(day(59), &config, &service));
        assert!(is_due(day(60), &config, &service));
        assert!(is_due(day(1), &config, &Service { of_current: false, ..service }));
        let shorter = Config { lifetime: Duration::from_secs(3 * 24 * 3600), ..Config::default() };
        assert!(is_due(day(2), &shorter, &service));
    }
}
