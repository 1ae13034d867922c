//! `make bench-domains`: many MailDomains, each with a zone of its own, from a real API server over an operator to two
//! real name servers. How long until all of them sign, what that costs, and what they cost once all is well.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::bind::{KEY_NAME, SECRET};
use testkit::dns::DnsServer;
use testkit::kubernetes::ApiServer;
use testkit::process::{Packetboat, Role, Site};
use testkit::wait;
use testkit::zones::Zones;
use tokio::time::{Instant, sleep};

/// MailDomains that are declared with one call.
const AT_ONCE: usize = 100;
/// How long all of them may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// `dns.verification.interval`, seconds; what is told by the hour is reckoned from the default, 10 minutes.
const INTERVAL: u32 = 60;
/// Rounds of a domain within an hour with the default interval.
const ROUNDS_AN_HOUR: f64 = 6.0;
/// How long the steady state is watched.
const STEADY: Duration = Duration::from_secs(120);
/// Kinds that the operator has to do with.
const KINDS: [&str; 6] =
    ["maildomains", "secrets", "configmaps", "events", "dnsproviders", "clusterdnsproviders"];

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the measurement could not go on: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What was asked of whom so far.
#[derive(Clone, Debug, Default)]
struct Costs {
    /// Requests of the API server, without watches, by verb and kind.
    api: BTreeMap<String, u64>,
    questions: u64,
    updates: u64,
}

impl Costs {
    async fn read(api: &ApiServer, zones: &Zones) -> Result<Self> {
        let text = api.kubectl(&["get", "--raw", "/metrics"], None).await?;
        let mut found = BTreeMap::new();
        for line in text.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
            let label = |name: &str| {
                let rest = line.split_once(&format!("{name}=\""))?.1;
                rest.split_once('"').map(|(value, _)| value.to_owned())
            };
            let (kind, verb) = (label("resource").unwrap_or_default(), label("verb").unwrap_or_default());
            let count = line.rsplit_once(' ').and_then(|(_, count)| count.parse::<f64>().ok());
            if KINDS.contains(&kind.as_str()) && verb != "WATCH" {
                // Requests are counted in whole numbers.
                *found.entry(format!("{verb} {kind}")).or_insert(0) += count.unwrap_or(0.0).round() as u64;
            }
        }
        let (questions, updates) = zones.asked().await?;
        Ok(Self { api: found, questions, updates })
    }

    fn since(&self, before: &Self) -> Self {
        let spent = |(name, count): (&String, &u64)| {
            let spent = count - before.api.get(name).copied().unwrap_or(0);
            (spent > 0).then(|| (name.clone(), spent))
        };
        Self {
            api: self.api.iter().filter_map(spent).collect(),
            questions: self.questions - before.questions,
            updates: self.updates - before.updates,
        }
    }

    fn requests(&self) -> u64 {
        self.api.values().sum()
    }
}

async fn run() -> Result<()> {
    let count: usize = std::env::var("DOMAINS").ok().map_or(Ok(1000), |text| text.parse())?;
    let names: Vec<String> = (0..count).map(|number| format!("d{number}.test")).collect();
    let zones = Zones::start(&names).await?;
    let dns = DnsServer::start("nothing.invalid. 300 IN A 127.0.0.1\n").await?;
    let site = Site::new(dns.address())?;
    let api = ApiServer::start().await?;
    prepare(&api).await?;
    let mut settings = site.settings(Role::Operator)?;
    settings.kubeconfig = Some(api.kubeconfig()?);
    settings.extra = "operator: {lease_duration: 15s}\n".to_owned();
    let operator = site.start(&settings).await?;

    println!("{count} MailDomains, two keys each, over two name servers with a zone for each");
    let (begun, before) = (Instant::now(), Costs::read(&api, &zones).await?);
    for some in names.chunks(AT_ONCE) {
        let yaml: String = some.iter().map(|name| mail_domain(name, &zones)).collect();
        api.kubectl(&["create", "-f", "-"], Some(&yaml)).await?;
    }
    println!("declared within {:.0} s", begun.elapsed().as_secs_f64());
    converge(&operator, count).await.with_context(|| tail(&operator))?;
    let (took, spent) = (begun.elapsed(), Costs::read(&api, &zones).await?.since(&before));
    let ready =
        ["get", "mdom", "-A", "-o", "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}"];
    let ready = api.kubectl(&ready, None).await?.split_whitespace().filter(|one| *one == "True").count();
    ensure!(ready == count, "{ready} of {count} are ready");
    report("until all sign", &spent, count);
    println!("all {count} sign and are verified after {:.0} s", took.as_secs_f64());

    // Whatever is still under way comes to its end.
    sleep(Duration::from_secs(u64::from(INTERVAL))).await;
    let (before, rounds) = (Costs::read(&api, &zones).await?, reconciliations(&operator).await?);
    sleep(STEADY).await;
    let spent = Costs::read(&api, &zones).await?.since(&before);
    let rounds = reconciliations(&operator).await? - rounds;
    report("steady", &spent, count);
    let an_hour = |number: u64| number as f64 / rounds * ROUNDS_AN_HOUR;
    println!(
        "steady: {rounds:.0} rounds within {} s; by domain and hour at an interval of 10 minutes: \
         {:.1} requests of the API, {:.1} questions to name servers",
        STEADY.as_secs(),
        an_hour(spent.requests()),
        an_hour(spent.questions),
    );
    let mebibytes = |octets: u64| octets / (1024 * 1024);
    let now = operator.child().memory()?;
    // The system's own high-water mark lags behind.
    let peak = operator.child().peak_memory()?.max(now);
    println!("memory of the operator: {} MiB at most, {} MiB now", mebibytes(peak), mebibytes(now));
    println!(
        "domains: count={count} converged={:.0}s requests={:.1}/domain questions={:.1}/domain peak={}MiB",
        took.as_secs_f64(),
        an_hour(spent.requests()),
        an_hour(spent.questions),
        mebibytes(peak)
    );
    ensure!(took < PATIENCE && mebibytes(peak) < 200, "too slow, or too large");
    Ok(())
}

