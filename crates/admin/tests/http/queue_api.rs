//! The queue API: what an operator sees and does.

use std::net::{SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use hyper::{Method, StatusCode};
use serde_json::Value as Json;

use crate::support::{Server, empty_queue, put, request};

fn ids(page: &Json) -> Vec<&str> {
    page["entries"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| entry["message"]["id"].as_str())
        .collect()
}

#[tokio::test]
async fn entries_are_listed_page_by_page() -> Result<()> {
    let (_folder, queue) = empty_queue()?;
    let server = Server::start("127.0.0.1:0", Some(queue.clone()), Vec::new()).await?;
    let empty = server.json(Method::GET, "/api/v1/queue/entries").await?;
    ensure!(ids(&empty).is_empty() && empty["next"].is_null(), "{empty}");

    let mut wanted = Vec::new();
    for number in 0..5 {
        wanted.push(put(&queue, &format!("u{number}@remote.test"), "mx:remote.test").await?.to_string());
    }
    let other = put(&queue, "x@other.test", "mx:other.test").await?.to_string();
    let mut found = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = server.json(Method::GET, &format!("/api/v1/queue/entries?limit=2{cursor}")).await?;
        ensure!(ids(&page).len() <= 2, "{page}");
        found.extend(ids(&page).into_iter().map(str::to_owned));
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    found.sort();
    wanted.push(other.clone());
    wanted.sort();
    ensure!(found == wanted, "{found:?}");

    let page = server.json(Method::GET, "/api/v1/queue/entries?next_hop=mx:other.test").await?;
    ensure!(ids(&page) == [other.as_str()], "{page}");
    let page = server.json(Method::GET, "/api/v1/queue/entries?state=leased").await?;
    ensure!(ids(&page).is_empty(), "{page}");
    Ok(())
}

#[tokio::test]
async fn a_message_is_shown_retried_and_removed() -> Result<()> {
    let (_folder, queue) = empty_queue()?;
    let id = put(&queue, "carol@remote.test", "mx:remote.test").await?;
    let server = Server::start("127.0.0.1:0", Some(queue.clone()), Vec::new()).await?;
    let path = format!("/api/v1/queue/messages/{id}");

    let shown = server.json(Method::GET, &path).await?;
    ensure!(shown["message"]["id"] == id.to_string(), "{shown}");
    ensure!(shown["entries"][0]["recipients"][0]["address"] == "carol@remote.test", "{shown}");
    ensure!(shown["entries"][0]["state"] == "queued", "{shown}");

    let moved = server.json(Method::POST, &format!("{path}/retry")).await?;
    ensure!(moved["entries"] == 1, "{moved}");
    let moved = server.json(Method::DELETE, &path).await?;
    ensure!(moved["entries"] == 1, "{moved}");
    ensure!(queue.show(id).await?.is_none(), "it is gone from the queue");
    for (method, path) in
        [(Method::GET, path.clone()), (Method::POST, format!("{path}/retry")), (Method::DELETE, path)]
    {
        let (status, text) = server.refusal(method, &path).await?;
        ensure!(status == StatusCode::NOT_FOUND && text.contains(&id.to_string()), "{status} {text}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_no_id_is_refused() -> Result<()> {
    let (_folder, queue) = empty_queue()?;
    let server = Server::start("127.0.0.1:0", Some(queue), Vec::new()).await?;
    let (status, text) = server.refusal(Method::GET, "/api/v1/queue/messages/x").await?;
    ensure!(status == StatusCode::BAD_REQUEST && text.contains("not a queue id"), "{status} {text}");
    Ok(())
}

#[tokio::test]
async fn a_role_without_a_queue_has_no_queue_api() -> Result<()> {
    let server = Server::start("127.0.0.1:0", None, Vec::new()).await?;
    ensure!(server.get("/api/v1/queue/entries").await?.0 == StatusCode::NOT_FOUND);
    Ok(())
}

#[tokio::test]
async fn other_names_for_this_machine_are_refused() -> Result<()> {
    let (_folder, queue) = empty_queue()?;
    let server = Server::start("127.0.0.1:0", Some(queue), Vec::new()).await?;
    let ask = async |path, host| request(Method::GET, server.address, path, Some(host)).await;
    ensure!(ask("/api/v1/queue/entries", "localhost:8025").await?.0 == StatusCode::OK);
    ensure!(ask("/api/v1/queue/entries", "rebound.example").await?.0 == StatusCode::FORBIDDEN);
    ensure!(ask("/healthz", "packetboat.mail.svc").await?.0 == StatusCode::OK, "probes may use any name");
    Ok(())
}

/// An address of this machine that is not loopback, where it has one. Nothing is sent to find it.
fn outer_address() -> Option<SocketAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().filter(|address| !address.ip().is_loopback())
}

#[tokio::test]
async fn callers_from_elsewhere_are_refused() -> Result<()> {
    let (_folder, queue) = empty_queue()?;
    let server = Server::start("0.0.0.0:0", Some(queue), Vec::new()).await?;
    let port = server.address.port();
    let ask = async |address, path| request(Method::GET, address, path, None).await;
    let here = SocketAddr::from(([127, 0, 0, 1], port));
    ensure!(ask(here, "/api/v1/queue/entries").await?.0 == StatusCode::OK);
    let Some(mut outer) = outer_address() else {
        println!("passed over: this machine has no address but loopback");
        return Ok(());
    };
    outer.set_port(port);
    let (status, body) = ask(outer, "/api/v1/queue/entries").await?;
    ensure!(status == StatusCode::FORBIDDEN && body.contains("own machine"), "{status} {body}");
    let (status, _) = ask(outer, "/healthz").await.context("probes come from elsewhere")?;
    ensure!(status == StatusCode::OK);
    Ok(())
}
