//! The backend's side of the tunnel modes: takes the outer header off.
//!
//! Protects against nobody but strangers: whoever can send with a balancer's address can have any inner
//! packet taken. The path between balancer and backend must drop spoofed sources (BCP 38), as with every
//! tunnel without keys.

use crate::{
    csum,
    packet::{PacketMut, View},
    wire::{eth, gue, ipv4, ipv6, proto, udp, vlan},
};

/// What happens to a frame on a backend.
///
/// Without payload on purpose: an enum with one leaves bits undefined that LLVM then carries along with
/// stale packet pointers, which the kernel's verifier refuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Outcome {
    /// No tunnel packet of ours: the kernel takes it, untouched.
    Pass,
    /// The outer header is off: the kernel takes the inner packet.
    Decapsulated,
    /// A tunnel packet refused, for the [`Reason`] of that name.
    Malformed,
    Congestion,
    NoRoom,
}

impl Outcome {
    /// Why the packet was refused, if it was.
    #[inline(always)]
    #[must_use]
    pub const fn refusal(self) -> Option<Reason> {
        match self {
            Self::Pass | Self::Decapsulated => None,
            Self::Malformed => Some(Reason::Malformed),
            Self::Congestion => Some(Reason::Congestion),
            Self::NoRoom => Some(Reason::NoRoom),
        }
    }
}

/// Answer of [`decapsulate`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    pub outcome: Outcome,
    /// Length of the inner IP packet, as its header says; 0 unless decapsulated.
    pub bytes: u32,
}

impl Verdict {
    #[inline(always)]
    const fn of(outcome: Outcome) -> Self {
        Self { outcome, bytes: 0 }
    }
}

/// Why a tunnel packet was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Reason {
    /// The outer or inner header is impossible.
    Malformed = 0,
    /// Congestion was marked on a packet whose sender does not speak ECN (RFC 6040 section 4.2).
    Congestion = 1,
    /// The driver did not let the header be moved.
    NoRoom = 2,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Malformed, Self::Congestion, Self::NoRoom];

    /// The label of its counter.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Congestion => "congestion",
            Self::NoRoom => "no_room",
        }
    }

    /// One line for an operator.
    #[must_use]
    pub const fn help(self) -> &'static str {
        match self {
            Self::Malformed => "the outer, the GUE or the inner header is impossible",
            Self::Congestion => "congestion was marked on a packet whose sender does not speak ECN",
            Self::NoRoom => "the driver does not let the outer header be taken off",
        }
    }

    /// Index of its counter.
    #[must_use]
    pub const fn counter(self) -> u32 {
        BYTES + 1 + self as u32
    }
}

/// Index of the counter of packets decapsulated.
pub const PACKETS: u32 = 0;
/// Index of the counter of the bytes of their inner IP packets.
pub const BYTES: u32 = 1;
/// Counters of the decapsulator: room for reasons to come, so that a new one is no new layout.
pub const COUNTERS: u32 = 16;
/// Prefixes of balancers of either family that the decapsulator holds.
pub const MAX_SOURCES: u32 = 1024;

/// Whom the decapsulator listens to.
pub trait Allow {
    /// Is this outer source a balancer? The address as it stands in the packet.
    fn source4(&self, address: [u8; 4]) -> bool;
    /// The same for IPv6.
    fn source6(&self, address: &[u8; 16]) -> bool;
    /// UDP port of GUE in host order; 0 = no GUE.
    fn gue_port(&self) -> u16;
}