async fn prepare(api: &ApiServer) -> Result<()> {
    let crds = [
        include_str!("../../../k8s/crds/maildomains.yaml"),
        include_str!("../../../k8s/crds/dnsproviders.yaml"),
        include_str!("../../../k8s/crds/clusterdnsproviders.yaml"),
    ];
    for crd in crds {
        api.define(crd).await?;
    }
    api.kubectl(&["create", "namespace", "mail"], None).await?;
    let secret = format!("--from-literal=secret={SECRET}");
    api.kubectl(&["-n", "mail", "create", "secret", "generic", "tsig", &secret], None).await.map(drop)
}

fn mail_domain(name: &str, zones: &Zones) -> String {
    let (primary, secondary) = (zones.primary(), zones.secondary());
    format!(
        "apiVersion: mail.packetboat.dev/v1alpha1\nkind: MailDomain\n\
         metadata: {{name: {}, namespace: mail}}\nspec:\n  domain: {name}\n\
         \x20 dkim: {{rotation: {{interval: 2160h, minPropagation: 30s}}}}\n\
         \x20 mx: [{{host: mx.example.test, preference: 10}}]\n  spf: {{mechanisms: [mx], all: -all}}\n\
         \x20 dmarc: {{policy: reject}}\n  tlsRpt: {{rua: [\"mailto:t@{name}\"]}}\n\
         \x20 dns:\n    mode: RFC2136\n    records: {{mx: Manage, spf: Manage}}\n\
         \x20   verification: {{servers: [\"{primary}\", \"{secondary}\"], interval: {INTERVAL}s}}\n\
         \x20   rfc2136: {{server: \"{primary}\", tsig: {{keyName: {KEY_NAME}, algorithm: hmac-sha256, secretRef: {{name: tsig}}}}}}\n\
         ---\n",
        name.replace('.', "-")
    )
}

/// A metric with this label.
async fn metric(operator: &Packetboat, name: &str, label: &str) -> Result<f64> {
    let (_, text) = operator.get("/metrics").await?;
    let line = text.lines().find(|line| line.starts_with(name) && line.contains(label));
    Ok(line.and_then(|line| line.rsplit_once(' ')?.1.parse().ok()).unwrap_or(0.0))
}

/// Rounds of all domains so far.
async fn reconciliations(operator: &Packetboat) -> Result<f64> {
    metric(operator, "packetboat_operator_reconcile_seconds_count", "").await
}

/// Waits until every domain has two keys that sign, and six records that are there.
async fn converge(operator: &Packetboat, count: usize) -> Result<()> {
    let (begun, mut told) = (Instant::now(), Instant::now());
    wait::until("all domains to sign", PATIENCE, async || {
        let signing = metric(operator, "packetboat_operator_keys", "\"Active\"").await.ok()?;
        let verified = metric(operator, "packetboat_operator_records", "\"Verified\"").await.ok()?;
        if told.elapsed() > Duration::from_secs(20) {
            told = Instant::now();
            println!(
                "{:>4.0} s: {signing} keys sign, {verified} records are there",
                begun.elapsed().as_secs_f64()
            );
        }
        let done = signing as usize == 2 * count && verified as usize == 6 * count;
        if !done {
            sleep(Duration::from_millis(500)).await;
        }
        done.then_some(())
    })
    .await
}

fn report(what: &str, costs: &Costs, count: usize) {
    let each = |number: u64| number as f64 / count as f64;
    println!(
        "{what}: {} requests of the API ({:.1} a domain), {} questions to name servers ({:.1} a domain), {} updates",
        costs.requests(),
        each(costs.requests()),
        costs.questions,
        each(costs.questions),
        costs.updates
    );
    for (name, count) in &costs.api {
        println!("    {count:>7} {name}");
    }
}

/// The end of the operator's log.
fn tail(operator: &Packetboat) -> String {
    let log = operator.log();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
