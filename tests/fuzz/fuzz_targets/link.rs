//! The records of the sync link: none makes the decoder panic, and what it takes it writes so that it reads back.
#![no_main]

use lb_userspace::link::wire::{Assembly, MAX_FRAME, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = Message::decode(bytes) else { return };
    // What a later version means cannot be said by this one.
    if matches!(message, Message::Unknown(_)) {
        return;
    }
    assert_eq!(Message::decode(&message.encode()), Ok(message.clone()));
    if let Message::Part(part) = &message {
        let mut assembly = Assembly::default();
        while assembly.add(part).is_some() {}
        assert!(assembly.end(&[]).is_some_and(|frame| frame.len() <= MAX_FRAME));
    }
});
