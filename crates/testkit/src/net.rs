//! Ports of the loopback interface.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Mutex, OnceLock};

use anyhow::{Context, Result, bail};

/// A loopback address whose port nobody listens on, for a process that is told where to listen.
///
/// The port is free for TCP and UDP when this returns and is not handed out again by this process;
/// another process may still take it, which shows as a clear "address in use" from the listener.
pub fn free_address() -> Result<SocketAddr> {
    static GIVEN: OnceLock<Mutex<HashSet<u16>>> = OnceLock::new();
    for _ in 0..100 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
        let address = listener.local_addr()?;
        if UdpSocket::bind(address).is_err() {
            continue;
        }
        let mut given =
            GIVEN.get_or_init(Mutex::default).lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if given.insert(address.port()) {
            return Ok(address);
        }
    }
    bail!("found no free loopback port in 100 tries")
}
