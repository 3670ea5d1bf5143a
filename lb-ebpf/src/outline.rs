//! Rare paths as functions of their own. They are global in the sense of the verifier: it goes through each
//! of them once, with unknown arguments, instead of once for every way the fast path leads to a call. That
//! keeps the program far below the limit of one million instructions on Linux 6.1.

use crate::{
    frame::Frame,
    observe,
    tables::{ECHO_BURST, ECHO_RATE, ICMP_BURST, ICMP_RATE, Maps, RESET_BURST, RESET_RATE, token},
};
use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use aya_log_ebpf::{error, warn};
use lb_common::{
    abi::{ECHO_BUCKET, LOG_BUCKET, RESET_BUCKET, Slot},
    core::{
        DropReason,
        affinity::{Place, choose_flow},
        echo, fragment,
        icmp::{self, Message},
        parse::walk_extensions,
        passive,
        quic::{self, Format},
        quote, reject, schedule,
    },
};

/// A number the compiler knows nothing of. It looks through calls, and would take out a mask that it can
/// prove needless and the verifier, which looks at one function at a time, cannot.
#[inline(always)]
pub(crate) fn opaque(number: u64) -> u64 {
    // SAFETY: a reference to a live local.
    unsafe { core::ptr::read_volatile(&number) }
}

/// See [`walk_extensions`]; `l3` is the offset of an IPv6 header, the frame's own or a quoted one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn extensions(ctx: *mut xdp_md, l3: u64, first: u64) -> u64 {
    walk_extensions(&Frame::new(ctx), opaque(l3) as usize & 0x7ff, first as u8).0
}

/// See [`choose_flow`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn choose(ctx: *mut xdp_md, place: u64, slot: u64, hash: u64, isn: u64) -> u64 {
    choose_flow(&Frame::new(ctx), &Maps::new(ctx), Place(opaque(place)), Slot(slot), hash, isn as u32).into()
}

/// See [`quic::route`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn quic(ctx: *mut xdp_md, place: u64, format: u64) -> u64 {
    quic::route(&Frame::new(ctx), &Maps::new(ctx), Place(opaque(place)), Format(opaque(format))).0
}

/// See [`schedule::pick`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pick(service: u64, least_connections: u64) -> u64 {
    // No packet is looked at: an unused argument would be left out at the call, and the verifier would miss it.
    let maps = Maps::new(core::ptr::null_mut());
    schedule::pick(&maps, opaque(service) as u32, opaque(least_connections) != 0).into()
}

/// See [`schedule::less_loaded`]: a function of its own, so that the loop around it costs the verifier next to nothing.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn less_loaded(base: u64, size: u64, turn: u64, best: u64) -> u64 {
    let maps = Maps::new(core::ptr::null_mut());
    schedule::less_loaded(&maps, base as u32, size as u32, opaque(turn), opaque(best))
}

/// See [`quote::icmp`], IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn icmp4(ctx: *mut xdp_md, place: u64) -> u64 {
    quote::icmp4(&Frame::new(ctx), &Maps::new(ctx), Place(opaque(place))).0
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn icmp6(ctx: *mut xdp_md, place: u64) -> u64 {
    quote::icmp6(&Frame::new(ctx), &Maps::new(ctx), Place(opaque(place))).0
}

/// See [`fragment::follow`], IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fragment4(ctx: *mut xdp_md, l3: u64) -> u64 {
    fragment::follow4(&Frame::new(ctx), &Maps::new(ctx), opaque(l3) as usize & 0x1f).0
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fragment6(ctx: *mut xdp_md, l3: u64) -> u64 {
    fragment::follow6(&Frame::new(ctx), &Maps::new(ctx), opaque(l3) as usize & 0x1f).0
}

/// See [`fragment::trace`], IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn trace4(ctx: *mut xdp_md, l3: u64, backend: u64, entropy: u64) -> u64 {
    let l3 = opaque(l3) as usize & 0x1f;
    fragment::trace4(&Frame::new(ctx), &Maps::new(ctx), l3, backend as u32, entropy as u32);
    0
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn trace6(ctx: *mut xdp_md, l3: u64, backend: u64, entropy: u64) -> u64 {
    let l3 = opaque(l3) as usize & 0x1f;
    fragment::trace6(&Frame::new(ctx), &Maps::new(ctx), l3, backend as u32, entropy as u32);
    0
}

/// See [`passive::watch`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn watch(ctx: *mut xdp_md, place: u64, backend: u64, flow: u64, chooser: u64) -> u64 {
    let place = Place(opaque(place));
    passive::watch(&Frame::new(ctx), &Maps::new(ctx), place, backend as u32, flow, chooser);
    0
}

/// See [`passive::watch_reply`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn watch_reply(ctx: *mut xdp_md, backend: u64) -> u64 {
    passive::watch_reply(&Frame::new(ctx), &Maps::new(ctx), backend as u32);
    0
}

