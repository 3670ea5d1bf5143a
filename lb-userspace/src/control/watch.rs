//! `GET /v1/watch`: what happens, as server-sent events (the WHATWG's HTML standard, section 9.2).
//!
//! An event's id is the time this daemon began and the event's number. Whoever comes back with the last id it has seen
//! (`Last-Event-ID`) misses nothing, or is told that it did by `reset`. Nobody waits for a slow reader: it is told how
//! much it missed, and the watch ends. One that reads nothing at all cannot be told: its connection is closed.

use super::{
    client::{Client, ClientError},
    command::{Command, CommandError},
    extract::Failure,
    openapi::{LastEventId, about, lines},
    server::State,
};
use crate::events::{Bus, Event, Kind};
use aide::{
    axum::{ApiRouter, routing::get_with},
    transform::TransformOperation,
};
use axum::{Extension, body::Body as AnyBody, extract::State as Shared, response::Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::body::{Body, Frame};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Future as _,
    ops::ControlFlow,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot, watch},
    time::{Interval, interval, sleep, timeout},
};

pub(super) const PATH: &str = "/v1/watch";
/// Watchers at once.
const WATCHERS: usize = 64;
/// A comment goes out this often: writing it finds out who has gone, and keeps what lies between from closing.
const BEAT: Duration = Duration::from_secs(5);
/// So long an event waits for a reader that does not read; its connection then waits as long for the last word to be read.
const PATIENCE: Duration = Duration::from_secs(15);

/// Closes the connection of a request, whatever is still to be written to it.
#[derive(Debug, Clone, Default)]
pub(super) struct HangUp(pub(super) Arc<Notify>);

/// One event of a watch.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct WatchView {
    /// To come back with, as `Last-Event-ID`.
    pub id: String,
    /// `hello` (the watch begins), `reset` (events before this one are lost: look at everything anew), `dropped` (the
    /// reader was too slow, and the watch ends), or what happened: `backend` (its health, or whether it is there),
    /// `admin`, `weight`, `service`, `pair`, `reload`, `change` (any runtime change, from revision to revision).
    pub event: String,
    /// Milliseconds since 1970 (UTC).
    pub time_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Virtual router of the pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The state before and after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Service => "service",
        Kind::Backend => "backend",
        Kind::Admin => "admin",
        Kind::Weight => "weight",
        Kind::Pair => "pair",
        Kind::Reload => "reload",
        Kind::Fleet => "fleet",
        Kind::Change => "change",
    }
}

/// Lets watchers in, so many at once.
#[derive(Debug)]
pub struct Watchers {
    bus: Bus,
    room: Arc<Semaphore>,
    end: watch::Sender<bool>,
}

impl Watchers {
    /// Watchers of that bus.
    pub fn new(bus: Bus) -> Self {
        Self { bus, room: Arc::new(Semaphore::new(WATCHERS)), end: watch::Sender::new(false) }
    }

    /// The daemon ends: no watch shall keep it.
    pub fn end(&self) {
        self.end.send_replace(true);
    }

    /// One more watcher, which has seen the event of that id.
    pub fn admit(&self, after: Option<&str>) -> Result<Watcher, CommandError> {
        let permit = Arc::clone(&self.room).try_acquire_owned().map_err(|_| {
            CommandError::Busy(format!(
                "{WATCHERS} watches are under way, and no more are served: end some, or ask later"
            ))
        })?;
        let epoch = self.bus.epoch();
        let seen = after.map(|id| {
            let seen =
                id.split_once('-').and_then(|(began, seq)| Some((began.parse().ok()?, seq.parse().ok()?)));
            seen.filter(|(began, _): &(u64, u64)| *began == epoch).map(|(_, seq)| seq)
        });
        let resumed = self.bus.resume(seen.flatten().unwrap_or(self.bus.last()));
        let (event, reason) = match seen {
            None => ("hello", String::new()),
            Some(Some(_)) if resumed.whole => {
                ("hello", format!("{} events since then", resumed.events.len()))
            }
            Some(_) => {
                ("reset", "the events since then are no longer known: look at everything anew".to_owned())
            }
        };
        let last = resumed.last;
        // A part of what happened would look like the whole.
        let events = if event == "reset" { Vec::new() } else { resumed.events };
        let first = events.first().map_or(last, |event| event.seq - 1);
        let first = WatchView {
            id: format!("{epoch}-{first}"),
            event: event.to_owned(),
            reason,
            ..WatchView::default()
        };
        let lines = [first].into_iter().chain(events.iter().map(|event| view(epoch, event)));
        Ok(Watcher {
            waiting: lines.collect(),
            receiver: resumed.receiver,
            epoch,
            last,
            end: self.end.subscribe(),
            _permit: permit,
        })
    }
}