/// Takes the outer header of an IP-in-IP or GUE packet off, if it comes from a balancer.
///
/// A UDP checksum over the tunnel is not verified: inner header and segment carry their own, which the
/// kernel verifies, and what is left, the GUE header, is compared with the only values it may have.
#[inline(always)]
pub fn decapsulate<P: PacketMut, A: Allow>(packet: &mut P, allow: &A) -> Verdict {
    let pass = Verdict::of(Outcome::Pass);
    let malformed = Verdict::of(Outcome::Malformed);
    let Some(head) = packet.view::<{ eth::LEN + ipv4::LEN }>(0) else { return pass };
    if head.u8::<0>() & 1 != 0 {
        return pass;
    }
    let (ether_type, l3) = if head.raw16::<{ eth::TYPE }>() == eth::VLAN.to_be() {
        (head.raw16::<{ eth::TYPE + vlan::LEN }>(), eth::LEN + vlan::LEN)
    } else {
        (head.raw16::<{ eth::TYPE }>(), eth::LEN)
    };
    // Outer header: its length, TOS, what is inside, and where the payload ends.
    let (outer_len, tos, protocol, total) = if ether_type == eth::IPV4.to_be() {
        let Some(outer) = packet.view::<{ ipv4::LEN }>(l3) else { return pass };
        let protocol = outer.u8::<{ ipv4::PROTO }>();
        if !interesting(protocol) {
            return pass;
        }
        // Balancers send neither options nor fragments.
        if outer.u8::<{ ipv4::VIHL }>() != 0x45
            || outer.u16::<{ ipv4::FRAGMENT }>() & (ipv4::MORE_FRAGMENTS | ipv4::FRAGMENT_OFFSET) != 0
        {
            return pass;
        }
        // RFC 1122 section 3.2.1.2: a source with a flipped bit is nobody's. The kernel discards and counts it.
        if !header_sums_up(outer) {
            return pass;
        }
        if !allow.source4(outer.raw32::<{ ipv4::SRC }>().to_ne_bytes()) {
            return pass;
        }
        (ipv4::LEN, outer.u8::<{ ipv4::TOS }>(), protocol, usize::from(outer.u16::<{ ipv4::TOTAL_LEN }>()))
    } else if ether_type == eth::IPV6.to_be() {
        let Some(outer) = packet.view::<{ ipv6::LEN }>(l3) else { return pass };
        let Some(source) = packet.view::<16>(l3 + ipv6::SRC) else { return pass };
        let protocol = outer.u8::<{ ipv6::NEXT }>();
        let word = outer.u32::<{ ipv6::WORD }>();
        if !interesting(protocol) || word >> 28 != 6 || !allow.source6(source.0) {
            return pass;
        }
        let total = ipv6::LEN + usize::from(outer.u16::<{ ipv6::PAYLOAD_LEN }>());
        (ipv6::LEN, (word >> 20) as u8, protocol, total)
    } else {
        return pass;
    };
    let mut skip = outer_len;
    // IP version the headers promise; 0 = they leave it open.
    let mut version = match protocol {
        proto::IPV4 => 4,
        proto::IPV6 => 6,
        _ => 0,
    };
    if protocol == proto::UDP {
        let Some(header) = packet.view::<{ udp::LEN }>(l3 + outer_len) else { return pass };
        let port = allow.gue_port();
        if port == 0 || header.u16::<2>() != port {
            return pass;
        }
        if outer_len + usize::from(header.u16::<{ udp::LENGTH }>()) != total {
            return malformed;
        }
        skip += udp::LEN;
        // Variant 1: an IP header right away. Variant 0 without options: four bytes, then the IP header.
        let Some(first) = packet.view::<{ gue::LEN }>(l3 + skip) else { return malformed };
        if first.u8::<0>() >> 6 == 0 {
            version = match first.u8::<1>() {
                proto::IPV4 => 4,
                proto::IPV6 => 6,
                _ => return malformed,
            };
            // Neither a control message nor a header with optional fields, and no flags.
            if first.u8::<0>() != 0 || first.u16::<2>() != 0 {
                return malformed;
            }
            skip += gue::LEN;
        }
    }
    if total < skip || l3 + total > packet.len() {
        return malformed;
    }
    unwrap(packet, l3, skip, total - skip, version, tos)
}

#[inline(always)]
const fn interesting(protocol: u8) -> bool {
    protocol == proto::IPV4 || protocol == proto::IPV6 || protocol == proto::UDP
}

#[inline(always)]
fn header_sums_up(header: View<'_, { ipv4::LEN }>) -> bool {
    let sum = header.raw32::<0>() as u64
        + header.raw32::<4>() as u64
        + header.raw32::<8>() as u64
        + header.raw32::<12>() as u64
        + header.raw32::<16>() as u64;
    csum::fold(sum) == 0xffff
}

