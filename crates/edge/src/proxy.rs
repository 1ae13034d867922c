//! The PROXY protocol, versions 1 and 2: who is behind a load balancer.
//!
//! The header is required on listeners that ask for it, and read from listed networks alone. What is
//! partial, overlong or malformed ends the connection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest header of version 1, with its CRLF.
const MAX_V1: usize = 107;
/// Longest header of version 2 that is read: addresses and a reasonable number of TLVs.
const MAX_V2: usize = 16 + 2048;
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// A network in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// The text is not `address/prefix`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a network: write for example 10.0.0.0/8 or 2001:db8::/32")]
pub struct NetworkError(String);

impl std::str::FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let malformed = || NetworkError(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse().map_err(|_| malformed())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| malformed())?;
        let widest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(widest);
        if prefix > widest { Err(malformed()) } else { Ok(Self { address, prefix }) }
    }
}

impl Network {
    /// Whether an address lies in the network. An IPv4 address written as IPv6 is an IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.prefix);
                let cut = |ip: Ipv4Addr| u32::from(ip).checked_shr(shift).unwrap_or(0);
                cut(network) == cut(address)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(self.prefix);
                let cut = |ip: Ipv6Addr| u128::from(ip).checked_shr(shift).unwrap_or(0);
                cut(network) == cut(address)
            }
            _ => false,
        }
    }
}

/// What stands at the start of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Header {
    /// More octets are needed.
    Partial,
    /// The header takes `length` octets. `client` is `None` when the proxy speaks for itself
    /// (health checks), or does not know.
    Whole {
        /// How many octets it takes.
        length: usize,
        /// Who is behind the proxy.
        client: Option<SocketAddr>,
    },
}

/// The octets are no PROXY header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no valid PROXY header")]
pub struct ProxyError;

/// Reads the header at the start of `octets`.
///
/// # Errors
/// When it is not there, overlong or malformed.
pub fn parse(octets: &[u8]) -> Result<Header, ProxyError> {
    let common = octets.len().min(V2_SIGNATURE.len());
    if octets[..common] == V2_SIGNATURE[..common] {
        return parse_v2(octets);
    }
    let common = octets.len().min(6);
    if octets[..common] == b"PROXY "[..common] { parse_v1(octets) } else { Err(ProxyError) }
}

fn parse_v1(octets: &[u8]) -> Result<Header, ProxyError> {
    let Some(end) = memchr::memchr(b'\n', &octets[..octets.len().min(MAX_V1)]) else {
        return if octets.len() >= MAX_V1 { Err(ProxyError) } else { Ok(Header::Partial) };
    };
    let line = octets[..end].strip_suffix(b"\r").ok_or(ProxyError)?;
    let line = std::str::from_utf8(line).map_err(|_| ProxyError)?;
    let words: Vec<&str> = line.split(' ').collect();
    let length = end + 1;
    match words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => Ok(Header::Whole { length, client: None }),
        ["PROXY", family @ ("TCP4" | "TCP6"), source, destination, source_port, destination_port] => {
            let address = |text: &str| -> Result<IpAddr, ProxyError> {
                let address: IpAddr = text.parse().map_err(|_| ProxyError)?;
                if address.is_ipv4() == (*family == "TCP4") { Ok(address) } else { Err(ProxyError) }
            };
            let port = |text: &str| text.parse::<u16>().map_err(|_| ProxyError);
            address(destination)?;
            port(destination_port)?;
            Ok(Header::Whole { length, client: Some(SocketAddr::new(address(source)?, port(source_port)?)) })
        }
        _ => Err(ProxyError),
    }
}

fn parse_v2(octets: &[u8]) -> Result<Header, ProxyError> {
    let Some(head) = octets.get(12..16) else { return Ok(Header::Partial) };
    let length = 16 + usize::from(u16::from_be_bytes([head[2], head[3]]));
    if head[0] >> 4 != 2 || length > MAX_V2 {
        return Err(ProxyError);
    }
    let Some(body) = octets.get(16..length) else { return Ok(Header::Partial) };
    let client = match (head[0] & 15, head[1]) {
        (0, _) | (1, 0) => None,
        (1, 0x11) => {
            let body: &[u8; 12] = body.first_chunk().ok_or(ProxyError)?;
            let ip = Ipv4Addr::new(body[0], body[1], body[2], body[3]);
            Some(SocketAddr::from((ip, u16::from_be_bytes([body[8], body[9]]))))
        }
        (1, 0x21) => {
            let body: &[u8; 36] = body.first_chunk().ok_or(ProxyError)?;
            let ip: &[u8; 16] = body.first_chunk().ok_or(ProxyError)?;
            Some(SocketAddr::from((Ipv6Addr::from(*ip), u16::from_be_bytes([body[32], body[33]]))))
        }
        _ => return Err(ProxyError),
    };
    Ok(Header::Whole { length, client })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&V2_SIGNATURE[..], &[0x20 | command, family], &length, body].concat()
    }

    #[test]
    fn version_1_tells_the_client() {
        let line = b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 25\r\nEHLO";
        let client = Some("192.0.2.1:1234".parse().unwrap());
        assert_eq!(parse(line), Ok(Header::Whole { length: 40, client }));
        for cut in 0..40 {
            assert_eq!(parse(&line[..cut]), Ok(Header::Partial), "{cut}");
        }
        assert_eq!(parse(b"PROXY UNKNOWN\r\n"), Ok(Header::Whole { length: 15, client: None }));
    }

    #[test]
    fn version_2_tells_the_client_and_passes_over_tlvs() {
        let mut body = vec![192, 0, 2, 1, 192, 0, 2, 2, 0x04, 0xd2, 0, 25];
        body.extend([0x04, 0, 2, 1, 2]);
        let header = v2(1, 0x11, &body);
        let client = Some("192.0.2.1:1234".parse().unwrap());
        assert_eq!(parse(&header), Ok(Header::Whole { length: header.len(), client }));
        for cut in 0..header.len() {
            assert_eq!(parse(&header[..cut]), Ok(Header::Partial), "{cut}");
        }
        assert_eq!(parse(&v2(0, 0, &[])), Ok(Header::Whole { length: 16, client: None }));
    }

    #[test]
    fn garbage_is_refused() {
        for bad in [
            &b"EHLO x\r\n"[..],
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 70000 2\r\n",
            &[b'P'; 120],
            &v2(1, 0x11, &[1, 2, 3]),
            &v2(1, 0x31, &[0; 216]),
            &v2(2, 0x11, &[0; 12]),
        ] {
            assert_eq!(parse(bad), Err(ProxyError), "{bad:?}");
        }
        let overlong = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat();
        assert_eq!(parse(&overlong), Err(ProxyError));
        let mut huge = v2(1, 0x11, &[]);
        huge[14..16].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(parse(&huge), Err(ProxyError));
    }

    #[test]
    fn networks_contain_their_addresses() {
        let network: Network = "10.1.0.0/16".parse().unwrap();
        assert!(network.contains("10.1.2.3".parse().unwrap()));
        assert!(network.contains("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!network.contains("10.2.0.0".parse().unwrap()));
        assert!("0.0.0.0/0".parse::<Network>().unwrap().contains("8.8.8.8".parse().unwrap()));
        assert!("2001:db8::/32".parse::<Network>().unwrap().contains("2001:db8::1".parse().unwrap()));
        for bad in ["", "10.0.0.0/33", "x/8", "10.0.0.0/"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
