//! The BFD codec: no packet makes it panic, and what it takes it writes so that it reads back.
#![no_main]

use lb_userspace::bfd::packet::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(packet) = parse(bytes) {
        assert_eq!(parse(&packet.encode()), Ok(packet));
    }
});