fn view(epoch: u64, event: &Event) -> WatchView {
    let name_of = |name: &String| (!name.is_empty()).then(|| name.clone());
    let (service, instance) = match event.kind {
        Kind::Pair => (None, name_of(&event.service)),
        _ => (name_of(&event.service), None),
    };
    WatchView {
        id: format!("{epoch}-{}", event.seq),
        event: name(event.kind).to_owned(),
        time_ms: event.time_ms,
        service,
        backend: event.backend.clone(),
        instance,
        from: Some(event.from.clone()),
        to: Some(event.to.clone()),
        reason: event.reason.clone(),
    }
}

/// What one watcher is to be told.
#[derive(Debug)]
pub struct Watcher {
    waiting: VecDeque<WatchView>,
    receiver: broadcast::Receiver<Arc<Event>>,
    epoch: u64,
    /// Number of the last event told.
    last: u64,
    end: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
}

impl Watcher {
    /// The next event; `None`: the watch ends. Cancelled, none is lost.
    async fn next(&mut self) -> Option<WatchView> {
        if let Some(waiting) = self.waiting.pop_front() {
            return Some(waiting);
        }
        let received = tokio::select! {
            _ = self.end.wait_for(|end| *end) => return None,
            received = self.receiver.recv() => received,
        };
        match received {
            Ok(event) => {
                self.last = event.seq;
                Some(view(self.epoch, &event))
            }
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(self.dropped(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }

    fn dropped(&self, missed: u64) -> WatchView {
        WatchView {
            id: format!("{}-{}", self.epoch, self.last),
            event: "dropped".to_owned(),
            reason: format!("{missed} events were not read in time: come back with this id, and read faster"),
            ..WatchView::default()
        }
    }

    /// The last word to a reader that did not take `unread`.
    fn abandon(mut self, unread: &WatchView) -> WatchView {
        let number = |view: &WatchView| view.id.split_once('-').and_then(|(_, number)| number.parse().ok());
        // The first word tells nothing that happened, and its number is that of the event before.
        let told = u64::from(unread.event != "hello" && unread.event != "reset");
        self.last = number(unread).unwrap_or(self.last).saturating_sub(told);
        let missed = told + self.waiting.len() as u64 + self.receiver.len() as u64;
        self.dropped(missed)
    }
}

/// The body of the answer: a task takes the events, the connection takes them from it one by one.
struct Events {
    lines: mpsc::Receiver<WatchView>,
    /// What is said when no line is left, to a reader that was too slow.
    last: Option<oneshot::Receiver<WatchView>>,
    over: bool,
    beat: Interval,
    begun: bool,
}

impl Events {
    fn new(mut watcher: Watcher, patience: Duration, hang_up: HangUp) -> Self {
        let (sender, lines) = mpsc::channel(1);
        let (last_word, last) = oneshot::channel();
        tokio::spawn(async move {
            loop {
                let view = tokio::select! {
                    () = sender.closed() => break,
                    view = watcher.next() => view,
                };
                let Some(view) = view else { break };
                let dropped = view.event == "dropped";
                match timeout(patience, sender.reserve()).await {
                    Ok(Ok(room)) => room.send(view),
                    Ok(Err(_)) => break,
                    Err(_) => {
                        // Its place is another's from now on.
                        let _ = last_word.send(watcher.abandon(&view));
                        tokio::select! {
                            () = sender.closed() => {}
                            () = sleep(patience) => hang_up.0.notify_one(),
                        }
                        return;
                    }
                }
                if dropped {
                    break;
                }
            }
        });
        Self { lines, last: Some(last), over: false, beat: interval(BEAT), begun: false }
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let view = match self.lines.poll_recv(cx) {
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(view)) => view,
            Poll::Pending => match self.last.as_mut().map(|last| Pin::new(last).poll(cx)) {
                Some(Poll::Ready(Ok(view))) => {
                    self.over = true;
                    view
                }
                // There is no last word, and the end of the lines is about to be told.
                waits => {
                    self.last = self.last.take().filter(|_| matches!(waits, Some(Poll::Pending)));
                    ready!(self.beat.poll_tick(cx));
                    return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b":\n\n")))));
                }
            },
        };
        // Texts and numbers, on one line: they can always be written.
        let data = serde_json::to_string(&view).unwrap_or_default();
        // How soon a browser comes back, in milliseconds.
        let retry = if self.begun { "" } else { "retry: 1000\n" };
        self.begun = true;
        let text = format!("{retry}id: {}\nevent: {}\ndata: {data}\n\n", view.id, view.event);
        Poll::Ready(Some(Ok(Frame::data(text.into()))))
    }
}

