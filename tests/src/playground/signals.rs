//! Signals that end a playground.

use std::{io, sync::mpsc::Sender, thread};

use tokio::signal::unix::{SignalKind, signal};

/// Sends `event(name)` for every signal that asks this process to end, from now on.
pub(super) fn watch<E: Send + 'static>(events: Sender<E>, event: fn(&'static str) -> E) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate, mut hangup, mut quit) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
            signal(SignalKind::quit())?,
        )
    };
    thread::spawn(move || {
        runtime.block_on(async {
            loop {
                let name = tokio::select! {
                    _ = interrupt.recv() => "SIGINT",
                    _ = terminate.recv() => "SIGTERM",
                    _ = hangup.recv() => "SIGHUP",
                    _ = quit.recv() => "SIGQUIT",
                };
                // Nobody listens any more when the playground is being taken away: then the signal is late.
                let _ = events.send(event(name));
            }
        });
    });
    Ok(())
}
