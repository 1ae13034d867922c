//! The server of policies, as a client that may be anybody sees it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mta_sts::{PolicyServer, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const TEXT: &str = "version: STSv1\r\nmode: none\r\nmax_age: 86400\r\n";
const PATIENCE: Duration = Duration::from_secs(10);

struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

async fn start(adjust: impl FnOnce(&mut ServerConfig)) -> Running {
    let mut config =
        ServerConfig { listen: "127.0.0.1:0".parse().ok(), plain: true, ..ServerConfig::default() };
    adjust(&mut config);
    let policies = Arc::new(|domain: &str| (domain == "example.com").then(|| TEXT.to_owned()));
    let server = PolicyServer::bind(config, policies, None).await.unwrap();
    let (address, stop) = (server.address().unwrap(), CancellationToken::new());
    let task = tokio::spawn(server.serve(stop.clone()));
    Running { address, stop, task }
}

/// What comes back until the server closes.
async fn say(address: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A server that closes at once may reset what it has not read.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the server does not close");
    String::from_utf8(answer).unwrap()
}

async fn ask(address: SocketAddr, method: &str, path: &str, host: &str) -> String {
    say(address, &format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await
}

#[tokio::test]
async fn a_policy_is_served_to_whoever_asks_for_it_rightly() {
    let server = start(|_| {}).await;
    const PATH: &str = "/.well-known/mta-sts.txt";
    for host in ["mta-sts.example.com", "MTA-STS.Example.COM.", "mta-sts.example.com:443"] {
        let answer = ask(server.address, "GET", PATH, host).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(TEXT), "{host}: {answer}");
        assert!(answer.contains("\r\ncontent-type: text/plain\r\n"), "{answer}");
        assert!(answer.contains("\r\ncache-control: no-store\r\n"), "{answer}");
    }
    let head = ask(server.address, "HEAD", PATH, "mta-sts.example.com").await;
    assert!(
        head.contains(&format!("content-length: {}", TEXT.len())) && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    let absolute = format!("http://mta-sts.example.com{PATH}");
    assert!(ask(server.address, "GET", &absolute, "other.test").await.starts_with("HTTP/1.1 200"));

    for (method, path, host, status) in [
        ("GET", PATH, "mta-sts.other.com", "404"),
        ("GET", PATH, "example.com", "404"),
        ("GET", PATH, "mta-sts.", "404"),
        ("GET", PATH, "", "404"),
        ("GET", "/", "mta-sts.example.com", "404"),
        ("GET", "/.well-known/mta-sts.txt/..", "mta-sts.example.com", "404"),
        ("POST", PATH, "mta-sts.example.com", "405"),
        ("DELETE", PATH, "mta-sts.example.com", "405"),
    ] {
        let answer = ask(server.address, method, path, host).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {path} {host}: {answer}");
    }
    let two = "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n";
    assert!(say(server.address, two).await.starts_with("HTTP/1.1 400 "));
    let none = "GET / HTTP/1.1\r\nConnection: close\r\n\r\n";
    assert!(say(server.address, none).await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test]
async fn whoever_is_slow_or_talks_too_much_is_ended() {
    let server = start(|config| {
        config.header_timeout = Duration::from_millis(200);
        config.connection_timeout = Duration::from_secs(2);
    })
    .await;
    assert_eq!(say(server.address, "GET / HT").await.split(' ').nth(1).unwrap_or("408"), "408");
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(20_000));
    let answer = say(server.address, &long).await;
    assert!(!answer.contains(" 200 ") && !answer.contains(" 404 "), "{answer}");
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(200));
    assert!(say(server.address, &many).await.starts_with("HTTP/1.1 431 "));
    // Requests without an end, each in time: the connection has its own.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let talk = async {
        let mut room = [0; 4096];
        loop {
            let sent = stream.write_all(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            if sent.is_err() || stream.read(&mut room).await.unwrap_or(0) == 0 {
                break;
            }
        }
    };
    timeout(PATIENCE, talk).await.expect("a connection goes on for ever");
}

#[tokio::test]
async fn connections_are_counted_and_end_in_order() {
    let server = start(|config| config.max_connections_per_client = 1).await;
    let mut first = TcpStream::connect(server.address).await.unwrap();
    first.write_all(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut room = [0; 4096];
    assert!(first.read(&mut room).await.unwrap() > 0);
    assert_eq!(say(server.address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await, "", "a second is served");
    // An idle connection does not hold the end up.
    server.stop.cancel();
    timeout(Duration::from_secs(3), server.task).await.expect("it does not stop").unwrap();
}