fn describe(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    let operation = about("What happens, as server-sent events; Last-Event-ID resumes")(operation);
    lines::<WatchView>(operation.input::<LastEventId>(), "text/event-stream")
}

pub(super) fn routes() -> ApiRouter<State> {
    ApiRouter::new().api_route(PATH, get_with(watching, describe))
}

pub(super) async fn watching(
    Shared(state): Shared<State>,
    Extension(hang_up): Extension<HangUp>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let after = match headers.get("last-event-id").map(HeaderValue::to_str) {
        None => None,
        Some(Ok(id)) => Some(id.to_owned()),
        Some(Err(_)) => {
            let error = "Last-Event-ID is no text; expected the id of an event, e.g. 1790000000000-17";
            return Err(Failure::request(StatusCode::BAD_REQUEST, error));
        }
    };
    let axum::Json(watcher) = state.ask(|reply| Command::Watch { after, reply }).await?;
    let mut response = Response::new(AnyBody::new(Events::new(watcher, PATIENCE, hang_up)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

impl Client {
    /// Gives every event to `take` until that has enough or the watch ends; `after` is the id of the last one seen.
    pub async fn watch(
        &self,
        after: Option<&str>,
        mut take: impl FnMut(WatchView) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        self.lines(PATH, after, |line| {
            let Some(data) = line.strip_prefix(b"data: ") else { return Ok(ControlFlow::Continue(())) };
            Ok(take(serde_json::from_slice(data)?))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::News;
    use http_body_util::BodyExt as _;

    fn publish(bus: &Bus, count: u64) {
        for number in 0..count {
            let (service, from, to) = ("www".to_owned(), number.to_string(), (number + 1).to_string());
            let reason = String::new();
            bus.publish(News { kind: Kind::Weight, service, backend: None, from, to, reason });
        }
    }

    /// What is left to read.
    async fn read(events: &mut Events) -> Vec<WatchView> {
        let mut views = Vec::new();
        while let Some(Ok(frame)) = events.frame().await {
            let text = String::from_utf8(frame.into_data().expect("data").to_vec()).expect("text");
            let data = text.lines().find_map(|line| line.strip_prefix("data: "));
            views.extend(data.map(|data| serde_json::from_str::<WatchView>(data).expect("JSON")));
        }
        views
    }

    #[tokio::test]
    async fn who_does_not_read_is_told_how_much_it_missed_and_gives_its_place_back() {
        let bus = Bus::default();
        let watchers = Watchers::new(bus.clone());
        publish(&bus, 7);
        let mut events =
            Events::new(watchers.admit(None).unwrap(), Duration::from_millis(20), HangUp::default());
        publish(&bus, 5);
        while watchers.room.available_permits() < WATCHERS {
            sleep(Duration::from_millis(5)).await;
        }
        // It wakes up within the time that is left.
        let views = read(&mut events).await;
        let names: Vec<&str> = views.iter().map(|view| view.event.as_str()).collect();
        assert_eq!(names, ["hello", "dropped"], "{views:?}");
        assert!(views[1].reason.starts_with("5 events were not read"), "{views:?}");
        // With that id nothing is lost.
        let watcher = watchers.admit(Some(&views[1].id)).unwrap();
        assert_eq!(watcher.waiting.len(), 6, "{:?}", watcher.waiting);
        assert_eq!(watcher.waiting[0].event, "hello");
    }

    #[tokio::test]
    async fn who_never_reads_is_cut_off_and_who_reads_is_not() {
        let bus = Bus::default();
        let watchers = Watchers::new(bus.clone());
        let (asleep, awake) = (HangUp::default(), HangUp::default());
        let patience = Duration::from_millis(50);
        let _kept = Events::new(watchers.admit(None).unwrap(), patience, asleep.clone());
        let mut reader = Events::new(watchers.admit(None).unwrap(), patience, awake.clone());
        publish(&bus, 3);
        let reads = tokio::spawn(async move { read(&mut reader).await });
        timeout(Duration::from_secs(60), asleep.0.notified()).await.expect("it is cut off");
        watchers.end();
        assert_eq!(reads.await.unwrap().len(), 4);
        assert!(timeout(4 * patience, awake.0.notified()).await.is_err());
    }
}
