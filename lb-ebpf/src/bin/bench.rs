//! Entry points of the benchmark: the balancer's path and the floor it is compared with, each inside the
//! same frame of work, so that a repeated run sees the same packet every time.
//!
//! The frame of work: vary the flow (programs named `many`, `new` and `random`), run the path, undo what it did to the
//! packet (room in front, link header, TTL). Never attached to anything.
#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_TX},
    macros::{map, xdp},
    maps::{Array, PerCpuArray},
    programs::XdpContext,
};
use lb_common::{
    hash,
    packet::{Packet, PacketMut},
    wire::{eth, ipv4, ipv6, proto},
};
use lb_ebpf::{emit, frame::Frame};

/// Element 0: flows the programs named `many` go through. Element 1: bytes the path adds in front, which are
/// cut off again; the floor adds none and is spared the call.
#[map]
static BENCH: Array<u32> = Array::with_max_entries(2, 0);
/// Packets so far.
#[map]
static COUNT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// The balancer's path.
struct Balancer;
/// Parses Ethernet, IP and ports, swaps the MAC addresses, sends back.
struct Floor;

trait Path {
    fn run(frame: &mut Frame) -> u32;
}

impl Path for Balancer {
    #[inline(always)]
    fn run(frame: &mut Frame) -> u32 {
        emit::handle(frame)
    }
}

impl Path for Floor {
    #[inline(always)]
    fn run(frame: &mut Frame) -> u32 {
        floor(frame).unwrap_or(XDP_DROP)
    }
}

#[inline(always)]
fn floor(frame: &mut Frame) -> Option<u32> {
    let link = frame.view::<{ eth::LEN }>(0)?;
    let (dst0, dst4) = (link.raw32::<0>(), link.raw16::<4>());
    let (src0, src4) = (link.raw32::<6>(), link.raw16::<10>());
    let ether_type = link.raw16::<{ eth::TYPE }>();
    let (at, protocol) = if ether_type == eth::IPV4.to_be() {
        let ip = frame.view::<{ ipv4::LEN }>(eth::LEN)?;
        let header = usize::from(ip.u8::<{ ipv4::VIHL }>() & 0xf) * 4;
        (eth::LEN + header, ip.u8::<{ ipv4::PROTO }>())
    } else if ether_type == eth::IPV6.to_be() {
        let ip = frame.view::<{ ipv6::LEN }>(eth::LEN)?;
        (eth::LEN + ipv6::LEN, ip.u8::<{ ipv6::NEXT }>())
    } else {
        return None;
    };
    if protocol != proto::TCP && protocol != proto::UDP {
        return None;
    }
    let ports = frame.view::<4>(at)?;
    // The ports are looked at, or parsing them would be optimised away.
    if ports.raw16::<0>() == 0 || ports.raw16::<2>() == 0 {
        return None;
    }
    let mut link = frame.view_mut::<{ eth::LEN }>(0)?;
    link.set32::<0>(src0);
    link.set16::<4>(src4);
    link.set32::<6>(dst0);
    link.set16::<10>(dst4);
    Some(XDP_TX)
}

/// Every packet is of the same flow.
const ONE: u8 = 0;
/// One of a number of flows.
const MANY: u8 = 1;
/// A flow that was never there, for the first 2^30 packets.
const NEW: u8 = 2;
/// Every packet from anywhere in the address space.
const RANDOM: u8 = 3;

/// The path rewrites neither end.
const KEPT: u8 = 0;
/// The destination is rewritten: the virtual address and port of the benchmark's IPv4 frames.
const TO: u8 = 1;
/// The source is rewritten: the backend's address and port.
const FROM: u8 = 2;

/// The ends as they came. The checksums stay: each rewriting is an update of what it finds.
#[inline(always)]
fn undo_ends<const ENDS: u8>(frame: &mut Frame) -> Option<()> {
    let (address, value, port, number) = match ENDS {
        TO => (ipv4::DST, [192, 0, 2, 10], 2, 80u16),
        FROM => (ipv4::SRC, [10, 1, 0, 1], 0, 8080),
        _ => return Some(()),
    };
    frame.view_mut::<4>(eth::LEN + address)?.set32::<0>(u32::from_ne_bytes(value));
    frame.view_mut::<2>(eth::LEN + ipv4::LEN + port)?.set16::<0>(number.to_be());
    Some(())
}

