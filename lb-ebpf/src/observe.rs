//! The observed program: the balancer's path, told of. For `explain` it changes nothing but the packet, for `trace` it
//! is the balancer and writes a record of every packet sampled.
//!
//! Which of the two is a constant of the loaded program ([`MODE`]), so that the verifier sees through it: of the
//! program that is attached when nobody traces, nothing of this file is left but the reading of that constant, on rare
//! paths only.

use crate::{emit, frame::Frame, maps};
use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns},
};
use lb_common::{
    abi::{EventHeader, FlowEntry, Note, Slot, TraceEvent, Watch, WatchMode},
    packet::{Packet, View},
    wire::{eth, ipv4, ipv6, proto, vlan},
};

/// A [`WatchMode`]; the loader writes it before the kernel freezes it.
#[unsafe(no_mangle)]
pub static MODE: u8 = WatchMode::Live as u8;

/// Records a second and CPU, and in one burst: a trace of every packet must not take the packets' time.
const RECORDS: u64 = 5_000;
const BURST: u64 = 1_000;

#[inline(always)]
fn mode() -> u8 {
    // SAFETY: a static. Volatile: its value is the loader's, not the compiler's.
    unsafe { core::ptr::read_volatile(&raw const MODE) }
}

/// Is this run only asked what it would do? Then it writes to no map but its notes.
#[inline(always)]
pub(crate) fn dry() -> bool {
    mode() == WatchMode::Explain as u8
}

/// Are there notes to take?
#[inline(always)]
pub(crate) fn watched() -> bool {
    mode() != WatchMode::Live as u8
}

#[inline(always)]
fn note(write: impl FnOnce(&mut Watch)) {
    if let Some(watch) = maps::NOTES.get_ptr_mut(0) {
        // SAFETY: this CPU's own element, and XDP does not preempt itself; no other reference to it is kept.
        write(unsafe { &mut *watch });
    }
}

/// The destination is a VIP.
#[inline(always)]
pub(crate) fn vip() {
    note(|w| w.note.known |= Note::VIP);
}

/// The service that was found.
#[inline(always)]
pub(crate) fn service(id: u32, ring_base: u32) {
    note(|w| {
        w.note.known |= Note::SERVICE;
        w.note.service = id;
        w.note.ring_base = ring_base;
    });
}

/// The slot that was read.
#[inline(always)]
pub(crate) fn slot(index: u32, slot: Slot) {
    note(|w| {
        w.note.known |= Note::SLOT;
        w.note.ring_index = index;
        w.note.slot = slot.0;
    });
}

/// The entry the flow table had.
#[inline(always)]
pub(crate) fn flow(entry: FlowEntry) {
    note(|w| {
        w.note.known |= Note::FLOW;
        w.note.flow = entry.0;
    });
}

/// A flow that would have been recorded; as if there were room.
#[inline(always)]
pub(crate) fn recorded() -> bool {
    note(|w| w.note.known |= Note::RECORDS);
    true
}

/// The backend that was chosen, and its service, which rare paths find without a note.
#[inline(always)]
pub(crate) fn backend(id: u32, service: u32) {
    note(|w| {
        w.note.known |= Note::BACKEND | Note::SERVICE;
        w.note.backend = id;
        w.note.service = service;
    });
}

/// Why the packet is dropped.
#[inline(always)]
pub(crate) fn reason(reason: u32) {
    note(|w| {
        w.note.known |= Note::REASON;
        w.note.reason = reason;
    });
}

/// The observed program.
#[inline(always)]
pub fn run(ctx: *mut xdp_md) -> u32 {
    let sampled = observe_begin(ctx);
    let verdict = emit::run::<true>(&mut Frame::new(ctx));
    if sampled != 0 {
        observe_end(ctx, verdict.into());
    }
    verdict
}

