//! An authoritative DNS server on loopback whose zones a test writes as text and changes as it runs.
//!
//! It answers over UDP and TCP for every name there is: what the zone text holds is answered, what it
//! does not hold does not exist (NXDOMAIN, or an empty answer when the name has other types), with a
//! SOA record so that the denial may be cached as the real ones are (RFC 2308 §3).

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result};
use hickory_proto::op::{Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{LowerName, Name, RData, Record, RecordType};
use hickory_proto::serialize::txt::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The most octets of an answer over UDP to a client that does not say what it takes (RFC 1035 §4.2.1).
const UDP_PAYLOAD: u16 = 512;
/// CNAME steps followed for one question.
const ALIAS_STEPS: usize = 8;
/// Seconds that a denial may be cached: short, since tests change zones.
const DENIAL_TTL: u32 = 1;

/// What the server does instead of answering for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    ServFail,
    Drop,
    Deny,
    Truncate,
}

#[derive(Default)]
struct State {
    records: BTreeMap<LowerName, Vec<Record>>,
    faults: HashMap<LowerName, Fault>,
    all_faulty: Option<Fault>,
    queries: Vec<(LowerName, RecordType)>,
}

/// The running server; it stops when this is dropped.
pub struct DnsServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _stop: DropGuard,
}

impl DnsServer {
    /// Starts a server on a free loopback port (the same for UDP and TCP).
    ///
    /// `zone` holds records in master file form (RFC 1035 §5) with absolute names, of any number of
    /// zones: `example.com. 300 IN TXT "v=spf1 -all"`.
    pub async fn start(zone: &str) -> Result<Self> {
        let (udp, tcp) = bind().await?;
        let address = udp.local_addr()?;
        let state = Arc::new(Mutex::new(State { records: parse(zone)?, ..State::default() }));
        let stop = CancellationToken::new();
        let (udp_state, tcp_state) = (state.clone(), state.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move { serve_udp(udp, udp_state).await }));
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move { serve_tcp(tcp, tcp_state).await }));
        Ok(Self { address, state, _stop: stop.drop_guard() })
    }

    /// Where the server answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces everything the server knows by `zone`.
    pub fn set_zone(&self, zone: &str) -> Result<()> {
        self.state().records = parse(zone)?;
        Ok(())
    }

    /// Adds the records of `zone` to what the server knows.
    pub fn add(&self, zone: &str) -> Result<()> {
        let new = parse(zone)?;
        let mut state = self.state();
        for (name, records) in new {
            state.records.entry(name).or_default().extend(records);
        }
        Ok(())
    }

    /// Answers SERVFAIL for `name` and all below it, until [`heal`](Self::heal).
    pub fn servfail(&self, name: &str) -> Result<()> {
        self.break_name(name, Fault::ServFail)
    }

    /// Does not answer at all for `name` and all below it, until [`heal`](Self::heal).
    pub fn ignore(&self, name: &str) -> Result<()> {
        self.break_name(name, Fault::Drop)
    }

    /// Says that `name` and all below it do not exist, until [`heal`](Self::heal).
    pub fn deny(&self, name: &str) -> Result<()> {
        self.break_name(name, Fault::Deny)
    }

    /// Answers for `name` and all below it over UDP with nothing but the truncation flag, until
    /// [`heal`](Self::heal): the whole answer is to be had over TCP (RFC 7766 §5).
    pub fn truncate(&self, name: &str) -> Result<()> {
        self.break_name(name, Fault::Truncate)
    }

    /// Answers nothing whatever is asked, as a server that is down.
    pub fn ignore_all(&self) {
        self.state().all_faulty = Some(Fault::Drop);
    }

    /// Takes all faults away.
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.all_faulty = None;
    }

    /// How often `name` was asked for with the type called `record_type` ("TXT", "MX", …).
    pub fn queries(&self, name: &str, record_type: &str) -> Result<usize> {
        let name = lower(name)?;
        let record_type: RecordType = record_type.parse().context("naming a record type")?;
        Ok(self.state().queries.iter().filter(|asked| asked.0 == name && asked.1 == record_type).count())
    }

    fn break_name(&self, name: &str, fault: Fault) -> Result<()> {
        let name = lower(name)?;
        self.state().faults.insert(name, fault);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn lower(name: &str) -> Result<LowerName> {
    let mut name = Name::from_ascii(name).with_context(|| format!("reading the name {name:?}"))?;
    name.set_fqdn(true);
    Ok(LowerName::from(name))
}

fn parse(zone: &str) -> Result<BTreeMap<LowerName, Vec<Record>>> {
    // Indented zone text is common in tests; a leading blank would mean "same name as before".
    let text: String = zone.lines().map(|line| format!("{}\n", line.trim_start())).collect();
    let (_, sets) = Parser::new(text, None, Some(Name::root())).parse().context("reading the zone text")?;
    let mut records: BTreeMap<LowerName, Vec<Record>> = BTreeMap::new();
    for (key, set) in sets {
        records.entry(key.name().clone()).or_default().extend(set.records_without_rrsigs().cloned());
    }
    Ok(records)
}

/// UDP and TCP on one port: the resolver falls back to TCP on the port it asked.
async fn bind() -> Result<(UdpSocket, TcpListener)> {
    let mut last = None;
    for _ in 0..20 {
        let tcp =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("binding the DNS server to TCP")?;
        match UdpSocket::bind(tcp.local_addr()?).await {
            Ok(udp) => return Ok((udp, tcp)),
            Err(taken) => last = Some(taken),
        }
    }
    Err(last.context("no tries")?).context("binding the DNS server to one port for UDP and TCP")
}

async fn serve_udp(socket: UdpSocket, state: Arc<Mutex<State>>) {
    let mut buffer = [0; 4096];
    loop {
        // An error here is an ICMP complaint about an earlier answer: the client went away.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        if let Some(answer) = answer(&buffer[..length], &state, true) {
            let _ = socket.send_to(&answer, peer).await;
        }
    }
}

