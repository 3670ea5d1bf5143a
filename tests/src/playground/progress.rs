//! What is being done, on standard error: a spinner on a terminal, plain lines elsewhere.

use std::{
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Quiet,
    Lines,
    Spinner,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress(Style);

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        Self(if quiet {
            Style::Quiet
        } else if std::io::stderr().is_terminal() {
            Style::Spinner
        } else {
            Style::Lines
        })
    }

    /// Does something, shown while it lasts and ticked off with the time it took.
    pub(crate) fn step<T, E>(self, what: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let begun = Instant::now();
        let spinner = (self.0 == Style::Spinner).then(|| {
            let bar = ProgressBar::new_spinner().with_message(what.to_owned());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(80));
            bar
        });
        let outcome = work();
        if let Some(bar) = spinner {
            bar.finish_and_clear();
        }
        let mark = if outcome.is_ok() { '\u{2713}' } else { '\u{2717}' };
        self.line(&format!("{mark} {what} ({:.1} s)", begun.elapsed().as_secs_f32()));
        outcome
    }

    /// A line that is written again and again, on a terminal in its place.
    pub(super) fn live(self) -> Live {
        let bar = (self.0 == Style::Spinner).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Live { progress: self, bar }
    }

    /// Something that happened.
    pub(crate) fn line(self, text: &str) {
        if self.0 != Style::Quiet {
            // A terminal that has been closed must not end the clean-up.
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        }
    }
}

/// See [`Progress::live`]; dropping it removes the line from the terminal.
pub(super) struct Live {
    progress: Progress,
    bar: Option<ProgressBar>,
}

impl Live {
    pub(super) fn show(&self, text: String) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(text);
                bar.tick();
            }
            None => self.progress.line(&text),
        }
    }

    /// Something that happened, above the line.
    pub(super) fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.progress.line(text)),
            None => self.progress.line(text),
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
