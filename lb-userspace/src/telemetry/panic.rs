//! Panics as events, so that they reach the log in one line like everything else.

use std::{any::Any, backtrace::Backtrace, backtrace::BacktraceStatus, panic};

/// From now on a panic is logged as an error with its place and thread, and with a backtrace where
/// `RUST_BACKTRACE` asks for one. What a panic does (unwinding its thread or task) stays the same; where no
/// logger is set, so does what is printed.
pub fn install() {
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !tracing::dispatcher::has_been_set() {
            previous(info);
            return;
        }
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        let location = info.location().map_or("unknown".to_owned(), ToString::to_string);
        let message = message(info.payload());
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            tracing::error!(thread, location, panic = message, %backtrace, "panic: a defect in lbd, please report it");
        } else {
            tracing::error!(thread, location, panic = message, "panic: a defect in lbd, please report it");
        }
    }));
}

/// The text of a panic, also of one a `JoinError` hands over (`into_panic`).
pub fn message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a value that is no text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_payload_has_a_text() {
        assert_eq!(message(&"static"), "static");
        assert_eq!(message(&"owned".to_owned()), "owned");
        assert_eq!(message(&7_i32), "a value that is no text");
    }
}
