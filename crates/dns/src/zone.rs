//! Which zone a name lies in, and who is authoritative for it.

use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::dnssec::rdata::{DNSSECRData, DS};
use hickory_proto::rr::rdata::TLSA;
use hickory_proto::rr::{RData, RecordType};

use crate::error::LookupError;
use crate::resolver::{Answer, Resolver, full_name};

/// Labels above a name that are looked at: no zone lies deeper.
const MAX_LABELS: usize = 32;

/// A zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// Its name, without a dot at the end.
    pub name: String,
    /// The addresses of its name servers, those of its NS records.
    pub servers: Vec<IpAddr>,
    /// How long resolvers may remember that a name is not there (RFC 2308 §5).
    pub negative_ttl: Duration,
}

impl Resolver {
    /// The zone that `name` lies in: the nearest name above it, or itself, with an SOA record.
    ///
    /// # Errors
    /// When a look-up fails. `None` when there is no such zone, or its servers have no address.
    pub async fn zone_of(&self, name: &str) -> Result<Option<Zone>, LookupError> {
        let mut rest = name.trim_end_matches('.');
        for _ in 0..MAX_LABELS {
            if let Some(negative_ttl) = self.start_of_authority(rest).await? {
                let servers = self.name_servers(rest).await?;
                let zone = Zone { name: rest.to_owned(), servers, negative_ttl };
                return Ok(Some(zone).filter(|zone| !zone.servers.is_empty()));
            }
            let Some((_, above)) = rest.split_once('.') else { break };
            rest = above;
        }
        Ok(None)
    }

    /// What the zone above says of the keys of a zone (RFC 4034 §5); nothing when it does not know any.
    ///
    /// # Errors
    /// When the look-up fails.
    pub async fn delegation_signers(&self, zone: &str) -> Result<Vec<DS>, LookupError> {
        let Some(name) = full_name(zone) else { return Ok(Vec::new()) };
        let Answer::Records(lookup) = self.lookup(name, RecordType::DS).await? else { return Ok(Vec::new()) };
        let signers = lookup.answers().iter().filter_map(|record| match &record.data {
            RData::DNSSEC(DNSSECRData::DS(signer)) => Some(signer.clone()),
            _ => None,
        });
        Ok(signers.collect())
    }

    /// The TLSA records of a name; none when there are none.
    ///
    /// # Errors
    /// When the look-up fails.
    pub async fn tlsa(&self, name: &str) -> Result<Vec<TLSA>, LookupError> {
        let Some(name) = full_name(name) else { return Ok(Vec::new()) };
        let Answer::Records(lookup) = self.lookup(name, RecordType::TLSA).await? else {
            return Ok(Vec::new());
        };
        let records = lookup.answers().iter().filter_map(|record| match &record.data {
            RData::TLSA(tlsa) => Some(tlsa.clone()),
            _ => None,
        });
        Ok(records.collect())
    }

    /// The name that a name is an alias of (CNAME), if it is one.
    ///
    /// # Errors
    /// When the look-up fails.
    pub async fn alias(&self, name: &str) -> Result<Option<String>, LookupError> {
        let Some(name) = full_name(name) else { return Ok(None) };
        let Answer::Records(lookup) = self.lookup(name.clone(), RecordType::CNAME).await? else {
            return Ok(None);
        };
        let target = lookup.answers().iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == name => Some(target.0.to_ascii()),
            _ => None,
        });
        Ok(target.map(|target| target.trim_end_matches('.').to_ascii_lowercase()))
    }

    /// The texts of a name, each joined from its strings; none when there are none.
    ///
    /// # Errors
    /// When the look-up fails.
    pub async fn texts(&self, name: &str) -> Result<Vec<String>, LookupError> {
        let Some(name) = full_name(name) else { return Ok(Vec::new()) };
        let Answer::Records(lookup) = self.lookup(name, RecordType::TXT).await? else {
            return Ok(Vec::new());
        };
        let texts = lookup.answers().iter().filter_map(|record| match &record.data {
            RData::TXT(txt) => {
                let octets: Vec<u8> = txt.txt_data.iter().flat_map(|string| string.iter().copied()).collect();
                Some(String::from_utf8_lossy(&octets).into_owned())
            }
            _ => None,
        });
        Ok(texts.collect())
    }

    /// The names that an address leads back to (PTR); none when there are none.
    ///
    /// # Errors
    /// When the look-up fails.
    pub async fn names_of(&self, address: IpAddr) -> Result<Vec<String>, LookupError> {
        let Answer::Records(lookup) = self.lookup(address.into(), RecordType::PTR).await? else {
            return Ok(Vec::new());
        };
        let names = lookup.answers().iter().filter_map(|record| match &record.data {
            RData::PTR(name) => Some(name.0.to_ascii().trim_end_matches('.').to_ascii_lowercase()),
            _ => None,
        });
        Ok(names.collect())
    }

    /// The negative time to live of the zone that begins at `name`, if one does.
    async fn start_of_authority(&self, name: &str) -> Result<Option<Duration>, LookupError> {
        let Some(name) = full_name(name) else { return Ok(None) };
        let Answer::Records(lookup) = self.lookup(name.clone(), RecordType::SOA).await? else {
            return Ok(None);
        };
        let soa =
            lookup.answers().iter().filter(|record| record.name == name).find_map(|record| {
                match &record.data {
                    RData::SOA(soa) => Some(Duration::from_secs(soa.minimum.min(record.ttl).into())),
                    _ => None,
                }
            });
        Ok(soa)
    }

    async fn name_servers(&self, zone: &str) -> Result<Vec<IpAddr>, LookupError> {
        let Some(name) = full_name(zone) else { return Ok(Vec::new()) };
        let Answer::Records(lookup) = self.lookup(name, RecordType::NS).await? else { return Ok(Vec::new()) };
        let mut servers = Vec::new();
        for record in lookup.answers() {
            let RData::NS(server) = &record.data else { continue };
            match self.host_addresses(server.0.to_ascii().trim_end_matches('.')).await {
                Ok(addresses) => servers.extend(addresses),
                Err(crate::error::AddressError::Temporary { source, .. }) => return Err(source),
                Err(_) => {}
            }
        }
        servers.sort_unstable();
        servers.dedup();
        Ok(servers)
    }
}
