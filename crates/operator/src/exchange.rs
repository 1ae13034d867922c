//! One question to one name server, by UDP and, when the answer was cut, by TCP; or one signed update.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long one server may take over UDP, and how often it is asked there.
const UDP_WAIT: Duration = Duration::from_secs(2);
const UDP_TRIES: usize = 2;
/// How long one server may take over TCP.
const TCP_WAIT: Duration = Duration::from_secs(10);
/// What fits into a UDP answer (RFC 9715 §3.2).
const UDP_PAYLOAD: u16 = 1232;

/// Why a server gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// It did not answer in time.
    #[error("{0} does not answer")]
    Silent(SocketAddr),
    /// It cannot be reached.
    #[error("{server} cannot be reached")]
    Unreachable {
        /// The server.
        server: SocketAddr,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// What it said is no DNS message.
    #[error("{0} says something that is no DNS answer")]
    Garbled(SocketAddr),
}

/// Asks one server, without recursion.
///
/// # Errors
/// When it gives no answer. An answer with an error code is one.
pub async fn ask(server: SocketAddr, name: &Name, kind: RecordType) -> Result<Message, ExchangeError> {
    exchange(server, name, kind, false).await
}

/// The same, with the signatures over what it answers (RFC 4035 §3.2.1).
///
/// # Errors
/// See [`ask`].
pub async fn ask_for_signatures(
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
) -> Result<Message, ExchangeError> {
    exchange(server, name, kind, true).await
}

async fn exchange(
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
    signatures: bool,
) -> Result<Message, ExchangeError> {
    let answer = converse(server, name, kind, signatures).await;
    let outcome = match answer.as_ref().map(|answer| answer.metadata.response_code) {
        Ok(ResponseCode::NoError | ResponseCode::NXDomain) => "answered",
        Ok(_) => "refused",
        Err(_) => "silent",
    };
    metrics::counter!("packetboat_operator_dns_queries_total", "outcome" => outcome).increment(1);
    answer
}

async fn converse(
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
    signatures: bool,
) -> Result<Message, ExchangeError> {
    let mut message = Message::query();
    message.metadata.recursion_desired = false;
    let mut query = Query::new();
    query.set_name(name.clone()).set_query_type(kind);
    message.add_query(query);
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD);
    edns.set_dnssec_ok(signatures);
    message.set_edns(edns);
    let octets = message.to_vec().map_err(|_| ExchangeError::Garbled(server))?;
    let mut last = ExchangeError::Silent(server);
    for _ in 0..UDP_TRIES {
        match over_udp(server, &octets, message.metadata.id).await {
            Ok(answer) if answer.metadata.truncation => break,
            Ok(answer) => return Ok(answer),
            Err(error) => last = error,
        }
    }
    match over_tcp(server, &octets).await {
        Ok(answer) => Message::from_vec(&answer).map_err(|_| ExchangeError::Garbled(server)),
        Err(ExchangeError::Silent(_)) => Err(last),
        Err(error) => Err(error),
    }
}

async fn over_udp(server: SocketAddr, octets: &[u8], id: u16) -> Result<Message, ExchangeError> {
    let unreachable = |cause| ExchangeError::Unreachable { server, cause };
    let any: SocketAddr =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    // A new socket for each question has a new port, which is hard to guess.
    let socket = UdpSocket::bind(any).await.map_err(unreachable)?;
    socket.connect(server).await.map_err(unreachable)?;
    socket.send(octets).await.map_err(unreachable)?;
    let mut answer = vec![0; 4096];
    let received = timeout(UDP_WAIT, async {
        loop {
            let length = socket.recv(&mut answer).await.map_err(unreachable)?;
            if let Ok(message) = Message::from_vec(&answer[..length])
                && message.metadata.id == id
            {
                return Ok(message);
            }
        }
    });
    received.await.map_err(|_| ExchangeError::Silent(server))?
}

/// Sends one message over TCP, and gives the octets of the answer.
///
/// # Errors
/// When there is no answer in time.
pub async fn over_tcp(server: SocketAddr, octets: &[u8]) -> Result<Vec<u8>, ExchangeError> {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        let length = u16::try_from(octets.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the message is too long"))?;
        stream.write_all(&[&length.to_be_bytes(), octets].concat()).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    };
    match timeout(TCP_WAIT, exchange).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(cause)) => Err(ExchangeError::Unreachable { server, cause }),
        Err(_) => Err(ExchangeError::Silent(server)),
    }
}
