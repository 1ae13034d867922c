//! SASL responses.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smtp::sasl::{decode_plain, decode_text};

fuzz_target!(|text: &str| {
    if let Ok(credentials) = decode_plain(text) {
        assert!(!credentials.login.is_empty() && !credentials.password.contains('\0'));
    }
    if let Ok(decoded) = decode_text(text) {
        assert!(!decoded.contains('\0'));
    }
});
