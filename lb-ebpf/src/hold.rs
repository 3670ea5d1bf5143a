//! Fragments before the first one of their datagram: to the daemon, which waits for it.

use crate::{maps, observe, outline::opaque, tables::token};
use aya_ebpf::{
    bindings::xdp_md,
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    },
};
use lb_common::{
    abi::{HELD_FRAME, HOLD_BUCKET, HeldFrame, RESENT},
    wire::{eth, ipv4},
};

/// Frames a second and CPU, and in one burst: reordered fragments are few, and a flood of spoofed ones must not keep the
/// daemon busy.
const RATE: u64 = 2_000;
const BURST: u64 = 400;

/// Is this the second time that the frame comes?
#[inline(always)]
fn is_resent(ctx: *mut xdp_md) -> bool {
    // SAFETY: `ctx` is the context the kernel called the program with.
    let (mark, data) = unsafe { ((*ctx).data_meta as usize, (*ctx).data as usize) };
    // SAFETY: the comparison before; the verifier repeats the proof. Bytes have no alignment.
    mark + RESENT.len() <= data && unsafe { *(mark as *const [u8; RESENT.len()]) } == RESENT
}

/// Hands the frame to the daemon; 1 = done, and the frame is to be dropped.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hold(ctx: *mut xdp_md, l3: u64, v6: u64) -> u64 {
    let Some(control) = maps::CONTROL.get_ptr(0) else { return 0 };
    // SAFETY: a field of 8 bytes, 8-aligned, of an array element; and a helper call without arguments.
    let (until, now) = unsafe { ((&raw const (*control).hold_until_ns).read_volatile(), bpf_ktime_get_ns()) };
    if now >= until || is_resent(ctx) {
        return 0;
    }
    // SAFETY: a helper call on our own context.
    let len = opaque(unsafe { bpf_xdp_get_buff_len(ctx) });
    if len > HELD_FRAME as u64 {
        return 0;
    }
    // Apart: of one comparison of a difference the verifier learns neither bound.
    let len = opaque(len);
    if len < (eth::LEN + ipv4::LEN) as u64 || !token(HOLD_BUCKET, RATE, BURST) {
        return 0;
    }
    if observe::dry() {
        return 1;
    }
    let Some(mut entry) = maps::HELD.reserve::<HeldFrame>(0) else { return 0 };
    let held = entry.as_mut_ptr();
    // SAFETY: the record just reserved, which has room for HELD_FRAME bytes of the frame; the helper checks against the
    // frame's end.
    let copied = unsafe {
        (*held).seen_ns = now;
        (*held).ifindex = (*ctx).ingress_ifindex;
        (*held).len = len as u32;
        (*held).l3 = l3 as u32;
        (*held).v6 = v6 as u32;
        bpf_xdp_load_bytes(ctx, 0, (&raw mut (*held).bytes).cast(), len as u32)
    };
    if copied != 0 {
        entry.discard(0);
        return 0;
    }
    entry.submit(0);
    1
}
