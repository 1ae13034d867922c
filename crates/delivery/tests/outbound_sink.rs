//! A load of messages into Postfix's smtp-sink, which is not of our making.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use delivery::outbound::Protocol;
use support::{Offers, config, outbound, summary, transfer_of};
use testkit::child::Child;
use testkit::{net, wait};
use tokio::process::Command;

const MESSAGES: usize = 400;
const AT_ONCE: usize = 10;

async fn deliver_all(protocol: Protocol, options: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let address = net::free_address().unwrap();
    let dumps = folder.path().join("dumps");
    std::fs::create_dir(&dumps).unwrap();
    let mut command = Command::new("/usr/sbin/smtp-sink");
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        // Started by root, it insists on being somebody else.
        for reached in [folder.path(), &dumps] {
            std::fs::set_permissions(reached, Permissions::from_mode(0o777)).unwrap();
        }
        command.args(["-u", "nobody"]);
    }
    command.args(options).arg("-d").arg(dumps.join("%M.")).arg(address.to_string()).arg("100");
    let mut sink = Child::spawn("smtp-sink", command, &folder.path().join("log")).unwrap();
    let listening = async || tokio::net::TcpStream::connect(address).await.is_ok();
    wait::until_true("smtp-sink to listen", Duration::from_secs(10), listening).await.unwrap();

    let mut settings = config(25);
    settings.timeouts.data_end = Duration::from_secs(10);
    let transport = outbound(settings, None);
    let workers: Vec<_> = (0..AT_ONCE)
        .map(|worker| {
            let transport = transport.clone();
            tokio::spawn(async move {
                for number in 0..MESSAGES / AT_ONCE {
                    let header = format!("Subject: message {worker}-{number}\r\n\r\n");
                    let body = ".a line that begins with a dot\r\n".repeat(130);
                    let recipients = ["a@example.test", "b@example.test"];
                    let transfer = transfer_of(&[&header, &body], &recipients);
                    let lines = summary(&transport.to_host(&address.to_string(), protocol, &transfer).await);
                    assert!(lines.iter().all(|line| line.starts_with("delivered")), "{lines:?}");
                }
            })
        })
        .collect();
    for worker in workers {
        if let Err(error) = worker.await {
            panic!("{error}; smtp-sink says: {}", sink.log());
        }
    }

    let mut subjects = std::collections::HashSet::new();
    for dump in std::fs::read_dir(&dumps).unwrap() {
        let text = std::fs::read_to_string(dump.unwrap().path()).unwrap().replace("\r\n", "\n");
        subjects.extend(text.lines().filter(|line| line.starts_with("Subject: ")).map(str::to_owned));
        assert_eq!(text.lines().filter(|line| *line == ".a line that begins with a dot").count(), 130);
    }
    assert_eq!(subjects.len(), MESSAGES);
    sink.kill9().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn smtp_sink_takes_every_message() {
    deliver_all(Protocol::Smtp, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn smtp_sink_without_pipelining_takes_every_message() {
    deliver_all(Protocol::Smtp, &["-p"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn smtp_sink_takes_every_message_over_lmtp() {
    deliver_all(Protocol::Lmtp, &["-L"]).await;
}
