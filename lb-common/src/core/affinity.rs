//! Which backend a packet goes to where the ring alone does not tell: its slot has changed hands, or a scheduler places
//! the flows.
//!
//! The rules are those of ARCHITECTURE.md, "Connection affinity". Their invariant: every live flow without
//! an entry lives at its slot's home. A flow that cannot be recorded therefore goes home: lack of memory
//! delays a change, it breaks nothing established.
//!
//! Handshakes have tables of their own, so that a flood of SYNs takes no room from a flow, and a SYN that somebody made
//! up takes no flow from its backend: only a segment that its sequence number makes a successor of the SYN confirms it.

use super::{FlowCell, FlowKey, HalfOpenCell, Ip, Tables};
use crate::{
    abi::{BackendEntry, FlowEntry, FlowKey4, FlowKey6, HalfOpen, ServiceEntry, Slot, SlotState},
    packet::Packet,
    wire::{ipv4, ipv6, proto, tcp, udp},
};

/// A segment confirms a handshake if its sequence number is at most so far behind the SYN's: what a client can
/// send before the balancer sees any of it is a first window, which has no scale yet (RFC 7323 section 2.2).
const FIRST_WINDOW: u32 = 1 << 16;

/// How long a handshake may take: it is kept so long, and its SYN relies on no entry that may be forgotten before.
pub const HANDSHAKE_NS: u64 = 30_000_000_000;

/// How exactly it is kept when a flow last found no room.
const HOMED_UNIT_NS: u64 = 1_000_000_000;

/// What a packet means to its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Step {
    /// A TCP SYN, or the first packet of a QUIC connection: the flow begins.
    Begin = 0,
    /// Anything in the middle; every UDP packet, since UDP has no beginning.
    Within = 1,
    /// FIN or RST: the flow may end.
    End = 2,
    /// An acknowledgement without data: the flow goes on as it was. The last packet of most connections is one, after
    /// their FIN, and does not bring them back to life.
    Acknowledge = 3,
}

impl Step {
    /// The step behind the number that passes between kernel functions.
    #[inline(always)]
    pub const fn from_u64(step: u64) -> Self {
        match step {
            0 => Self::Begin,
            1 => Self::Within,
            2 => Self::End,
            _ => Self::Acknowledge,
        }
    }

    /// The step of a TCP segment with these flags, with or without data.
    #[inline(always)]
    pub(super) const fn of_tcp(flags: u8, data: bool) -> Self {
        if flags & (tcp::FIN | tcp::RST) != 0 {
            Self::End
        } else if flags & (tcp::SYN | tcp::ACK) == tcp::SYN {
            Self::Begin
        } else if data {
            Self::Within
        } else {
            Self::Acknowledge
        }
    }
}

/// What there is to know of a packet beside its bytes, in one number that passes between kernel functions.
/// From the low bits up: offset of the IP header (8), length of the IP headers (16), protocol (8), IPv6, [`Step`] (2),
/// "the ISN is given", round-robin, least-connections, a gap (2), service id (16).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place(pub u64);

impl Place {
    const V6: u64 = 1 << 32;
    const STEP_SHIFT: u32 = 33;
    const ISN_GIVEN: u64 = 1 << 35;
    const ROUND_ROBIN: u64 = 1 << 36;
    const LEAST_CONNECTIONS: u64 = 1 << 37;
    const SERVICE_SHIFT: u32 = 40;

    #[inline(always)]
    #[must_use]
    pub const fn of(ip: &Ip) -> Self {
        let v6 = if ip.v6 { Self::V6 } else { 0 };
        Self(ip.l3 as u64 | (ip.header_len as u64) << 8 | (ip.proto as u64) << 24 | v6)
    }

    /// Of a service with these flags.
    #[inline(always)]
    pub(super) const fn of_service(self, id: u32, flags: u32) -> Self {
        const SHIFT: u32 = Place::ROUND_ROBIN.trailing_zeros() - ServiceEntry::ROUND_ROBIN.trailing_zeros();
        const _: () = assert!(ServiceEntry::LEAST_CONNECTIONS as u64 == Place::LEAST_CONNECTIONS >> SHIFT);
        let scheduled = ((flags & ServiceEntry::SCHEDULED) as u64) << SHIFT;
        Self(self.0 | scheduled | (id as u64 & 0xffff) << Self::SERVICE_SHIFT)
    }

