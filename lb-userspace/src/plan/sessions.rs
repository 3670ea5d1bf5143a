//! Which NAT sessions are over. Pure.
//!
//! A session stands in two tables: `SESSIONS_OUT` by the flow as the client sends it, `SESSIONS_BACK` by the flow as the
//! backend answers it. Each side keeps the time of its own last packet; the session lives while one of them does.

use super::{CLOSING_LIFE, HALF_OPEN_LIFE, Image, MARGIN};
use lb_common::abi::{BackendEntry, FlowEntry, FlowKey6, SessionBack, SessionOut};
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

/// One half without the other is a session that is being made, or what an interrupted removal left: it is over once it is
/// older than any packet's way through the program.
pub const ORPHAN_LIFE: Duration = Duration::from_secs(6);

/// A session to remove: the halves that were there, with the entries they had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    pub out: Option<(FlowKey6, FlowEntry)>,
    pub back: Option<(FlowKey6, FlowEntry)>,
}

/// Sessions by service id, and of those the ones that were never answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionCounts {
    pub living: u64,
    pub unanswered: u64,
}

/// What a walk through both tables found.
#[derive(Debug, Default)]
pub struct Sweep {
    pub over: Vec<Pair>,
    pub living: BTreeMap<u32, SessionCounts>,
    /// By backend: those that live.
    pub on: BTreeMap<u32, u64>,
}

/// Judges every session, read before `clock_ns` of the monotonic clock.
#[must_use]
pub fn sweep(
    image: &Image,
    out: Vec<(FlowKey6, SessionOut)>,
    back: Vec<(FlowKey6, SessionBack)>,
    clock_ns: u64,
) -> Sweep {
    let mut sweep = Sweep::default();
    let mut out: HashMap<FlowKey6, SessionOut> = out.into_iter().collect();
    let idle = |entry: FlowEntry| Duration::from_nanos(entry.idle_ns(clock_ns));
    for (back_key, session) in back {
        let back = (back_key, FlowEntry(session.entry));
        let out_key = client_side(&back_key, &session);
        // The client's half names this one by its source and backend; another's is another session.
        let half = out.get(&out_key).filter(|half| {
            half.source == back_key.dst
                && half.port == back_key.ports[2..]
                && FlowEntry(half.entry).backend() == back.1.backend()
        });
        let Some(half) = half else {
            if idle(back.1) > ORPHAN_LIFE && !image.followed.contains_key(&session.service) {
                sweep.over.push(Pair { out: None, back: Some(back) });
            }
            continue;
        };
        let front = (out_key, FlowEntry(half.entry));
        out.remove(&out_key);
        let closing = front.1.is_closing() || back.1.is_closing();
        let unanswered = back.1.is_half_open();
        let longest =
            image.services.get(&session.service).map(|s| Duration::from_nanos(s.entry.idle_ns) + MARGIN);
        let limit = longest.map(|longest| match (unanswered, closing) {
            (true, _) => longest.min(HALF_OPEN_LIFE),
            (false, true) => longest.min(CLOSING_LIFE),
            (false, false) => longest,
        });
        let alive = is_alive(image, front.1, session.service);
        let lives = limit.is_some_and(|limit| idle(front.1).min(idle(back.1)) <= limit);
        // Another node says which sessions of such a service there are.
        if alive && (lives || image.followed.contains_key(&session.service)) {
            let counts = sweep.living.entry(session.service).or_default();
            counts.living += 1;
            *sweep.on.entry(front.1.backend()).or_default() += 1;
            counts.unanswered += u64::from(unanswered);
        } else {
            sweep.over.push(Pair { out: Some(front), back: Some(back) });
        }
    }
    for (key, half) in out {
        let entry = FlowEntry(half.entry);
        let service = image.backends.get(&entry.backend()).map(|record| record.entry.service);
        let is_followed = service.is_some_and(|service| image.followed.contains_key(&service));
        if idle(entry) > ORPHAN_LIFE && !is_followed {
            sweep.over.push(Pair { out: Some((key, entry)), back: None });
        }
    }
    sweep
}

/// The key of the client's half.
fn client_side(back: &FlowKey6, session: &SessionBack) -> FlowKey6 {
    let [[a, b], [c, d]] = [session.client_port, session.vip_port];
    FlowKey6 { src: session.client, dst: session.vip, ports: [a, b, c, d], proto: back.proto }
}

