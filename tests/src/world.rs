//! The small Internet that scenarios play in: a hosted domain with two users, and its correspondents.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::corpus::{self, Message};
use testkit::dkim;
use testkit::dns::DnsServer;
use testkit::keys::{Algorithm, DkimKey};
use testkit::maildir::Maildir;
use testkit::process::{Packetboat, Role, Settings, Site};
use testkit::smtp::{Client, Reply};
use testkit::wait;

/// The hosted domain. It exists with the users `alice` and `bob` and the alias `sales`.
pub const HOSTED: &str = "packetboat.test";
/// A domain with SPF, DKIM and DMARC in order, whose mail comes from 127.0.0.1.
pub const FRIEND: &str = "friend.test";
/// A domain whose mail never comes from 127.0.0.1, with `p=reject`.
pub const BANK: &str = "bank.test";
/// A domain whose mail never comes from 127.0.0.1, with `p=quarantine`.
pub const SHOP: &str = "shop.test";
/// A domain without any policy.
pub const PLAIN: &str = "plain.test";
/// A domain with an MX at 127.0.0.1; the port is that of [`Settings::outbound_port`].
pub const REMOTE: &str = "remote.test";
/// A domain that does not exist.
pub const DEAD: &str = "dead.test";
/// Alice's login.
pub const LOGIN: &str = "alice@packetboat.test";
/// Alice's password.
pub const PASSWORD: &str = "correct horse battery staple";

/// How long a message may take from `250` to the mailbox, on a slow machine under load.
pub const ARRIVAL: Duration = Duration::from_secs(30);

const ZONE: &str = r#"
    packetboat.test. 300 IN MX 10 mx.packetboat.test.
    packetboat.test. 300 IN TXT "v=spf1 ip4:127.0.0.1 -all"
    _dmarc.packetboat.test. 300 IN TXT "v=DMARC1; p=reject"
    mx.packetboat.test. 300 IN A 127.0.0.1
    1.0.0.127.in-addr.arpa. 300 IN PTR mail.friend.test.

    friend.test. 300 IN MX 10 mail.friend.test.
    friend.test. 300 IN TXT "v=spf1 ip4:127.0.0.1 -all"
    _dmarc.friend.test. 300 IN TXT "v=DMARC1; p=reject"
    mail.friend.test. 300 IN A 127.0.0.1

    bank.test. 300 IN MX 10 mail.bank.test.
    bank.test. 300 IN TXT "v=spf1 ip4:192.0.2.1 -all"
    _dmarc.bank.test. 300 IN TXT "v=DMARC1; p=reject"
    mail.bank.test. 300 IN A 192.0.2.1

    shop.test. 300 IN MX 10 mail.shop.test.
    shop.test. 300 IN TXT "v=spf1 ip4:192.0.2.2 -all"
    _dmarc.shop.test. 300 IN TXT "v=DMARC1; p=quarantine"
    mail.shop.test. 300 IN A 192.0.2.2

    plain.test. 300 IN MX 10 mail.friend.test.

    remote.test. 300 IN MX 10 mx.remote.test.
    mx.remote.test. 300 IN A 127.0.0.1
"#;

/// DNS, the site folder with the hosted domain, and the keys of both sides.
pub struct World {
    /// The DNS of this Internet.
    pub dns: DnsServer,
    /// Configurations, MailDomains and mailboxes.
    pub site: Site,
    /// The key with which [`FRIEND`] signs.
    pub friend_key: DkimKey,
    /// The keys with which we sign for [`HOSTED`].
    pub our_keys: [DkimKey; 2],
}

impl World {
    /// A new world; nothing of Packetboat runs yet.
    pub async fn new() -> Result<Self> {
        let friend_key = DkimKey::generate(Algorithm::Rsa, "s1").await?;
        let our_keys = [
            DkimKey::generate(Algorithm::Rsa, "rsa1").await?,
            DkimKey::generate(Algorithm::Ed25519, "ed1").await?,
        ];
        let mut zone = ZONE.to_owned() + &friend_key.zone_line(FRIEND);
        zone.extend(our_keys.iter().map(|key| key.zone_line(HOSTED)));
        let dns = DnsServer::start(&zone).await?;
        let site = Site::new(dns.address())?;
        site.secret("users", &[("alice", &corpus::password_hash(PASSWORD)?)])?;
        site.secret(
            "dkim",
            &[("rsa.pem", &our_keys[0].private_key), ("ed25519.pem", &our_keys[1].private_key)],
        )?;
        let world = Self { dns, site, friend_key, our_keys };
        world.host(
            "recipients: {mode: List, addresses: [alice, bob], aliases: {sales: [alice]}}",
            "{maildir: {path: mail}}",
        )?;
        Ok(world)
    }

