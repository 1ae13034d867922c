//! A server's replies, however they arrive.
#![no_main]

use libfuzzer_sys::fuzz_target;
use bytes::BytesMut;
use smtp::ReplyDecoder;

fuzz_target!(|octets: &[u8]| {
    let (mut decoder, mut buffer) = (ReplyDecoder::default(), BytesMut::new());
    for octet in octets {
        buffer.extend_from_slice(&[*octet]);
        match decoder.decode(&mut buffer) {
            Ok(Some(reply)) => assert!((200..600).contains(&reply.code), "{reply}"),
            Ok(None) => {}
            Err(_) => return,
        }
    }
});