    /// At this step of its flow.
    #[inline(always)]
    pub(super) const fn at(self, step: Step) -> Self {
        Self(self.0 | (step as u64) << Self::STEP_SHIFT)
    }

    /// Of a flow whose beginning is known by a number that the caller gives, and not by a TCP sequence number. Every packet
    /// of such a flow has this mark; the number counts at [`Step::Begin`] alone.
    #[inline(always)]
    #[must_use]
    pub const fn with_isn(self) -> Self {
        Self(self.0 | Self::ISN_GIVEN)
    }

    #[inline(always)]
    pub(super) const fn is_v6(self) -> bool {
        self.0 >> 32 & 1 != 0
    }

    // The masks bound the offsets for the verifier, which knows nothing of a function's arguments.
    #[inline(always)]
    pub(super) const fn l3(self) -> usize {
        self.0 as usize & 0x1f
    }

    #[inline(always)]
    pub(super) const fn header_len(self) -> usize {
        (self.0 >> 8) as usize & 0x3ff
    }

    #[inline(always)]
    pub(super) const fn l4(self) -> usize {
        self.l3() + self.header_len()
    }

    #[inline(always)]
    pub(super) const fn proto(self) -> u32 {
        (self.0 >> 24) as u32 & 0xff
    }

    #[inline(always)]
    const fn step(self) -> Step {
        Step::from_u64(self.0 >> Self::STEP_SHIFT & 3)
    }

    #[inline(always)]
    const fn service(self) -> u32 {
        (self.0 >> Self::SERVICE_SHIFT) as u32 & 0xffff
    }

    #[inline(always)]
    const fn is_scheduled(self) -> bool {
        self.0 & (Self::ROUND_ROBIN | Self::LEAST_CONNECTIONS) != 0
    }

    #[inline(always)]
    const fn counts(self) -> bool {
        self.0 & Self::LEAST_CONNECTIONS != 0
    }

    /// Does a flow of this kind begin with a packet that can be told from all others?
    #[inline(always)]
    const fn has_handshake(self) -> bool {
        self.proto() == proto::TCP as u32 || self.0 & Self::ISN_GIVEN != 0
    }
}

/// A packet and its flow, less the key.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub place: Place,
    pub slot: Slot,
    pub hash: u64,
    /// TCP: the sequence number.
    pub seq: u32,
    pub now_ns: u64,
}

/// Makes the flow's key from the frame and chooses its backend; 0 = nobody.
#[inline(always)]
pub fn choose_flow<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    place: Place,
    slot: Slot,
    hash: u64,
    isn: u32,
) -> u32 {
    // Ports stand at the same place in both protocols, and a TCP header has its sequence number within the length of a UDP header.
    let Some(l4) = packet.view::<{ udp::LEN }>(place.l4()) else { return 0 };
    let seq = if place.0 & Place::ISN_GIVEN == 0 { l4.u32::<{ tcp::SEQ }>() } else { isn };
    let ask = Ask { place, slot, hash, seq, now_ns: tables.now_ns() };
    let (ports, proto) = (l4.raw32::<0>().to_ne_bytes(), place.proto());
    if place.0 & Place::V6 == 0 {
        let Some(ip) = packet.view::<{ ipv4::LEN }>(place.l3()) else { return 0 };
        let src = ip.raw32::<{ ipv4::SRC }>().to_ne_bytes();
        let dst = ip.raw32::<{ ipv4::DST }>().to_ne_bytes();
        choose(tables, &ask, &FlowKey4 { src, dst, ports, proto })
    } else {
        let Some(src) = packet.view::<16>(place.l3() + ipv6::SRC) else { return 0 };
        let Some(dst) = packet.view::<16>(place.l3() + ipv6::DST) else { return 0 };
        choose(tables, &ask, &FlowKey6 { src: *src.0, dst: *dst.0, ports, proto })
    }
}