/// See [`icmp::tell4`]; `message` is type, code and bucket, from the high bytes down. 1 = the packet is the answer now,
/// 0 = it is to be dropped.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tell4(ctx: *mut xdp_md, l3: u64, message: u64, rest: u64) -> u64 {
    if !token(message as u32 & 0xff, ICMP_RATE, ICMP_BURST) {
        return 0;
    }
    let message = Message { kind: (message >> 16) as u8, code: (message >> 8) as u8, rest: rest as u32 };
    icmp::tell4(&mut Frame::new(ctx), opaque(l3) as usize & 0x1f, message).is_some().into()
}

/// The same for IPv6: a function of its own, since both together need more stack than BPF has.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tell6(ctx: *mut xdp_md, l3: u64, message: u64, rest: u64) -> u64 {
    if !token(message as u32 & 0xff, ICMP_RATE, ICMP_BURST) {
        return 0;
    }
    let message = Message { kind: (message >> 16) as u8, code: (message >> 8) as u8, rest: rest as u32 };
    icmp::tell6(&mut Frame::new(ctx), opaque(l3) as usize & 0x1f, message).is_some().into()
}

/// See [`echo::reply4`]; the answer as of [`tell4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn echo4(ctx: *mut xdp_md, l3: u64) -> u64 {
    if !token(ECHO_BUCKET, ECHO_RATE, ECHO_BURST) {
        return 0;
    }
    echo::reply4(&mut Frame::new(ctx), opaque(l3) as usize & 0x1f).is_some().into()
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn echo6(ctx: *mut xdp_md, l3: u64) -> u64 {
    if !token(ECHO_BUCKET, ECHO_RATE, ECHO_BURST) {
        return 0;
    }
    echo::reply6(&mut Frame::new(ctx), opaque(l3) as usize & 0x1f).is_some().into()
}

/// See [`reject::reset4`]; the answer as of [`tell4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn reset4(ctx: *mut xdp_md, l3: u64, header_len: u64) -> u64 {
    if !token(RESET_BUCKET, RESET_RATE, RESET_BURST) {
        return 0;
    }
    let (l3, header_len) = (opaque(l3) as usize & 0x1f, opaque(header_len) as usize & 0x3f);
    reject::reset4(&mut Frame::new(ctx), l3, header_len).is_some().into()
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn reset6(ctx: *mut xdp_md, l3: u64, header_len: u64) -> u64 {
    if !token(RESET_BUCKET, RESET_RATE, RESET_BURST) {
        return 0;
    }
    let (l3, header_len) = (opaque(l3) as usize & 0x1f, opaque(header_len) as usize & 0x3ff);
    reject::reset6(&mut Frame::new(ctx), l3, header_len).is_some().into()
}

/// Resets a connection that nobody serves, if there is a token left. True: the packet is the reset now.
#[inline(always)]
pub(crate) fn reset(ctx: *mut xdp_md, l3: usize, header_len: usize, v6: bool) -> bool {
    let (l3, header_len) = (l3 as u64, header_len as u64);
    (if v6 { reset6(ctx, l3, header_len) } else { reset4(ctx, l3, header_len) }) != 0
}

/// Tells the sender, if there is a token left in the bucket. True: the packet is the answer now.
#[inline(always)]
pub(crate) fn tell(ctx: *mut xdp_md, l3: usize, v6: bool, message: Message, bucket: u32) -> bool {
    let packed = u64::from(message.kind) << 16 | u64::from(message.code) << 8 | u64::from(bucket);
    let (l3, rest) = (l3 as u64, message.rest.into());
    (if v6 { tell6(ctx, l3, packed, rest) } else { tell4(ctx, l3, packed, rest) }) != 0
}

/// Answers an echo request, if there is a token left. True: the packet is the reply now.
#[inline(always)]
pub(crate) fn echo(ctx: *mut xdp_md, l3: usize, v6: bool) -> bool {
    (if v6 { echo6(ctx, l3 as u64) } else { echo4(ctx, l3 as u64) }) != 0
}

/// Says in the daemon's log that the balancer itself is at fault, once a second and CPU at most.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn complain(ctx: *mut xdp_md, reason: u64) -> u64 {
    if observe::dry() || !token(LOG_BUCKET, 1, 1) {
        return 0;
    }
    let ctx = XdpContext::new(ctx);
    let ifindex = ctx.ingress_ifindex() as u32;
    if reason as u32 == DropReason::NoHeadroom as u32 {
        warn!(
            &ctx,
            "no room for an outer header in front of a frame from interface {}: driver or XDP mode", ifindex
        );
    } else {
        error!(&ctx, "the tables contradict themselves, packet from interface {} dropped", ifindex);
    }
    1
}
