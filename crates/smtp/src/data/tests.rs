use proptest::prelude::*;

use super::*;

struct Decoded {
    content: Vec<u8>,
    ended: bool,
    rest: Vec<u8>,
    fault: Option<DataError>,
}

fn decode(input: &[u8], chunk: usize) -> Decoded {
    let mut decoder = DataDecoder::new(10_000, 1000);
    let mut buffer = BytesMut::new();
    let mut content = Vec::new();
    let mut ended = false;
    for piece in input.chunks(chunk.max(1)) {
        buffer.extend_from_slice(piece);
        while !ended {
            match decoder.decode(&mut buffer) {
                Some(DataEvent::Chunk(octets)) => content.extend_from_slice(&octets),
                Some(DataEvent::End) => ended = true,
                None => break,
            }
        }
    }
    Decoded { content, ended, rest: buffer.to_vec(), fault: decoder.fault() }
}

fn encode(content: &[u8], chunk: usize) -> Vec<u8> {
    let mut encoder = DataEncoder::default();
    let mut out = Vec::new();
    for piece in content.chunks(chunk.max(1)) {
        encoder.encode(&Bytes::copy_from_slice(piece), &mut out).unwrap();
    }
    encoder.finish(&mut out).unwrap();
    out.concat()
}

#[test]
fn only_crlf_dot_crlf_ends_a_message() {
    for chunk in 1..12 {
        for wrong in ["\n.\n", "\n.\r\n", "\r.\r", "\r\n.\n", "\r.\r\n", "\n.\r", "\r\n.\r", "\r\n\0.\r\n"] {
            let input = format!("a{wrong}b\r\n.\r\nQUIT\r\n");
            let decoded = decode(input.as_bytes(), chunk);
            assert!(decoded.ended, "{wrong:?}");
            assert_eq!(decoded.rest, b"QUIT\r\n", "{wrong:?}");
            assert!(decoded.fault.is_some(), "{wrong:?} at {chunk}");
        }
    }
}

#[test]
fn an_empty_message_ends_at_once() {
    for chunk in 1..4 {
        let decoded = decode(b".\r\nQUIT\r\n", chunk);
        assert!(decoded.ended && decoded.content.is_empty() && decoded.fault.is_none());
    }
}

#[test]
fn dots_are_unstuffed_once() {
    for chunk in 1..20 {
        let decoded = decode(b"..a\r\nb.\r\n...\r\n.x\r\n.\r\n", chunk);
        assert_eq!(decoded.content, b".a\r\nb.\r\n..\r\nx\r\n");
        assert!(decoded.ended && decoded.fault.is_none());
    }
}

#[test]
fn limits_are_told_and_the_end_is_still_found() {
    let long_line = [vec![b'x'; 1001], b"\r\n.\r\nQUIT".to_vec()].concat();
    let large = [b"0123456789\r\n".repeat(1000), b".\r\nQUIT".to_vec()].concat();
    for chunk in [1, 100, 100_000] {
        assert_eq!(decode(&long_line, chunk).fault, Some(DataError::LineTooLong));
        let decoded = decode(&large, chunk);
        assert_eq!((decoded.fault, decoded.rest), (Some(DataError::TooLarge), b"QUIT".to_vec()));
    }
}

#[test]
fn the_encoder_refuses_bare_line_ends() {
    for bad in ["a\nb", "a\rb", "\n", "a\r\n\n"] {
        for chunk in 1..4 {
            let mut encoder = DataEncoder::default();
            let mut out = Vec::new();
            let pieces: Vec<_> = bad.as_bytes().chunks(chunk).map(Bytes::copy_from_slice).collect();
            assert!(pieces.iter().any(|piece| encoder.encode(piece, &mut out).is_err()), "{bad:?} {chunk}");
        }
    }
    let mut encoder = DataEncoder::default();
    encoder.encode(&Bytes::from_static(b"a\r"), &mut Vec::new()).unwrap();
    assert!(encoder.finish(&mut Vec::new()).is_err());
}

proptest! {
    #[test]
    fn what_is_encoded_decodes_to_the_same(
        lines in prop::collection::vec("[.a]{0,6}", 0..20),
        out_chunk in 1usize..20,
        in_chunk in 1usize..20,
    ) {
        let content: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let wire = encode(content.as_bytes(), out_chunk);
        let decoded = decode(&wire, in_chunk);
        prop_assert!(decoded.ended && decoded.rest.is_empty());
        prop_assert_eq!(decoded.fault, None);
        prop_assert_eq!(decoded.content, content.into_bytes());
    }

    #[test]
    fn decoding_does_not_depend_on_how_octets_arrive(
        input in prop::collection::vec(prop::sample::select(b"\r\n.a\0".to_vec()), 0..100),
        chunk in 1usize..30,
    ) {
        let (one, many) = (decode(&input, 1), decode(&input, chunk));
        prop_assert_eq!(one.ended, many.ended);
        prop_assert_eq!(one.fault.is_some(), many.fault.is_some());
        if one.ended {
            // What follows the end arrives later in one case than in the other.
            prop_assert_eq!(&one.rest, &many.rest);
        }
        if one.fault.is_none() {
            prop_assert_eq!(one.content, many.content);
        }
    }
}
