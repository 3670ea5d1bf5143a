//! Virtual addresses of VRRP: which of them this node may answer for, and until when.

use super::EventHeader;

/// Key of `ADDRESSES`: a virtual address where requests for it come in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct AddressKey {
    /// IPv4 mapped (RFC 4291 section 2.5.5.2).
    pub address: [u8; 16],
    /// The interface that the program is attached to.
    pub ifindex: u32,
    /// VLAN id of the frame's tag, 0 = none; of two tags `outer << 16 | inner`.
    pub vlan: u32,
}

/// Value of `ADDRESSES`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct AddressEntry {
    /// Index of its word in `LEASES`.
    pub lease: u32,
    /// [`AddressEntry::ANSWER`], ...
    pub flags: u32,
    /// Of the interface the address belongs to.
    pub mac: [u8; 6],
    pub pad: [u8; 2],
}

impl AddressEntry {
    /// The program answers: the kernel does not have the address. Else the kernel answers, as long as the lease allows.
    pub const ANSWER: u32 = 1;
    /// This node forwards IPv6 there: what it says of itself has the router flag (RFC 4861 section 4.4).
    pub const ROUTER: u32 = 2;
}

/// A word of `LEASES`, the right of this node to answer for the addresses of one virtual router. Written by the daemon
/// with one atomic store, each time the thread that advertises runs.
///
/// [`Lease::NONE`], [`Lease::OVER`], or a time of the monotonic clock in nanoseconds, whose lowest bit says whether a
/// peer was alive when it was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct Lease(pub u64);

/// What a lease says at some time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Standing {
    /// This node never had the addresses, or gave them up for good: whoever asks for them does not ask this node.
    Absent = 0,
    /// It has them.
    Valid = 1,
    /// Its daemon is silent, and as far as is known there is nobody else: it goes on answering until another node
    /// claims an address.
    Alone = 2,
    /// It must not answer.
    Over = 3,
}

impl Lease {
    /// The addresses are not this node's.
    pub const NONE: Self = Self(0);
    /// Nobody on this node may answer for the addresses, although the kernel may still have them.
    pub const OVER: Self = Self(1);
    const PEER: u64 = 1;

    /// Runs until `until_ns`. `peer`: somebody is there to take the addresses when it has run out.
    #[inline(always)]
    #[must_use]
    pub const fn until(until_ns: u64, peer: bool) -> Self {
        let until = until_ns & !Self::PEER;
        // The two lowest times are words of their own.
        Self(if until == 0 { 2 } else { until } | peer as u64)
    }

    /// When it runs out, nanoseconds; 0 for [`Lease::NONE`] and [`Lease::OVER`].
    #[inline(always)]
    #[must_use]
    pub const fn ends(self) -> u64 {
        self.0 & !Self::PEER
    }

    #[inline(always)]
    #[must_use]
    pub const fn standing(self, now_ns: u64) -> Standing {
        if self.0 == Self::NONE.0 {
            Standing::Absent
        } else if now_ns < self.ends() {
            Standing::Valid
        } else if self.0 & Self::PEER == 0 {
            Standing::Alone
        } else {
            Standing::Over
        }
    }
}

/// [`EventHeader::CLAIM`]: another node says that an address is its own which this node holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct ClaimEvent {
    pub header: EventHeader,
    /// IPv4 mapped.
    pub address: [u8; 16],
    /// Nanoseconds of the monotonic clock.
    pub time_ns: u64,
    /// The interface it came in by.
    pub ifindex: u32,
    /// Who says so.
    pub mac: [u8; 6],
    pub pad: [u8; 2],
    /// Of the address.
    pub lease: u32,
}

const _: () = assert!(size_of::<ClaimEvent>() == 48);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_lease_says() {
        let rows = [
            (Lease::NONE, 0, Standing::Absent),
            (Lease::NONE, u64::MAX, Standing::Absent),
            (Lease::OVER, 0, Standing::Over),
            (Lease::until(1000, true), 999, Standing::Valid),
            (Lease::until(1000, true), 1000, Standing::Over),
            (Lease::until(1000, false), 999, Standing::Valid),
            (Lease::until(1000, false), 1000, Standing::Alone),
            // Of times that look like the words of their own, and of odd ones.
            (Lease::until(0, false), 5, Standing::Alone),
            (Lease::until(0, true), 5, Standing::Over),
            (Lease::until(1, false), 5, Standing::Alone),
            (Lease::until(1001, false), 999, Standing::Valid),
            (Lease::until(u64::MAX, true), u64::MAX - 2, Standing::Valid),
        ];
        for (lease, now, standing) in rows {
            assert_eq!(lease.standing(now), standing, "{lease:?} at {now}");
        }
        assert_eq!((Lease::NONE.ends(), Lease::OVER.ends(), Lease::until(1001, true).ends()), (0, 0, 1000));
    }
}
