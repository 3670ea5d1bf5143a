//! The paths of NAT that the fast path does not go, as functions of their own: see [`crate::outline`]. Two families
//! are two functions, since both together need more stack than BPF has.

use crate::{frame::Frame, maps, observe, outline::opaque, tables::Maps};
use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED,
        BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup, xdp_md,
    },
    helpers::{bpf_fib_lookup as ask_routes, bpf_ktime_get_coarse_ns},
};
use core::ptr::null_mut;
use lb_common::{
    abi::{EventHeader, Exit, NatScratch, ResolveEvent},
    core::{
        DropReason,
        affinity::{Place, Step},
        nat::{
            Address, Answer, back, errors,
            session::{self, Wanted},
            translate,
        },
    },
};

/// See [`back::reply`]; `l3` is 14, 18 or 22. The answer is a `nat::Answer`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn reply4(ctx: *mut xdp_md, l3: u64) -> u64 {
    back::reply::<_, _, false>(&mut Frame::new(ctx), &Maps::new(ctx), opaque(l3) as usize & 0x1f).0
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn reply6(ctx: *mut xdp_md, l3: u64) -> u64 {
    back::reply::<_, _, true>(&mut Frame::new(ctx), &Maps::new(ctx), opaque(l3) as usize & 0x1f).0
}

/// See [`session::back`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn session_back4(ctx: *mut xdp_md, l3: u64) -> u64 {
    session_back::<false>(ctx, l3)
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn session_back6(ctx: *mut xdp_md, l3: u64) -> u64 {
    session_back::<true>(ctx, l3)
}

#[inline(always)]
fn session_back<const V6: bool>(ctx: *mut xdp_md, l3: u64) -> u64 {
    let Some(scratch) = scratch() else { return Answer::PASS.0 };
    session::back::<_, _, V6>(&mut Frame::new(ctx), &Maps::new(ctx), scratch, opaque(l3) as usize & 0x1f).0
}

/// See [`errors::back`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn error_back4(ctx: *mut xdp_md, l3: u64) -> u64 {
    error_back::<false>(ctx, l3)
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn error_back6(ctx: *mut xdp_md, l3: u64) -> u64 {
    error_back::<true>(ctx, l3)
}

#[inline(always)]
fn error_back<const V6: bool>(ctx: *mut xdp_md, l3: u64) -> u64 {
    let Some(scratch) = scratch() else { return Answer::PASS.0 };
    errors::back::<_, _, V6>(&mut Frame::new(ctx), &Maps::new(ctx), scratch, opaque(l3) as usize & 0x1f).0
}

/// See [`errors::steer`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn steer4(ctx: *mut xdp_md, l3: u64, backend: u64) -> u64 {
    steer::<false>(ctx, l3, backend)
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn steer6(ctx: *mut xdp_md, l3: u64, backend: u64) -> u64 {
    steer::<true>(ctx, l3, backend)
}

#[inline(always)]
fn steer<const V6: bool>(ctx: *mut xdp_md, l3: u64, backend: u64) -> u64 {
    let Some(scratch) = scratch() else { return Answer::drop(DropReason::Internal).0 };
    let (mut frame, maps) = (Frame::new(ctx), Maps::new(ctx));
    errors::steer::<_, _, V6>(&mut frame, &maps, scratch, opaque(l3) as usize & 0x1f, backend as u32).0
}

/// See [`translate::out`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn cross_out4(ctx: *mut xdp_md, place: u64, hash: u64) -> u64 {
    cross_out::<false>(ctx, place, hash)
}

/// The same for a client of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn cross_out6(ctx: *mut xdp_md, place: u64, hash: u64) -> u64 {
    cross_out::<true>(ctx, place, hash)
}

#[inline(always)]
fn cross_out<const V6: bool>(ctx: *mut xdp_md, place: u64, hash: u64) -> u64 {
    let Some(scratch) = scratch() else { return Answer::drop(DropReason::Internal).0 };
    let (mut frame, maps) = (Frame::new(ctx), Maps::new(ctx));
    translate::out::<_, _, V6>(&mut frame, &maps, scratch, Place(opaque(place)), hash).0
}

/// See [`translate::back`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn cross_back4(ctx: *mut xdp_md, l3: u64) -> u64 {
    cross_back::<false>(ctx, l3)
}

/// The same for a backend of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn cross_back6(ctx: *mut xdp_md, l3: u64) -> u64 {
    cross_back::<true>(ctx, l3)
}

#[inline(always)]
fn cross_back<const V6: bool>(ctx: *mut xdp_md, l3: u64) -> u64 {
    let Some(scratch) = scratch() else { return Answer::PASS.0 };
    translate::back::<_, _, V6>(&mut Frame::new(ctx), &Maps::new(ctx), scratch, opaque(l3) as usize & 0x1f).0
}

/// This CPU's scratch space. A caller keeps nothing in it that it reads after it called a function that uses it, too,
/// but for the key in `out`, which that one only reads.
#[inline(always)]
pub(crate) fn scratch() -> Option<&'static mut NatScratch> {
    // SAFETY: this CPU's own element, and XDP does not preempt itself.
    maps::NAT_SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// Makes a session of the flow whose key is in the scratch space; `how` is the step and, from bit 8 on, whether the
/// client is a backend. See [`session::make`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn session_make(ids: u64, hash: u64, how: u64) -> u64 {
    let Some(scratch) = scratch() else { return Answer::drop(DropReason::Internal).0 };
    let wanted = Wanted {
        service: ids as u32,
        chosen: (ids >> 32) as u32,
        hash,
        step: Step::from_u64(how & 0xff),
        own: how >> 8 & 1 != 0,
    };
    // Making a session looks at no packet: nothing here asks for the context.
    session::make(&Maps::new(null_mut()), scratch, wanted).0
}

