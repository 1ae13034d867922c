//! Lines do not depend on how their octets arrive.
#![no_main]

use libfuzzer_sys::fuzz_target;
use bytes::BytesMut;
use smtp::LineDecoder;

fn lines(input: &[u8], size: usize) -> Vec<Result<bytes::Bytes, smtp::LineError>> {
    let (mut decoder, mut buffer, mut lines) = (LineDecoder::default(), BytesMut::new(), Vec::new());
    for piece in input.chunks(size) {
        buffer.extend_from_slice(piece);
        while let Some(line) = decoder.decode(&mut buffer, 64).transpose() {
            lines.push(line);
        }
    }
    lines
}

fuzz_target!(|input: (u8, &[u8])| {
    let (size, octets) = input;
    assert_eq!(lines(octets, usize::from(size).max(1)), lines(octets, 1));
});