/// Empties the notes; 1 = a record is to be written, its addresses are noted.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn observe_begin(ctx: *mut xdp_md) -> u64 {
    let Some(watch) = maps::NOTES.get_ptr_mut(0) else { return 0 };
    // SAFETY: as in `note`.
    let watch = unsafe { &mut *watch };
    watch.note = Note { known: Note::RAN, ..Note::default() };
    if mode() != WatchMode::Trace as u8 {
        return 0;
    }
    let Some(control) = maps::CONTROL.get(0) else { return 0 };
    let one_in = control.trace;
    // SAFETY: a helper call without arguments.
    if one_in == 0 || one_in > 1 && unsafe { bpf_get_prandom_u32() } % one_in != 0 {
        return 0;
    }
    let frame = Frame::new(ctx);
    watch.event = TraceEvent {
        header: EventHeader { kind: EventHeader::TRACE, size: size_of::<TraceEvent>() as u32 },
        length: frame.len() as u32,
        ..TraceEvent::default()
    };
    addresses(&frame, &mut watch.event);
    1
}

/// Addresses, protocol and ports of the packet as it came. What is too short for them keeps zeros.
#[inline(always)]
fn addresses(frame: &Frame, event: &mut TraceEvent) -> Option<()> {
    let head = frame.view::<{ eth::LEN + ipv4::LEN }>(0)?;
    let is_tag = |kind: u16| kind == eth::VLAN.to_be() || kind == eth::SERVICE_VLAN.to_be();
    let kind = head.raw16::<{ eth::TYPE }>();
    if !is_tag(kind) {
        return network::<{ eth::LEN }>(frame, kind, event);
    }
    let kind = head.raw16::<{ eth::TYPE + vlan::LEN }>();
    if !is_tag(kind) {
        return network::<{ eth::LEN + vlan::LEN }>(frame, kind, event);
    }
    network::<{ eth::LEN + 2 * vlan::LEN }>(frame, head.raw16::<{ eth::TYPE + 2 * vlan::LEN }>(), event)
}

#[inline(always)]
fn network<const L3: usize>(frame: &Frame, kind: u16, event: &mut TraceEvent) -> Option<()> {
    if kind == eth::IPV4.to_be() {
        let header = frame.view::<{ ipv4::LEN }>(L3)?;
        let mapped = |address: u32| {
            let [a, b, c, d] = address.to_ne_bytes();
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
        };
        event.family = 4;
        event.source = mapped(header.raw32::<{ ipv4::SRC }>());
        event.destination = mapped(header.raw32::<{ ipv4::DST }>());
        event.protocol = header.u8::<{ ipv4::PROTO }>();
        // A later fragment begins with data.
        if header.u16::<{ ipv4::FRAGMENT }>() & 0x1fff == 0 {
            let length = usize::from(header.u8::<{ ipv4::VIHL }>() & 0xf) * 4;
            ports(event, frame.view::<4>(L3 + length)?);
        }
    } else if kind == eth::IPV6.to_be() {
        let header = frame.view::<{ ipv6::LEN }>(L3)?;
        event.family = 6;
        event.source = *frame.view::<16>(L3 + ipv6::SRC)?.0;
        event.destination = *frame.view::<16>(L3 + ipv6::DST)?.0;
        event.protocol = header.u8::<{ ipv6::NEXT }>();
        ports(event, frame.view::<4>(L3 + ipv6::LEN)?);
    }
    Some(())
}

#[inline(always)]
fn ports(event: &mut TraceEvent, ports: View<'_, 4>) {
    if event.protocol == proto::TCP || event.protocol == proto::UDP {
        event.source_port = ports.raw16::<0>().to_ne_bytes();
        event.destination_port = ports.raw16::<2>().to_ne_bytes();
    }
}

/// Writes the record of a packet for a VIP.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn observe_end(ctx: *mut xdp_md, verdict: u64) -> u64 {
    let Some(watch) = maps::NOTES.get_ptr_mut(0) else { return 0 };
    // SAFETY: as in `note`.
    let watch = unsafe { &mut *watch };
    let note = &watch.note;
    if !note.has(Note::VIP) {
        return 0;
    }
    // SAFETY: a helper call without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    watch.event.time_ns = now;
    watch.event.ifindex = Frame::new(ctx).ingress();
    watch.event.verdict = verdict as u32;
    watch.event.known = note.known;
    watch.event.reason = note.reason;
    watch.event.service = note.service;
    watch.event.backend = note.backend;
    watch.event.slot = note.slot_index();
    if !watch.bucket.take(now, RECORDS, BURST) || maps::EVENTS.output::<TraceEvent>(&watch.event, 0).is_err()
    {
        watch.lost += 1;
        return 0;
    }
    1
}