async fn serve_tcp(listener: TcpListener, state: Arc<Mutex<State>>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        connections.spawn(serve_connection(stream, state.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// Questions on one TCP connection, each behind its length (RFC 1035 §4.2.2), until the client ends.
async fn serve_connection(mut stream: TcpStream, state: Arc<Mutex<State>>) -> std::io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut question = vec![0; usize::from(length)];
        stream.read_exact(&mut question).await?;
        let Some(answer) = answer(&question, &state, false) else { continue };
        let mut frame = u16::try_from(answer.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
        frame.extend(answer);
        stream.write_all(&frame).await?;
    }
}

/// The octets to send back, or nothing for what is no question or shall not be answered.
fn answer(octets: &[u8], state: &Mutex<State>, udp: bool) -> Option<Vec<u8>> {
    let request = Message::from_vec(octets).ok()?;
    let question = request.queries.first()?.clone();
    let name = LowerName::from(question.name().clone());
    let mut response = Message::new(request.metadata.id, MessageType::Response, OpCode::Query);
    response.metadata = Metadata::response_from_request(&request.metadata);
    response.metadata.authoritative = true;
    // The resolvers under test are stub resolvers; they expect a server that recurses.
    response.metadata.recursion_available = true;
    response.add_query(question.clone());

    let mut state = lock(state);
    state.queries.push((name.clone(), question.query_type()));
    match state.fault(&name) {
        Some(Fault::Drop) => return None,
        Some(Fault::ServFail) => response.metadata.response_code = ResponseCode::ServFail,
        Some(Fault::Deny) => {
            response.metadata.response_code = ResponseCode::NXDomain;
            response.add_authority(state.start_of_authority(&name));
        }
        Some(Fault::Truncate) if udp => response.metadata.truncation = true,
        Some(Fault::Truncate) | None => state.fill(&name, question.query_type(), &mut response),
    }
    drop(state);

    let limit = request.edns.as_ref().map_or(UDP_PAYLOAD, |edns| edns.max_payload().max(UDP_PAYLOAD));
    if let Some(asked) = request.edns {
        let mut edns = hickory_proto::op::Edns::new();
        edns.set_max_payload(asked.max_payload());
        response.set_edns(edns);
    }
    let octets = response.to_vec().ok()?;
    if udp && octets.len() > usize::from(limit) { response.truncate().to_vec().ok() } else { Some(octets) }
}

impl State {
    fn fault(&self, name: &LowerName) -> Option<Fault> {
        let broken = self.faults.iter().find(|(broken, _)| broken.zone_of(name)).map(|(_, fault)| *fault);
        self.all_faulty.or(broken)
    }

    /// Puts the answer to one question into `response`, following aliases.
    fn fill(&self, name: &LowerName, wanted: RecordType, response: &mut Message) {
        let mut name = name.clone();
        for _ in 0..ALIAS_STEPS {
            let here = self.records.get(&name).map(Vec::as_slice).unwrap_or_default();
            let matching =
                here.iter().filter(|record| record.record_type() == wanted || wanted == RecordType::ANY);
            let found: Vec<Record> = matching.cloned().collect();
            if !found.is_empty() {
                response.add_answers(found);
                return;
            }
            let alias = here.iter().find(|record| record.record_type() == RecordType::CNAME);
            let Some((record, RData::CNAME(target))) = alias.map(|record| (record, &record.data)) else {
                break;
            };
            response.add_answer(record.clone());
            name = LowerName::from(target.0.clone());
        }
        if !self.exists(&name) {
            response.metadata.response_code = ResponseCode::NXDomain;
        }
        response.add_authority(self.start_of_authority(&name));
    }

    /// Whether the name has records or is an empty non-terminal above one that has (RFC 8020).
    fn exists(&self, name: &LowerName) -> bool {
        self.records.keys().any(|known| name.zone_of(known))
    }

    /// The SOA record above `name`; one is made up for the last two labels when the text has none.
    fn start_of_authority(&self, name: &LowerName) -> Record {
        let mut zone = name.clone();
        while !zone.is_root() {
            let here = self.records.get(&zone).map(Vec::as_slice).unwrap_or_default();
            if let Some(record) = here.iter().find(|record| record.record_type() == RecordType::SOA) {
                return record.clone();
            }
            zone = zone.base_name();
        }
        let apex = Name::from(name.clone()).trim_to(2);
        let soa = SOA::new(apex.clone(), apex.clone(), 1, 3600, 600, 86_400, DENIAL_TTL);
        Record::from_rdata(apex, DENIAL_TTL, RData::SOA(soa))
    }
}

#[cfg(test)]
mod tests;
