//! A mailbox that parses is the same when it is written and parsed again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smtp::Mailbox;

fuzz_target!(|text: &str| {
    if let Ok(mailbox) = text.parse::<Mailbox>() {
        let shown = mailbox.to_string();
        assert_eq!(shown.parse::<Mailbox>().as_ref(), Ok(&mailbox), "{shown}");
    }
});
