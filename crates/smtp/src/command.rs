//! Commands (RFC 5321 §4.1) and their parameters (RFC 1870, 6152, 6531, 3207, 4954).

use crate::address::{Domain, ForwardPath, MAX_PATH, Mailbox, ReversePath};
use crate::reply::{EnhancedCode, Reply};

/// What the client says about the body (RFC 6152).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Body {
    /// `BODY=7BIT`, or nothing said.
    #[default]
    SevenBit,
    /// `BODY=8BITMIME`.
    EightBitMime,
}

/// One command, its arguments checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `EHLO name`: the name as the client gave it, printable and without spaces.
    Ehlo(String),
    /// `HELO name`.
    Helo(String),
    /// `MAIL FROM:<reverse-path>`.
    Mail {
        /// Where notifications go.
        reverse_path: ReversePath,
        /// `SIZE=`, in octets (RFC 1870).
        size: Option<u64>,
        /// `BODY=`.
        body: Body,
        /// `SMTPUTF8` (RFC 6531).
        smtputf8: bool,
    },
    /// `RCPT TO:<forward-path>`.
    Rcpt {
        /// Whom it is for.
        forward_path: ForwardPath,
        /// It was written with other than ASCII, so SMTPUTF8 has to be declared (RFC 6531 §3.3): a domain no longer tells.
        internationalized: bool,
    },
    /// `DATA`.
    Data,
    /// `RSET`.
    Rset,
    /// `NOOP`.
    Noop,
    /// `VRFY`.
    Vrfy,
    /// `HELP`.
    Help,
    /// `QUIT`.
    Quit,
    /// `STARTTLS` (RFC 3207).
    StartTls,
    /// `AUTH mechanism [initial-response]` (RFC 4954).
    Auth {
        /// In upper case.
        mechanism: String,
        /// Base64 as sent; `=` has become the empty text.
        initial_response: Option<String>,
    },
}

fn unrecognised() -> Reply {
    Reply::new(500, EnhancedCode(5, 5, 1), "Command not recognised")
}

fn syntax(text: &'static str) -> Reply {
    Reply::new(501, EnhancedCode(5, 5, 4), text)
}

impl Command {
    /// Reads one line, without its CRLF.
    ///
    /// # Errors
    /// The reply to give: 500, 501, 502, 553 or 555, with its enhanced code.
    pub fn parse(line: &[u8]) -> Result<Self, Reply> {
        let text = std::str::from_utf8(line)
            .map_err(|_| Reply::new(500, EnhancedCode(5, 5, 2), "The command is not valid UTF-8"))?;
        if text.chars().any(char::is_control) {
            return Err(Reply::new(500, EnhancedCode(5, 5, 2), "The command holds a control character"));
        }
        let text = text.trim_end_matches(' ');
        let (verb, argument) = text.split_once(' ').unwrap_or((text, ""));
        let argument = argument.trim_start_matches(' ');
        match verb.to_ascii_uppercase().as_str() {
            "EHLO" => client_name(argument).map(Self::Ehlo),
            "HELO" => client_name(argument).map(Self::Helo),
            "MAIL" => mail(argument),
            "RCPT" => rcpt(argument),
            "DATA" => bare(argument, Self::Data),
            "RSET" => bare(argument, Self::Rset),
            "QUIT" => bare(argument, Self::Quit),
            "STARTTLS" => bare(argument, Self::StartTls),
            "NOOP" => Ok(Self::Noop),
            "HELP" => Ok(Self::Help),
            "VRFY" if argument.is_empty() => Err(syntax("VRFY needs an address")),
            "VRFY" => Ok(Self::Vrfy),
            "AUTH" => auth(argument),
            "EXPN" | "TURN" | "ETRN" | "SEND" | "SOML" | "SAML" | "BDAT" => {
                Err(Reply::new(502, EnhancedCode(5, 5, 1), "Command not implemented"))
            }
            _ => Err(unrecognised()),
        }
    }
}

fn bare(argument: &str, command: Command) -> Result<Command, Reply> {
    if argument.is_empty() { Ok(command) } else { Err(syntax("This command takes no argument")) }
}

/// Odd names are let through (RFC 5321 §4.1.4 forbids refusing them), as long as they are one
/// printable word that can stand in a trace header.
fn client_name(argument: &str) -> Result<String, Reply> {
    let printable = argument.chars().all(|c| !c.is_whitespace() && !"()<>\"\\;,".contains(c));
    if argument.is_empty() || argument.len() > 255 || !printable {
        return Err(syntax("The name must be a domain or an address literal"));
    }
    Ok(argument.to_owned())
}

/// Cuts `KEYWORD <path> parameters` into the path's inside and the parameters.
fn path_argument<'a>(argument: &'a str, keyword: &str) -> Option<(&'a str, &'a str)> {
    let head = argument.get(..keyword.len())?;
    if !head.eq_ignore_ascii_case(keyword) {
        return None;
    }
    let rest = argument[keyword.len()..].trim_start_matches(' ').strip_prefix('<')?;
    let mut quoted = false;
    let mut escaped = false;
    for (at, c) in rest.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '>' if !quoted => {
                let parameters = &rest[at + 1..];
                let separated = parameters.is_empty() || parameters.starts_with(' ');
                return (separated && at + 2 <= MAX_PATH).then_some((&rest[..at], parameters));
            }
            _ => {}
        }
    }
    None
}

