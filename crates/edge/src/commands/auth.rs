//! AUTH PLAIN and LOGIN (RFC 4954, RFC 4616).

use smtp::sasl::{Credentials, decode_plain, decode_text};
use smtp::{EnhancedCode, LineError, Reply};

use crate::passwords::Outcome;
use crate::session::{End, Session};

impl Session {
    pub(crate) async fn auth(&mut self, mechanism: &str, initial: Option<String>) -> Result<(), End> {
        let credentials = match mechanism {
            "PLAIN" => self.plain(initial).await?,
            _ => self.login(initial).await?,
        };
        let credentials = match credentials {
            Ok(credentials) => credentials,
            Err(reply) => return self.say(reply),
        };
        let outcome = self.shared.passwords.check(self.client_ip(), credentials).await;
        let (label, reply) = match outcome {
            Outcome::Accepted(user) => {
                self.user = Some(user);
                self.rules.authenticated();
                ("accepted", Reply::new(235, EnhancedCode(2, 7, 0), "Authentication succeeded"))
            }
            Outcome::Refused => {
                ("refused", Reply::new(535, EnhancedCode(5, 7, 8), "The login or the password is wrong"))
            }
            Outcome::PutOff => {
                let text = "Too many attempts have failed, try again later";
                ("put_off", Reply::new(454, EnhancedCode(4, 7, 0), text))
            }
            Outcome::Busy => {
                ("busy", Reply::new(454, EnhancedCode(4, 7, 0), "Too busy to authenticate, try again later"))
            }
        };
        metrics::counter!("packetboat_smtp_auth_total", "outcome" => label).increment(1);
        if label != "accepted" {
            tracing::info!(
                listener = self.listener.name, client = %self.client_ip(), outcome = label, "authentication failed"
            );
        }
        self.say(reply)
    }

    async fn plain(&mut self, initial: Option<String>) -> Result<Result<Credentials, Reply>, End> {
        let response = match initial {
            Some(response) => Ok(response),
            None => self.challenge("").await?,
        };
        Ok(response.and_then(|text| decode_plain(&text).map_err(|_| malformed())))
    }

    async fn login(&mut self, initial: Option<String>) -> Result<Result<Credentials, Reply>, End> {
        let login = match initial {
            Some(login) => Ok(login),
            // "Username:"
            None => self.challenge("VXNlcm5hbWU6").await?,
        };
        let login = match login.and_then(|text| decode_text(&text).map_err(|_| malformed())) {
            Ok(login) => login,
            Err(reply) => return Ok(Err(reply)),
        };
        // "Password:"
        let password = self.challenge("UGFzc3dvcmQ6").await?;
        Ok(password
            .and_then(|text| decode_text(&text).map_err(|_| malformed()))
            .map(|password| Credentials { login, password }))
    }

    /// Asks with 334 and gives the response, or the reply to a cancelled or broken exchange.
    async fn challenge(&mut self, text: &'static str) -> Result<Result<String, Reply>, End> {
        self.connection.queue(&Reply::plain(334, text));
        let line = match self.next_response().await? {
            Ok(line) => line,
            Err(LineError::TooLong) => {
                let text = "The response is too long";
                return Ok(Err(Reply::new(500, EnhancedCode(5, 5, 6), text)));
            }
            Err(LineError::BareControl) => return Err(self.refuse_bare_control()),
        };
        if line.as_ref() == b"*" {
            return Ok(Err(Reply::new(501, EnhancedCode(5, 7, 0), "Authentication cancelled")));
        }
        Ok(String::from_utf8(line.to_vec()).map_err(|_| malformed()))
    }
}

fn malformed() -> Reply {
    Reply::new(501, EnhancedCode(5, 5, 2), "The response is malformed")
}
