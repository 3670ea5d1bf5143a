//! The clock of VRRP, a way to wake a thread that waits for sockets, and what makes a thread hard to disturb.

use super::timing::Moment;
use nix::{
    errno::Errno,
    time::{ClockId, clock_gettime},
};
use std::{
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

/// Now, by a clock that nobody sets.
pub(crate) fn clock() -> Moment {
    // CLOCK_MONOTONIC exists everywhere, and the pointer is nix's own: the call cannot fail.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Moment(0), |time| {
        let part = |value: i64| u64::try_from(value).unwrap_or(0);
        Moment(part(time.tv_sec()) * 1_000_000_000 + part(time.tv_nsec()))
    })
}

/// Wakes.
#[derive(Debug, Clone)]
pub(super) struct Waker(Arc<UnixStream>);

/// Is woken.
#[derive(Debug)]
pub(super) struct Alarm(UnixStream);

pub(super) fn pair() -> io::Result<(Waker, Alarm)> {
    let (near, far) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    Ok((Waker(Arc::new(near)), Alarm(far)))
}

impl Waker {
    pub(super) fn wake(&self) {
        // Full: it is awake already. Closed: it has ended.
        let _ = (&*self.0).write(&[1]);
    }
}

impl Alarm {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(super) fn drain(&self) {
        let mut buffer = [0; 64];
        while matches!((&self.0).read(&mut buffer), Ok(n) if n == buffer.len()) {}
    }
}

/// The calling thread runs before all ordinary ones from now on.
pub(crate) fn real_time(priority: i32) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    // Children of this thread are ordinary again.
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: 0 is the calling thread; the pointer is to a sched_param that lives during the call.
    Errno::result(unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) })?;
    Ok(())
}

/// No page of the process leaves memory from now on, once it was touched.
pub(super) fn lock_memory() -> io::Result<()> {
    // MCL_ONFAULT: without it, every thread's whole stack would be made and locked.
    let flags = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: takes flags only, and changes nothing that Rust relies on.
    Errno::result(unsafe { libc::mlockall(flags) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    #[test]
    fn a_wake_up_is_seen_once() {
        let (waker, alarm) = pair().unwrap();
        let rings = || {
            let mut fds = [PollFd::new(alarm.fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
        };
        assert!(!rings());
        // More than the buffer of the socket holds: nobody is blocked.
        for _ in 0..100_000 {
            waker.wake();
        }
        assert!(rings());
        alarm.drain();
        assert!(!rings());
    }

    #[test]
    fn the_clock_goes_forward() {
        let first = clock();
        assert!(first > Moment(0));
        assert!(clock() >= first);
    }
}
