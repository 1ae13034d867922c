//! A TCP proxy that does to a connection what networks do.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What happens to what passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// It passes.
    Fair,
    /// It passes after this, in both directions.
    Slow(Duration),
    /// Nothing passes, and nobody is told. What waits passes when the weather is fair again.
    BlackHole,
    /// Every connection is broken off, and none is made.
    Broken,
}

/// The running proxy; it ends when this is dropped.
pub struct Proxy {
    address: SocketAddr,
    weather: Arc<watch::Sender<Weather>>,
    _stop: DropGuard,
}

impl Proxy {
    /// Starts a proxy on a free loopback port before `target`.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("binding a proxy")?;
        let address = listener.local_addr()?;
        let weather = Arc::new(watch::Sender::new(Weather::Fair));
        let stop = CancellationToken::new();
        let serving = serve(listener, target, Arc::clone(&weather), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(serving));
        Ok(Self { address, weather, _stop: stop.drop_guard() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the weather for all connections.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

async fn serve(
    listener: TcpListener,
    target: SocketAddr,
    weather: Arc<watch::Sender<Weather>>,
    stop: CancellationToken,
) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let mut now = weather.subscribe();
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            if *now.borrow_and_update() == Weather::Broken {
                return;
            }
            let Ok(server) = TcpStream::connect(target).await else { return };
            let (from_client, to_client) = split(client);
            let (from_server, to_server) = split(server);
            tokio::select! {
                () = pass(from_client, to_server, now.clone()) => {}
                () = pass(from_server, to_client, now.clone()) => {}
                _ = now.wait_for(|weather| *weather == Weather::Broken) => {}
            }
        }));
    }
}

/// One direction of one connection, until its end.
async fn pass(
    mut from: ReadHalf<TcpStream>,
    mut to: WriteHalf<TcpStream>,
    mut weather: watch::Receiver<Weather>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let now = *weather.borrow_and_update();
        if let Weather::Slow(delay) = now {
            sleep(delay).await;
        }
        if weather.wait_for(|weather| *weather != Weather::BlackHole).await.is_err()
            || to.write_all(&buffer[..length]).await.is_err()
        {
            return;
        }
    }
}
