//! Neighbours: what the kernel knows of them, and when to have it ask again.
//!
//! Packets that XDP forwards are unknown to the kernel's neighbour cache: an entry that only they use
//! goes stale, is never probed, and may be collected. So whoever wants a neighbour has the kernel probe
//! it, exactly as if the kernel had a packet for it (`NTF_USE`, which every supported kernel has; the
//! newer `NTF_EXT_MANAGED` would leave entries behind that outlive the daemon).
//!
//! Entries that have another owner are never touched: permanent ones, and those that a routing daemon
//! or the operator marked as externally learned or managed, marks that a probe request would clear.

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

/// A stale neighbour is probed at this interval until it has answered. The kernel itself waits 5 s
/// before the first probe.
const REFRESH: Duration = Duration::from_secs(5);
/// The MAC address of a neighbour whose entry vanished stays in use for so long while it is asked again.
/// Kernels give up after 3 s by default.
const HOLD: Duration = Duration::from_secs(3);
/// Without any answer of the kernel, a neighbour counts as silent after this time.
const GIVE_UP: Duration = Duration::from_secs(4);
/// Pauses after a failure double from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// A neighbour on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NeighbourKey {
    pub ifindex: u32,
    pub address: IpAddr,
}

/// An entry of the kernel's neighbour cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub reach: Reach,
    /// Kept by somebody else, and not to be probed on our account.
    pub foreign: bool,
}

/// What an entry is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Usable, and confirmed or about to be.
    Fresh([u8; 6]),
    /// Usable, but unconfirmed for a while.
    Stale([u8; 6]),
    /// Being asked for the first time.
    Pending,
    /// Asked, no answer.
    Failed,
}

impl Reach {
    /// The address, if it is usable.
    pub(super) fn mac(self) -> Option<[u8; 6]> {
        match self {
            Self::Fresh(mac) | Self::Stale(mac) => Some(mac),
            Self::Pending | Self::Failed => None,
        }
    }
}

impl Neighbour {
    /// `None` for what is no neighbour of IPv4 or IPv6 (bridge tables, proxy entries).
    pub(super) fn from_message(message: &NeighbourMessage) -> Option<(NeighbourKey, Self)> {
        let flags = message.header.flags;
        if flags.contains(NeighbourFlags::Proxy) {
            return None;
        }
        let (mut address, mut mac) = (None, None);
        let mut foreign = flags.contains(NeighbourFlags::ExtLearned);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                    address = Some(IpAddr::V4(*ip));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                    address = Some(IpAddr::V6(*ip));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
                NeighbourAttribute::ExtFlags(flags) => {
                    foreign |= flags.contains(NeighbourExtFlags::Managed);
                }
                _ => {}
            }
        }
        let key = NeighbourKey { ifindex: message.header.ifindex, address: address? };
        let reach = match (message.header.state, mac) {
            (NeighbourState::Failed, _) => Reach::Failed,
            (NeighbourState::Stale, Some(mac)) => Reach::Stale(mac),
            (
                NeighbourState::Reachable
                | NeighbourState::Delay
                | NeighbourState::Probe
                | NeighbourState::Permanent
                | NeighbourState::Noarp,
                Some(mac),
            ) => Reach::Fresh(mac),
            _ => Reach::Pending,
        };
        Some((key, Self { reach, foreign }))
    }
}

/// What is known of a wanted neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Mac([u8; 6]),
    /// Not known yet.
    Waiting,
    /// It does not answer. Stays so, through further attempts, until it does.
    Silent,
}

/// What [`Wanted::tick`] found due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Due {
    /// The answer may have changed.
    pub changed: bool,
    /// The kernel is to be asked to probe.
    pub ask: bool,
}

/// A neighbour that some destination needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Wanted {
    /// Last known address, good or held.
    mac: Option<[u8; 6]>,
    hold_until: Option<Instant>,
    failed: bool,
    /// Probes since it was last usable.
    tries: u32,
    asked: Option<Instant>,
    ask_at: Option<Instant>,
    give_up_at: Option<Instant>,
}

impl Wanted {
    pub(super) fn answer(&self) -> Answer {
        match self.mac {
            Some(mac) => Answer::Mac(mac),
            None if self.failed => Answer::Silent,
            None => Answer::Waiting,
        }
    }

