//! Fragments that came before the first one of their datagram: they wait here for its trace and are sent through the program
//! again. Whatever becomes of them, the program counts it.

use super::flows::monotonic_ns;
use crate::{
    dataplane::{DataplaneError, Held, Kernel},
    resequence::{Frame, Waiting},
};
use aya::maps::{MapData, RingBuf};
use lb_common::{
    abi::{FragmentKey, HeldFrame},
    core::fragment,
    packet::Buffer,
};
use std::{future::pending, time::Duration};
use tokio::{
    io::unix::AsyncFd,
    time::{Instant, sleep, sleep_until},
};

/// Frames read at once at most. After so many the next are read a while later: what a flood brings beyond that finds the
/// ring buffer full, and costs the daemon nothing.
const BATCH: usize = 256;
const BREATH: Duration = Duration::from_millis(8);
/// So long the program goes on holding frames when nothing is heard of the daemon any more, which speaks every second.
const PRESENCE_NS: u64 = 3_000_000_000;

/// The daemon's end of `HELD`, and what waits.
pub(super) struct Resequencer {
    ring: AsyncFd<RingBuf<MapData>>,
    held: Held,
    waiting: Waiting,
    /// Nothing is read before.
    pause: Option<Instant>,
}

/// A frame with its datagram.
pub(super) type Came = (FragmentKey, Frame);

impl Resequencer {
    pub(super) fn new(kernel: &Kernel) -> Result<Self, DataplaneError> {
        let (held, ring) = Held::open(&kernel.maps_dir())?;
        // SAFETY: the ring buffer owns its descriptor and neither closes nor changes it while it lives inside the AsyncFd.
        let ring = unsafe { AsyncFd::register(ring) };
        let ring = ring.map_err(|e| DataplaneError::Read {
            map: "HELD",
            source: std::io::Error::other(e.to_string()),
        })?;
        Ok(Self { ring, held, waiting: Waiting::default(), pause: None })
    }

    /// Tells the program that somebody reads what it holds.
    pub(super) fn announce(&self) {
        self.held.hold_until(monotonic_ns() + PRESENCE_NS);
    }

    /// Waits until there is something to do for [`Resequencer::work`]; cancelled, nothing is lost.
    pub(super) async fn next(&mut self) -> Vec<Came> {
        let look = self.waiting.next_look();
        let (ring, pause) = (&mut self.ring, &mut self.pause);
        let time = async {
            match look {
                Some(at) => sleep(Duration::from_nanos(at.saturating_sub(monotonic_ns()))).await,
                None => pending().await,
            }
        };
        tokio::select! {
            came = read(ring, pause) => came,
            () = time => Vec::new(),
        }
    }

    /// Takes frames in, and sends on those that need not wait.
    pub(super) fn work(&mut self, came: Vec<Came>, kernel: &mut Kernel) {
        let now = monotonic_ns();
        let mut due = Vec::new();
        for (key, frame) in came {
            let frame = match is_there(&self.held, &key, now) {
                true => Err(frame),
                false => self.waiting.add(key, frame, now),
            };
            due.extend(frame.err().map(|frame| (key, frame)));
        }
        let held = &self.held;
        due.extend(self.waiting.due(now, |key| is_there(held, key, now)));
        for (key, frame) in due {
            if let Err(error) = self.held.resend(kernel, &key, &frame.bytes, frame.ifindex) {
                tracing::debug!(%error, ifindex = frame.ifindex, "a fragment that waited could not be sent on");
            }
        }
    }
}

impl Drop for Resequencer {
    fn drop(&mut self) {
        self.held.hold_until(0);
    }
}

fn is_there(held: &Held, key: &FragmentKey, now: u64) -> bool {
    held.trace(key).is_some_and(|trace| fragment::is_fresh(&trace, now))
}

async fn read(ring: &mut AsyncFd<RingBuf<MapData>>, pause: &mut Option<Instant>) -> Vec<Came> {
    if let Some(until) = *pause {
        sleep_until(until).await;
        *pause = None;
    }
    let Ok(mut ready) = ring.readable_mut().await else { return pending().await };
    let mut came = Vec::new();
    for _ in 0..BATCH {
        let Some(record) = ready.get_inner_mut().next() else {
            ready.clear_ready();
            return came;
        };
        came.extend(HeldFrame::read(&record).and_then(datagram));
    }
    // What is left makes the wait after the pause return at once.
    *pause = Some(Instant::now() + BREATH);
    came
}

fn datagram(held: HeldFrame) -> Option<Came> {
    let frame = Frame { seen_ns: held.seen_ns, ifindex: held.ifindex, bytes: held.frame().to_vec() };
    let key = fragment::key(&Buffer::new(&frame.bytes), held.l3 as usize, held.v6 != 0)?;
    Some((key, frame))
}
