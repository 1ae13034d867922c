//! What the tests of this crate share: an authenticator that asks a DNS server of the test.

use std::time::Duration;

use auth::{Authenticator, Client, ClientCheck, Config, Purpose, Scan, Scanned, Verification};
use bytes::Bytes;
use message::header::Limits;
use testkit::dns::DnsServer;

pub(crate) struct Judge {
    pub(crate) dns: DnsServer,
    pub(crate) authenticator: Authenticator,
}

impl Judge {
    pub(crate) async fn new(zone: &str) -> Self {
        let dns = DnsServer::start(zone).await.unwrap();
        let config = Config {
            dns_servers: vec![dns.address()],
            dns_timeout: Duration::from_millis(300),
            dns_attempts: 1,
            dns_deadline: Duration::from_secs(1),
            ..Config::default()
        };
        let authenticator = Authenticator::new(&config).unwrap();
        Self { dns, authenticator }
    }

    pub(crate) async fn check(&self, ip: &str, helo: &str, from: &str) -> ClientCheck {
        let client =
            Client { ip: ip.parse().unwrap(), helo: helo.to_owned(), reverse_path: from.parse().unwrap() };
        self.authenticator.check_client(&client).await
    }

    /// A message from an address without any record, so that only its content counts.
    pub(crate) async fn verify(&self, message: &str) -> Verification {
        self.verify_from("192.0.2.99", "sender@nothing.test", message).await
    }

    pub(crate) async fn verify_from(&self, ip: &str, from: &str, message: &str) -> Verification {
        let client = self.check(ip, "helo.nothing.test", from).await;
        self.authenticator.verify(client, &scan(message, Purpose::Verify)).await
    }
}

/// Scans a message in chunks of odd sizes.
pub(crate) fn scan(message: &str, purpose: Purpose) -> Scanned {
    let mut scan = Scan::new(purpose, Limits::default());
    for chunk in message.as_bytes().chunks(37) {
        scan.push(Bytes::copy_from_slice(chunk)).unwrap();
    }
    scan.finish().unwrap()
}

/// The fields of a message, as a signer takes them.
pub(crate) fn fields(scanned: &Scanned) -> Vec<(&[u8], &[u8])> {
    scanned.header().fields().map(|field| (field.raw_name(), field.raw_value())).collect()
}
