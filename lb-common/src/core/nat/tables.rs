//! The tables of NAT, beside those of [`Tables`].

use super::Address;
use crate::{
    abi::{Exit, FlowEntry, FlowKey6, NatKey, NatOrigin, Pool, SessionBack, SessionOut},
    core::{DropReason, FlowCell, Tables},
};

/// What NAT looks things up in.
pub trait NatTables: Tables {
    /// What replies from a backend's port are rewritten to.
    fn nat(&self, key: &NatKey) -> Option<&NatOrigin>;
    /// The way to a client. `from` is the virtual address, for routes that depend on the source.
    fn way(&self, v6: bool, from: Address, to: Address) -> Way<'_>;
    /// The session of a client's flow: a copy of it, and its entry's place.
    fn session_out(&self, key: &FlowKey6) -> Option<(SessionOut, impl FlowCell)>;
    /// The session of a backend's flow.
    fn session_back(&self, key: &FlowKey6) -> Option<(SessionBack, impl FlowCell)>;
    /// Records a session unless there is one.
    fn add_session_out(&self, key: &FlowKey6, session: &SessionOut) -> Added;
    /// Records a session in the place of whatever is there; false if there is no room.
    fn replace_session_out(&self, key: &FlowKey6, session: &SessionOut) -> bool;
    /// Records a session unless there is one.
    fn add_session_back(&self, key: &FlowKey6, session: &SessionBack) -> Added;
    /// Takes back what [`NatTables::add_session_back`] has recorded.
    fn remove_session_back(&self, key: &FlowKey6);
    /// Source addresses of a service.
    fn pool(&self, service: u32) -> Option<&Pool>;
    /// One of them; IPv4 mapped.
    fn pool_address(&self, index: u32) -> Option<Address>;
    /// Counts a session.
    fn count_session(&self, outcome: Outcome);
}

/// The way to a client.
pub enum Way<'t> {
    /// By this exit.
    Exit(&'t Exit),
    /// It is this host itself, or this host does not forward: the kernel takes the packet as it is.
    Here,
    /// Nowhere.
    None,
}

/// What came of recording a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Added {
    Made,
    Exists,
    Full,
}

/// What became of a session that was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Made,
    Exhausted,
    Full,
}

impl Exit {
    /// How long an answer of the kernel's routes holds.
    pub const LIFETIME_NS: u64 = 1_000_000_000;
    /// How long the lack of a neighbour entry holds: the daemon is told once in so long, per destination and CPU.
    pub const UNRESOLVED_NS: u64 = 20_000_000;
    /// In the place of an interface: no neighbour entry.
    pub const UNRESOLVED: u32 = u32::MAX;

    /// The place of a destination in `EXITS`.
    #[inline(always)]
    pub const fn place(to: Address) -> u32 {
        const BITS: u32 = crate::abi::EXIT_CAPACITY.trailing_zeros();
        const { assert!(crate::abi::EXIT_CAPACITY.is_power_of_two()) };
        // Fibonacci hashing: the upper bits of the product depend on all of the address.
        ((to.hi ^ to.lo).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BITS)) as u32
    }

    /// Is it the way to `to`, as the kernel would say it again?
    #[inline(always)]
    pub fn holds(&self, to: Address, now_ns: u64, routes: u32) -> bool {
        let lifetime = if self.ifindex == Self::UNRESOLVED { Self::UNRESOLVED_NS } else { Self::LIFETIME_NS };
        Address::read(&self.destination) == to
            && self.routes == routes
            && now_ns < self.asked_ns.wrapping_add(lifetime)
    }

    /// What it says.
    #[inline(always)]
    pub fn way(&self) -> Way<'_> {
        match self.ifindex {
            0 => Way::Here,
            Self::UNRESOLVED => Way::None,
            _ => Way::Exit(self),
        }
    }
}

/// A refusal, counted as such.
#[inline(always)]
pub(super) fn counted<T: NatTables>(tables: &T, outcome: Outcome) -> DropReason {
    tables.count_session(outcome);
    match outcome {
        Outcome::Full => DropReason::NatFull,
        _ => DropReason::NatExhausted,
    }
}

/// An entry's place after a packet: written only where something changed.
#[inline(always)]
pub(super) fn touch(cell: &impl FlowCell, entry: FlowEntry, now_ns: u64, closing: bool) {
    let new = entry.touched(now_ns, closing);
    if new.0 != entry.0 {
        cell.store(new);
    }
}
