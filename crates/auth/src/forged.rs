//! `Authentication-Results` that came with a message and claim to be ours (RFC 8601 §5): whoever reads
//! mail here believes them, so none may come in from outside.

use message::{Cut, Field, Header};

/// The fields to take out: each `Authentication-Results` of the authentication server `id`, in any
/// case, folded, with comments, quoted, with a version. One that cannot be read and holds the id
/// goes too.
#[must_use]
pub fn forged_results(header: &Header, id: &str) -> Vec<Cut> {
    let claims = |field: &Field<'_>| field.is("Authentication-Results") && claims_id(&field.value(), id);
    header.fields().filter(claims).map(|field| field.cut()).collect()
}

fn claims_id(value: &[u8], id: &str) -> bool {
    match server_id(value) {
        Some(found) => strip_dot(&found).eq_ignore_ascii_case(strip_dot(id.as_bytes())),
        None => value.windows(id.len().max(1)).any(|window| window.eq_ignore_ascii_case(id.as_bytes())),
    }
}

fn strip_dot(name: &[u8]) -> &[u8] {
    name.strip_suffix(b".").unwrap_or(name)
}

/// The `authserv-id` of a value (RFC 8601 §2.2: `[CFWS] authserv-id`, a token or a quoted string);
/// `None` when the value does not begin with one.
fn server_id(value: &[u8]) -> Option<Vec<u8>> {
    let rest = skip_cfws(value)?;
    let mut id = Vec::new();
    let rest = if let Some(quoted) = rest.strip_prefix(b"\"") {
        let mut octets = quoted.iter().enumerate();
        let end = loop {
            match octets.next()? {
                (at, b'"') => break at,
                (_, b'\\') => id.push(*octets.next()?.1),
                (_, octet) => id.push(*octet),
            }
        };
        &quoted[end + 1..]
    } else {
        let end = rest.iter().position(|octet| !is_token(*octet)).unwrap_or(rest.len());
        id.extend_from_slice(&rest[..end]);
        &rest[end..]
    };
    // What follows must be a version, the results, or nothing; else this was no id.
    let ended = matches!(rest.first(), None | Some(b';' | b' ' | b'\t' | b'('));
    (ended && !id.is_empty()).then_some(id)
}

/// Token characters of RFC 2045 §5.1, and octets of U-labels (RFC 8601 §2.2 by way of RFC 8616).
fn is_token(octet: u8) -> bool {
    (octet.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?=".contains(&octet)) || !octet.is_ascii()
}

/// What comes after comments and white space; `None` when a comment has no end.
fn skip_cfws(value: &[u8]) -> Option<&[u8]> {
    let mut depth = 0usize;
    let mut octets = value.iter().enumerate();
    while let Some((at, octet)) = octets.next() {
        match octet {
            b'(' => depth += 1,
            b')' if depth > 0 => depth -= 1,
            b'\\' if depth > 0 => drop(octets.next()?),
            b' ' | b'\t' => {}
            _ if depth > 0 => {}
            _ => return Some(&value[at..]),
        }
    }
    (depth == 0).then_some(&[])
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use message::header::Limits;
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "mx.example.test";

    fn cuts(fields: &str) -> usize {
        let header = Header::split(Bytes::from(format!("{fields}\r\n\r\n")), Limits::default()).unwrap();
        forged_results(&header, ID).len()
    }

    #[test]
    fn ours_is_found_in_any_dress() {
        for field in [
            "Authentication-Results: mx.example.test; spf=pass",
            "AUTHENTICATION-results: MX.Example.TEST; spf=pass",
            "Authentication-Results : mx.example.test; none",
            "Authentication-Results:mx.example.test;none",
            "Authentication-Results:\r\n\tmx.example.test;\r\n spf=pass",
            "Authentication-Results: (a (nested) comment) mx.example.test; spf=pass",
            "Authentication-Results: (a \\) quoted one)\r\n (two) mx.example.test; spf=pass",
            "Authentication-Results: mx.example.test 1; spf=pass",
            "Authentication-Results: mx.example.test(comment)1; spf=pass",
            "Authentication-Results: mx.example.test",
            "Authentication-Results: mx.example.test.; spf=pass",
            "Authentication-Results: \"mx.example.test\"; spf=pass",
            "Authentication-Results: \"mx.\\example.test\" 1; spf=pass",
            "Authentication-Results: (open mx.example.test; spf=pass",
            "Authentication-Results: \"open mx.example.test; spf=pass",
            "Authentication-Results: mx.example.test/1; spf=pass",
            "Authentication-Results: ;mx.example.test; spf=pass",
        ] {
            assert_eq!(cuts(field), 1, "{field}");
        }
    }

    #[test]
    fn those_of_others_stay() {
        for field in [
            "Authentication-Results: mx.example.org; spf=pass",
            "Authentication-Results: amx.example.test; spf=pass",
            "Authentication-Results: mx.example.test.org; spf=pass",
            "Authentication-Results: other.example (mx.example.test); spf=pass",
            "Authentication-Results: (mx.example.test) other.example; spf=pass",
            "ARC-Authentication-Results: i=1; mx.example.test; spf=pass",
            "Subject: mx.example.test; spf=pass",
        ] {
            assert_eq!(cuts(field), 0, "{field}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(value in prop::collection::vec(prop_oneof![
            prop::sample::select(&b"()\\\"; .mx"[..]), any::<u8>()], 0..40)) {
            let _ = claims_id(&value, ID);
        }

        /// Comments and folds before the id never hide it.
        #[test]
        fn comments_do_not_hide_it(
            before in prop::collection::vec(prop::sample::select(vec![" ", "\r\n ", "(c)", "(a(b)\\))", "\t"]), 0..6),
            after in prop::sample::select(vec![";", " ;", " 1;", "(c);", ""]),
        ) {
            let field = format!("Authentication-Results:{}{ID}{after}", before.concat());
            prop_assert_eq!(cuts(&field), 1);
        }
    }
}
