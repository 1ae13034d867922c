//! One command line: parsed or refused, and what is parsed is printable again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smtp::Command;

fuzz_target!(|octets: &[u8]| {
    match Command::parse(octets) {
        Ok(Command::Mail { reverse_path, .. }) => {
            let shown = reverse_path.to_string();
            assert_eq!(shown.parse::<smtp::ReversePath>().as_ref(), Ok(&reverse_path), "{shown}");
        }
        Ok(_) => {}
        Err(reply) => assert!(reply.is_permanent(), "{reply}"),
    }
});
