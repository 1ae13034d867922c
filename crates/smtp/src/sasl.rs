//! Responses of SASL PLAIN (RFC 4616) and LOGIN, base64 as RFC 4954 §4 carries them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The response is not what the mechanism asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the response is malformed")]
pub struct SaslError;

/// Who somebody says they are. The password is never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's login.
    pub login: String,
    /// What proves it.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("login", &self.login).finish_non_exhaustive()
    }
}

/// One base64 response as text.
///
/// # Errors
/// When it is not base64 of UTF-8 without NUL.
pub fn decode_text(response: &str) -> Result<String, SaslError> {
    let text = String::from_utf8(STANDARD.decode(response).map_err(|_| SaslError)?).map_err(|_| SaslError)?;
    if text.contains('\0') { Err(SaslError) } else { Ok(text) }
}

/// The response of PLAIN: `[authzid] NUL authcid NUL password`. Acting for somebody else is not offered.
///
/// # Errors
/// When it is malformed, or names an authorisation identity other than the user.
pub fn decode_plain(response: &str) -> Result<Credentials, SaslError> {
    let octets = STANDARD.decode(response).map_err(|_| SaslError)?;
    let text = String::from_utf8(octets).map_err(|_| SaslError)?;
    let mut parts = text.split('\0');
    let (Some(authzid), Some(login), Some(password), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(SaslError);
    };
    let for_self = authzid.is_empty() || authzid == login;
    if for_self && !login.is_empty() && !password.is_empty() {
        Ok(Credentials { login: login.to_owned(), password: password.to_owned() })
    } else {
        Err(SaslError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_is_read_strictly() {
        let encode = |text: &str| STANDARD.encode(text);
        let read = decode_plain(&encode("\0alice\0secret")).unwrap();
        assert_eq!((read.login.as_str(), read.password.as_str()), ("alice", "secret"));
        assert!(!format!("{read:?}").contains("secret"));
        assert!(decode_plain(&encode("alice\0alice\0secret")).is_ok());
        for bad in ["", "alice", "\0alice", "\0alice\0", "\0\0secret", "bob\0alice\0secret", "\0a\0b\0c"] {
            assert_eq!(decode_plain(&encode(bad)), Err(SaslError));
        }
        assert_eq!(decode_plain("!!"), Err(SaslError));
    }
}
