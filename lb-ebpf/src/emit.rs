//! Counting and sending: what becomes of a decision.

use crate::{frame::Frame, maps, observe, outline, tables::Maps};
use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    helpers::bpf_redirect,
    maps::PerCpuArray,
};
use lb_common::{
    abi::{EXPIRED_BUCKET, ICMP_BUCKET, Stats},
    core::{Answer, AnswerKind, Decision, DropReason, Forward, Part, Tables as _, forward, icmp::Message},
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
    match lb_common::core::decide(frame, &Maps::<OBSERVED>::of(frame.ctx())) {
        Decision::Pass => XDP_PASS,
        Decision::Drop(refusal) => refuse(frame, refusal.reason),
        Decision::Forward(to) => send::<OBSERVED>(frame, &to),
        Decision::Answer(answer) => reply(frame, &answer),
    }
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
        Err(DropReason::TooBig) => return tell_too_big(frame, to),
        Err(reason) => return refuse(frame, reason),
    }
    let bytes = u64::from(to.ip.total_len);
    if !OBSERVED || !observe::dry() {
        count(&maps::SERVICE_STATS, to.service, bytes);
        count(&maps::BACKEND_STATS, to.backend_id, bytes);
    }
    if to.backend.ifindex == frame.ingress() {
        return XDP_TX;
    }
    // SAFETY: a helper call without pointers.
    unsafe { bpf_redirect(to.backend.ifindex, 0) as u32 }
}

/// The sender learns the MTU; its packet is gone either way.
#[inline(always)]
fn tell_too_big(frame: &mut Frame, to: &Forward<'_>) -> u32 {
    if !to.ip.may_be_answered() {
        return refuse(frame, DropReason::TooBigUnanswered);
    }
    let message = Message::too_big(to.ip.v6, forward::path_mtu(to.backend));
    let told = outline::tell(frame.ctx(), to.ip.l3, to.ip.v6, message, ICMP_BUCKET);
    answered(frame, told, DropReason::TooBig, DropReason::TooBigUnanswered)
}

/// What the balancer says of its own.
#[inline(always)]
fn reply(frame: &mut Frame, answer: &Answer) -> u32 {
    let Answer { kind, l3, v6 } = *answer;
    let told = match kind {
        AnswerKind::Echo => outline::echo(frame.ctx(), l3, v6),
        AnswerKind::Expired => outline::tell(frame.ctx(), l3, v6, Message::expired(v6), EXPIRED_BUCKET),
    };
    answered(frame, told, kind.answered(), kind.unanswered())
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
    if observe::watched() {
        observe::reason(reason);
    }
    if observe::dry() {
        return XDP_DROP;
    }
    if matches!(reason, DropReason::Internal | DropReason::NoHeadroom) {
        outline::complain(frame.ctx(), reason as u64);
    }
    if let Some(counter) = maps::DROPS.get_ptr_mut(reason as u32) {
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
