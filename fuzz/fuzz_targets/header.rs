//! Header sections: fields lie in order and cover what they say.
#![no_main]

use libfuzzer_sys::fuzz_target;
use bytes::Bytes;
use message::header::Limits;
use message::{Header, author};

fuzz_target!(|octets: &[u8]| {
    let Ok(header) = Header::split(Bytes::copy_from_slice(octets), Limits::default()) else { return };
    let mut end = 0;
    for field in header.fields() {
        let range = field.range();
        assert!(range.start >= end && range.end <= header.section().len());
        end = range.end;
        let _ = (field.name(), field.value(), field.cut());
    }
    let _ = author::author(&header);
});
