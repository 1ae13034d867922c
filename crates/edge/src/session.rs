//! One session: octets → command lines → the rules of `smtp::server` → `commands/*` → replies.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domains::SubmissionUser;
use smtp::{Command, EnhancedCode, LineDecoder, LineError, Offer, Reply};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::Shared;
use crate::config::{Kind, Listener};
use crate::connection::Connection;
use crate::transaction::Transaction;

/// Octets asked for at a time while commands are awaited.
const COMMAND_READ: usize = 4096;
/// Longest command line (RFC 5321 §4.5.3.1.4).
const COMMAND_LINE: usize = 512;
/// Longest MAIL or RCPT line: paths and the parameters of every extension known.
const PATH_LINE: usize = 2048;
/// Longest AUTH line and response (RFC 4954 §4).
const AUTH_LINE: usize = 12_288;

/// Why a session ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    /// QUIT, or a reply that announced the end.
    #[error("said")]
    Said,
    /// The client does not keep time.
    #[error("the client is too slow")]
    TooSlow,
    /// The session is older than the limit.
    #[error("the session is too old")]
    TooOld,
    /// More errors than the limit.
    #[error("too many errors")]
    TooManyErrors,
    /// We are shutting down.
    #[error("shutting down")]
    Draining,
    /// The connection failed, or the client left.
    #[error("connection: {0}")]
    Connection(#[from] io::Error),
}

impl End {
    fn farewell(&self) -> Option<Reply> {
        let (enhanced, text) = match self {
            Self::Said | Self::Connection(_) => return None,
            Self::TooSlow => (EnhancedCode(4, 4, 2), "Nothing whole came in time, closing"),
            Self::TooOld => (EnhancedCode(4, 4, 2), "The session is too old, closing; connect again"),
            Self::TooManyErrors => (EnhancedCode(4, 7, 0), "Too many errors, closing"),
            Self::Draining => (EnhancedCode(4, 3, 2), "Shutting down, connect again"),
        };
        Some(Reply::new(421, enhanced, text))
    }
}

/// What the client said about itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Greeting {
    /// The argument of EHLO or HELO.
    pub(crate) name: String,
    /// EHLO, not HELO.
    pub(crate) extended: bool,
}

/// One client's session.
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    pub(crate) listener: Arc<Listener>,
    pub(crate) client: SocketAddr,
    pub(crate) connection: Connection,
    pub(crate) rules: smtp::Session,
    pub(crate) greeting: Greeting,
    pub(crate) user: Option<Arc<SubmissionUser>>,
    pub(crate) transaction: Option<Transaction>,
    lines: LineDecoder,
    errors: usize,
    ends_at: Instant,
    shutdown: CancellationToken,
}

impl Session {
    pub(crate) fn new(
        shared: Arc<Shared>,
        listener: Arc<Listener>,
        client: SocketAddr,
        stream: TcpStream,
        shutdown: CancellationToken,
    ) -> Self {
        let limits = &shared.config.limits;
        let offer = Offer {
            starttls: !listener.implicit_tls,
            submission: listener.kind == Kind::Submission,
            max_size: limits.max_message_bytes,
        };
        Self {
            connection: Connection::new(stream, limits.command_timeout),
            ends_at: Instant::now() + limits.session_timeout,
            rules: smtp::Session::new(offer, false),
            shared,
            listener,
            client,
            greeting: Greeting::default(),
            user: None,
            transaction: None,
            lines: LineDecoder::default(),
            errors: 0,
            shutdown,
        }
    }

    /// The client's address.
    pub(crate) fn client_ip(&self) -> IpAddr {
        self.client.ip().to_canonical()
    }

    /// The session, from the greeting to the end.
    pub(crate) async fn run(mut self) {
        let Err(end) = self.converse().await;
        if let Some(farewell) = end.farewell() {
            self.connection.queue(&farewell);
        }
        // The client may be gone; there is nobody left to tell.
        let _ = self.connection.flush().await;
        self.connection.close().await;
        tracing::debug!(listener = self.listener.name, client = %self.client_ip(), %end, "session ended");
    }

    async fn converse(&mut self) -> Result<std::convert::Infallible, End> {
        if self.listener.implicit_tls {
            self.connection.start_tls(&self.shared.tls).await?;
            self.rules.tls_started();
        }
        self.greet().await?;
        loop {
            let line = self.next_line().await?;
            self.obey(line).await?;
        }
    }

    async fn greet(&mut self) -> Result<(), End> {
        let limits = &self.shared.config.limits;
        if self.listener.kind == Kind::Mx {
            // Even without a pause, what lies in the socket already is seen.
            let talked = timeout(limits.greet_pause, self.connection.read(COMMAND_READ)).await;
            match talked {
                Err(_) => {}
                Ok(Err(error)) => return Err(error.into()),
                Ok(Ok(())) => {
                    let text = "Wait for the greeting before talking, closing";
                    self.connection.queue(&Reply::new(554, EnhancedCode(5, 5, 0), text));
                    return Err(End::Said);
                }
            }
        }
        self.connection.queue(&Reply::plain(220, format!("{} ESMTP", self.shared.config.hostname)));
        Ok(())
    }

