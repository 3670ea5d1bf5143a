//! The balancer.
#![no_std]
#![no_main]

use aya_ebpf::{macros::xdp, programs::XdpContext};
use lb_ebpf::{emit, frame::Frame, observe};

/// Forwards what is for a VIP, passes everything else to the kernel.
///
/// `frags`: jumbo frames come in several buffers; the headers lie in the first.
#[xdp(frags)]
#[inline(always)] // Out of line, as the compiler would have it from some size on, every packet pays for a call and 32 bytes of stack.
pub fn lb(ctx: XdpContext) -> u32 {
    emit::handle(&mut Frame::new(ctx.ctx))
}

/// The same, telling what it did: for `lbctl explain`, never attached, and attached in the place of `lb` while somebody
/// traces.
#[xdp]
#[inline(always)]
pub fn observed(ctx: XdpContext) -> u32 {
    observe::run(ctx.ctx)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence the kernel sees: helpers reserved to GPL programs may be used.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
