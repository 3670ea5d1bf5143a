//! What becomes of a packet of NAT.

use crate::{
    emit::{counted, leave, refuse_number, tell, tell_too_big},
    frame::Frame,
    observe,
    outline::{self, opaque},
    outline_nat,
    tables::Maps,
};
use aya_ebpf::bindings::xdp_action::{XDP_PASS, XDP_TX};
use lb_common::core::{
    Back, DropReason, Forward, Part, Tables as _,
    affinity::{Place, Step},
    nat::{Answer, Verdict},
};

/// A packet of a service with sessions. `None`: this one needs none.
#[inline(always)]
pub fn session<const OBSERVED: bool>(frame: &mut Frame, to: &Forward<'_>, step: Step) -> Option<u32> {
    let place = Place::of(&to.ip).0;
    let ids = u64::from(to.service) | u64::from(to.backend_id) << 32;
    let ctx = frame.ctx();
    let first = if let Part::First = to.ip.part { outline_nat::FIRST } else { 0 };
    let ask = |step: Step| {
        Answer(opaque(if to.ip.v6 {
            outline_nat::session_out6(ctx, place, ids, to.hash, step as u64 | first)
        } else {
            outline_nat::session_out4(ctx, place, ids, to.hash, step as u64 | first)
        }))
    };
    let mut answer = ask(step);
    if matches!(answer.verdict(), Verdict::Make) {
        if OBSERVED && observe::dry() {
            // What is only asked makes no session; where one with room would go is known.
            observe::recorded();
            observe::backend(to.backend_id, to.service);
            return Some(XDP_TX);
        }
        let how = step as u64 | u64::from(answer.own()) << 8;
        answer = Answer(opaque(outline_nat::session_make(ids, to.hash, how)));
        if matches!(answer.verdict(), Verdict::Pass) {
            // Ours, or that of another CPU, which was quicker.
            answer = ask(Step::Begin);
        }
    }
    if matches!(answer.verdict(), Verdict::Cross) {
        answer = Answer(opaque(if to.ip.v6 {
            outline_nat::cross_out6(ctx, place, to.hash)
        } else {
            outline_nat::cross_out4(ctx, place, to.hash)
        }));
    }
    frame.refresh();
    Some(match answer.verdict() {
        Verdict::Plain => return None,
        Verdict::Send => {
            if OBSERVED {
                observe::backend(answer.backend(), to.service);
            }
            counted::<OBSERVED>(to.service, answer.backend(), to.ip.total_len);
            leave(frame, answer.ifindex())
        }
        Verdict::TooBig => tell_too_big(frame, &to.ip, answer.mtu()),
        Verdict::Drop => refuse_number(frame, answer.reason()),
        _ => refuse_number(frame, DropReason::NatSession as u32),
    })
}

/// An ICMP error that goes to a backend of NAT, or a fragment behind the first.
#[inline(always)]
pub fn steer<const OBSERVED: bool>(frame: &mut Frame, to: &Forward<'_>) -> u32 {
    let (ctx, l3, backend) = (frame.ctx(), to.ip.l3 as u64, to.backend_id.into());
    let mut answer = Answer(opaque(match (to.ip.part, to.ip.v6) {
        (Part::Later, false) => outline_nat::piece_out4(ctx, l3),
        (Part::Later, true) => outline_nat::piece_out6(ctx, l3),
        (_, false) => outline_nat::steer4(ctx, l3, backend),
        (_, true) => outline_nat::steer6(ctx, l3, backend),
    }));
    if matches!(answer.verdict(), Verdict::Cross) {
        answer = Answer(opaque(if to.ip.v6 {
            outline_nat::error_across6(ctx, l3)
        } else {
            outline_nat::error_across4(ctx, l3)
        }));
    }
    frame.refresh();
    match answer.verdict() {
        Verdict::Send => {
            if OBSERVED {
                observe::backend(answer.backend(), to.service);
            }
            counted::<OBSERVED>(to.service, answer.backend(), to.ip.total_len);
            leave(frame, answer.ifindex())
        }
        Verdict::Drop => refuse_number(frame, answer.reason()),
        _ => refuse_number(frame, DropReason::IcmpQuote as u32),
    }
}

/// A packet that may be a reply.
#[inline(always)]
pub fn back<const OBSERVED: bool>(frame: &mut Frame, back: Back) -> u32 {
    let (ctx, l3) = (frame.ctx(), back.l3 as u64);
    let mut answer = match (back.pool, back.v6) {
        (true, _) => Answer::SESSION,
        (false, false) => Answer(opaque(outline_nat::reply4(ctx, l3))),
        (false, true) => Answer(opaque(outline_nat::reply6(ctx, l3))),
    };
    if matches!(answer.verdict(), Verdict::Session) {
        answer = Answer(opaque(if back.v6 {
            outline_nat::session_back6(ctx, l3)
        } else {
            outline_nat::session_back4(ctx, l3)
        }));
        if matches!(answer.verdict(), Verdict::Pass) && !back.pool {
            let l3 = l3 | outline_nat::ALONE;
            answer = Answer(opaque(if back.v6 {
                outline_nat::reply6(ctx, l3)
            } else {
                outline_nat::reply4(ctx, l3)
            }));
        }
    }
    if matches!(answer.verdict(), Verdict::Piece) {
        answer = Answer(opaque(if back.v6 {
            outline_nat::piece_back6(ctx, l3)
        } else {
            outline_nat::piece_back4(ctx, l3)
        }));
    }
    if matches!(answer.verdict(), Verdict::Icmp) {
        answer = Answer(opaque(if back.v6 {
            outline_nat::error_back6(ctx, l3)
        } else {
            outline_nat::error_back4(ctx, l3)
        }));
        if matches!(answer.verdict(), Verdict::Cross) {
            let way = if back.v6 { outline_nat::across_way4(ctx) } else { outline_nat::across_way6(ctx) };
            answer = Answer(opaque(way));
        }
        if matches!(answer.verdict(), Verdict::Cross) {
            answer = Answer(opaque(if back.v6 {
                outline_nat::error_across6(ctx, l3)
            } else {
                outline_nat::error_across4(ctx, l3)
            }));
        }
    } else if matches!(answer.verdict(), Verdict::Cross) {
        answer = Answer(opaque(if back.v6 {
            outline_nat::cross_back6(ctx, l3)
        } else {
            outline_nat::cross_back4(ctx, l3)
        }));
    }
    frame.refresh();
    if OBSERVED && !matches!(answer.verdict(), Verdict::Pass) {
        // It is ours, though its destination may be no VIP.
        observe::vip();
        if matches!(answer.verdict(), Verdict::Send)
            && let Some(backend) = Maps::new(ctx).backend(answer.backend())
        {
            observe::backend(answer.backend(), backend.service);
        }
    }
    match answer.verdict() {
        Verdict::Send => {
            if back.watched {
                outline::watch_reply(ctx, answer.backend().into());
            }
            leave(frame, answer.ifindex())
        }
        Verdict::Drop => refuse_number(frame, answer.reason()),
        Verdict::TooBig => tell(frame, back.l3, back.v6, answer.mtu()),
        _ => XDP_PASS,
    }
}