fn is_alive(image: &Image, entry: FlowEntry, service: u32) -> bool {
    image.backends.get(&entry.backend()).is_some_and(|record| {
        record.entry.service == service
            && record.entry.flags & BackendEntry::DEAD == 0
            && record.entry.incarnation as u8 == entry.incarnation()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{BackendRecord, ServiceRecord, mapped};
    use lb_common::abi::{Identity, ServiceEntry};

    const SECOND: u64 = 1_000_000_000;
    const NOW: u64 = 10_000 * SECOND;

    fn image() -> Image {
        let mut image = Image::empty(16, 16);
        let entry = ServiceEntry { idle_ns: 300 * SECOND, ring_size: 3, ..ServiceEntry::default() };
        image.services.insert(1, ServiceRecord { entry, identity: Identity::default() });
        for (id, flags) in [(5, 0), (6, BackendEntry::DEAD)] {
            let entry =
                BackendEntry { service: 1, kind: 5, flags, incarnation: 2, ..BackendEntry::default() };
            image.backends.insert(id, BackendRecord { entry, identity: Identity::default() });
        }
        image
    }

    fn address(last: u8) -> [u8; 16] {
        mapped([10, 0, 0, last].into())
    }

    fn entry(backend: u32, age: u64, half_open: bool, closing: bool) -> u64 {
        let at = NOW - age * SECOND;
        let entry = FlowEntry::new(backend, 2, 0, at, half_open);
        if closing { entry.touched(at, true).0 } else { entry.0 }
    }

    type Halves = (Vec<(FlowKey6, SessionOut)>, Vec<(FlowKey6, SessionBack)>);

    /// Client 1:1000 to VIP 9:80 over source 8:2000 to backend 5.
    fn session(out: u64, back: u64) -> Halves {
        let out_key = FlowKey6 { src: address(1), dst: address(9), ports: [3, 232, 0, 80], proto: 6 };
        let back_key = FlowKey6 { src: address(5), dst: address(8), ports: [0, 80, 7, 208], proto: 6 };
        let half = SessionOut { entry: out, source: address(8), port: [7, 208], ..SessionOut::default() };
        let reply = SessionBack {
            entry: back,
            client: address(1),
            vip: address(9),
            client_port: [3, 232],
            vip_port: [0, 80],
            service: 1,
        };
        (vec![(out_key, half)], vec![(back_key, reply)])
    }

    /// Age and state of either half, and whether the session goes on.
    #[test]
    fn the_lives_of_sessions() {
        let rows = [
            ("busy", entry(5, 0, false, false), entry(5, 0, false, false), true),
            (
                "the client is silent, the backend is not",
                entry(5, 4000, false, false),
                entry(5, 100, false, false),
                true,
            ),
            (
                "the backend is silent, the client is not",
                entry(5, 100, false, false),
                entry(5, 4000, false, false),
                true,
            ),
            ("both are", entry(5, 400, false, false), entry(5, 400, false, false), false),
            ("never answered, young", entry(5, 20, true, false), entry(5, 20, true, false), true),
            ("never answered", entry(5, 40, true, false), entry(5, 40, true, false), false),
            ("closing, young", entry(5, 50, false, true), entry(5, 50, false, false), true),
            ("closing", entry(5, 70, false, true), entry(5, 70, false, false), false),
            ("closing by the backend", entry(5, 70, false, false), entry(5, 70, false, true), false),
            ("of a dead backend", entry(6, 0, false, false), entry(6, 0, false, false), false),
            ("of nobody", entry(7, 0, false, false), entry(7, 0, false, false), false),
        ];
        for (name, front, reply, lives) in rows {
            let (out, back) = session(front, reply);
            let pair =
                Pair { out: Some((out[0].0, FlowEntry(front))), back: Some((back[0].0, FlowEntry(reply))) };
            let found = sweep(&image(), out, back, NOW);
            assert_eq!(found.over, if lives { vec![] } else { vec![pair] }, "{name}");
            assert_eq!(found.living.get(&1).map_or(0, |c| c.living), u64::from(lives), "{name}");
        }
    }

    #[test]
    fn half_a_session_is_given_a_moment() {
        for (age, lives) in [(0, true), (4, true), (12, false)] {
            let (out, back) = session(entry(5, age, true, false), entry(5, age, true, false));
            let alone = sweep(&image(), out.clone(), Vec::new(), NOW);
            assert_eq!(alone.over.is_empty(), lives, "out, {age} s");
            let alone = sweep(&image(), Vec::new(), back.clone(), NOW);
            assert_eq!(alone.over.is_empty(), lives, "back, {age} s");
            // Two that name each other no more.
            let mut other = out;
            other[0].1.port = [9, 9];
            assert_eq!(sweep(&image(), other, back, NOW).over.len(), if lives { 0 } else { 2 }, "{age} s");
        }
    }
}
