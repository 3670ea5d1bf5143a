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
    if total < skip || l3 + total > packet.len() && l3 + total > packet.full_len() {
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
    use crate::{
        abi::{BackendEntry, ForwardKind},
        core::{Forward, Ip, forward},
        packet::{Buffer, Packet},
    };
    use proptest::prelude::*;
    use std::vec::Vec;

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

    #[test]
    fn counters_are_distinct_and_fit_the_map() {
        let mut used = std::vec![PACKETS, BYTES];
        for reason in Reason::ALL {
            assert!(!used.contains(&reason.counter()) && reason.counter() < COUNTERS);
            used.push(reason.counter());
        }
    }

    /// Listens to one network of each family.
    struct Balancers;

    impl Allow for Balancers {
        fn source4(&self, address: [u8; 4]) -> bool {
            address[..2] == [198, 18]
        }
        fn source6(&self, address: &[u8; 16]) -> bool {
            address[..2] == [0xfd, 0]
        }
        fn gue_port(&self) -> u16 {
            6080
        }
    }

    fn ip_packet(v6: bool, tos: u8, payload: &[u8]) -> Vec<u8> {
        let len = payload.len() as u16;
        let mut ip;
        if v6 {
            ip = std::vec![0x60 | tos >> 4, tos << 4, 0, 0];
            ip.extend(len.to_be_bytes());
            ip.extend([59, 64]);
            ip.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            ip.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        } else {
            ip = std::vec![0x45, tos];
            ip.extend((len + 20).to_be_bytes());
            ip.extend([0, 1, 0x40, 0, 64, 253, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
            let check = csum::finish(csum::sum_bytes(&ip)).to_ne_bytes();
            ip[10..12].copy_from_slice(&check);
        }
        ip.extend(payload);
        ip
    }

    proptest! {
        /// What the balancer puts around a packet comes off again, and nothing else.
        #[test]
        fn takes_off_what_the_balancer_puts_on(
            v6: bool, gue: bool, outer6: bool, vlan in prop::option::of(1u16..4095), tos: u8, hash: u64,
            payload in prop::collection::vec(any::<u8>(), 8..200),
        ) {
            let mut inner = ip_packet(v6, tos, &payload);
            let mut frame = std::vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
            frame.extend(if v6 { eth::IPV6 } else { eth::IPV4 }.to_be_bytes());
            frame.extend(&inner);
            let mut packet = Buffer::new(&frame);
            let mut outer = [0; 16];
            outer[..2].copy_from_slice(if outer6 { &[0xfd, 0] } else { &[198, 18] });
            let kind = if gue { ForwardKind::Gue } else { ForwardKind::Ipip };
            let backend = BackendEntry {
                l2: [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1], ifindex: 1, outer_src: outer, outer_dst: [10; 16], mtu: 1500,
                vlan: vlan.unwrap_or(0), kind: kind as u8, family: if outer6 { 6 } else { 4 }, entropy_bits: 16,
                port: 6080, ..BackendEntry::default()
            };
            let ip = Ip {
                l3: 14, header_len: if v6 { 40 } else { 20 }, v6, total_len: inner.len() as u16, tos,
                proto: if v6 { 59 } else { 253 }, part: crate::core::Part::Whole,
            };
            let to = Forward { service: 0, backend_id: 1, backend: &backend, ip, hash, slot: 0 };
            prop_assert_eq!(forward::rewrite(&mut packet, &to), Ok(()));
            let verdict = decapsulate(&mut packet, &Balancers);
            prop_assert_eq!(verdict, Verdict { outcome: Outcome::Decapsulated, bytes: inner.len() as u32 });
            // One hop further.
            if v6 {
                inner[7] -= 1;
            } else {
                inner[8] -= 1;
                inner[10..12].fill(0);
                let check = csum::finish(csum::sum_bytes(&inner[..20])).to_ne_bytes();
                inner[10..12].copy_from_slice(&check);
            }
            let l3 = if vlan.is_some() { 18 } else { 14 };
            prop_assert_eq!(&packet.frame()[l3..], &inner[..]);
            prop_assert_eq!(&packet.frame()[..12], &backend.l2);
            if let Some(id) = vlan {
                prop_assert_eq!(&packet.frame()[12..16], &[&[0x81, 0][..], &id.to_be_bytes()].concat()[..]);
            }
            let ether_type = if v6 { [0x86, 0xdd] } else { [8, 0] };
            prop_assert_eq!(&packet.frame()[l3 - 2..l3], &ether_type);
        }

        /// Any bytes after an outer header of a balancer: never a panic, and a frame that is passed is untouched.
        #[test]
        fn survives_anything(
            v6: bool, protocol in prop::sample::select(std::vec![4u8, 17, 41]), length: Option<u16>,
            udp_port: Option<u16>, rest in prop::collection::vec(any::<u8>(), 0..120), cut in 0usize..200,
        ) {
            let mut rest = rest;
            if rest.len() >= 8 && udp_port.is_none() {
                rest[2..4].copy_from_slice(&6080u16.to_be_bytes());
                let len = (rest.len() as u16).to_be_bytes();
                rest[4..6].copy_from_slice(&len);
                if let Some(first) = rest.get_mut(8) {
                    *first &= 0x4f;
                }
            }
            let mut ip = ip_packet(v6, 3, &rest);
            if v6 {
                ip[6] = protocol;
                ip[8..10].copy_from_slice(&[0xfd, 0]);
                if let Some(length) = length { ip[4..6].copy_from_slice(&length.to_be_bytes()); }
            } else {
                ip[9] = protocol;
                ip[12..14].copy_from_slice(&[198, 18]);
                if let Some(length) = length { ip[2..4].copy_from_slice(&length.to_be_bytes()); }
                ip[10..12].fill(0);
                let check = csum::finish(csum::sum_bytes(&ip[..20])).to_ne_bytes();
                ip[10..12].copy_from_slice(&check);
            }
            let mut frame = std::vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
            frame.extend(if v6 { eth::IPV6 } else { eth::IPV4 }.to_be_bytes());
            frame.extend(ip);
            frame.truncate(cut.max(14));
            let mut packet = Buffer::new(&frame);
            let verdict = decapsulate(&mut packet, &Balancers);
            match verdict.outcome {
                Outcome::Pass => prop_assert_eq!(packet.frame(), &frame[..]),
                Outcome::Decapsulated => {
                    prop_assert!(verdict.bytes as usize + 14 <= packet.len());
                    prop_assert!(packet.len() < frame.len() && packet.frame()[14] >> 4 >= 4);
                }
                refused => prop_assert!(refused.refusal().is_some() && packet.len() == frame.len()),
            }
        }
    }
}
