//! Rare paths as functions of their own. They are global in the sense of the verifier: it goes through each
//! of them once, with unknown arguments, instead of once for every way the fast path leads to a call. That
//! keeps the program far below the limit of one million instructions on Linux 6.1.

use crate::{
    frame::Frame,
    tables::{Maps, token},
};
use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use aya_log_ebpf::{error, warn};
use lb_common::{
    abi::{LOG_BUCKET, Slot},
    core::{
        DropReason, Tables,
        affinity::{Place, choose_flow},
        icmp,
        parse::walk_extensions,
        quic::{self, Format},
        schedule,
    },
};

/// A number the compiler knows nothing of. It looks through calls, and would take out a mask that it can
/// prove needless and the verifier, which looks at one function at a time, cannot.
#[inline(always)]
pub(crate) fn opaque(number: u64) -> u64 {
    // SAFETY: a reference to a live local.
    unsafe { core::ptr::read_volatile(&number) }
}

/// See [`walk_extensions`]; `l3` is 14, 18 or 22.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn extensions(ctx: *mut xdp_md, l3: u64, first: u64) -> u64 {
    walk_extensions(&Frame::new(ctx), opaque(l3) as usize & 0x1f, first as u8).0
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
pub extern "C" fn pick(ctx: *mut xdp_md, service: u64, least_connections: u64) -> u64 {
    schedule::pick(&Maps::new(ctx), opaque(service) as u32, opaque(least_connections) != 0).into()
}

/// See [`icmp::too_big`], IPv4; `l3` is the offset of the IP header. 1 = the packet is the answer now, 0 = it
/// is to be dropped.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn too_big4(ctx: *mut xdp_md, l3: u64, mtu: u64) -> u64 {
    too_big::<false>(ctx, l3, mtu)
}

/// The same for IPv6: a function of its own, since both together need more stack than BPF has.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn too_big6(ctx: *mut xdp_md, l3: u64, mtu: u64) -> u64 {
    too_big::<true>(ctx, l3, mtu)
}

#[inline(always)]
fn too_big<const V6: bool>(ctx: *mut xdp_md, l3: u64, mtu: u64) -> u64 {
    if !Maps::new(ctx).icmp_token() {
        return 0;
    }
    icmp::too_big(&mut Frame::new(ctx), opaque(l3) as usize & 0x1f, V6, mtu as u16).is_some().into()
}

/// Says in the daemon's log that the balancer itself is at fault, once a second and CPU at most.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn complain(ctx: *mut xdp_md, reason: u64) -> u64 {
    if !token(LOG_BUCKET, 1, 1) {
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
