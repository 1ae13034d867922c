use proptest::prelude::*;

use super::*;

fn code(line: &str) -> u16 {
    Command::parse(line.as_bytes()).unwrap_err().code
}

fn mailbox_of(line: &str) -> String {
    match Command::parse(line.as_bytes()).unwrap() {
        Command::Rcpt { forward_path: ForwardPath::Mailbox(mailbox), .. } => mailbox.to_string(),
        Command::Mail { reverse_path, .. } => reverse_path.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn verbs_are_case_insensitive_and_space_after_the_colon_is_tolerated() {
    assert_eq!(Command::parse(b"quit"), Ok(Command::Quit));
    assert_eq!(mailbox_of("rcpt to: <Alice@EXAMPLE.com>"), "Alice@example.com");
    assert_eq!(mailbox_of("MAIL FROM:<>"), "");
}

#[test]
fn paths_keep_what_matters() {
    assert_eq!(mailbox_of(r#"RCPT TO:<"a b"@example.com>"#), r#""a b"@example.com"#);
    assert_eq!(mailbox_of(r#"RCPT TO:<"a>b"@example.com>"#), r#""a>b"@example.com"#);
    assert_eq!(mailbox_of("RCPT TO:<@a.example,@b.example:c@d.example>"), "c@d.example");
    assert_eq!(mailbox_of("RCPT TO:<a@[127.0.0.1]>"), "a@[127.0.0.1]");
    assert_eq!(mailbox_of("RCPT TO:<a@[IPv6:::1]>"), "a@[IPv6:::1]");
    let postmaster = Command::parse(b"RCPT TO:<Postmaster>");
    assert_eq!(
        postmaster,
        Ok(Command::Rcpt { forward_path: ForwardPath::Postmaster, internationalized: false })
    );
}

#[test]
fn parameters_are_read_and_unknown_ones_refused() {
    let command = Command::parse(b"MAIL FROM:<a@b.example> SIZE=1000 BODY=8BITMIME SMTPUTF8").unwrap();
    let Command::Mail { size, body, smtputf8, .. } = command else { panic!() };
    assert_eq!((size, body, smtputf8), (Some(1000), Body::EightBitMime, true));
    assert_eq!(code("MAIL FROM:<a@b.example> FOO=1"), 555);
    assert_eq!(code("RCPT TO:<a@b.example> NOTIFY=NEVER"), 555);
    assert_eq!(code("MAIL FROM:<a@b.example> SIZE=abc"), 501);
    assert_eq!(code("MAIL FROM:<a@b.example> SIZE=1 SIZE=2"), 501);
    assert_eq!(code("MAIL FROM:<é@b.example>"), 553);
    assert_eq!(code("MAIL FROM:<a@münchen.example>"), 553, "a name in U-labels is internationalised, too");
}

#[test]
fn what_is_wrong_decides_the_code() {
    for (line, expected) in [
        ("", 500),
        ("FROB", 500),
        ("EXPN list", 502),
        ("BDAT 10", 502),
        ("EHLO", 501),
        ("EHLO a b", 501),
        ("DATA now", 501),
        ("STARTTLS x", 501),
        ("MAIL a@b.example", 501),
        ("MAIL FROM:a@b.example", 501),
        ("MAIL FROM:<a@b.example>x", 501),
        ("RCPT TO:<a@b..example>", 501),
        ("RCPT TO:<>", 501),
        ("RCPT TO:<a\tb@c.example>", 500),
        ("AUTH", 501),
    ] {
        assert_eq!(code(line), expected, "{line}");
    }
    assert_eq!(code(&format!("RCPT TO:<{}@b.example>", "x".repeat(65))), 501);
    assert_eq!(code(&format!("RCPT TO:<a@{}.example>", "x".repeat(260))), 501);
}

proptest! {
    #[test]
    fn no_line_makes_the_parser_panic(line in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = Command::parse(&line);
    }

    #[test]
    fn a_mailbox_survives_being_written_and_read(local in "[a-z\"\\\\ @.<>]{1,20}", domain in "[a-z]{1,10}(\\.[a-z]{1,10}){0,3}") {
        let mailbox = Mailbox::new(local, domain.parse().unwrap()).unwrap();
        let read = Command::parse(format!("RCPT TO:<{mailbox}>").as_bytes());
        let Ok(Command::Rcpt { forward_path, .. }) = read else {
            return Err(TestCaseError::fail(format!("{read:?}")));
        };
        prop_assert_eq!(forward_path, ForwardPath::Mailbox(mailbox));
    }
}
