//! Counting and sending: what becomes of a decision.

use crate::{emit_nat, frame::Frame, maps, observe, outline, outline_address, tables::Maps};
use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    helpers::bpf_redirect,
    maps::PerCpuArray,
};
use lb_common::{
    abi::{EXPIRED_BUCKET, ICMP_BUCKET, Stats, UNREACHABLE_BUCKET},
    core::{
        Answer, AnswerKind, Decision, DropReason, Forward, Ip, Neighbour, Part, Tables as _, forward,
        icmp::Message, neighbour::Resolved,
    },
    hash,
};

/// Decides about a frame, rewrites and counts it; the answer is the XDP verdict.
#[inline(always)]
pub fn handle(frame: &mut Frame) -> u32 {
    run::<false>(frame)
}

/// `OBSERVED` is a parameter of the whole path: what observing takes is not even tested for where it is off.
#[inline(always)]
pub(crate) fn run<const OBSERVED: bool>(frame: &mut Frame) -> u32 {
    let maps = Maps::<OBSERVED>::of(frame.ctx());
    let to = match lb_common::core::decide(frame, &maps) {
        Decision::Pass => return XDP_PASS,
        Decision::Drop(refusal) => return refuse(frame, refusal.reason),
        Decision::Answer(answer) => return reply(frame, &answer),
        Decision::Forward(to) => to,
        Decision::Session(to, step) => match emit_nat::session::<OBSERVED>(frame, &to, step) {
            Some(verdict) => return verdict,
            None => to,
        },
        Decision::Steer(to) => return emit_nat::steer::<OBSERVED>(frame, &to),
        Decision::Back(back) => return emit_nat::back::<OBSERVED>(frame, back),
        Decision::Neighbour(at) => return neighbour(frame, at),
    };
    send::<OBSERVED>(frame, &to)
}

#[inline(always)]
fn send<const OBSERVED: bool>(frame: &mut Frame, to: &Forward<'_>) -> u32 {
    if OBSERVED {
        observe::backend(to.backend_id, to.service);
    }
    if let Part::First = to.ip.part {
        let tables = Maps::new(frame.ctx());
        tables.trace(frame, to.ip.l3, to.ip.v6, to.backend_id, hash::entropy(to.hash));
    }
    match forward::rewrite(frame, to) {
        Ok(()) => {}
        Err(DropReason::TooBig) => {
            return tell_too_big(frame, &to.ip, forward::path_mtu(to.backend));
        }
        Err(reason) => return refuse(frame, reason),
    }
    counted::<OBSERVED>(to.service, to.backend_id, to.ip.total_len);
    leave(frame, to.backend.ifindex)
}

/// Counts a packet of `len` bytes.
#[inline(always)]
pub(crate) fn counted<const OBSERVED: bool>(service: u32, backend: u32, len: u16) {
    if OBSERVED && observe::dry() {
        return;
    }
    count(&maps::SERVICE_STATS, service, len.into());
    count(&maps::BACKEND_STATS, backend, len.into());
}

/// Out of an interface.
#[inline(always)]
pub(crate) fn leave(frame: &Frame, ifindex: u32) -> u32 {
    if ifindex == frame.ingress() {
        return XDP_TX;
    }
    // SAFETY: a helper call without pointers.
    unsafe { bpf_redirect(ifindex, 0) as u32 }
}

/// The sender learns the MTU; its packet is gone either way.
#[inline(always)]
pub(crate) fn tell_too_big(frame: &mut Frame, ip: &Ip, mtu: u16) -> u32 {
    if !ip.may_be_answered() {
        return refuse(frame, DropReason::TooBigUnanswered);
    }
    tell(frame, ip.l3, ip.v6, mtu)
}

/// The same of a packet of TCP or UDP that is no fragment.
#[inline(always)]
pub(crate) fn tell(frame: &mut Frame, l3: usize, v6: bool, mtu: u16) -> u32 {
    let told = outline::tell(frame.ctx(), l3, v6, Message::too_big(v6, mtu), ICMP_BUCKET);
    answered(frame, told, DropReason::TooBig, DropReason::TooBigUnanswered)
}

/// What the balancer says of its own.
#[inline(always)]
fn reply(frame: &mut Frame, answer: &Answer) -> u32 {
    let Answer { kind, l3, header_len, v6 } = *answer;
    let told = match kind {
        AnswerKind::Echo => outline::echo(frame.ctx(), l3, v6),
        AnswerKind::Expired => outline::tell(frame.ctx(), l3, v6, Message::expired(v6), EXPIRED_BUCKET),
        AnswerKind::Reset => outline::reset(frame.ctx(), l3, header_len, v6),
        AnswerKind::Unreachable => {
            outline::tell(frame.ctx(), l3, v6, Message::port_unreachable(v6), UNREACHABLE_BUCKET)
        }
    };
    answered(frame, told, kind.answered(), kind.unanswered())
}

/// Somebody asks who has an address, or says so.
#[inline(always)]
fn neighbour(frame: &mut Frame, at: Neighbour) -> u32 {
    let l3 = at.l3 as u64;
    let resolved = if at.v6 {
        outline_address::neighbour(frame.ctx(), l3)
    } else {
        outline_address::arp(frame.ctx(), l3)
    };
    frame.refresh();
    let resolved = Resolved(outline::opaque(resolved));
    if resolved == Resolved::ANSWERED {
        refuse_number(frame, DropReason::NeighbourAnswered as u32);
        return XDP_TX;
    }
    if resolved == Resolved::UNANSWERED {
        return refuse_number(frame, DropReason::NeighbourUnanswered as u32);
    }
    if resolved == Resolved::OVER {
        return refuse_number(frame, DropReason::LeaseOver as u32);
    }
    XDP_PASS
}

#[inline(always)]
fn answered(frame: &mut Frame, told: bool, yes: DropReason, no: DropReason) -> u32 {
    frame.refresh();
    if !told {
        return refuse(frame, no);
    }
    refuse(frame, yes);
    XDP_TX
}

#[inline(always)]
fn refuse(frame: &Frame, reason: DropReason) -> u32 {
    if matches!(reason, DropReason::Internal | DropReason::NoHeadroom) && !observe::dry() {
        outline::complain(frame.ctx(), reason as u64);
    }
    refuse_number(frame, reason as u32)
}

/// The same for what a function out of line refused: its own complaints are none of these.
#[inline(always)]
pub(crate) fn refuse_number(_: &Frame, reason: u32) -> u32 {
    if observe::watched() {
        observe::reason(reason);
    }
    if observe::dry() {
        return XDP_DROP;
    }
    if let Some(counter) = maps::DROPS.get_ptr_mut(reason) {
        // SAFETY: this CPU's own element.
        unsafe { *counter += 1 };
    }
    XDP_DROP
}

#[inline(always)]
fn count(stats: &PerCpuArray<Stats>, id: u32, bytes: u64) {
    if let Some(stats) = stats.get_ptr_mut(id) {
        // SAFETY: this CPU's own element.
        unsafe {
            (*stats).packets += 1;
            (*stats).bytes += bytes;
        }
    }
}
