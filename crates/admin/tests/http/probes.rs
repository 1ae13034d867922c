//! Health, readiness and metrics.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use admin::Check;
use anyhow::{Result, ensure};
use async_trait::async_trait;
use hyper::StatusCode;
use tokio::time::{Instant, sleep};

use crate::support::{Server, empty_queue, metrics};

/// A service that is there or is not, and counts how often it was asked.
#[derive(Default)]
struct Switch {
    away: AtomicBool,
    asked: AtomicUsize,
}

#[async_trait]
impl Check for Switch {
    async fn check(&self) -> Result<(), String> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.away.load(Ordering::SeqCst) { Err("it is away".to_owned()) } else { Ok(()) }
    }
}

/// A service that never answers.
struct Silence;

#[async_trait]
impl Check for Silence {
    async fn check(&self) -> Result<(), String> {
        pending().await
    }
}

#[tokio::test]
async fn a_process_is_healthy_and_ready_until_it_drains() -> Result<()> {
    let (_folder, queue) = empty_queue()?;
    let server = Server::start("127.0.0.1:0", Some(queue), Vec::new()).await?;
    ensure!(server.get("/healthz").await? == (StatusCode::OK, "ok\n".to_owned()));
    ensure!(server.get("/readyz").await? == (StatusCode::OK, "ready\n".to_owned()));
    server.draining.cancel();
    ensure!(server.get("/readyz").await? == (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()));
    ensure!(server.get("/healthz").await?.0 == StatusCode::OK, "it still lives");
    Ok(())
}

#[tokio::test]
async fn ready_means_that_every_check_passes() -> Result<()> {
    let (verifier, delivery) = (Arc::new(Switch::default()), Arc::new(Switch::default()));
    let checks: Vec<(String, Arc<dyn Check>)> =
        vec![("verifier".to_owned(), verifier), ("delivery".to_owned(), delivery.clone())];
    let server = Server::start("127.0.0.1:0", None, checks).await?;
    ensure!(server.get("/readyz").await?.0 == StatusCode::OK);

    delivery.away.store(true, Ordering::SeqCst);
    let deadline = Instant::now() + Duration::from_secs(10);
    let complaint = loop {
        ensure!(Instant::now() < deadline, "the failing check was not noticed");
        match server.get("/readyz").await? {
            (StatusCode::OK, _) => sleep(Duration::from_millis(50)).await,
            other => break other,
        }
    };
    ensure!(
        complaint == (StatusCode::SERVICE_UNAVAILABLE, "delivery: it is away\n".to_owned()),
        "{complaint:?}"
    );
    Ok(())
}

#[tokio::test]
async fn many_probes_cost_no_more_than_one() -> Result<()> {
    let service = Arc::new(Switch::default());
    let server = Server::start("127.0.0.1:0", None, vec![("service".to_owned(), service.clone())]).await?;
    let begin = Instant::now();
    for _ in 0..20 {
        server.get("/readyz").await?;
    }
    let most = 1 + begin.elapsed().as_secs() as usize;
    let asked = service.asked.load(Ordering::SeqCst);
    ensure!((1..=most).contains(&asked), "{asked} questions in {:?}", begin.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_check_without_an_answer_is_given_up() -> Result<()> {
    let server = Server::start("127.0.0.1:0", None, vec![("service".to_owned(), Arc::new(Silence))]).await?;
    let (status, text) = server.get("/readyz").await?;
    ensure!(
        status == StatusCode::SERVICE_UNAVAILABLE && text.starts_with("service: no answer within"),
        "{text}"
    );
    Ok(())
}

#[tokio::test]
async fn metrics_are_prometheus_text() -> Result<()> {
    metrics().await?;
    metrics::counter!("packetboat_admin_test_total", "kind" => "a").increment(3);
    let server = Server::start("127.0.0.1:0", None, Vec::new()).await?;
    let (status, text) = server.get("/metrics").await?;
    ensure!(status == StatusCode::OK);
    ensure!(text.contains("# TYPE packetboat_admin_test_total counter\n"), "{text}");
    ensure!(text.contains("packetboat_admin_test_total{kind=\"a\"} 3\n"), "{text}");
    Ok(())
}
