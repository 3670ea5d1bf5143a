//! The twin: the same core on the host, with the counting and sending of the kernel's shell written a second time.

use super::{Counter, Counters, INGRESS, Outcome, Verdict};
use lb_common::{
    core::{Decision, DropReason, decide, forward, icmp},
    packet::Buffer,
};
use lb_userspace::plan::{Image, Memory};

/// The balancer on the host, over an image.
pub struct Host<'a> {
    tables: Memory<'a>,
    /// What it counted so far.
    pub counters: Counters,
}

impl<'a> Host<'a> {
    /// A balancer that has counted nothing yet. Its ICMP answers are not limited.
    #[must_use]
    pub fn new(image: &'a Image) -> Self {
        Self { tables: Memory(image), counters: Counters::default() }
    }

    /// What the kernel should do with a frame that comes in by [`INGRESS`].
    pub fn run(&mut self, frame: &[u8]) -> Outcome {
        let mut buffer = Buffer::new(frame);
        let verdict = self.handle(&mut buffer);
        Outcome { verdict, frame: buffer.frame().to_vec() }
    }

    fn handle(&mut self, buffer: &mut Buffer) -> Verdict {
        let to = match decide(buffer, &self.tables) {
            Decision::Pass => return Verdict::Pass,
            Decision::Drop(refusal) => return self.refuse(refusal.reason),
            Decision::Forward(to) => to,
        };
        match forward::rewrite(buffer, &to) {
            Ok(()) => {
                let bytes = u64::from(to.ip.total_len);
                self.counters.add_stats(Counter::Service(to.service), (1, bytes));
                self.counters.add_stats(Counter::Backend(to.backend_id), (1, bytes));
                if to.backend.ifindex == INGRESS { Verdict::Tx } else { Verdict::Redirect }
            }
            Err(DropReason::TooBig) => {
                if icmp::too_big(buffer, &to.ip, forward::path_mtu(to.backend)).is_none() {
                    return self.refuse(DropReason::TooBigUnanswered);
                }
                self.refuse(DropReason::TooBig);
                Verdict::Tx
            }
            Err(reason) => self.refuse(reason),
        }
    }

    fn refuse(&mut self, reason: DropReason) -> Verdict {
        self.counters.add_stats(reason.into(), (1, 0));
        Verdict::Drop
    }
}
