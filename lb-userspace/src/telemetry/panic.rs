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
    use std::process::Command;

    const CHILD: &str = "LBD_TEST_PANIC_CHILD";

    /// Hook and logger belong to the whole process, so the process under test is a second run of this very
    /// test, told by its environment to play that part.
    #[test]
    fn a_panic_is_one_line_of_the_log_and_unwinds_as_ever() {
        if std::env::var_os(CHILD).is_some() {
            crate::telemetry::log::init(None).unwrap();
            install();
            let outcome = std::thread::Builder::new()
                .name("worker".to_owned())
                .spawn(|| panic!("boom\nat two lines"))
                .unwrap()
                .join();
            tracing::info!(survived = message(&*outcome.unwrap_err()), "still here");
            return;
        }
        let child = |rust_log: &str, backtrace: &str| {
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "--nocapture", "--test-threads=1"])
                .arg("telemetry::panic::tests::a_panic_is_one_line_of_the_log_and_unwinds_as_ever")
                .env(CHILD, "1")
                .env("RUST_LOG", rust_log)
                .env("RUST_BACKTRACE", backtrace)
                .env_remove("JOURNAL_STREAM")
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stderr).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
        };

        let lines = child("info", "0");
        let [panic, after] = lines.as_slice() else { panic!("{lines:#?}") };
        assert!(panic.contains(" ERROR telemetry::panic: panic: "), "{panic}");
        assert!(panic.contains(" thread=worker location="), "{panic}");
        assert!(
            panic.contains("telemetry/panic.rs:") && panic.ends_with(r#" panic="boom\nat two lines""#),
            "{panic}"
        );
        assert!(after.ends_with(r#"still here survived="boom\nat two lines""#), "{after}");

        let lines = child("error", "1");
        let [panic] = lines.as_slice() else { panic!("{lines:#?}") };
        assert!(panic.contains(" backtrace=\""), "{panic}");

        let lines = child("a=b=c", "0");
        let [warning, _, _] = lines.as_slice() else { panic!("{lines:#?}") };
        assert!(warning.contains(" WARN  ") && warning.contains("RUST_LOG=a=b=c"), "{warning}");
    }

    #[test]
    fn every_kind_of_payload_has_a_text() {
        assert_eq!(message(&"static"), "static");
        assert_eq!(message(&"owned".to_owned()), "owned");
        assert_eq!(message(&7_i32), "a value that is no text");
    }
}
