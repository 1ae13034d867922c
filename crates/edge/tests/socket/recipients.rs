//! Who is taken as a recipient, and who is not.

use anyhow::{Result, ensure};

use crate::site::Site;

/// Ways in which relays have been talked into carrying mail for elsewhere.
const PROBES: [&str; 27] = [
    "x@elsewhere.test",
    "x@ELSEWHERE.TEST",
    "\"x@elsewhere.test\"",
    "\"x%elsewhere.test\"",
    "x%elsewhere.test",
    "x%elsewhere.test@here.test",
    "x%elsewhere.test@mx.test",
    "x%elsewhere.test@[127.0.0.1]",
    "x!elsewhere.test@here.test",
    "elsewhere.test!x",
    "elsewhere.test!x@here.test",
    "elsewhere.test!x@[127.0.0.1]",
    "\"x@elsewhere.test\"@here.test",
    "\"x@elsewhere.test\"@[127.0.0.1]",
    "@here.test:x@elsewhere.test",
    "@[127.0.0.1]:x@elsewhere.test",
    "@here.test,@elsewhere.test:x@elsewhere.test",
    "@elsewhere.test:\"x@elsewhere.test\"@here.test",
    "x@elsewhere.test@here.test",
    "x@here.test@elsewhere.test",
    "x@[127.0.0.1]",
    "x@[IPv6:::1]",
    "x@127.0.0.1",
    "x@here.test.",
    "x@here.test.elsewhere.test",
    "x@sub.here.test",
    "alice@here.test,x@elsewhere.test",
];

#[tokio::test]
async fn no_relay_for_strangers() -> Result<()> {
    let site = Site::with(|limits| limits.max_errors = 1000).await?;
    let mut client = site.client().await?;
    for sender in ["", "x@elsewhere.test", "alice@here.test", "postmaster@here.test", "root@[127.0.0.1]"] {
        client.expect(250, &format!("MAIL FROM:<{sender}>")).await?;
        for path in PROBES {
            let reply = client.command(&format!("RCPT TO:<{path}>")).await?;
            ensure!((500..560).contains(&reply.code), "from {sender} to {path}: {reply}");
            let bare = client.command(&format!("RCPT TO:{path}")).await?;
            ensure!((500..560).contains(&bare.code), "from {sender} to {path}: {bare}");
        }
        client.expect(554, "DATA").await?;
        client.expect(250, "RSET").await?;
    }
    Ok(())
}

#[tokio::test]
async fn who_takes_everybody_is_no_way_elsewhere() -> Result<()> {
    let site = Site::start().await?;
    let mut client = site.client().await?;
    client.expect(250, "MAIL FROM:<a@there.test>").await?;
    let local =
        ["x%elsewhere.test@open.test", "elsewhere.test!x@open.test", "\"x@elsewhere.test\"@open.test"];
    for path in local {
        client.expect(250, &format!("RCPT TO:<{path}>")).await?;
    }
    client.expect(250, "RCPT TO:<@elsewhere.test:y@open.test>").await?;
    client.expect(250, "RCPT TO:<y@OPEN.test>").await?;
    client.expect(354, "DATA").await?;
    ensure!(client.content("Subject: x\r\n\r\ny\r\n").await?.code == 250);
    let envelope = site.only_stored()?.begin.envelope.unwrap_or_default();
    let expected = [local.as_slice(), &["y@open.test"]].concat();
    ensure!(envelope.forward_paths == expected, "routes are dropped, the rest is local: {envelope:?}");
    Ok(())
}

#[tokio::test]
async fn recipients_are_judged_by_their_domain() -> Result<()> {
    let site = Site::start().await?;
    let mut client = site.client().await?;
    client.expect(552, "MAIL FROM:<a@there.test> SIZE=999999999999").await?;
    client.expect(250, "MAIL FROM:<a@there.test> SIZE=30000").await?;
    let large = client.expect(552, "RCPT TO:<alice@here.test>").await?;
    ensure!(large.text().starts_with("5.3.4 ") && large.text().contains("20000"), "{large}");
    let clear = client.expect(530, "RCPT TO:<x@strict.test>").await?;
    ensure!(clear.text().starts_with("5.7.10 "), "{clear}");
    let unanswered = client.expect(451, "RCPT TO:<x@asked.test>").await?;
    ensure!(unanswered.text().starts_with("4."), "{unanswered}");
    client.expect(250, "RSET").await?;

    client.expect(250, "MAIL FROM:<a@there.test>").await?;
    let unknown = client.expect(550, "RCPT TO:<nobody@here.test>").await?;
    ensure!(unknown.text().starts_with("5.1.1 "), "{unknown}");
    client.expect(553, "RCPT TO:<j\u{f6}rg@here.test>").await?;
    client.expect(250, "RCPT TO:<ALICE@Here.Test>").await?;
    client.expect(250, "RCPT TO:<postmaster>").await?;
    client.expect(354, "DATA").await?;
    let body = format!("Subject: x\r\n\r\n{}", "0123456789\r\n".repeat(2000));
    let reply = client.content(&body).await?;
    ensure!(reply.code == 552 && reply.text().starts_with("5.3.4 "), "{reply}");
    ensure!(site.stored().is_empty());
    Ok(())
}
