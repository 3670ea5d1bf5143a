//! Addresses and ports rewritten, checksums brought up to date (RFC 1624).

use crate::{
    core::{DropReason, Ip},
    csum,
    packet::{PacketMut, View, ViewMut},
    wire::{ipv4, ipv6, proto, tcp, udp},
};

/// An address as it stands in the packet, in two words; IPv4 mapped (RFC 4291 section 2.5.5.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Address {
    pub hi: u64,
    pub lo: u64,
}

impl Address {
    /// An IPv4 address, its four bytes as in memory.
    #[inline(always)]
    pub const fn mapped(address: u32) -> Self {
        let [a, b, c, d] = address.to_ne_bytes();
        Self { hi: 0, lo: u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d]) }
    }

    /// From a table.
    #[inline(always)]
    pub fn read(bytes: &[u8; 16]) -> Self {
        let view = View(bytes);
        Self { hi: view.raw64::<0>(), lo: view.raw64::<8>() }
    }

    /// The address of a backend, which the table keeps unmapped.
    #[inline(always)]
    pub fn of_backend(backend: &crate::abi::BackendEntry) -> Self {
        let view = View(&backend.outer_dst);
        if backend.family == 6 { Self::read(&backend.outer_dst) } else { Self::mapped(view.raw32::<0>()) }
    }

    /// The four bytes of a mapped address.
    #[inline(always)]
    pub const fn v4(self) -> u32 {
        let [_, _, _, _, a, b, c, d] = self.lo.to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d])
    }

    /// Is it an IPv4 address?
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        let [a, b, c, d, ..] = self.lo.to_ne_bytes();
        self.hi == 0 && u32::from_ne_bytes([a, b, c, d]) == u32::from_ne_bytes([0, 0, 0xff, 0xff])
    }

    /// As keys and values keep it.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h] = self.hi.to_ne_bytes();
        let [i, j, k, l, m, n, o, p] = self.lo.to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// Into a key or value, by words.
    #[inline(always)]
    pub fn write(self, bytes: &mut [u8; 16]) {
        let mut view = ViewMut(bytes);
        view.set64::<0>(self.hi);
        view.set64::<8>(self.lo);
    }

    /// Sum for a checksum. The two words that map an IPv4 address sum up to nothing: 0xffff is zero.
    #[inline(always)]
    pub const fn sum(self) -> u64 {
        halves(self.hi) + halves(self.lo)
    }
}

#[inline(always)]
pub(super) const fn halves(word: u64) -> u64 {
    (word & 0xffff_ffff) + (word >> 32)
}

/// Addresses and ports of a packet; ports as they stand in it, 0 = as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    pub src: Address,
    pub dst: Address,
    pub src_port: u16,
    pub dst_port: u16,
}

/// Which ends of a packet are rewritten.
pub const SOURCE: u8 = 1;
/// See [`SOURCE`].
pub const DESTINATION: u8 = 2;
/// See [`SOURCE`].
pub const BOTH: u8 = SOURCE | DESTINATION;

const INTERNAL: DropReason = DropReason::Internal;

/// Rewrites the ends named by `WHICH` of a TCP or UDP packet whose IP header is at `l3`, and the checksums. A
/// UDP checksum of zero, which is none (RFC 768), stays zero.
#[inline(always)]
pub fn ends<P: PacketMut, const WHICH: u8>(
    packet: &mut P,
    ip: &Ip,
    l3: usize,
    to: &Ends,
) -> Result<(), DropReason> {
    let diff = addresses::<P, WHICH>(packet, ip.v6, l3, to.src, to.dst)?;
    ports::<P, WHICH>(packet, l3 + ip.header_len, ip.proto, to, diff)
}

