//! What happened to services and backends, told to whoever in this process wants to know.

use serde::Serialize;
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::sync::broadcast;

/// Events a subscriber may lag behind before it misses some ([`broadcast::error::RecvError::Lagged`]).
pub const LAG: usize = 1024;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The state of a service as a whole.
    Service,
    /// The health of a backend.
    Backend,
}

/// A change of state that has been carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Counts from 1 since the daemon's start, without gaps.
    pub seq: u64,
    /// Milliseconds since the Unix epoch.
    pub time_ms: u64,
    pub kind: Kind,
    /// Name of the service.
    pub service: String,
    /// Name of the backend; none where the event is the service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The state before, as the command line shows it.
    pub from: String,
    pub to: String,
    /// For people: why.
    pub reason: String,
}

/// An event before it has a number and a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    pub kind: Kind,
    pub service: String,
    pub backend: Option<String>,
    pub from: String,
    pub to: String,
    pub reason: String,
}

/// Where events are published; clones are the same bus.
#[derive(Debug, Clone)]
pub struct Bus(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sender: broadcast::Sender<Arc<Event>>,
    /// The last number given; held while sending, so that numbers arrive in order.
    last: Mutex<u64>,
}

impl Default for Bus {
    fn default() -> Self {
        let (sender, _) = broadcast::channel(LAG);
        Self(Arc::new(Inner { sender, last: Mutex::new(0) }))
    }
}

impl Bus {
    /// Numbers the event and tells every subscriber; never waits.
    pub fn publish(&self, news: News) -> Arc<Event> {
        let mut last = self.0.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last += 1;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let event = Arc::new(Event {
            seq: *last,
            time_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            kind: news.kind,
            service: news.service,
            backend: news.backend,
            from: news.from,
            to: news.to,
            reason: news.reason,
        });
        // An error says that nobody listens.
        let _ = self.0.sender.send(event.clone());
        event
    }

    /// Everything published from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.0.sender.subscribe()
    }

    /// Number of the last event; 0 = none yet.
    #[must_use]
    pub fn last(&self) -> u64 {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kind {
    /// In capital letters, as hooks are told.
    #[must_use]
    pub fn capitals(self) -> &'static str {
        match self {
            Self::Service => "SERVICE",
            Self::Backend => "BACKEND",
        }
    }
}

impl fmt::Display for Event {
    /// `service web: up -> down (no quorum)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.backend {
            Some(backend) => write!(f, "backend {backend} of {}", self.service)?,
            None => write!(f, "service {}", self.service)?,
        }
        write!(f, ": {} -> {}", self.from, self.to)?;
        if self.reason.is_empty() { Ok(()) } else { write!(f, " ({})", self.reason) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(to: &str) -> News {
        News {
            kind: Kind::Backend,
            service: "web".into(),
            backend: Some("a".into()),
            from: "up".into(),
            to: to.into(),
            reason: "refused".into(),
        }
    }

    #[test]
    fn numbered_in_order_and_told_to_all() {
        let bus = Bus::default();
        bus.publish(news("nobody hears"));
        let (mut one, mut two) = (bus.subscribe(), bus.clone().subscribe());
        for _ in 0..3 {
            bus.publish(news("down"));
        }
        for receiver in [&mut one, &mut two] {
            let seqs: Vec<u64> = std::iter::from_fn(|| receiver.try_recv().ok()).map(|e| e.seq).collect();
            assert_eq!(seqs, [2, 3, 4]);
        }
        assert_eq!(bus.last(), 4);
    }

    #[test]
    fn who_lags_is_told_so_and_nobody_waits() {
        let bus = Bus::default();
        let mut slow = bus.subscribe();
        for _ in 0..LAG + 10 {
            bus.publish(news("down"));
        }
        assert!(matches!(slow.try_recv(), Err(broadcast::error::TryRecvError::Lagged(10))));
        assert_eq!(slow.try_recv().unwrap().seq, 11);
    }

    #[test]
    fn as_text_and_json() {
        let event = Bus::default().publish(news("down"));
        assert_eq!(event.to_string(), "backend a of web: up -> down (refused)");
        let json = serde_json::to_value(&*event).unwrap();
        assert_eq!(
            (&json["kind"], &json["service"], &json["seq"]),
            (&"backend".into(), &"web".into(), &1.into())
        );
    }
}
