//! Questions for virtual addresses, out of line: see [`crate::outline`].

use crate::{frame::Frame, outline::opaque, tables::Maps};
use aya_ebpf::bindings::xdp_md;
use lb_common::core::neighbour;

/// See [`neighbour::arp`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn arp(ctx: *mut xdp_md, l3: u64) -> u64 {
    let mut frame = Frame::new(ctx);
    let ifindex = frame.ingress();
    neighbour::arp(&mut frame, &Maps::new(ctx), opaque(l3) as usize & 0x1f, ifindex).0
}

/// See [`neighbour::neighbour`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn neighbour(ctx: *mut xdp_md, l3: u64) -> u64 {
    let mut frame = Frame::new(ctx);
    let ifindex = frame.ingress();
    neighbour::neighbour(&mut frame, &Maps::new(ctx), opaque(l3) as usize & 0x1f, ifindex).0
}
