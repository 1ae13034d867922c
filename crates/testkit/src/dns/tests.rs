use std::time::Duration;

use hickory_proto::op::Query;
use tokio::time::timeout;

use super::*;

const ZONE: &str = r#"
    example.com. 300 IN MX 10 mx.example.com.
    example.com. 300 IN TXT "v=spf1 a:mx.example.com -all"
    mx.example.com. 300 IN A 127.0.0.1
    www.example.com. 300 IN CNAME mx.example.com.
    a._domainkey.example.com. 300 IN TXT "v=DKIM1; k=rsa; p=AAAA" "BBBB"
    1.0.0.127.in-addr.arpa. 300 IN PTR mx.example.com.
"#;

async fn ask(server: &DnsServer, name: &str, record_type: RecordType) -> Message {
    let mut request = Message::query();
    request.add_query(Query::query(Name::from_ascii(name).unwrap(), record_type));
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.send_to(&request.to_vec().unwrap(), server.address()).await.unwrap();
    let mut buffer = [0; 4096];
    let length = timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await.unwrap().unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

#[tokio::test]
async fn answers_what_the_zone_holds_and_denies_the_rest() {
    let server = DnsServer::start(ZONE).await.unwrap();
    assert_eq!(ask(&server, "EXAMPLE.com.", RecordType::MX).await.answers.len(), 1);
    assert_eq!(ask(&server, "www.example.com.", RecordType::A).await.answers.len(), 2);
    assert_eq!(ask(&server, "1.0.0.127.in-addr.arpa.", RecordType::PTR).await.answers.len(), 1);

    let no_data = ask(&server, "_domainkey.example.com.", RecordType::TXT).await;
    assert_eq!((no_data.metadata.response_code, no_data.authorities.len()), (ResponseCode::NoError, 1));
    let unknown = ask(&server, "nothing.example.net.", RecordType::A).await;
    assert_eq!((unknown.metadata.response_code, unknown.authorities.len()), (ResponseCode::NXDomain, 1));
    assert_eq!(server.queries("example.com", "MX").unwrap(), 1);
}

#[tokio::test]
async fn fails_for_names_told_to_and_takes_new_zones() {
    let server = DnsServer::start(ZONE).await.unwrap();
    server.servfail("example.com").unwrap();
    let failed = ask(&server, "mx.example.com.", RecordType::A).await;
    assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
    server.heal();
    server.set_zone("example.org. 60 IN A 127.0.0.2").unwrap();
    assert_eq!(ask(&server, "example.org.", RecordType::A).await.answers.len(), 1);
    assert_eq!(ask(&server, "example.com.", RecordType::MX).await.answers.len(), 0);
}

#[tokio::test]
async fn a_long_answer_is_truncated_over_udp_and_whole_over_tcp() {
    let long =
        format!("big.example. 60 IN TXT {}", "\"0123456789012345678901234567890123456789\" ".repeat(20));
    let server = DnsServer::start(&long).await.unwrap();
    assert!(ask(&server, "big.example.", RecordType::TXT).await.metadata.truncation);

    let mut request = Message::query();
    request.add_query(Query::query(Name::from_ascii("big.example.").unwrap(), RecordType::TXT));
    let request = request.to_vec().unwrap();
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    stream.write_u16(u16::try_from(request.len()).unwrap()).await.unwrap();
    stream.write_all(&request).await.unwrap();
    let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut answer).await.unwrap();
    let answer = Message::from_vec(&answer).unwrap();
    assert_eq!((answer.metadata.truncation, answer.answers.len()), (false, 1));
}
