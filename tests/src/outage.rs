//! An outage as a client sees it: echo requests every millisecond to an address, and the longest time without an
//! answer.

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::lab::{Netns, Pinger};

/// Between two requests.
pub const STEP: Duration = Duration::from_millis(1);
/// How long the last answers may take.
const LAST: Duration = Duration::from_millis(200);

/// What was seen.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// From the last answered request before the longest gap to the first one after it, less the usual step.
    pub outage: Duration,
    pub sent: usize,
    pub lost: usize,
}

/// When each request went out, and whether it was answered.
type Asked = Vec<(Instant, bool)>;

/// Runs until it is asked what it saw.
#[must_use = "it ends when this is dropped"]
pub struct Prober {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<Asked>>>,
}

impl Prober {
    /// From a namespace to an address that answers already.
    pub fn start(ns: &Netns, target: IpAddr) -> io::Result<Self> {
        let pinger = ns.run(|| Pinger::open(target))?;
        let stop = Arc::new(AtomicBool::new(false));
        let for_thread = Arc::clone(&stop);
        let thread = std::thread::spawn(move || run(&pinger, &for_thread));
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it.
    ///
    /// # Panics
    /// If it could not work, or nothing was ever answered.
    pub fn end(mut self) -> Seen {
        self.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.take().expect("it runs");
        judge(&thread.join().expect("no panic").expect("requests can be sent"))
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(pinger: &Pinger, stop: &AtomicBool) -> io::Result<Vec<(Instant, bool)>> {
    let mut requests: Vec<(Instant, bool)> = Vec::new();
    let mut end = None;
    let mut next = Instant::now();
    loop {
        let now = Instant::now();
        if stop.load(Ordering::SeqCst) && end.is_none() {
            end = Some(now + LAST);
        }
        if end.is_some_and(|end| now >= end) {
            return Ok(requests);
        }
        if now >= next && end.is_none() {
            // Nobody at the address, for the moment: as good as lost.
            let _ = pinger.send(requests.len() as u16);
            requests.push((now, false));
            next = (next + STEP).max(now);
        }
        let wait = next.saturating_duration_since(Instant::now()).max(Duration::from_micros(100));
        if let Some(sequence) = pinger.receive(wait)? {
            // The last one of that number.
            let behind = (requests.len() as u16).wrapping_sub(1).wrapping_sub(sequence);
            if let Some(at) = requests.len().checked_sub(1 + usize::from(behind)) {
                requests[at].1 = true;
            }
        }
    }
}

fn judge(requests: &[(Instant, bool)]) -> Seen {
    let answered: Vec<usize> = (0..requests.len()).filter(|at| requests[*at].1).collect();
    assert!(!answered.is_empty(), "no request was answered");
    // Only what was lost counts: a prober that was kept from running saw no outage.
    let gaps = answered.windows(2).filter(|pair| pair[1] > pair[0] + 1);
    let gap = |pair: &[usize]| requests[pair[1]].0.duration_since(requests[pair[0]].0).saturating_sub(STEP);
    Seen {
        outage: gaps.map(gap).max().unwrap_or_default(),
        sent: requests.len(),
        lost: requests.len() - answered.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_counts() {
        let begun = Instant::now();
        let at = |ms: u64, answered| (begun + Duration::from_millis(ms), answered);
        let seen = judge(&[
            at(0, true),
            at(1, false),
            at(2, true),
            at(9, true),
            at(10, false),
            at(11, false),
            at(12, true),
        ]);
        assert_eq!((seen.outage, seen.sent, seen.lost), (Duration::from_millis(2), 7, 3));
        assert_eq!(judge(&[at(0, true), at(9, true)]).outage, Duration::ZERO);
    }
}
