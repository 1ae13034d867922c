//! Messages and credentials to test with.

use std::fmt::Write as _;

use anyhow::{Result, anyhow};
use argon2::{Argon2, Params, PasswordHasher};

/// The header field that carries a test's own id of a message; it is also in the body.
pub const ID_HEADER: &str = "X-Test-Id";

/// A message being written. Lines end in CRLF.
#[derive(Clone, Debug)]
pub struct Message {
    headers: String,
    body: String,
}

impl Message {
    /// A plain message with From, To, Date, Message-ID, Subject and a short body. `id` is the test's
    /// name for it: it stands in `Message-ID`, in [`ID_HEADER`] and in the body.
    pub fn new(from: &str, to: &str, id: &str) -> Self {
        let domain = from.rsplit('@').next().unwrap_or(from);
        let date = jiff::Zoned::now().strftime("%a, %d %b %Y %H:%M:%S %z").to_string();
        let headers = format!(
            "From: {from}\r\nTo: {to}\r\nDate: {date}\r\nMessage-ID: <{id}@{domain}>\r\nSubject: test {id}\r\n{ID_HEADER}: {id}\r\n"
        );
        Self {
            headers,
            body: format!("This is the message {id}.\r\n.\r\n..a line that begins with dots\r\n"),
        }
    }

    /// Adds a header field at the end of the header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    /// Adds lines to the body until it has at least `size` octets.
    #[must_use]
    pub fn padded_to(mut self, size: usize) -> Self {
        let mut line = 0;
        while self.body.len() < size {
            let _ = write!(
                self.body,
                "{line:08} the quick brown fox jumps over the lazy dog, again and again\r\n"
            );
            line += 1;
        }
        self
    }

    /// The message as text.
    pub fn text(&self) -> String {
        format!("{}\r\n{}", self.headers, self.body)
    }
}

/// The value of [`ID_HEADER`] of a message; for a bounce, that of the message it returns.
pub fn id_of(message: &str) -> Option<&str> {
    message.lines().find_map(|line| line.strip_prefix(ID_HEADER)?.strip_prefix(": ")).map(str::trim)
}

/// The first field called `name` of a message, unfolded.
pub fn header_of(message: &str, name: &str) -> Option<String> {
    headers_of(message, name).into_iter().next()
}

/// All fields called `name` of a message in their order, unfolded.
pub fn headers_of(message: &str, name: &str) -> Vec<String> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in message.lines().take_while(|line| !line.is_empty()) {
        match (line.starts_with([' ', '\t']), line.split_once(':'), fields.last_mut()) {
            (true, _, Some((_, value))) => {
                value.push(' ');
                value.push_str(line.trim());
            }
            (false, Some((name, value)), _) => fields.push((name.to_owned(), value.trim().to_owned())),
            _ => {}
        }
    }
    fields.retain(|(known, _)| known.eq_ignore_ascii_case(name));
    fields.into_iter().map(|(_, value)| value).collect()
}

/// The argon2id PHC string of a password, with parameters small enough for tests.
pub fn password_hash(password: &str) -> Result<String> {
    let failed = |error: &dyn std::fmt::Display| anyhow!("hashing a password: {error}");
    let params = Params::new(Params::MIN_M_COST.max(64), 1, 1, None).map_err(|error| failed(&error))?;
    let argon2 = Argon2::from(params);
    argon2.hash_password(password.as_bytes()).map(|hash| hash.to_string()).map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_tells_its_id_and_unfolds_its_fields() {
        let text =
            Message::new("a@example.com", "b@example.net", "m-1").header("X-Long", "one\r\n two").text();
        assert_eq!(id_of(&text), Some("m-1"));
        assert_eq!(header_of(&text, "x-long").as_deref(), Some("one two"));
        assert!(password_hash("secret").unwrap().starts_with("$argon2id$v=19$"));
    }
}
