//! The backend's side of the tunnel modes: takes the outer header off.

use crate::{
    csum,
    packet::PacketMut,
    wire::{eth, gue, ipv4, ipv6, proto, udp, vlan},
};

/// What happens to a frame on a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// No tunnel packet of ours: the kernel takes it, untouched.
    Pass,
    /// The outer header is off: the kernel takes the inner packet.
    Decapsulated,
    /// A tunnel packet, refused.
    Refused(Reason),
}

/// Why a tunnel packet was refused or left alone: the index of its counter.
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
    /// Every reason with its label.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Malformed, "malformed"), (Self::Congestion, "congestion"), (Self::NoRoom, "no_room")];
}

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
#[inline(always)]
pub fn decapsulate<P: PacketMut, A: Allow>(packet: &mut P, allow: &A) -> Outcome {
    let Some(head) = packet.view::<{ eth::LEN + ipv4::LEN }>(0) else { return Outcome::Pass };
    if head.u8::<0>() & 1 != 0 {
        return Outcome::Pass;
    }
    let (ether_type, l3) = if head.raw16::<{ eth::TYPE }>() == eth::VLAN.to_be() {
        (head.raw16::<{ eth::TYPE + vlan::LEN }>(), eth::LEN + vlan::LEN)
    } else {
        (head.raw16::<{ eth::TYPE }>(), eth::LEN)
    };
    // Outer header: its length, TOS, what is inside, and where the payload ends.
    let (outer_len, tos, protocol, total) = if ether_type == eth::IPV4.to_be() {
        let Some(outer) = packet.view::<{ ipv4::LEN }>(l3) else { return Outcome::Pass };
        let protocol = outer.u8::<{ ipv4::PROTO }>();
        if !interesting(protocol) || !allow.source4(outer.raw32::<{ ipv4::SRC }>().to_ne_bytes()) {
            return Outcome::Pass;
        }
        // Balancers send neither options nor fragments.
        if outer.u8::<{ ipv4::VIHL }>() != 0x45
            || outer.u16::<{ ipv4::FRAGMENT }>() & (ipv4::MORE_FRAGMENTS | ipv4::FRAGMENT_OFFSET) != 0
        {
            return Outcome::Pass;
        }
        (ipv4::LEN, outer.u8::<{ ipv4::TOS }>(), protocol, usize::from(outer.u16::<{ ipv4::TOTAL_LEN }>()))
    } else if ether_type == eth::IPV6.to_be() {
        let Some(outer) = packet.view::<{ ipv6::LEN }>(l3) else { return Outcome::Pass };
        let Some(source) = packet.view::<16>(l3 + ipv6::SRC) else { return Outcome::Pass };
        let protocol = outer.u8::<{ ipv6::NEXT }>();
        if !interesting(protocol) || !allow.source6(source.0) {
            return Outcome::Pass;
        }
        let tos = (outer.u32::<{ ipv6::WORD }>() >> 20) as u8;
        (ipv6::LEN, tos, protocol, ipv6::LEN + usize::from(outer.u16::<{ ipv6::PAYLOAD_LEN }>()))
    } else {
        return Outcome::Pass;
    };
    let mut inner = outer_len;
    if protocol == proto::UDP {
        let Some(header) = packet.view::<{ udp::LEN }>(l3 + outer_len) else { return Outcome::Pass };
        if allow.gue_port() == 0 || header.u16::<2>() != allow.gue_port() {
            return Outcome::Pass;
        }
        inner += udp::LEN;
        // Variant 1: an IP header right away. Variant 0 without options: four bytes, then the IP header.
        let Some(first) = packet.view::<{ gue::LEN }>(l3 + inner) else {
            return Outcome::Refused(Reason::Malformed);
        };
        if first.u8::<0>() >> 6 == 0 {
            let data = matches!(first.u8::<1>(), proto::IPV4 | proto::IPV6);
            if first.u8::<0>() != 0 || !data || first.u16::<2>() != 0 {
                return Outcome::Refused(Reason::Malformed);
            }
            inner += gue::LEN;
        }
    }
    if total < inner || l3 + total > packet.len() {
        return Outcome::Refused(Reason::Malformed);
    }
    unwrap(packet, l3, inner, total - inner, tos)
}

#[inline(always)]
const fn interesting(protocol: u8) -> bool {
    protocol == proto::IPV4 || protocol == proto::IPV6 || protocol == proto::UDP
}

/// The inner packet starts `skip` bytes after the outer header and has `room` bytes.
#[inline(always)]
fn unwrap<P: PacketMut>(packet: &mut P, l3: usize, skip: usize, room: usize, outer_tos: u8) -> Outcome {
    let malformed = Outcome::Refused(Reason::Malformed);
    let at = l3 + skip;
    let Some(mut header) = packet.view_mut::<{ ipv4::LEN }>(at) else { return malformed };
    let ether_type = match header.as_view().u8::<0>() >> 4 {
        4 => {
            if usize::from(header.as_view().u16::<{ ipv4::TOTAL_LEN }>()) > room {
                return malformed;
            }
            let old = header.as_view().raw16::<{ ipv4::VIHL }>();
            let [vihl, tos] = old.to_ne_bytes();
            let Some(tos) = combine_ecn(tos, outer_tos) else { return Outcome::Refused(Reason::Congestion) };
            let new = u16::from_ne_bytes([vihl, tos]);
            if new != old {
                let check = csum::update16(header.as_view().raw16::<{ ipv4::CHECK }>(), old, new);
                header.set16::<{ ipv4::VIHL }>(new);
                header.set16::<{ ipv4::CHECK }>(check);
            }
            eth::IPV4
        }
        6 => {
            if ipv6::LEN + usize::from(header.as_view().u16::<{ ipv6::PAYLOAD_LEN }>()) > room {
                return malformed;
            }
            let word = header.as_view().u32::<{ ipv6::WORD }>();
            let Some(tos) = combine_ecn((word >> 20) as u8, outer_tos) else {
                return Outcome::Refused(Reason::Congestion);
            };
            header.set32::<{ ipv6::WORD }>((word & !(0xff << 20) | u32::from(tos) << 20).to_be());
            eth::IPV6
        }
        _ => return malformed,
    };
    let Some(link) = packet.view::<{ eth::LEN }>(0) else { return malformed };
    let (m0, m4, m8, mut last) =
        (link.raw32::<0>(), link.raw32::<4>(), link.raw32::<8>(), link.raw16::<12>());
    let mut tag = 0;
    if l3 == eth::LEN {
        last = ether_type.to_be();
    } else {
        let Some(old) = packet.view::<{ vlan::LEN }>(eth::LEN) else { return malformed };
        tag = old.raw16::<0>();
    }
    if packet.grow_head(-(skip as i32)).is_none() {
        return Outcome::Refused(Reason::NoRoom);
    }
    let Some(mut link) = packet.view_mut::<{ eth::LEN }>(0) else { return malformed };
    link.set32::<0>(m0);
    link.set32::<4>(m4);
    link.set32::<8>(m8);
    link.set16::<12>(last);
    if l3 != eth::LEN {
        let Some(mut new) = packet.view_mut::<{ vlan::LEN }>(eth::LEN) else { return malformed };
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