/// The backend's id for a packet of the flow with this key; 0 = nobody.
#[inline(always)]
pub fn choose<T: Tables, K: FlowKey>(tables: &T, ask: &Ask, key: &K) -> u32 {
    let tag = FlowEntry::tag_of(ask.hash);
    let step = ask.place.step();
    let begins = matches!(step, Step::Begin);
    let mut found = key.find(tables);
    // Another tag: the element was recycled for another flow while we looked. Found again, it is this flow's
    // own, from before the service got another seed.
    if found.as_ref().is_some_and(|cell| cell.load().tag() != tag) {
        found = key.find(tables);
    }
    let entry = found.as_ref().map_or(FlowEntry(0), FlowCell::load);
    let lives = entry.tag() == tag && is_alive(tables, entry);
    // May a SYN begin another flow in its place?
    let mut ended = !lives || entry.is_closing();
    if let (Some(cell), false) = (&found, ended) {
        // A SYN on a flow that lives says nothing about it: a late duplicate, or somebody's guess.
        if begins {
            let left = time_left(tables, ask, entry);
            if left >= HANDSHAKE_NS as i64 {
                return entry.backend();
            }
            ended = left < 0;
        } else if !entry.is_pending() {
            // The most common case, and the only lookup it needs.
            touch(tables, ask, cell, entry);
            return entry.backend();
        }
    }
    let mut other_handshake = false;
    if ask.place.has_handshake()
        && let Some(cell) = key.half_open(tables)
    {
        let (half, isn) = (cell.load(), cell.isn());
        if half.tag() == tag && is_alive(tables, half) {
            let over =
                begins && !half.is_half_open() && !half.is_closing() && time_left(tables, ask, half) < 0;
            if !half.is_half_open() && !over {
                // A SYN has no other place to be recorded in: from now on the entry is its flow's.
                touch(tables, ask, &cell, half);
                return half.backend();
            }
            if begins && isn == ask.seq && !over {
                // Sent again: the handshake goes on where it began.
                let new = half.touched(ask.now_ns, false);
                if new.0 != half.0 {
                    cell.exchange(half, new);
                }
                return half.backend();
            }
            if !begins && confirms(ask, isn) {
                let new = half.confirmed(ask.now_ns, matches!(step, Step::End));
                let recorded = match &found {
                    Some(place) => replace(place, entry, new),
                    None => key.add(tables, new),
                };
                if recorded {
                    key.remove_half_open(tables);
                } else {
                    // A handshake that the backend has answered must not be lost for lack of room: it has its place already.
                    cell.exchange(half, new);
                }
                if ask.place.counts() {
                    if lives && !entry.is_closing() {
                        tables.count_active(entry.backend(), false);
                    }
                    if !new.is_closing() {
                        tables.count_active(new.backend(), true);
                    }
                }
                return half.backend();
            }
            other_handshake = begins;
        }
    }
    let (home, owner) = (ask.slot.home(), ask.slot.owner());
    if begins {
        let owner = if !ended {
            entry.backend()
        } else if ask.place.is_scheduled() {
            pick(tables, ask)
        } else {
            owner
        };
        // Nobody takes new flows, or what goes home needs no entry.
        let at_home = owner == home && !ask.place.is_scheduled() && !other_handshake;
        if owner == 0 || at_home && (!lives || entry.backend() == owner) {
            return owner;
        }
        let incarnation = tables.backend(owner).map_or(0, |backend| backend.incarnation);
        let half = FlowEntry::new(owner, incarnation, ask.hash, ask.now_ns, true);
        if !key.add_half_open(tables, HalfOpen { entry: half.0, isn: ask.seq, pad: 0 }) {
            // What cannot be recorded goes where the packets after it will go, for as long as they come.
            let (Some(place), true) = (&found, lives) else { return home };
            touch(tables, ask, place, entry);
            return entry.backend();
        }
        if let (Some(place), true) = (&found, lives && !entry.is_pending()) {
            replace(place, entry, entry.pending());
        }
        return owner;
    }
    if let (Some(cell), true) = (&found, lives) {
        touch(tables, ask, cell, entry);
        return entry.backend();
    }
    // A flow without an entry, or with one of a backend that has died since.
    let begins_unseen = ask.place.is_scheduled() && !ask.place.has_handshake();
    let chosen = if begins_unseen && !may_be_homed(tables, ask) { pick(tables, ask) } else { home };
    let recorded = begins_unseen || found.is_some() || matches!(ask.slot.state(), SlotState::Moving);
    if chosen == 0 || !recorded {
        return chosen;
    }
    let Some(backend) = tables.backend(chosen) else { return home };
    let new = FlowEntry::new(chosen, backend.incarnation, ask.hash, ask.now_ns, false);
    let new = new.touched(ask.now_ns, matches!(step, Step::End));
    let added = match &found {
        Some(place) => place.exchange(entry, new),
        None => key.add(tables, new),
    };
    if !begins_unseen {
        // Whether or not there is room: the flow is at home.
        return chosen;
    }
    if !added {
        if found.is_none() {
            note_homed(tables, ask);
        }
        return home;
    }
    // Another CPU may have placed it at the same time: the one that was first is obeyed.
    match key.find(tables) {
        Some(cell) if cell.load().tag() == tag => {
            let winner = cell.load();
            if ask.place.counts() && winner.0 == new.0 {
                tables.count_active(chosen, true);
            }
            winner.backend()
        }
        _ => chosen,
    }
}

