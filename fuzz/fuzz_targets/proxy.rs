//! PROXY headers, of both versions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use edge::proxy::{Header, parse};

fuzz_target!(|octets: &[u8]| {
    if let Ok(Header::Whole { length, .. }) = parse(octets) {
        assert!(length <= octets.len());
        // What follows the header changes nothing.
        assert_eq!(parse(&octets[..length]), parse(octets));
    }
});
