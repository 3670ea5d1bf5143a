//! What happened to services and backends, told to whoever in this process wants to know.

use serde::Serialize;
use std::{
    collections::VecDeque,
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
    /// The health of a backend, or whether it is there at all.
    Backend,
    /// What the operator wants of a backend: enabled, draining, disabled.
    Admin,
    /// The weight of a backend.
    Weight,
    /// A virtual router of the pair; its name is where the service's is.
    Pair,
    /// The configuration file was read again; names no service.
    Reload,
    /// The fleet's document, or who has the word; names no service.
    Fleet,
    /// A runtime change, whatever it changed; from one revision to the next. Names no service.
    Change,
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
    /// Held while sending, so that numbers arrive in order.
    log: Mutex<Log>,
    /// When this bus began, in milliseconds since the Unix epoch: numbers of another one mean other events.
    epoch: u64,
}

#[derive(Debug, Default)]
struct Log {
    /// The last number given.
    last: u64,
    /// The latest events, [`LAG`] at most.
    recent: VecDeque<Arc<Event>>,
}

/// What happened after some event, without a gap or twice.
#[derive(Debug)]
pub struct Resumed {
    /// False if some events after that one are no longer known.
    pub whole: bool,
    /// Number of the last event so far.
    pub last: u64,
    /// Those that have happened.
    pub events: Vec<Arc<Event>>,
    /// Those to come.
    pub receiver: broadcast::Receiver<Arc<Event>>,
}

/// Milliseconds since 1970 (UTC).
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Default for Bus {
    fn default() -> Self {
        let (sender, _) = broadcast::channel(LAG);
        Self(Arc::new(Inner { sender, log: Mutex::default(), epoch: unix_ms() }))
    }
}

impl Bus {
    /// Numbers the event and tells every subscriber; never waits.
    pub fn publish(&self, news: News) -> Arc<Event> {
        let mut log = self.0.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.last += 1;
        let event = Arc::new(Event {
            seq: log.last,
            time_ms: unix_ms(),
            kind: news.kind,
            service: news.service,
            backend: news.backend,
            from: news.from,
            to: news.to,
            reason: news.reason,
        });
        if log.recent.len() == LAG {
            log.recent.pop_front();
        }
        log.recent.push_back(event.clone());
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
        self.0.log.lock().unwrap_or_else(PoisonError::into_inner).last
    }

    /// When this bus began, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.0.epoch
    }

    /// Everything after the event of that number.
    #[must_use]
    pub fn resume(&self, seq: u64) -> Resumed {
        let log = self.0.log.lock().unwrap_or_else(PoisonError::into_inner);
        let receiver = self.0.sender.subscribe();
        let events: Vec<_> = log.recent.iter().filter(|event| event.seq > seq).cloned().collect();
        let whole = log.last.checked_sub(seq) == Some(events.len() as u64);
        Resumed { whole, last: log.last, events, receiver }
    }
}

impl Kind {
    /// In capital letters, as hooks are told.
    #[must_use]
    pub fn capitals(self) -> &'static str {
        match self {
            Self::Service => "SERVICE",
            Self::Backend => "BACKEND",
            Self::Admin => "ADMIN",
            Self::Weight => "WEIGHT",
            Self::Pair => "PAIR",
            Self::Reload => "RELOAD",
            Self::Fleet => "FLEET",
            Self::Change => "CHANGE",
        }
    }
}

impl fmt::Display for Event {
    /// `service web: up -> down (no quorum)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, &self.backend) {
            (Kind::Pair, _) => write!(f, "instance {}", self.service)?,
            (Kind::Reload, _) => write!(f, "configuration")?,
            (Kind::Fleet, _) => write!(f, "fleet")?,
            (Kind::Change, _) => write!(f, "revision")?,
            (Kind::Admin, Some(backend)) => write!(f, "state of backend {backend} of {}", self.service)?,
            (Kind::Weight, Some(backend)) => write!(f, "weight of backend {backend} of {}", self.service)?,
            (_, Some(backend)) => write!(f, "backend {backend} of {}", self.service)?,
            (_, None) => write!(f, "service {}", self.service)?,
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
    fn who_comes_back_misses_nothing_or_is_told() {
        let bus = Bus::default();
        for _ in 0..10 {
            bus.publish(news("down"));
        }
        let seqs = |resumed: &Resumed| resumed.events.iter().map(|e| e.seq).collect::<Vec<_>>();
        let mut resumed = bus.resume(7);
        assert_eq!((resumed.whole, seqs(&resumed)), (true, vec![8, 9, 10]));
        bus.publish(news("up"));
        assert_eq!(resumed.receiver.try_recv().unwrap().seq, 11);
        let resumed = bus.resume(11);
        assert_eq!((resumed.whole, seqs(&resumed)), (true, Vec::new()));
        assert!(!bus.resume(12).whole, "of the future");
        for _ in 0..LAG {
            bus.publish(news("down"));
        }
        assert!(!bus.resume(10).whole, "too old");
        assert!(bus.resume(11).whole);
        assert_eq!(bus.resume(0).events.len(), LAG);
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