/// See [`session::out`]; `ids` is the service and, in the upper half, the backend.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn session_out4(ctx: *mut xdp_md, place: u64, ids: u64, hash: u64, step: u64) -> u64 {
    session_out::<false>(ctx, place, ids, hash, step)
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn session_out6(ctx: *mut xdp_md, place: u64, ids: u64, hash: u64, step: u64) -> u64 {
    session_out::<true>(ctx, place, ids, hash, step)
}

#[inline(always)]
fn session_out<const V6: bool>(ctx: *mut xdp_md, place: u64, ids: u64, hash: u64, step: u64) -> u64 {
    let Some(scratch) = scratch() else { return Answer::drop(DropReason::Internal).0 };
    session::out::<_, _, V6>(
        &mut Frame::new(ctx),
        &Maps::new(ctx),
        scratch,
        Place(opaque(place)),
        (ids as u32, (ids >> 32) as u32),
        hash,
        Step::from_u64(step),
    )
    .0
}

/// Asks the kernel's routes for the way to an IPv4 client and remembers it in `EXITS`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn way4(ctx: *mut xdp_md, from: u64, to: u64) -> u64 {
    ask::<false>(ctx, Address::mapped(from as u32), Address::mapped(to as u32))
}

/// The same for IPv6, the addresses in halves.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn way6(ctx: *mut xdp_md, from_hi: u64, from_lo: u64, to_hi: u64, to_lo: u64) -> u64 {
    ask::<true>(ctx, Address { hi: from_hi, lo: from_lo }, Address { hi: to_hi, lo: to_lo })
}

const _: () = assert!(size_of::<bpf_fib_lookup>() == 64 && align_of::<bpf_fib_lookup>() <= 8);

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

#[inline(always)]
fn words(address: Address) -> [u32; 4] {
    [address.hi as u32, (address.hi >> 32) as u32, address.lo as u32, (address.lo >> 32) as u32]
}

#[inline(always)]
fn ask<const V6: bool>(ctx: *mut xdp_md, from: Address, to: Address) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    for word in 0..scratch.route.len() {
        // SAFETY: within the array. Word by word: a call of memset would be one more frame on the stack, which is full.
        unsafe { scratch.route.as_mut_ptr().add(word).write_volatile(0) };
    }
    // SAFETY: as many bytes, aligned to eight; integers and unions of them, which may all be zero.
    let route = unsafe { &mut *scratch.route.as_mut_ptr().cast::<bpf_fib_lookup>() };
    // SAFETY: `ctx` is the context the kernel called the program with.
    route.ifindex = unsafe { (*ctx).ingress_ifindex };
    if V6 {
        route.family = AF_INET6;
        route.__bindgen_anon_3.ipv6_src = words(from);
        route.__bindgen_anon_4.ipv6_dst = words(to);
    } else {
        route.family = AF_INET;
        route.__bindgen_anon_3.ipv4_src = from.v4();
        route.__bindgen_anon_4.ipv4_dst = to.v4();
    }
    // SAFETY: a helper call on our own context and a local of the size given.
    let told = unsafe { ask_routes(ctx.cast(), route, size_of::<bpf_fib_lookup>() as i32, 0) };
    let dry = observe::dry();
    let exit = if dry {
        &raw mut scratch.exit
    } else {
        match maps::EXITS.get_ptr_mut(Exit::place(to)) {
            Some(exit) => exit,
            None => return 0,
        }
    };
    let ifindex = match told as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => route.ifindex,
        BPF_FIB_LKUP_RET_NOT_FWDED | BPF_FIB_LKUP_RET_FWD_DISABLED => 0,
        _ => Exit::UNRESOLVED,
    };
    let routes = maps::CONTROL.get(0).map_or(0, |control| control.routes);
    // SAFETY: this CPU's own element; the union's halves are valid for all bits.
    unsafe {
        (*exit).destination = to.bytes();
        (*exit).asked_ns = bpf_ktime_get_coarse_ns();
        (*exit).ifindex = ifindex;
        let (d, s) = (route.dmac, route.smac);
        (*exit).l2 = [d[0], d[1], d[2], d[3], d[4], d[5], s[0], s[1], s[2], s[3], s[4], s[5]];
        (*exit).mtu = route.__bindgen_anon_1.mtu_result;
        (*exit).vlan = 0;
        (*exit).routes = routes;
    }
    if told as u32 == BPF_FIB_LKUP_RET_NO_NEIGH && !dry {
        // SAFETY: as above; the helper has put the next hop's address there.
        let next = unsafe {
            if V6 {
                let w = route.__bindgen_anon_4.ipv6_dst;
                let pair = |a: u32, b: u32| u64::from(a) | u64::from(b) << 32;
                Address { hi: pair(w[0], w[1]), lo: pair(w[2], w[3]) }
            } else {
                Address::mapped(route.__bindgen_anon_4.ipv4_dst)
            }
        };
        // A full buffer loses it: the next packet asks again.
        if let Some(mut event) = maps::EVENTS.reserve::<ResolveEvent>(0) {
            event.write(ResolveEvent {
                header: EventHeader { kind: EventHeader::RESOLVE, size: size_of::<ResolveEvent>() as u32 },
                address: next.bytes(),
                family: if V6 { 6 } else { 4 },
                ifindex: route.ifindex,
            });
            event.submit(0);
        }
    }
    1
}
