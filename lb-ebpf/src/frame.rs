//! A frame under XDP: the bounds proof.

use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, generated::bpf_xdp_get_buff_len},
};
use core::hint::assert_unchecked;
use lb_common::packet::{Packet, PacketMut, View, ViewMut};

/// A frame, its two ends kept in registers.
pub struct Frame {
    ctx: *mut xdp_md,
    data: usize,
    end: usize,
}

impl Frame {
    /// The frame of this program run.
    #[inline(always)]
    pub fn new(ctx: *mut xdp_md) -> Self {
        let mut frame = Self { ctx, data: 0, end: 0 };
        frame.refresh();
        frame
    }

    /// Reads the frame's ends again: every helper that moves them makes the old ones invalid.
    #[inline(always)]
    pub(crate) fn refresh(&mut self) {
        // SAFETY: `ctx` is the context the kernel called the program with.
        unsafe {
            self.data = (*self.ctx).data as usize;
            self.end = (*self.ctx).data_end as usize;
        }
    }

    /// The context.
    #[inline(always)]
    pub fn ctx(&self) -> *mut xdp_md {
        self.ctx
    }

    /// Index of the interface the frame came in by.
    #[inline(always)]
    pub fn ingress(&self) -> u32 {
        // SAFETY: `ctx` is the context the kernel called the program with.
        unsafe { (*self.ctx).ingress_ifindex }
    }
}

impl Packet for Frame {
    #[inline(always)]
    fn view<const N: usize>(&self, offset: usize) -> Option<View<'_, N>> {
        let start = self.data + offset;
        if start + N > self.end {
            return None;
        }
        // SAFETY: the comparison above; the verifier repeats the proof. No frame lies at address 0: said so
        // that no comparison with the null niche of `Option` is left for the verifier to follow.
        Some(View(unsafe {
            assert_unchecked(start != 0);
            &*(start as *const [u8; N])
        }))
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.end - self.data
    }

    #[inline(always)]
    fn full_len(&self) -> usize {
        // SAFETY: a helper call on our own context.
        unsafe { bpf_xdp_get_buff_len(self.ctx) as usize }
    }
}

impl PacketMut for Frame {
    #[inline(always)]
    fn view_mut<const N: usize>(&mut self, offset: usize) -> Option<ViewMut<'_, N>> {
        let start = self.data + offset;
        if start + N > self.end {
            return None;
        }
        // SAFETY: as in `view`, and `&mut self` makes this the only view.
        Some(ViewMut(unsafe {
            assert_unchecked(start != 0);
            &mut *(start as *mut [u8; N])
        }))
    }

    #[inline(always)]
    fn grow_head(&mut self, by: i32) -> Option<()> {
        // SAFETY: a helper call on our own context; views cannot outlive `&mut self`.
        let result = unsafe { bpf_xdp_adjust_head(self.ctx, -by) };
        self.refresh();
        if result == 0 { Some(()) } else { None }
    }

    #[inline(always)]
    fn truncate(&mut self, len: usize) -> Option<()> {
        let delta = len as i64 - self.full_len() as i64;
        if delta > 0 {
            return None;
        }
        // SAFETY: as in `grow_head`.
        let result = unsafe { bpf_xdp_adjust_tail(self.ctx, delta as i32) };
        self.refresh();
        if result == 0 { Some(()) } else { None }
    }
}