    /// The next line. Replies are sent when the client has to be waited for, and not before.
    async fn next_line(&mut self) -> Result<Result<Bytes, LineError>, End> {
        self.line_within(line_limit).await
    }

    /// The client's response to a challenge.
    pub(crate) async fn next_response(&mut self) -> Result<Result<Bytes, LineError>, End> {
        self.line_within(|_| AUTH_LINE).await
    }

    async fn line_within(&mut self, limit: fn(&[u8]) -> usize) -> Result<Result<Bytes, LineError>, End> {
        let mut deadline = None;
        loop {
            let limit = limit(&self.connection.input);
            match self.lines.decode(&mut self.connection.input, limit) {
                Ok(Some(line)) => return Ok(Ok(line)),
                Err(error) => return Ok(Err(error)),
                Ok(None) => {}
            }
            self.connection.flush().await?;
            let between = !self.rules.in_transaction();
            // A single octet does not buy more time: the deadline is the line's.
            let line_ends =
                *deadline.get_or_insert_with(|| Instant::now() + self.shared.config.limits.command_timeout);
            let grace = if between { Duration::ZERO } else { self.shared.config.limits.command_timeout };
            let session_ends = self.ends_at + grace;
            let (until, late) = if session_ends < line_ends {
                (session_ends, End::TooOld)
            } else {
                (line_ends, End::TooSlow)
            };
            // What never stops coming is read at once each time, and never late by a timer.
            if Instant::now() >= until {
                return Err(late);
            }
            tokio::select! {
                biased;
                read = timeout_at(until, self.connection.read(COMMAND_READ)) => match read {
                    Ok(read) => read?,
                    Err(_) => return Err(late),
                },
                () = self.shutdown.cancelled(), if between => return Err(End::Draining),
            }
        }
    }

    async fn obey(&mut self, line: Result<Bytes, LineError>) -> Result<(), End> {
        let line = match line {
            Ok(line) => line,
            Err(LineError::TooLong) => {
                return self.say(Reply::new(500, EnhancedCode(5, 5, 2), "The line is too long"));
            }
            Err(LineError::BareControl) => return Err(self.refuse_bare_control()),
        };
        let admitted = Command::parse(&line).and_then(|command| {
            self.rules.admit(&command)?;
            Ok(command)
        });
        match admitted {
            Ok(command) => self.execute(command).await,
            Err(reply) => self.say(reply),
        }
    }

    /// Components that disagree on where a line ends are how commands are smuggled: the session is over.
    pub(crate) fn refuse_bare_control(&mut self) -> End {
        let text = "A line ends in CRLF and holds no other CR, LF or NUL, closing";
        self.connection.queue(&Reply::new(500, EnhancedCode(5, 5, 2), text));
        End::Said
    }

    async fn execute(&mut self, command: Command) -> Result<(), End> {
        // These must be the last of a pipelined group (RFC 2920 §3.1): what follows was sent without
        // waiting for the answer it depends on.
        let last_of_group = matches!(command, Command::Ehlo(_) | Command::Data | Command::StartTls);
        if last_of_group && !self.connection.input.is_empty() {
            let text = "Wait for the reply before sending more, closing";
            self.connection.queue(&Reply::new(503, EnhancedCode(5, 5, 0), text));
            return Err(End::Said);
        }
        match command {
            Command::Ehlo(name) => self.greeted(name, true),
            Command::Helo(name) => self.greeted(name, false),
            Command::Mail { reverse_path, size, body, smtputf8 } => {
                self.mail(reverse_path, size, body, smtputf8)
            }
            Command::Rcpt { forward_path, internationalized } => {
                self.rcpt(forward_path, internationalized).await
            }
            Command::Data => self.data().await,
            Command::StartTls => self.starttls().await,
            Command::Auth { mechanism, initial_response } => self.auth(&mechanism, initial_response).await,
            Command::Rset => {
                self.forget_transaction();
                self.say(Reply::new(250, EnhancedCode(2, 0, 0), "Ok"))
            }
            Command::Noop => self.say(Reply::new(250, EnhancedCode(2, 0, 0), "Ok")),
            Command::Vrfy => {
                self.say(Reply::new(252, EnhancedCode(2, 5, 0), "Send mail, and it will be tried"))
            }
            Command::Help => self.say(Reply::new(214, EnhancedCode(2, 0, 0), "See RFC 5321")),
            Command::Quit => {
                self.connection.queue(&Reply::new(221, EnhancedCode(2, 0, 0), "Bye"));
                Err(End::Said)
            }
        }
    }

    /// Queues a reply, and counts it when it is an error.
    pub(crate) fn say(&mut self, reply: Reply) -> Result<(), End> {
        self.connection.queue(&reply);
        if reply.is_permanent() {
            self.errors += 1;
            if self.errors >= self.shared.config.limits.max_errors {
                return Err(End::TooManyErrors);
            }
        }
        Ok(())
    }

    pub(crate) fn forget_transaction(&mut self) {
        self.transaction = None;
        self.rules.transaction_over();
    }
}

fn line_limit(input: &[u8]) -> usize {
    match input.get(..4).map(<[u8]>::to_ascii_uppercase).as_deref() {
        Some(b"MAIL" | b"RCPT") => PATH_LINE,
        Some(b"AUTH") => AUTH_LINE,
        _ => COMMAND_LINE,
    }
}
