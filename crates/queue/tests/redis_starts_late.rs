//! A process may start before its Redis does: it waits, and gives up when that takes too long.

use std::time::Duration;

use queue::QueueError;
use queue::redis::{Config, RedisQueue};
use testkit::redis::RedisServer;
use tokio::net::TcpListener;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

fn at(server: &RedisServer, startup_timeout: Duration) -> Config {
    Config { url: Some(server.url()), startup_timeout, ..Config::default() }
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::unwrap_used)]
async fn a_server_that_comes_up_late_is_waited_for() {
    let mut server = RedisServer::start().await.unwrap();
    server.stop().await.unwrap();
    let nobody = TcpListener::bind(server.address()).await.unwrap();
    let config = at(&server, PATIENCE);
    let connecting = tokio::spawn(async move { RedisQueue::connect(&config).await.map(drop) });
    let (first, _) = timeout(PATIENCE, nobody.accept()).await.unwrap().unwrap();
    drop((first, nobody));
    server.restart().await.unwrap();
    connecting.await.unwrap().unwrap();
}

#[tokio::test]
#[allow(clippy::unwrap_used)]
async fn a_server_that_stays_away_is_given_up() {
    let mut server = RedisServer::start().await.unwrap();
    server.stop().await.unwrap();
    let config = at(&server, Duration::from_secs(1));
    let outcome = timeout(PATIENCE, RedisQueue::connect(&config)).await.unwrap();
    assert!(matches!(outcome, Err(QueueError::Unavailable { .. })), "{:?}", outcome.map(drop));
}

#[tokio::test]
#[allow(clippy::unwrap_used)]
async fn a_password_that_is_wrong_is_told_at_once() {
    let server = RedisServer::start().await.unwrap();
    server.set("requirepass", "another").await.unwrap();
    let config =
        Config { url: Some(server.url().replace("://", "://:wrong@")), ..at(&server, PATIENCE * 10) };
    let outcome = timeout(PATIENCE, RedisQueue::connect(&config)).await.unwrap();
    assert!(matches!(outcome, Err(QueueError::Unavailable { .. })), "{:?}", outcome.map(drop));
}
