//! Fragments of packets whose addresses are rewritten. The first one has the ports, is rewritten like any packet and
//! leaves in its trace what its addresses became; those behind it follow. They have no checksum but IPv4's own header's: the
//! datagram's is in the first.

use super::{
    Address, Answer, NatTables, Way,
    back::{Head, any, leave},
    rewrite::{self, BOTH},
};
use crate::{
    abi::{FragmentKey, FragmentTrace, NatScratch},
    core::{DropReason, Part, fragment::LIFETIME_NS},
    packet::PacketMut,
    wire::proto,
};

/// The datagram of a fragment, as [`crate::core::fragment`] names it.
#[inline(always)]
fn name(key: &mut FragmentKey, head: &Head) {
    head.src.write(&mut key.src);
    head.dst.write(&mut key.dst);
    key.id = head.id;
    key.proto = if head.ip.v6 { proto::FRAGMENT } else { head.ip.proto }.into();
}

/// Leaves the trace of a packet that was rewritten, if it is a first fragment. `head` is what it was; backend and service are
/// 0 on the way back.
#[inline(always)]
pub(super) fn remember<T: NatTables>(
    tables: &T,
    scratch: &mut NatScratch,
    head: &Head,
    (backend, service): (u32, u32),
    (src, dst): (Address, Address),
) {
    if !matches!(head.ip.part, Part::First) {
        return;
    }
    name(&mut scratch.fragment, head);
    let trace = &mut scratch.trace;
    (trace.seen_ns, trace.backend, trace.service) = (tables.now_ns(), backend, service);
    src.write(&mut trace.src);
    dst.write(&mut trace.dst);
    (trace.family, trace.entropy) = (if head.ip.v6 { 6 } else { 4 }, 0);
    tables.add_fragment_trace(&scratch.fragment, &scratch.trace);
}

/// The trace of the first fragment.
#[inline(always)]
fn trace<T: NatTables>(tables: &T, scratch: &mut NatScratch, head: &Head) -> Option<FragmentTrace> {
    name(&mut scratch.fragment, head);
    let trace = tables.fragment_trace(&scratch.fragment)?;
    let fresh = tables.now_ns().saturating_sub(trace.seen_ns) <= LIFETIME_NS;
    (fresh && trace.family != 0).then_some(trace)
}

/// A fragment from a backend to a client. One whose first was not seen is nobody's: the kernel's.
#[inline(always)]
pub fn back<P: PacketMut, T: NatTables, const V6: bool>(
    packet: &mut P,
    tables: &T,
    scratch: &mut NatScratch,
    l3: usize,
) -> Answer {
    let Some(head) = any::<P, V6>(packet, l3) else { return Answer::PASS };
    let Some(trace) = trace(tables, scratch, &head) else { return Answer::PASS };
    if trace.backend != 0 {
        return Answer::PASS;
    }
    let (vip, client) = (Address::read(&trace.src), Address::read(&trace.dst));
    match tables.way(V6, vip, client) {
        Way::Here | Way::None => Answer::drop(DropReason::NoNextHop),
        Way::Exit(exit) => {
            if head.ttl <= 1 {
                return Answer::drop(DropReason::TtlExceededUnanswered);
            }
            if head.ip.total_len > exit.mtu {
                return Answer::drop(DropReason::TooBigUnanswered);
            }
            match rewrite::addresses::<P, BOTH>(packet, V6, l3, vip, client)
                .and_then(|_| leave(packet, &head.ip, &exit.l2, exit.vlan))
            {
                Ok(()) => Answer::send(exit.ifindex, 0),
                Err(reason) => Answer::drop(reason),
            }
        }
    }
}

/// A fragment from a client to a backend, whose trace was seen a moment ago.
#[inline(always)]
pub fn out<P: PacketMut, T: NatTables, const V6: bool>(
    packet: &mut P,
    tables: &T,
    scratch: &mut NatScratch,
    l3: usize,
) -> Answer {
    const UNKNOWN: Answer = Answer::drop(DropReason::FragmentUnknown);
    let Some(head) = any::<P, V6>(packet, l3) else { return UNKNOWN };
    let Some(trace) = trace(tables, scratch, &head) else { return UNKNOWN };
    let Some(backend) = tables.backend(trace.backend) else { return UNKNOWN };
    if backend.ifindex == 0 {
        return Answer::drop(DropReason::NoNextHop);
    }
    if head.ip.total_len > backend.mtu {
        return Answer::drop(DropReason::TooBigUnanswered);
    }
    let (src, dst) = (Address::read(&trace.src), Address::read(&trace.dst));
    match rewrite::addresses::<P, BOTH>(packet, V6, l3, src, dst)
        .and_then(|_| leave(packet, &head.ip, &backend.l2, backend.vlan))
    {
        Ok(()) => Answer::send(backend.ifindex, trace.backend),
        Err(reason) => Answer::drop(reason),
    }
}