#[inline(always)]
fn measure<P: Path, const V6: bool, const FLOWS: u8, const ENDS: u8>(ctx: &XdpContext) -> u32 {
    let mut frame = Frame::new(ctx.ctx);
    if FLOWS != ONE && vary::<V6, FLOWS>(&mut frame).is_none() {
        return XDP_DROP;
    }
    let verdict = P::run(&mut frame);
    if undo::<V6>(&mut frame).is_none() || undo_ends::<ENDS>(&mut frame).is_none() {
        return XDP_DROP;
    }
    verdict
}

/// Another source address and port, over the number of flows asked for.
#[inline(always)]
fn vary<const V6: bool, const FLOWS: u8>(frame: &mut Frame) -> Option<()> {
    let flows = *BENCH.get(0)?;
    let count = COUNT.get_ptr_mut(0)?;
    // SAFETY: this CPU's own element.
    let number = unsafe {
        *count += 1;
        *count
    };
    if FLOWS == RANDOM {
        let random = hash::mix(number);
        frame.view_mut::<4>(eth::LEN + ipv4::SRC)?.set32::<0>((random as u32).to_be());
        frame.view_mut::<4>(eth::LEN + ipv4::LEN)?.set16::<0>((0x8000 | (random >> 32) as u16).to_be());
        return Some(());
    }
    // In an order that no prefetcher follows. An odd factor permutes the numbers below a power of two.
    let flow = if FLOWS == NEW {
        (number as u32).wrapping_mul(0x9e37_79b1) & 0x3fff_ffff
    } else {
        hash::slot(hash::mix(number), flows)
    };
    let address = (0x0a00_0000 + (flow >> 6)).to_be();
    let port = (0x8000 + (flow & 0x3f) as u16).to_be();
    let (source, at) = if V6 { (ipv6::SRC + 12, ipv6::LEN) } else { (ipv4::SRC, ipv4::LEN) };
    frame.view_mut::<4>(eth::LEN + source)?.set32::<0>(address);
    frame.view_mut::<4>(eth::LEN + at)?.set16::<0>(port);
    Some(())
}

/// The packet as it came: the benchmark's frames have a known link header and a TTL of 64.
#[inline(always)]
fn undo<const V6: bool>(frame: &mut Frame) -> Option<()> {
    let grown = *BENCH.get(1)? as i32;
    if grown != 0 {
        frame.grow_head(-grown)?;
    }
    let mut link = frame.view_mut::<{ eth::LEN }>(0)?;
    link.set32::<0>(0x0000_0002);
    link.set32::<4>(0x0002_0100);
    link.set32::<8>(0x0200_0000);
    link.set16::<12>(if V6 { eth::IPV6 } else { eth::IPV4 }.to_be());
    if V6 {
        frame.view_mut::<{ ipv6::LEN }>(eth::LEN)?.set8::<{ ipv6::HOP_LIMIT }>(64);
    } else {
        frame.view_mut::<{ ipv4::LEN }>(eth::LEN)?.set8::<{ ipv4::TTL }>(64);
    }
    Some(())
}

macro_rules! entry_points {
    ($($name:ident: $path:ty, $v6:literal, $flows:ident, $ends:ident;)*) => { $(
        #[xdp]
        // As in the balancer. A frame of its own, even an empty one, takes 32 of the 512 bytes of stack, too.
        #[inline(always)]
        pub fn $name(ctx: XdpContext) -> u32 {
            measure::<$path, $v6, $flows, $ends>(&ctx)
        }
    )* };
}

entry_points! {
    lb4_one: Balancer, false, ONE, KEPT;
    lb4_many: Balancer, false, MANY, KEPT;
    lb4_new: Balancer, false, NEW, KEPT;
    lb4_random: Balancer, false, RANDOM, KEPT;
    lb6_one: Balancer, true, ONE, KEPT;
    lb6_many: Balancer, true, MANY, KEPT;
    lb6_new: Balancer, true, NEW, KEPT;
    nat4_one: Balancer, false, ONE, TO;
    nat4_many: Balancer, false, MANY, TO;
    back4_one: Balancer, false, ONE, FROM;
    floor4_one: Floor, false, ONE, KEPT;
    floor4_many: Floor, false, MANY, KEPT;
    floor4_new: Floor, false, NEW, KEPT;
    floor4_random: Floor, false, RANDOM, KEPT;
    floor6_one: Floor, true, ONE, KEPT;
    floor6_many: Floor, true, MANY, KEPT;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence the kernel sees.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