/// Rewrites the addresses and the IPv4 header checksum; gives what the change adds to other checksums over the addresses.
#[inline(always)]
pub fn addresses<P: PacketMut, const WHICH: u8>(
    packet: &mut P,
    v6: bool,
    l3: usize,
    src: Address,
    dst: Address,
) -> Result<u64, DropReason> {
    let mut diff = 0;
    if v6 {
        let mut header = packet.view_mut::<{ ipv6::LEN }>(l3).ok_or(INTERNAL)?;
        if WHICH & SOURCE != 0 {
            let old = header.as_view();
            diff +=
                halves(!old.raw64::<{ ipv6::SRC }>()) + halves(!old.raw64::<{ ipv6::SRC + 8 }>()) + src.sum();
            header.set64::<{ ipv6::SRC }>(src.hi);
            header.set64::<{ ipv6::SRC + 8 }>(src.lo);
        }
        if WHICH & DESTINATION != 0 {
            let old = header.as_view();
            diff +=
                halves(!old.raw64::<{ ipv6::DST }>()) + halves(!old.raw64::<{ ipv6::DST + 8 }>()) + dst.sum();
            header.set64::<{ ipv6::DST }>(dst.hi);
            header.set64::<{ ipv6::DST + 8 }>(dst.lo);
        }
    } else {
        let mut header = packet.view_mut::<{ ipv4::LEN }>(l3).ok_or(INTERNAL)?;
        if WHICH & SOURCE != 0 {
            diff += u64::from(!header.as_view().raw32::<{ ipv4::SRC }>()) + u64::from(src.v4());
            header.set32::<{ ipv4::SRC }>(src.v4());
        }
        if WHICH & DESTINATION != 0 {
            diff += u64::from(!header.as_view().raw32::<{ ipv4::DST }>()) + u64::from(dst.v4());
            header.set32::<{ ipv4::DST }>(dst.v4());
        }
        let check = header.as_view().raw16::<{ ipv4::CHECK }>();
        header.set16::<{ ipv4::CHECK }>(updated(check, diff));
    }
    Ok(diff)
}

/// Rewrites the ports at `at` and the checksum, to which `diff` is added for what else it covers.
#[inline(always)]
pub(super) fn ports<P: PacketMut, const WHICH: u8>(
    packet: &mut P,
    at: usize,
    protocol: u8,
    to: &Ends,
    diff: u64,
) -> Result<(), DropReason> {
    if protocol == proto::UDP {
        let mut header = packet.view_mut::<{ udp::LEN }>(at).ok_or(INTERNAL)?;
        let (old, new) = port_words::<WHICH>(header.as_view().raw32::<0>(), to);
        let check = header.as_view().raw16::<{ udp::CHECK }>();
        header.set32::<0>(new);
        if check != 0 {
            let diff = diff + u64::from(!old) + u64::from(new);
            header.set16::<{ udp::CHECK }>(never_none(updated(check, diff)));
        }
    } else {
        let mut header = packet.view_mut::<{ tcp::LEN }>(at).ok_or(INTERNAL)?;
        let (old, new) = port_words::<WHICH>(header.as_view().raw32::<0>(), to);
        let check = header.as_view().raw16::<{ tcp::CHECK }>();
        header.set32::<0>(new);
        header.set16::<{ tcp::CHECK }>(updated(check, diff + u64::from(!old) + u64::from(new)));
    }
    Ok(())
}

/// Source and destination port as one word of the packet, before and after.
#[inline(always)]
pub(super) const fn port_words<const WHICH: u8>(old: u32, to: &Ends) -> (u32, u32) {
    let [a, b, c, d] = old.to_ne_bytes();
    let [s0, s1] = if WHICH & SOURCE != 0 && to.src_port != 0 { to.src_port.to_ne_bytes() } else { [a, b] };
    let [d0, d1] =
        if WHICH & DESTINATION != 0 && to.dst_port != 0 { to.dst_port.to_ne_bytes() } else { [c, d] };
    (old, u32::from_ne_bytes([s0, s1, d0, d1]))
}

/// RFC 1624 equation 3, for a sum of old words complemented and new ones.
#[inline(always)]
pub(super) const fn updated(check: u16, diff: u64) -> u16 {
    !csum::fold(!check as u64 + diff)
}

/// RFC 768: a UDP checksum that comes out as zero is sent as all ones.
#[inline(always)]
pub(super) const fn never_none(check: u16) -> u16 {
    if check == 0 { 0xffff } else { check }
}