    /// When [`Wanted::tick`] is next due.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        [self.ask_at, self.hold_until, self.give_up_at].into_iter().flatten().min()
    }

    /// Takes in the kernel's entry as it is now.
    pub(super) fn observe(&mut self, entry: Option<&Neighbour>, now: Instant) {
        let foreign = entry.is_some_and(|entry| entry.foreign);
        match entry.map(|entry| entry.reach) {
            Some(Reach::Fresh(mac)) => self.usable(mac, None),
            Some(Reach::Stale(mac)) => {
                let next = self.asked.map_or(now, |asked| (asked + REFRESH).max(now));
                self.usable(mac, Some(next).filter(|_| !foreign));
            }
            Some(Reach::Failed) => {
                (self.mac, self.hold_until, self.give_up_at) = (None, None, None);
                self.failed = true;
                let pause =
                    FIRST_PAUSE.saturating_mul(1 << self.tries.saturating_sub(1).min(4)).min(LAST_PAUSE);
                self.ask_no_later_than(now + pause);
            }
            reach @ (Some(Reach::Pending) | None) => {
                if self.mac.is_some() && self.hold_until.is_none() {
                    self.hold_until = Some(now + HOLD);
                }
                if self.mac.is_none() && !self.failed && self.give_up_at.is_none() {
                    self.give_up_at = Some(now + GIVE_UP);
                }
                // An entry that is gone needs a new one at once; one that is being asked for needs
                // nothing, and is asked for again only in case the kernel's word of its end got lost.
                let pause = if reach.is_none() { LAST_PAUSE } else { REFRESH };
                self.ask_no_later_than(self.asked.map_or(now, |asked| (asked + pause).max(now)));
            }
        }
        if foreign {
            self.ask_at = None;
        }
    }

    fn usable(&mut self, mac: [u8; 6], ask_at: Option<Instant>) {
        let asked = self.asked;
        *self = Self { mac: Some(mac), asked, ask_at, ..Self::default() };
    }

    fn ask_no_later_than(&mut self, at: Instant) {
        self.ask_at = Some(self.ask_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Does what is due by `now`. After `ask`, [`Wanted::wake_at`] names the time of the next attempt.
    pub(super) fn tick(&mut self, now: Instant) -> Due {
        let mut due = Due::default();
        if [self.hold_until, self.give_up_at].into_iter().flatten().any(|at| at <= now) {
            (self.mac, self.hold_until, self.give_up_at) = (None, None, None);
            self.failed = true;
            due.changed = true;
        }
        if self.ask_at.is_some_and(|at| at <= now) {
            self.asked = Some(now);
            self.ask_at = Some(now + REFRESH);
            self.tries = self.tries.saturating_add(1);
            due.ask = true;
        }
        due
    }

    /// The kernel refused to probe; there is another attempt after a pause.
    pub(super) fn refused(&mut self, now: Instant) {
        if self.ask_at.is_some() {
            self.ask_no_later_than(now + LAST_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::AddressFamily;
    use proptest::prelude::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn entry(reach: Reach) -> Neighbour {
        Neighbour { reach, foreign: false }
    }

    fn message(state: NeighbourState, mac: Option<&[u8]>) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = 3;
        message.header.state = state;
        let address = NeighbourAddress::Inet("10.0.0.1".parse().unwrap());
        message.attributes.push(NeighbourAttribute::Destination(address));
        message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
        message
    }

    #[test]
    fn states_with_an_address_are_usable() {
        let reach =
            |state, mac: Option<&[u8]>| Neighbour::from_message(&message(state, mac)).unwrap().1.reach;
        use NeighbourState::{Delay, Failed, Incomplete, Noarp, Permanent, Probe, Reachable, Stale};
        for state in [Reachable, Delay, Probe, Permanent, Noarp] {
            assert_eq!(reach(state, Some(&MAC)), Reach::Fresh(MAC), "{state}");
            assert_eq!(reach(state, None), Reach::Pending, "{state}");
        }
        assert_eq!(reach(Stale, Some(&MAC)), Reach::Stale(MAC));
        assert_eq!(reach(Incomplete, Some(&MAC)), Reach::Pending);
        assert_eq!(reach(Failed, Some(&MAC)), Reach::Failed);
        assert_eq!(reach(Reachable, Some(&[1, 2, 3, 4])), Reach::Pending);
    }

    #[test]
    fn other_owners_are_recognized() {
        let mut learned = message(NeighbourState::Stale, Some(&MAC));
        learned.header.flags = NeighbourFlags::ExtLearned;
        assert!(Neighbour::from_message(&learned).unwrap().1.foreign);
        let mut managed = message(NeighbourState::Stale, Some(&MAC));
        managed.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        assert!(Neighbour::from_message(&managed).unwrap().1.foreign);
        let mut proxy = message(NeighbourState::None, None);
        proxy.header.flags = NeighbourFlags::Proxy;
        assert_eq!(Neighbour::from_message(&proxy), None);
        let mut wanted = Wanted::default();
        let now = Instant::now();
        wanted.observe(Some(&Neighbour { reach: Reach::Stale(MAC), foreign: true }), now);
        assert_eq!((wanted.answer(), wanted.wake_at()), (Answer::Mac(MAC), None));
    }

    #[test]
    fn an_unknown_neighbour_is_asked_at_once_and_given_up() {
        let mut wanted = Wanted::default();
        let start = Instant::now();
        wanted.observe(None, start);
        assert_eq!(wanted.answer(), Answer::Waiting);
        assert_eq!(wanted.tick(start), Due { changed: false, ask: true });
        wanted.observe(Some(&entry(Reach::Pending)), start);
        assert_eq!(wanted.tick(start + GIVE_UP), Due { changed: true, ask: false });
        assert_eq!(wanted.answer(), Answer::Silent);
        wanted.observe(Some(&entry(Reach::Fresh(MAC))), start + GIVE_UP);
        assert_eq!((wanted.answer(), wanted.wake_at()), (Answer::Mac(MAC), None));
    }

    #[test]
    fn silence_is_retried_with_growing_pauses_and_stays_silence() {
        let mut wanted = Wanted::default();
        let mut now = Instant::now();
        wanted.observe(None, now);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            assert!(wanted.tick(now).ask);
            wanted.observe(Some(&entry(Reach::Pending)), now);
            now += Duration::from_secs(3);
            wanted.observe(Some(&entry(Reach::Failed)), now);
            assert_eq!(wanted.answer(), Answer::Silent);
            let next = wanted.wake_at().unwrap();
            pauses.push((next - now).as_millis());
            now = next;
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000, 1000]);
    }

    #[test]
    fn a_stale_neighbour_is_probed_and_remains_in_use() {
        let mut wanted = Wanted::default();
        let start = Instant::now();
        wanted.observe(Some(&entry(Reach::Stale(MAC))), start);
        assert_eq!(wanted.tick(start), Due { changed: false, ask: true });
        wanted.observe(Some(&entry(Reach::Stale(OTHER))), start);
        assert_eq!(wanted.answer(), Answer::Mac(OTHER));
        assert_eq!(wanted.wake_at(), Some(start + REFRESH));
    }

    #[test]
    fn a_collected_entry_is_held_until_its_answer_or_failure() {
        let start = Instant::now();
        let mut wanted = Wanted::default();
        wanted.observe(Some(&entry(Reach::Fresh(MAC))), start);
        wanted.observe(None, start);
        assert_eq!(wanted.answer(), Answer::Mac(MAC));
        assert!(wanted.tick(start).ask);
        let mut answered = wanted.clone();
        answered.observe(Some(&entry(Reach::Fresh(OTHER))), start);
        assert_eq!(answered.answer(), Answer::Mac(OTHER));
        let mut failed = wanted.clone();
        failed.observe(Some(&entry(Reach::Failed)), start);
        assert_eq!(failed.answer(), Answer::Silent);
        assert!(wanted.tick(start + HOLD).changed);
        assert_eq!(wanted.answer(), Answer::Silent);
    }

    #[test]
    fn a_refused_probe_is_tried_again_soon() {
        let mut wanted = Wanted::default();
        let start = Instant::now();
        wanted.observe(None, start);
        assert!(wanted.tick(start).ask);
        wanted.refused(start);
        assert_eq!(wanted.wake_at(), Some(start + LAST_PAUSE));
        let mut content = Wanted::default();
        content.observe(Some(&entry(Reach::Fresh(MAC))), start);
        content.refused(start);
        assert_eq!(content.wake_at(), None);
    }

    fn reach() -> impl Strategy<Value = Option<Reach>> {
        prop_oneof![
            Just(None),
            Just(Some(Reach::Pending)),
            Just(Some(Reach::Failed)),
            Just(Some(Reach::Fresh(MAC))),
            Just(Some(Reach::Fresh(OTHER))),
            Just(Some(Reach::Stale(MAC))),
        ]
    }

    proptest! {
        /// Whatever happened before: an address is believed if the entry has one, no neighbour is
        /// forgotten, none is probed more than about ten times a second, and a sleeper wakes later.
        #[test]
        fn it_is_never_wrong_for_long(
            steps in proptest::collection::vec((reach(), any::<bool>(), 0u64..6000), 1..60),
        ) {
            let mut now = Instant::now();
            let mut wanted = Wanted::default();
            let mut last_ask: Option<Instant> = None;
            for (reach, foreign, pause) in steps {
                let entry = reach.map(|reach| Neighbour { reach, foreign });
                wanted.observe(entry.as_ref(), now);
                let due = wanted.tick(now);
                if due.ask {
                    prop_assert!(!foreign || reach.is_none());
                    if let Some(last) = last_ask.replace(now) {
                        prop_assert!(now == last || now - last >= FIRST_PAUSE, "{:?}", now - last);
                    }
                }
                match reach {
                    Some(Reach::Fresh(mac) | Reach::Stale(mac)) => {
                        prop_assert_eq!(wanted.answer(), Answer::Mac(mac));
                    }
                    Some(Reach::Failed) => prop_assert_eq!(wanted.answer(), Answer::Silent),
                    Some(Reach::Pending) | None => {}
                }
                let content = matches!(reach, Some(Reach::Fresh(_))) || (foreign && reach.is_some());
                prop_assert!(content || wanted.ask_at.is_some());
                prop_assert!(wanted.wake_at().is_none_or(|at| at > now));
                now += Duration::from_millis(pause);
            }
        }
    }
}