    /// Writes the MailDomain of [`HOSTED`] with these recipients (a line of YAML) and this route.
    pub fn host(&self, recipients: &str, route: &str) -> Result<()> {
        let spec = format!(
            "inbound:\n  {recipients}\n  route: {route}\n  maxMessageBytes: 73400320\n\
             submission: {{usersSecretRef: {{name: users}}}}\n\
             dkim:\n  imported:\n\
             \x20   - {{selector: rsa1, secretRef: {{name: dkim, key: rsa.pem}}}}\n\
             \x20   - {{selector: ed1, secretRef: {{name: dkim, key: ed25519.pem}}}}\n"
        );
        self.site.domain(HOSTED, &spec)
    }

    /// The mailbox of a user of [`HOSTED`].
    pub fn mailbox(&self, user: &str) -> Maildir {
        Maildir::at(self.site.path().join("mail").join(HOSTED).join(user))
    }

    /// The DNS answers with which our signatures can be verified.
    pub fn our_answers(&self) -> Vec<(String, String)> {
        self.our_keys.iter().map(|key| key.answer(HOSTED)).collect()
    }

    /// Starts one process with everything, set up by `adjust`.
    pub async fn start_all(&self, adjust: impl FnOnce(&mut Settings)) -> Result<(Settings, Packetboat)> {
        let mut settings = self.site.settings(Role::All)?;
        adjust(&mut settings);
        let process = self.site.start(&settings).await?;
        Ok((settings, process))
    }

    /// A message from [`FRIEND`] to Alice, signed.
    pub async fn friendly_message(&self, id: &str) -> Result<String> {
        let message = Message::new(&at("dave", FRIEND), &at("alice", HOSTED), id).text();
        dkim::sign(&message, FRIEND, &self.friend_key).await
    }
}

/// An address.
pub fn at(user: &str, domain: &str) -> String {
    format!("{user}@{domain}")
}

/// What a listener says to a recipient of Dave's, who is a friend; nothing when it does not get that far.
pub async fn code_of_rcpt(mx: SocketAddr, recipient: &str) -> Option<u16> {
    let mut client = Client::connect(mx).await.ok()?;
    client.command("EHLO mail.friend.test").await.ok()?;
    client.command(&format!("MAIL FROM:<{}>", at("dave", FRIEND))).await.ok()?;
    Some(client.command(&format!("RCPT TO:<{recipient}>")).await.ok()?.code)
}

/// An edge listens to no client that failed twenty times in ten minutes.
const BETWEEN_LOGINS: Duration = Duration::from_secs(5);

/// A session at a submission listener with STARTTLS, authenticated.
pub async fn log_in(submission: SocketAddr, user: &str, password: &str) -> Result<Client> {
    let mut client = Client::connect(submission).await?;
    client.expect(250, "EHLO laptop.test").await?;
    client.starttls().await?;
    let reply = client.auth_plain(user, password).await?;
    ensure!(reply.code == 235, "authentication failed: {reply}");
    Ok(client)
}

/// The same for a user whom the edges do not know yet: tried until they do.
pub async fn admitted(submission: SocketAddr, user: &str, password: &str, limit: Duration) -> Result<Client> {
    wait::until("the user to be admitted", limit, async || {
        let session = log_in(submission, user, password).await.ok();
        if session.is_none() {
            tokio::time::sleep(BETWEEN_LOGINS).await;
        }
        session
    })
    .await
}

/// A session as Alice.
pub async fn submission_session(settings: &Settings) -> Result<Client> {
    log_in(settings.submission, LOGIN, PASSWORD).await
}

/// Submits one message as Alice and gives the last reply.
pub async fn submit(settings: &Settings, to: &[&str], message: &str) -> Result<Reply> {
    submit_as(settings, LOGIN, to, message).await
}

/// Submits one message as a user with Alice's password and gives the last reply.
pub async fn submit_as(settings: &Settings, user: &str, to: &[&str], message: &str) -> Result<Reply> {
    log_in(settings.submission, user, PASSWORD).await?.transaction(user, to, message).await
}

/// The queue id in a reply `250 2.0.0 Ok: queued as ID`.
pub fn queue_id(reply: &Reply) -> Result<String> {
    let id = reply.lines.last().and_then(|line| line.rsplit("queued as ").next()).map(str::trim);
    id.filter(|id| id.len() == 26).map(str::to_owned).with_context(|| format!("no queue id in: {reply}"))
}
