//! The frames of flow state: no bytes make the codec panic, and what it takes it writes so that it reads back; and no
//! sequence of frames makes the copy panic or grow beyond its bounds.
//!
//! A frame is two bytes of length and its bytes.
#![no_main]

use lb_userspace::flowsync::{Frame, Receiver, Scope, Table};
use libfuzzer_sys::fuzz_target;

const MOST: usize = 20;

fuzz_target!(|bytes: &[u8]| {
    let scope = Scope::default();
    let mut receiver = Receiver::new(Table::ALL.into_iter().map(|table| (table, MOST)).collect());
    let mut rest = bytes;
    while let Some(([high, low], after)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
        let (frame, after) = after.split_at(length);
        rest = after;
        if let Ok((read, number)) = Frame::decode(frame) {
            assert_eq!(Frame::decode(&read.encode(number)), Ok((read, number)));
        }
        let _ = receiver.frame(frame, &scope, 1 << 40);
        assert!(receiver.entries() <= MOST * Table::ALL.len());
        let _ = receiver.effects();
    }
});
