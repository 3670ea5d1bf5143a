//! Signals that end a playground.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::Sender,
    },
    thread,
};

use tokio::signal::unix::{SignalKind, signal};

/// Whether such a signal has come: what waits for something asks now and then.
#[derive(Debug, Clone, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(super) fn is_asked_for(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Sends `event(name)` for every signal that asks this process to end, from now on.
pub(super) fn watch<E: Send + 'static>(events: Sender<E>, event: fn(&'static str) -> E) -> io::Result<Stop> {
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
    let stop = Stop::default();
    let asked = stop.clone();
    thread::spawn(move || {
        runtime.block_on(async {
            loop {
                let name = tokio::select! {
                    _ = interrupt.recv() => "SIGINT",
                    _ = terminate.recv() => "SIGTERM",
                    _ = hangup.recv() => "SIGHUP",
                    _ = quit.recv() => "SIGQUIT",
                };
                asked.0.store(true, Ordering::SeqCst);
                // Nobody listens any more when the playground is being taken away: then the signal is late.
                let _ = events.send(event(name));
            }
        });
    });
    Ok(stop)
}
