use proptest::prelude::*;

use super::*;

fn split(text: &str) -> Header {
    Header::split(Bytes::copy_from_slice(text.as_bytes()), Limits::default()).unwrap()
}

fn names(header: &Header) -> Vec<String> {
    header.fields().map(|field| String::from_utf8_lossy(field.name()).into_owned()).collect()
}

#[test]
fn fields_are_split_at_unfolded_lines() {
    let header = split("From: a@b.example\r\nSubject : one\r\n two\r\n\tthree\r\nX:\r\n\r\n");
    assert_eq!(names(&header), ["From", "Subject", "X"]);
    assert!(!header.is_malformed());
    let subject = header.only("SUBJECT").unwrap();
    assert_eq!(subject.raw_name(), b"Subject ");
    assert_eq!(subject.value(), b"one two\tthree");
    assert_eq!(subject.range(), 19..48);
    assert_eq!(subject.cut(), Cut { offset: 19, length: 29 });
    assert_eq!(header.body_offset(), 54);
}

#[test]
fn only_means_exactly_one() {
    let header = split("From: a\r\nfrom: b\r\nTo: c\r\n\r\n");
    assert!(header.only("From").is_none());
    assert!(header.only("Cc").is_none());
    assert!(header.only("to").is_some());
    assert_eq!(header.named("FROM").count(), 2);
}

#[test]
fn lines_that_are_no_fields_mark_the_header() {
    for text in [
        "From me Mon Jan 1\r\nTo: x\r\n\r\n",
        " folded first\r\nTo: x\r\n\r\n",
        "To: x\r\nno colon\r\n\r\n",
        "To: x\r\nna me: y\r\n\r\n",
        "To: x\r\n: y\r\n\r\n",
        "To: x\rCc: y\r\n\r\n",
        "To: x\nCc: y\r\n\r\n",
        "To: x\0y\r\n\r\n",
        "To\r\n : x\r\n\r\n",
    ] {
        assert!(split(text).is_malformed(), "{text:?}");
    }
    assert_eq!(names(&split("To: x\r\nno colon\r\nCc: y\r\n\r\n")), ["To", "Cc"]);
    // A bare LF begins no field.
    assert_eq!(names(&split("To: x\nBcc: y\r\n\r\n")), ["To"]);
}

#[test]
fn limits_are_kept() {
    let limits = Limits { max_octets: 40, max_fields: 2 };
    let text = |n: usize| Bytes::from("A: b\r\n".repeat(n) + "\r\n");
    assert!(Header::split(text(2), limits).is_ok());
    assert_eq!(Header::split(text(3), limits), Err(HeaderError::TooManyFields(2)));
    assert_eq!(Header::split(text(7), limits), Err(HeaderError::TooLong(40)));
    let mut splitter = Splitter::new(limits);
    assert!(matches!(splitter.push(Bytes::from_static(b"A: bbbbbbbbbbbbbbbbbbbbbbbbb\r\n")), Ok(Step::More)));
    assert_eq!(
        splitter.push(Bytes::from_static(b"A: bbbbbbbbbbbbbbbbbbbbbbbb\r\n")).unwrap_err(),
        HeaderError::TooLong(40)
    );
}

#[test]
fn a_section_in_one_chunk_is_not_copied() {
    let chunk = Bytes::from("A: b\r\n\r\nbody\r\n");
    let Ok(Step::Done { header, body }) = Splitter::new(Limits::default()).push(chunk.clone()) else {
        panic!("not whole");
    };
    assert_eq!(header.section().as_ptr(), chunk.as_ptr());
    assert_eq!(&body[..], b"body\r\n");
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => Just(b"\r\n".to_vec()),
        2 => Just(b"\r\n\r\n".to_vec()),
        2 => Just(b"From: a@b\r\n".to_vec()),
        1 => Just(b"Subject:\r\n x".to_vec()),
        1 => prop::sample::select(&b":\r\n \t\0a\xffFrom-"[..]).prop_map(|byte| vec![byte]),
        1 => prop::collection::vec(any::<u8>(), 0..6),
    ];
    prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// However the message is cut into chunks, the section, the fields and the body are the same.
    #[test]
    fn chunks_do_not_matter(message in message(), cuts in prop::collection::vec(0usize..200, 0..6)) {
        let whole = section_end(&message, 0).unwrap_or(message.len());
        let expected = Header::split(Bytes::copy_from_slice(&message[..whole]), Limits::default()).unwrap();

        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(message.len())).collect();
        cuts.extend([0, message.len()]);
        cuts.sort_unstable();
        let mut splitter = Some(Splitter::new(Limits::default()));
        let mut found = None;
        let mut rest = Vec::new();
        for pair in cuts.windows(2) {
            let chunk = Bytes::copy_from_slice(&message[pair[0]..pair[1]]);
            match splitter.as_mut() {
                None => rest.extend_from_slice(&chunk),
                Some(open) => if let Step::Done { header, body } = open.push(chunk).unwrap() {
                    found = Some(header);
                    rest.extend_from_slice(&body);
                    splitter = None;
                }
            }
        }
        let header = match splitter { Some(open) => open.finish().unwrap(), None => found.unwrap() };
        prop_assert_eq!(&header, &expected);
        prop_assert_eq!(&rest[..], &message[whole..]);
    }

    /// Fields do not overlap, begin with their name, and end at a line end that no fold follows.
    #[test]
    fn fields_tile_the_section(message in message()) {
        let whole = section_end(&message, 0).unwrap_or(message.len());
        let header = Header::split(Bytes::copy_from_slice(&message[..whole]), Limits::default()).unwrap();
        let mut at = 0;
        for field in header.fields() {
            let range = field.range();
            prop_assert!(range.start >= at && range.end <= whole);
            prop_assert!(range.start == 0 || message[..range.start].ends_with(b"\r\n"));
            prop_assert!(!field.name().is_empty() && field.name().iter().all(u8::is_ascii_graphic));
            if range.end < whole {
                prop_assert!(message[..range.end].ends_with(b"\r\n"));
                prop_assert!(!matches!(message[range.end], b' ' | b'\t'));
            }
            at = range.end;
        }
    }
}
