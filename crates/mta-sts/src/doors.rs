//! How many connections there may be, in all and of each client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places that there are.
pub(crate) struct Doors {
    free: Arc<Semaphore>,
    clients: Arc<Mutex<HashMap<IpAddr, usize>>>,
    max_per_client: usize,
}

/// A connection's place; given back when dropped.
pub(crate) struct Place {
    client: IpAddr,
    clients: Arc<Mutex<HashMap<IpAddr, usize>>>,
    _permit: OwnedSemaphorePermit,
}

impl Doors {
    pub(crate) fn new(max: usize, max_per_client: usize) -> Self {
        let free = Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS)));
        Self { free, clients: Arc::default(), max_per_client }
    }

    /// A place for a client, or the setting that leaves it none.
    pub(crate) fn enter(&self, client: IpAddr) -> Result<Place, &'static str> {
        let permit = Arc::clone(&self.free).try_acquire_owned().map_err(|_| "max_connections")?;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let count = clients.entry(client).or_default();
        if *count >= self.max_per_client {
            return Err("max_connections_per_client");
        }
        *count += 1;
        metrics::gauge!("packetboat_mta_sts_connections").increment(1.0);
        Ok(Place { client, clients: Arc::clone(&self.clients), _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = clients.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.client);
            }
        }
        metrics::gauge!("packetboat_mta_sts_connections").decrement(1.0);
    }
}
