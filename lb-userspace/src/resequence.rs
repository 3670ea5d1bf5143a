//! Fragments that came before the first one of their datagram: a bounded store of those that wait for it.

use lb_common::abi::FragmentKey;
use std::collections::{BTreeMap, btree_map::Entry};

/// How long a frame waits: paths of one network differ by less, and what waits longer was more likely lost.
pub const PATIENCE_NS: u64 = 200_000_000;
/// Frames that wait at once, of at most 2 KiB each.
pub const MOST_FRAMES: usize = 1_024;
/// After so long it is looked for the first fragment again, then after twice as long, and so on: a datagram costs at most
/// eight looks however long it waits.
const FIRST_GAP_NS: u64 = 2_000_000;

/// A frame as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// When, by the monotonic clock.
    pub seen_ns: u64,
    pub ifindex: u32,
    pub bytes: Vec<u8>,
}

/// What waits.
#[derive(Debug, Default)]
pub struct Waiting {
    datagrams: BTreeMap<FragmentKey, Datagram>,
    frames: usize,
}

#[derive(Debug)]
struct Datagram {
    /// In the order they came.
    frames: Vec<Frame>,
    until_ns: u64,
    look_ns: u64,
    gap_ns: u64,
}

impl Waiting {
    /// Lets a frame wait. Given back: there is no room, or its time is over already.
    pub fn add(&mut self, key: FragmentKey, frame: Frame, now_ns: u64) -> Result<(), Frame> {
        let until_ns = frame.seen_ns.saturating_add(PATIENCE_NS);
        if self.frames >= MOST_FRAMES || until_ns <= now_ns {
            return Err(frame);
        }
        self.frames += 1;
        match self.datagrams.entry(key) {
            Entry::Occupied(mut datagram) => datagram.get_mut().frames.push(frame),
            Entry::Vacant(place) => {
                let look_ns = now_ns.saturating_add(FIRST_GAP_NS).min(until_ns);
                place.insert(Datagram { frames: vec![frame], until_ns, look_ns, gap_ns: FIRST_GAP_NS });
            }
        }
        Ok(())
    }

    /// Takes out what need not wait any more: the first fragment came, as `has_come` says, or the time is over.
    pub fn due(
        &mut self,
        now_ns: u64,
        mut has_come: impl FnMut(&FragmentKey) -> bool,
    ) -> Vec<(FragmentKey, Frame)> {
        let mut due = Vec::new();
        self.datagrams.retain(|key, datagram| {
            if now_ns < datagram.look_ns {
                return true;
            }
            if now_ns >= datagram.until_ns || has_come(key) {
                due.extend(datagram.frames.drain(..).map(|frame| (*key, frame)));
                return false;
            }
            datagram.gap_ns *= 2;
            datagram.look_ns = now_ns.saturating_add(datagram.gap_ns).min(datagram.until_ns);
            true
        });
        self.frames -= due.len();
        due
    }

    /// When to look next; `None`: nothing waits.
    #[must_use]
    pub fn next_look(&self) -> Option<u64> {
        self.datagrams.values().map(|datagram| datagram.look_ns).min()
    }

    /// Frames that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames
    }

    /// Does nothing wait?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const MS: u64 = 1_000_000;

    fn key(id: u32) -> FragmentKey {
        FragmentKey { id, ..FragmentKey::default() }
    }

    fn frame(seen_ns: u64, number: u64) -> Frame {
        Frame { seen_ns, ifindex: 3, bytes: number.to_be_bytes().to_vec() }
    }

    #[test]
    fn a_datagram_goes_on_in_order_once_its_first_fragment_has_come() {
        let mut waiting = Waiting::default();
        for number in 0..3 {
            waiting.add(key(1), frame(0, number), 0).unwrap();
        }
        waiting.add(key(2), frame(0, 9), 0).unwrap();
        assert_eq!(waiting.due(MS, |_| panic!("asked too early")), []);
        assert_eq!(waiting.next_look(), Some(2 * MS));
        let due = waiting.due(2 * MS, |asked| *asked == key(1));
        assert_eq!(due, [0, 1, 2].map(|number| (key(1), frame(0, number))));
        assert_eq!((waiting.len(), waiting.next_look()), (1, Some(6 * MS)));
    }

    #[test]
    fn what_waits_in_vain_is_given_up_after_few_looks() {
        let mut waiting = Waiting::default();
        waiting.add(key(1), frame(0, 1), 5 * MS).unwrap();
        let mut looks = 0;
        let given_up = loop {
            let now = waiting.next_look().expect("it waits");
            let due = waiting.due(now, |_| {
                looks += 1;
                false
            });
            if !due.is_empty() {
                break now;
            }
        };
        assert_eq!(given_up, PATIENCE_NS);
        assert!((5..=8).contains(&looks), "{looks} looks");
        assert!(waiting.is_empty() && waiting.next_look().is_none());
        // Of a daemon that died: too old when it is read.
        assert!(waiting.add(key(1), frame(0, 1), PATIENCE_NS).is_err());
    }

    proptest! {
        /// Nothing is lost or doubled, nothing waits longer than it should, and the room is bounded.
        #[test]
        fn every_frame_comes_out_once_and_in_time(
            steps in proptest::collection::vec((0..12u32, 0..3_000_000u64, any::<bool>()), 1..3_000),
        ) {
            let mut waiting = Waiting::default();
            let (mut now, mut inside) = (1, BTreeSet::new());
            let mut known = BTreeSet::new();
            let out = |due: Vec<(FragmentKey, Frame)>, inside: &mut BTreeSet<(u64, Vec<u8>)>| {
                for (_, frame) in due {
                    prop_assert!(inside.remove(&(frame.seen_ns, frame.bytes)), "a frame that was not inside");
                }
                Ok(())
            };
            for (number, (id, step, first)) in steps.into_iter().enumerate() {
                if first && id % 3 == 0 {
                    known.insert(key(id));
                }
                let frame = frame(now, number as u64);
                if waiting.add(key(id), frame.clone(), now).is_ok() {
                    inside.insert((frame.seen_ns, frame.bytes));
                } else {
                    prop_assert_eq!(waiting.len(), MOST_FRAMES);
                }
                now += step / 8;
                out(waiting.due(now, |key| known.contains(key)), &mut inside)?;
                prop_assert_eq!(waiting.len(), inside.len());
                prop_assert!(waiting.len() <= MOST_FRAMES);
                prop_assert!(inside.iter().all(|(seen, _)| now < seen + PATIENCE_NS));
            }
            out(waiting.due(now + PATIENCE_NS, |_| false), &mut inside)?;
            prop_assert!(inside.is_empty() && waiting.is_empty());
        }
    }
}
