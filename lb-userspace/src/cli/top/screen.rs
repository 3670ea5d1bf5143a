//! The terminal, taken and given back.

use ratatui::{
    Frame, Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor::Show,
        execute,
        terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
    },
};
use std::io::{self, Stdout, Write, stdout};

/// The alternate screen in raw mode.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    // Dropped after the terminal, which may still write.
    _restore: Restore<Stdout>,
}

impl Screen {
    pub(super) fn open() -> io::Result<Self> {
        // A panic's message must not vanish with the alternate screen.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore(&mut stdout());
            hook(info);
        }));
        let restore = Restore(stdout());
        enable_raw_mode()?;
        execute!(stdout(), EnterAlternateScreen)?;
        let mut terminal = Terminal::new(CrosstermBackend::new(stdout()))?;
        terminal.hide_cursor()?;
        terminal.clear()?;
        Ok(Self { terminal, _restore: restore })
    }

    pub(super) fn draw(&mut self, picture: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(picture).map(|_| ())
    }
}

struct Restore<W: Write>(W);

impl<W: Write> Drop for Restore<W> {
    fn drop(&mut self) {
        restore(&mut self.0);
    }
}

// There is nobody left to tell of a failure.
fn restore(out: &mut impl Write) {
    let _ = disable_raw_mode();
    let _ = execute!(out, LeaveAlternateScreen, Show);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{panic::catch_unwind, sync::Mutex};

    static WRITTEN: Mutex<Vec<u8>> = Mutex::new(Vec::new());

    struct Kept;

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            WRITTEN.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_screen_is_given_back_by_a_panic() {
        let panicked = catch_unwind(|| {
            let _restore = Restore(Kept);
            panic!("on purpose, in a test");
        });
        assert!(panicked.is_err());
        let written = String::from_utf8(WRITTEN.lock().unwrap().clone()).unwrap();
        assert!(written.contains("\x1b[?1049l") && written.contains("\x1b[?25h"), "{written:?}");
    }
}
