//! The decapsulator: runs on backends, so that they need no tunnel device.
#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS},
    macros::{map, xdp},
    maps::{Array, LpmTrie, PerCpuArray, lpm_trie::Key},
    programs::XdpContext,
};
use lb_common::core::decap::{self, Allow, Outcome};

// Not from the library: its maps, the balancer's, would come along into this ELF.
#[expect(dead_code, reason = "the balancer needs more of it")]
#[path = "../frame.rs"]
mod frame;
use frame::Frame;

/// Sources of balancers. Written by `lbctl decap attach`, a prefix at a time.
#[map]
static ALLOW4: LpmTrie<[u8; 4], u32> = LpmTrie::with_max_entries(decap::MAX_SOURCES, 0);
#[map]
static ALLOW6: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(decap::MAX_SOURCES, 0);

/// Element 0: UDP port of GUE, host order; 0 = no GUE.
#[map]
static SETTINGS: Array<u32> = Array::with_max_entries(1, 0);

/// Per CPU, indexed by `decap::PACKETS`, `decap::BYTES` and `decap::Reason::counter`.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(decap::COUNTERS, 0);

/// The maps of this program.
struct Maps;

impl Allow for Maps {
    #[inline(always)]
    fn source4(&self, address: [u8; 4]) -> bool {
        ALLOW4.get(Key::new(32, address)).is_some()
    }

    #[inline(always)]
    fn source6(&self, address: &[u8; 16]) -> bool {
        ALLOW6.get(Key::new(128, *address)).is_some()
    }

    #[inline(always)]
    fn gue_port(&self) -> u16 {
        SETTINGS.get(0).map_or(0, |port| *port as u16)
    }
}

/// Takes the balancer's outer header off; everything else goes to the kernel untouched.
#[xdp(frags)]
pub fn decap(ctx: XdpContext) -> u32 {
    let verdict = decap::decapsulate(&mut Frame::new(ctx.ctx), &Maps);
    match verdict.outcome {
        Outcome::Pass => XDP_PASS,
        Outcome::Decapsulated => {
            count(decap::PACKETS, 1);
            count(decap::BYTES, u64::from(verdict.bytes));
            XDP_PASS
        }
        refused => {
            if let Some(reason) = refused.refusal() {
                count(reason.counter(), 1);
            }
            XDP_DROP
        }
    }
}

#[inline(always)]
fn count(index: u32, by: u64) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: this CPU's own element.
        unsafe { *counter += by };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence the kernel sees: helpers reserved to GPL programs may be used.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