/// Is this packet a successor of the handshake's first one?
#[inline(always)]
const fn confirms(ask: &Ask, isn: u32) -> bool {
    ask.place.proto() != proto::TCP as u32 || ask.seq.wrapping_sub(isn).wrapping_sub(1) < FIRST_WINDOW
}

/// The scheduler's choice for a new flow.
#[inline(always)]
fn pick<T: Tables>(tables: &T, ask: &Ask) -> u32 {
    let picked = tables.pick(ask.place.service(), ask.place.counts());
    match tables.backend(picked) {
        // The schedule was replaced under our eyes and its words are another's: the ring knows somebody.
        Some(backend) if picked != 0 && backend.service != ask.place.service() => ask.slot.owner(),
        _ => picked,
    }
}

/// Unknown datagrams of a scheduled service may be of a flow that found no room and lives at home, if there was one within
/// the idle timeout. To those that begin the ring is as good a scheduler as any, for so long.
#[inline(always)]
fn may_be_homed<T: Tables>(tables: &T, ask: &Ask) -> bool {
    let id = ask.place.service();
    let homed = tables.homed_ns(id);
    let idle = tables.service(id).map_or(0, |service| service.idle_ns);
    homed != 0 && ask.now_ns.saturating_sub(homed) <= idle.saturating_add(HOMED_UNIT_NS)
}

/// A datagram flow of a scheduled service stays at home without an entry.
#[inline(always)]
fn note_homed<T: Tables>(tables: &T, ask: &Ask) {
    let id = ask.place.service();
    // A full table is noted once a while: all CPUs share the word.
    if ask.now_ns.saturating_sub(tables.homed_ns(id)) > HOMED_UNIT_NS {
        tables.note_homed(id, ask.now_ns);
    }
}

/// Nanoseconds until the flow has been silent for longer than the promise lasts; less than nothing if it has.
#[inline(always)]
fn time_left<T: Tables>(tables: &T, ask: &Ask, entry: FlowEntry) -> i64 {
    // The clock of entries may be a unit ahead of theirs.
    let idle = tables.service(ask.place.service()).map_or(0, |service| service.idle_ns) + FlowEntry::UNIT_NS;
    idle.wrapping_sub(entry.idle_ns(ask.now_ns)) as i64
}

/// Notes that a packet of the flow has come.
#[inline(always)]
fn touch<T: Tables>(tables: &T, ask: &Ask, cell: &impl FlowCell, entry: FlowEntry) {
    let closing = match ask.place.step() {
        // A SYN comes here where nothing else can record its flow: what ended there begins anew.
        Step::Begin | Step::Within => false,
        Step::End => true,
        // Beside a handshake it may be the last step of one that has been forgotten, whose flow lives here from now on.
        Step::Acknowledge => entry.is_closing() && !entry.is_pending(),
    };
    let new = entry.touched(ask.now_ns, closing);
    if new.0 == entry.0 {
        return;
    }
    // Who changes the entry counts it: one CPU does.
    if cell.exchange(entry, new) && ask.place.counts() && closing != entry.is_closing() {
        tables.count_active(entry.backend(), !closing);
    }
}

/// Puts one entry in the place of another. A packet of the old one on another CPU may touch it meanwhile, once.
#[inline(always)]
fn replace(cell: &impl FlowCell, old: FlowEntry, new: FlowEntry) -> bool {
    if cell.exchange(old, new) {
        return true;
    }
    let old = cell.load();
    old.tag() == new.tag() && cell.exchange(old, new)
}

/// Does the backend that an entry names still live the life it had then?
#[inline(always)]
pub(super) fn is_alive<T: Tables>(tables: &T, entry: FlowEntry) -> bool {
    match tables.backend(entry.backend()) {
        Some(backend) => {
            backend.kind != 0
                && backend.flags & BackendEntry::DEAD == 0
                && backend.incarnation as u8 == entry.incarnation()
        }
        None => false,
    }
}