/// The inner packet starts `skip` bytes after the outer header's first and has `room` bytes.
#[inline(always)]
fn unwrap<P: PacketMut>(
    packet: &mut P,
    l3: usize,
    skip: usize,
    room: usize,
    version: u8,
    outer_tos: u8,
) -> Verdict {
    let malformed = Verdict::of(Outcome::Malformed);
    let Some(mut header) = packet.view_mut::<{ ipv4::LEN }>(l3 + skip) else { return malformed };
    let found = header.as_view().u8::<0>() >> 4;
    if version != 0 && found != version {
        return malformed;
    }
    let (ether_type, bytes) = match found {
        4 => {
            let bytes = usize::from(header.as_view().u16::<{ ipv4::TOTAL_LEN }>());
            if bytes > room || bytes < ipv4::LEN {
                return malformed;
            }
            let old = header.as_view().raw16::<{ ipv4::VIHL }>();
            let [vihl, tos] = old.to_ne_bytes();
            let Some(tos) = combine_ecn(tos, outer_tos) else { return Verdict::of(Outcome::Congestion) };
            let new = u16::from_ne_bytes([vihl, tos]);
            if new != old {
                let check = csum::update16(header.as_view().raw16::<{ ipv4::CHECK }>(), old, new);
                header.set16::<{ ipv4::VIHL }>(new);
                header.set16::<{ ipv4::CHECK }>(check);
            }
            (eth::IPV4, bytes)
        }
        6 => {
            let bytes = ipv6::LEN + usize::from(header.as_view().u16::<{ ipv6::PAYLOAD_LEN }>());
            if bytes > room {
                return malformed;
            }
            let word = header.as_view().u32::<{ ipv6::WORD }>();
            let Some(tos) = combine_ecn((word >> 20) as u8, outer_tos) else {
                return Verdict::of(Outcome::Congestion);
            };
            header.set32::<{ ipv6::WORD }>((word & !(0xff << 20) | u32::from(tos) << 20).to_be());
            (eth::IPV6, bytes)
        }
        _ => return malformed,
    };
    let outcome = move_link_header(packet, l3, skip, ether_type);
    Verdict { outcome, bytes: if let Outcome::Decapsulated = outcome { bytes as u32 } else { 0 } }
}

/// Cuts `skip` bytes off the front; the link header moves up against what follows them.
#[inline(always)]
fn move_link_header<P: PacketMut>(packet: &mut P, l3: usize, skip: usize, ether_type: u16) -> Outcome {
    let Some(link) = packet.view::<{ eth::LEN }>(0) else { return Outcome::Malformed };
    let (m0, m4, m8, mut last) =
        (link.raw32::<0>(), link.raw32::<4>(), link.raw32::<8>(), link.raw16::<12>());
    let mut tag = 0;
    if l3 == eth::LEN {
        last = ether_type.to_be();
    } else {
        let Some(old) = packet.view::<{ vlan::LEN }>(eth::LEN) else { return Outcome::Malformed };
        tag = old.raw16::<0>();
    }
    if packet.grow_head(-(skip as i32)).is_none() {
        return Outcome::NoRoom;
    }
    let Some(mut link) = packet.view_mut::<{ eth::LEN }>(0) else { return Outcome::NoRoom };
    link.set32::<0>(m0);
    link.set32::<4>(m4);
    link.set32::<8>(m8);
    link.set16::<12>(last);
    if l3 != eth::LEN {
        let Some(mut new) = packet.view_mut::<{ vlan::LEN }>(eth::LEN) else { return Outcome::NoRoom };
        new.set16::<0>(tag);
        new.set16::<2>(ether_type.to_be());
    }
    Outcome::Decapsulated
}

/// The inner TOS after decapsulation, by the table of RFC 6040 section 4.2; `None` = drop.
#[inline(always)]
const fn combine_ecn(inner: u8, outer: u8) -> Option<u8> {
    const NOT_ECT: u8 = 0b00;
    const ECT1: u8 = 0b01;
    const ECT0: u8 = 0b10;
    const CE: u8 = 0b11;
    match (inner & 3, outer & 3) {
        (NOT_ECT, CE) => None,
        (ECT0 | ECT1, CE) => Some(inner | CE),
        (ECT0, ECT1) => Some(inner & !3 | ECT1),
        _ => Some(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6040 figure 4, row by row: arriving inner header, then outer Not-ECT, ECT(0), ECT(1), CE.
    #[test]
    fn ecn_follows_rfc6040() {
        let table: [(u8, [Option<u8>; 4]); 4] = [
            (0, [Some(0), Some(0), Some(0), None]),
            (2, [Some(2), Some(2), Some(1), Some(3)]),
            (1, [Some(1), Some(1), Some(1), Some(3)]),
            (3, [Some(3), Some(3), Some(3), Some(3)]),
        ];
        for (inner, row) in table {
            for (outer, expected) in [0u8, 2, 1, 3].into_iter().zip(row) {
                let dscp = 0xb8;
                let got = combine_ecn(dscp | inner, outer);
                assert_eq!(got, expected.map(|ecn| dscp | ecn), "inner {inner:02b}, outer {outer:02b}");
            }
        }
    }
}
