//! Packets whose ports are elsewhere: ICMP errors (in the packet they quote) and fragments behind the first (in the
//! first). A function out of line finds out where they go and says so in one number.

use super::{
    Answer, AnswerKind, Back, Decision, DropReason, Forward, Ip, Part, Tables,
    affinity::Place,
    neighbour,
    parse::{refuse, unclaimed},
};
use crate::{
    abi::{BackendEntry, ForwardKind, VipEntry},
    packet::Packet,
    wire::{ipv4, ipv6, proto},
};

/// What is to become of such a packet, in one number that passes between kernel functions, from the low bits up:
/// `what:8 | backend:24 | entropy:32`, or `what:8 | reason:8` of a drop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found(pub u64);

impl Found {
    const FORWARD: u64 = 2;
    const DROP: u64 = 3;
    const REWRITE: u64 = 4;

    /// The kernel's.
    pub const PASS: Self = Self(0);
    /// An echo request.
    pub const ECHO: Self = Self(1);

    /// A fragment that goes back to a client: see [`crate::core::nat::pieces`].
    pub const BACK: Self = Self(5);

    /// A fragment to this backend, addresses rewritten as those of the first.
    #[inline(always)]
    #[must_use]
    pub const fn rewrite(backend: u32) -> Self {
        Self(Self::REWRITE | (backend as u64 & 0x00ff_ffff) << 8)
    }

    /// To this backend; `entropy` varies the outer header as it does for the flow.
    #[inline(always)]
    #[must_use]
    pub const fn forward(backend: u32, entropy: u32) -> Self {
        Self(Self::FORWARD | (backend as u64 & 0x00ff_ffff) << 8 | (entropy as u64) << 32)
    }

    /// Dropped, for one of the reasons that [`Found::reason`] knows.
    #[inline(always)]
    #[must_use]
    pub const fn drop(reason: DropReason) -> Self {
        Self(Self::DROP | (reason as u64) << 8)
    }

    #[inline(always)]
    const fn backend(self) -> u32 {
        (self.0 >> 8) as u32 & 0x00ff_ffff
    }

    #[inline(always)]
    const fn reason(self) -> DropReason {
        const ICMP_QUOTE: u32 = DropReason::IcmpQuote as u32;
        const UNKNOWN: u32 = DropReason::FragmentUnknown as u32;
        const HELD: u32 = DropReason::FragmentHeld as u32;
        const FRAGMENT: u32 = DropReason::Fragment as u32;
        const NO_BACKEND: u32 = DropReason::NoBackend as u32;
        match (self.0 >> 8) as u32 & 0xff {
            ICMP_QUOTE => DropReason::IcmpQuote,
            UNKNOWN => DropReason::FragmentUnknown,
            HELD => DropReason::FragmentHeld,
            FRAGMENT => DropReason::Fragment,
            NO_BACKEND => DropReason::NoBackend,
            _ => DropReason::Internal,
        }
    }
}

/// A packet to a VIP that is neither TCP nor UDP.
#[inline(always)]
pub(super) fn other<'t, P: Packet, T: Tables>(
    packet: &P,
    tables: &'t T,
    vip: &VipEntry,
    ip: Ip,
    ttl: u8,
) -> Decision<'t> {
    let (icmp, plain) = if ip.v6 { (proto::ICMPV6, ipv6::LEN) } else { (proto::ICMP, ipv4::LEN) };
    if ip.proto != icmp || !matches!(ip.part, Part::Whole) {
        return unclaimed(vip, &ip);
    }
    let found = tables.icmp(packet, Place::of(&ip));
    if found.0 as u8 == Found::ECHO.0 as u8 {
        // Options, which an answer might have to turn round (RFC 1122 section 3.2.2.6), are the kernel's.
        if vip.flags & VipEntry::ECHO == 0 || ip.header_len != plain {
            return Decision::Pass;
        }
        let Ip { l3, header_len, v6, .. } = ip;
        return Decision::Answer(Answer { kind: AnswerKind::Echo, l3, header_len, v6 });
    }
    if found.0 as u8 == Found::PASS.0 as u8 {
        if ip.v6 && neighbour::is_solicitation(packet, ip.l3) {
            return neighbour::perhaps(tables, ip.l3, true);
        }
        return unclaimed(vip, &ip);
    }
    follow(tables, found, ip, ttl)
}

/// Does what was found out.
#[inline(always)]
pub(super) fn follow<T: Tables>(tables: &T, found: Found, ip: Ip, ttl: u8) -> Decision<'_> {
    match u64::from(found.0 as u8) {
        Found::FORWARD | Found::REWRITE => {}
        5 => return Decision::Back(Back { l3: ip.l3, v6: ip.v6, pool: true, watched: false }),
        Found::DROP => return refuse(found.reason()),
        _ => return Decision::Pass,
    }
    if ttl <= 1 {
        return refuse(DropReason::TtlExceededUnanswered);
    }
    let backend_id = found.backend();
    let Some(backend) = tables.backend(backend_id) else { return refuse(DropReason::Internal) };
    let (service, hash) = (backend.service, found.0 >> 32);
    let forward = Forward { service, backend_id, backend, ip, hash, slot: 0 };
    // The packet that an ICMP error quotes is rewritten, too, and a session knows what to; of a fragment its trace does.
    let rewritten = backend.kind == ForwardKind::Nat as u8 || backend.kind == ForwardKind::Snat as u8;
    if rewritten && matches!(ip.part, Part::Whole) || u64::from(found.0 as u8) == Found::REWRITE {
        return Decision::Steer(forward);
    }
    Decision::Forward(forward)
}

/// Does a backend take packets?
#[inline(always)]
pub(super) const fn takes(backend: &BackendEntry) -> bool {
    backend.kind != 0 && backend.flags & BackendEntry::DEAD == 0
}
