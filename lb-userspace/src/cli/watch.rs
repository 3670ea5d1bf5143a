//! `watch`: a line for each event.

use super::{
    Failure,
    args::{Cli, Output},
    client,
    table::printable,
    wait,
};
use crate::control::watch::WatchView;
use std::{io::Write, ops::ControlFlow};

pub(super) const WATCH_EXAMPLES: &str = "\
Examples:
  lbctl watch                          until Ctrl-C
  lbctl watch --count 1                waits for one event
  lbctl watch -o json | jq 'select(.event == \"backend\" and .to == \"down\")'
  lbctl watch --since 1790000000000-17     everything after that event, of an earlier watch

An id is good as long as the daemon runs and no more than 1,024 events have happened since; else the
first line says reset. A reader that is too slow is told so, and the watch ends.";

/// What `watch` shows.
#[derive(Debug, clap::Args)]
pub struct WatchOptions {
    /// Also what happened after the event of this id
    #[arg(long, value_name = "ID")]
    pub since: Option<String>,
    /// Ends after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

/// Prints every event as it comes.
pub(super) fn run(cli: &Cli, options: &WatchOptions, out: &mut dyn Write) -> Result<(), Failure> {
    let (mut left, mut trouble) = (options.count.unwrap_or(u64::MAX), None);
    let client = client(cli)?;
    wait(client.watch(options.since.as_deref(), |view| {
        let text = match cli.output {
            Output::Table => Ok(line(&view)),
            Output::Json => serde_json::to_string(&view).map(|text| text + "\n"),
        };
        // How it begins is no event.
        if view.event != "hello" {
            left -= 1;
        }
        match text.map(|text| out.write_all(text.as_bytes()).and_then(|()| out.flush())) {
            Ok(Ok(())) if left > 0 => ControlFlow::Continue(()),
            // The reader has seen enough.
            Ok(_) => ControlFlow::Break(()),
            Err(error) => {
                trouble = Some(Failure::from(error));
                ControlFlow::Break(())
            }
        }
    }))?;
    trouble.map_or(Ok(()), Err)
}

/// "1790000000000-17  backend  web1 of www: up -> down  (connection refused)"
fn line(view: &WatchView) -> String {
    let what = match (&view.service, &view.backend, &view.instance) {
        (Some(service), Some(backend), _) => format!("{backend} of {service}"),
        (Some(name), None, _) | (None, _, Some(name)) => name.clone(),
        (None, _, None) => String::new(),
    };
    let states = match (&view.from, &view.to) {
        (Some(from), Some(to)) if from != to => format!("{from} -> {to}"),
        _ => String::new(),
    };
    let why = if view.reason.is_empty() { String::new() } else { format!("({})", view.reason) };
    let parts = [what, states, why].into_iter().filter(|part| !part.is_empty());
    let text = parts.fold(format!("{}  {:8}", view.id, view.event), |text, part| text + "  " + &part);
    printable(text.trim_end()) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_each() {
        let text = |text: &str| Some(text.to_owned());
        let view = WatchView {
            id: "5-17".to_owned(),
            event: "backend".to_owned(),
            service: text("www"),
            backend: text("web1"),
            from: text("up"),
            to: text("down"),
            reason: "refused\u{1b}".to_owned(),
            ..WatchView::default()
        };
        assert_eq!(line(&view), "5-17  backend   web1 of www  up -> down  (refused?)\n");
        let hello = WatchView { id: "5-0".to_owned(), event: "hello".to_owned(), ..WatchView::default() };
        assert_eq!(line(&hello), "5-0  hello\n");
    }
}
