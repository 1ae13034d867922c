//! Content comes out the same however it arrives, and without a bare CR, LF or NUL.
#![no_main]

use libfuzzer_sys::fuzz_target;
use bytes::BytesMut;
use smtp::{DataDecoder, DataError, DataEvent};

fn content(input: &[u8], size: usize) -> (Vec<u8>, Option<DataError>, bool) {
    let mut decoder = DataDecoder::new(4096, 256);
    let (mut buffer, mut content) = (BytesMut::new(), Vec::new());
    for piece in input.chunks(size) {
        buffer.extend_from_slice(piece);
        while let Some(event) = decoder.decode(&mut buffer) {
            match event {
                DataEvent::Chunk(chunk) => content.extend_from_slice(&chunk),
                DataEvent::End => return (content, decoder.fault(), true),
            }
        }
    }
    (content, decoder.fault(), false)
}

fuzz_target!(|input: (u8, &[u8])| {
    let (size, octets) = input;
    let (whole, fault, ended) = content(octets, usize::from(size).max(1));
    let (bytewise, fault_bytewise, ended_bytewise) = content(octets, 1);
    // Of several faults the first one looked for is told, which may depend on how much is at hand.
    assert_eq!((fault.is_some(), ended), (fault_bytewise.is_some(), ended_bytewise));
    if fault.is_none() && ended {
        assert_eq!(whole, bytewise);
        let text = whole.replace_crlf();
        assert!(!text.iter().any(|octet| matches!(octet, b'\r' | b'\n' | 0)));
    }
});

trait ReplaceCrlf {
    fn replace_crlf(&self) -> Vec<u8>;
}

impl ReplaceCrlf for Vec<u8> {
    /// Without its line ends.
    fn replace_crlf(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len());
        let mut at = 0;
        while at < self.len() {
            if self[at..].starts_with(b"\r\n") {
                at += 2;
            } else {
                out.push(self[at]);
                at += 1;
            }
        }
        out
    }
}
