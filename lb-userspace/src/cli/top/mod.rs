//! `lbctl top`: services, backends, the pair and drops in the terminal, once a second.
//!
//! A task asks the daemon and a thread reads the keys; both report to one loop, which owns the state (`state`, pure)
//! and draws it (`draw`, pure). What has not changed on the screen is not written again. The terminal is put back
//! however the program ends, but by SIGKILL.

mod draw;
mod reading;
mod screen;
mod state;

use super::{Failure, args::Output};
use crate::control::client::{Client, ClientError};
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use reading::Reading;
use screen::Screen;
use state::{App, Outcome};
use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

pub const TOP_EXAMPLES: &str = "\
Examples:
  lbctl top                         until q
  lbctl top --interval 5
  lbctl top --once                  one frame, for a pipe or a log
  lbctl -o json top --once | jq '.rates[] | select(.packets_per_second > 1000)'

Keys:
  arrows j k PgUp PgDn Home End   move
  Enter, Esc   open a service, or the details of a backend; back
  b            all backends, or services
  s, S         sort by the next column; the other way round
  /            only names that contain what is typed; Esc ends it
  p            hold the picture
  ?, q         help; quit";

/// `lbctl top`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct TopOptions {
    /// Prints one frame, of two readings an interval apart, and ends
    #[arg(long)]
    pub once: bool,
    /// Seconds between two readings, 0.2 to 60
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    pub interval: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.2..=60.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("'{text}' is no interval; expected seconds, 0.2 to 60, e.g. 2 or 0.5"))
}

/// Runs until it is ended; what is to be printed at the end.
pub(super) fn run(client: &Client, options: TopOptions, output: Output) -> Result<String, Failure> {
    if output == Output::Json && !options.once {
        return Err(Failure::Usage("json is for one frame: lbctl -o json top --once".to_owned()));
    }
    let terminal = io::stdout().is_terminal() && io::stdin().is_terminal();
    if !options.once && !terminal {
        return Err(Failure::Usage(
            "top needs a terminal, and this is none; for a pipe or a file: lbctl top --once".to_owned(),
        ));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Failure::Runtime)?.block_on(async {
        if options.once {
            return once(client, options.interval, output).await;
        }
        // Before anything is drawn: a daemon that is not there is an error as with any other command.
        let first = Reading::take(client).await?;
        watch(client, options.interval, first).await.map_err(Failure::Runtime)?;
        Ok(String::new())
    })
}

async fn once(client: &Client, interval: Duration, output: Output) -> Result<String, Failure> {
    let mut app = App::default();
    app.take(Ok(Reading::take(client).await?));
    tokio::time::sleep(interval).await;
    let reading = Reading::take(client).await?;
    if output == Output::Json {
        let rates = app.take(Ok(reading.clone()));
        return Ok(serde_json::to_string_pretty(&reading.with_rates(&rates))? + "\n");
    }
    app.take(Ok(reading));
    let width = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok()).unwrap_or(100);
    Ok(draw::text(&mut app, width))
}

async fn watch(client: &Client, interval: Duration, first: Reading) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (readings, mut incoming) = mpsc::channel(1);
    tokio::spawn(ask(client.clone(), interval, readings));
    let (keys, mut pressed) = mpsc::unbounded_channel();
    let mut app = App::default();
    app.take(Ok(first));
    let mut screen = Screen::open()?;
    std::thread::spawn(move || read_keys(&keys));
    loop {
        screen.draw(|frame| draw::draw(frame, &mut app))?;
        let outcome = tokio::select! {
            reading = incoming.recv() => match reading {
                Some(reading) => {
                    app.take(reading.map_err(|error: ClientError| error.to_string()));
                    Outcome::Goes
                }
                None => Outcome::Ends,
            },
            event = pressed.recv() => match event {
                Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => app.key(key.code, key.modifiers),
                // A new size: the next frame has it.
                Some(Ok(_)) => Outcome::Goes,
                Some(Err(error)) => return Err(error),
                // The terminal is gone.
                None => Outcome::Ends,
            },
            _ = terminate.recv() => Outcome::Ends,
            _ = hangup.recv() => Outcome::Ends,
            _ = interrupt.recv() => Outcome::Ends,
        };
        if outcome == Outcome::Ends {
            return Ok(());
        }
    }
}

/// Asks the daemon until nobody listens.
async fn ask(client: Client, interval: Duration, readings: mpsc::Sender<Result<Reading, ClientError>>) {
    loop {
        let begun = Instant::now();
        tokio::select! {
            () = readings.closed() => return,
            () = tokio::time::sleep(interval) => {}
        }
        let reading = Reading::take(&client).await;
        // A daemon with much to tell is not kept busy by it.
        let took = begun.elapsed().saturating_sub(interval);
        if readings.send(reading).await.is_err() {
            return;
        }
        tokio::time::sleep((4 * took).saturating_sub(interval)).await;
    }
}

/// Reads keys until nobody listens or the terminal is gone; a blocking call, and so a thread of its own that ends with
/// the process.
fn read_keys(keys: &mpsc::UnboundedSender<io::Result<Event>>) {
    while let Ok(()) = keys.send(event::read()) {}
}

#[cfg(test)]
mod tests;