/// Source routes are accepted and ignored (RFC 5321 §4.1.1.3, appendix C).
fn without_source_route(path: &str) -> Result<&str, Reply> {
    if !path.starts_with('@') {
        return Ok(path);
    }
    let (route, mailbox) = path.split_once(':').ok_or_else(|| syntax("The source route has no mailbox"))?;
    let hop_ok = |hop: &str| hop.strip_prefix('@').is_some_and(|name| name.parse::<Domain>().is_ok());
    if route.split(',').all(hop_ok) { Ok(mailbox) } else { Err(syntax("The source route is malformed")) }
}

fn mailbox(path: &str, enhanced: EnhancedCode) -> Result<Mailbox, Reply> {
    path.parse().map_err(|error| Reply::new(501, enhanced, format!("The address is malformed: {error}")))
}

fn mail(argument: &str) -> Result<Command, Reply> {
    let (path, parameters) =
        path_argument(argument, "FROM:").ok_or_else(|| syntax("Write MAIL FROM:<address>"))?;
    let path = without_source_route(path)?;
    let reverse_path = match path {
        "" => ReversePath::Null,
        path => ReversePath::Mailbox(mailbox(path, EnhancedCode(5, 1, 7))?),
    };
    let (mut size, mut body, mut smtputf8) = (None, None, false);
    for parameter in parameters.split(' ').filter(|text| !text.is_empty()) {
        let (keyword, value) = match parameter.split_once('=') {
            Some((keyword, value)) => (keyword, Some(value)),
            None => (parameter, None),
        };
        match (keyword.to_ascii_uppercase().as_str(), value) {
            ("SIZE", Some(value)) if size.is_none() => size = Some(size_value(value)?),
            ("BODY", Some(value)) if body.is_none() => body = Some(body_value(value)?),
            ("SMTPUTF8", None) if !smtputf8 => smtputf8 = true,
            // Syntax is checked; the identity is not trusted and not passed on (RFC 4954 §5).
            ("AUTH", Some(value)) if !value.is_empty() => {}
            ("SIZE" | "BODY" | "SMTPUTF8" | "AUTH", _) => {
                return Err(syntax("A MAIL parameter is malformed"));
            }
            _ => return Err(Reply::new(555, EnhancedCode(5, 5, 4), "MAIL parameter not recognised")),
        }
    }
    if !path.is_ascii() && !smtputf8 {
        let text = "A non-ASCII address needs the SMTPUTF8 parameter";
        return Err(Reply::new(553, EnhancedCode(5, 6, 7), text));
    }
    Ok(Command::Mail { reverse_path, size, body: body.unwrap_or_default(), smtputf8 })
}

fn size_value(value: &str) -> Result<u64, Reply> {
    let digits = !value.is_empty() && value.len() <= 20 && value.bytes().all(|b| b.is_ascii_digit());
    // A number past 64 bits is a size over any limit, not a syntax error (RFC 1870 §4).
    if digits { Ok(value.parse().unwrap_or(u64::MAX)) } else { Err(syntax("SIZE needs a number of octets")) }
}

fn body_value(value: &str) -> Result<Body, Reply> {
    match value.to_ascii_uppercase().as_str() {
        "7BIT" => Ok(Body::SevenBit),
        "8BITMIME" => Ok(Body::EightBitMime),
        _ => Err(syntax("BODY is 7BIT or 8BITMIME")),
    }
}

fn rcpt(argument: &str) -> Result<Command, Reply> {
    let (path, parameters) =
        path_argument(argument, "TO:").ok_or_else(|| syntax("Write RCPT TO:<address>"))?;
    let path = without_source_route(path)?;
    if !parameters.trim().is_empty() {
        return Err(Reply::new(555, EnhancedCode(5, 5, 4), "RCPT parameter not recognised"));
    }
    let forward_path = if path.eq_ignore_ascii_case("postmaster") {
        ForwardPath::Postmaster
    } else {
        ForwardPath::Mailbox(mailbox(path, EnhancedCode(5, 1, 3))?)
    };
    Ok(Command::Rcpt { forward_path, internationalized: !path.is_ascii() })
}

fn auth(argument: &str) -> Result<Command, Reply> {
    let mut words = argument.split(' ').filter(|word| !word.is_empty());
    let mechanism = words.next().ok_or_else(|| syntax("Write AUTH mechanism"))?.to_ascii_uppercase();
    let initial_response = words.next().map(|word| if word == "=" { String::new() } else { word.to_owned() });
    if words.next().is_some() {
        return Err(syntax("AUTH takes a mechanism and one response"));
    }
    Ok(Command::Auth { mechanism, initial_response })
}

#[cfg(test)]
mod tests;
