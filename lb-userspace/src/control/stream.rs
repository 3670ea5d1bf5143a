//! `trace` over the control socket: a line of JSON for each record, until the client hangs up or the daemon ends.

use super::observe::TraceLine;
use bytes::Bytes;
use hyper::body::{Body, Frame};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Interval, interval};

/// An empty line goes out this often: writing it finds out who has gone.
const BEAT: Duration = Duration::from_millis(500);

/// The body of the answer.
pub(super) struct Lines {
    lines: mpsc::Receiver<TraceLine>,
    beat: Interval,
}

impl Lines {
    pub(super) fn new(lines: mpsc::Receiver<TraceLine>) -> Self {
        Self { lines, beat: interval(BEAT) }
    }
}

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let text = match self.lines.poll_recv(cx) {
            Poll::Ready(None) => return Poll::Ready(None),
            // Texts and numbers: they can always be written.
            Poll::Ready(Some(line)) => serde_json::to_string(&line).unwrap_or_default() + "\n",
            Poll::Pending => {
                std::task::ready!(self.beat.poll_tick(cx));
                "\n".to_owned()
            }
        };
        Poll::Ready(Some(Ok(Frame::data(text.into()))))
    }
}
