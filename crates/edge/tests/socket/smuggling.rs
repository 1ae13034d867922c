//! One message in, one message at most out, whatever stands where a line ends.

use anyhow::{Result, ensure};

use crate::site::Site;

const BREAKS: [&[u8]; 8] = [b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\0\n", b"\0\r\n", b"\r\n\0"];
const DOTS: [&[u8]; 5] = [b".", b"..", b". ", b".\0", b"\0."];
const SMUGGLED: &[u8] =
    b"MAIL FROM:<evil@there.test>\r\nRCPT TO:<bob@here.test>\r\nDATA\r\nSubject: evil\r\n.\r\n";

/// Whether a CR, LF or NUL is left once each CRLF is gone.
fn is_dirty(octets: &[u8]) -> bool {
    let text = String::from_utf8_lossy(octets).replace("\r\n", "");
    text.contains(['\r', '\n', '\0'])
}

/// The message up to the first end that is one.
fn first_message(octets: &[u8]) -> &[u8] {
    const END: &[u8] = b"\r\n.\r\n";
    let end = octets.windows(END.len()).position(|window| window == END);
    &octets[..end.map_or(octets.len(), |at| at + END.len())]
}

#[tokio::test]
async fn no_variant_of_the_end_lets_a_second_message_through() -> Result<()> {
    let site = Site::start().await?;
    let mut stored = 0;
    for before in BREAKS {
        for dot in DOTS {
            for after in BREAKS {
                let mut client = site.in_data().await?;
                let octets = [b"Subject: x\r\n\r\nbody".as_slice(), before, dot, after, SMUGGLED].concat();
                client.send_raw(&octets).await?;
                let variant = [before, dot, after].concat();
                let expected = if is_dirty(first_message(&octets)) { 554 } else { 250 };
                let reply = client.reply().await?;
                ensure!(reply.code == expected, "{:?}: {reply}", variant.escape_ascii().to_string());
                stored += usize::from(expected == 250);
            }
        }
    }
    let kept = site.stored();
    ensure!(kept.len() == stored, "{} messages where {stored} were accepted", kept.len());
    for message in kept {
        let envelope = message.begin.envelope.unwrap_or_default();
        ensure!(envelope.reverse_path == "a@there.test", "{envelope:?}");
        ensure!(!is_dirty(&message.content), "{:?}", message.content.escape_ascii().to_string());
    }
    Ok(())
}

#[tokio::test]
async fn the_session_goes_on_after_a_message_that_is_refused() -> Result<()> {
    let site = Site::start().await?;
    let mut client = site.in_data().await?;
    client.send_raw(b"Subject: x\r\n\r\nbody\n.\r\nmore\r\n.\r\n").await?;
    let reply = client.expect_reply(554).await?;
    ensure!(reply.text().starts_with("5.6.0 "), "{reply}");
    let reply = client.transaction("a@there.test", &["alice@here.test"], "Subject: y\r\n\r\nz\r\n").await?;
    ensure!(reply.code == 250, "{reply}");
    ensure!(site.only_stored()?.content == b"Subject: y\r\n\r\nz\r\n");
    Ok(())
}

#[tokio::test]
async fn the_end_may_arrive_octet_by_octet() -> Result<()> {
    let site = Site::start().await?;
    let mut client = site.in_data().await?;
    for octet in b"Subject: x\r\n\r\n..\r\n.\r\n" {
        client.send_raw(&[*octet]).await?;
    }
    client.expect_reply(250).await?;
    ensure!(site.only_stored()?.content == b"Subject: x\r\n\r\n.\r\n");
    Ok(())
}
