//! The state machine and the timers of a session in asynchronous mode (RFC 5880 section 6). Pure: (session, packet or
//! moment) to (session, what to send, what to tell).

use super::packet::{Diagnostic, Packet, State};
use crate::vrrp::timing::Moment;
use std::time::Duration;

/// While the session is not up, no packet more often (RFC 5880 section 6.8.3).
const SLOW: u32 = 1_000_000;

/// A session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub state: State,
    pub diagnostic: Diagnostic,
    /// bfd.LocalDiscr: not 0, and of no other session here.
    pub discriminator: u32,
    /// What is wanted, in microseconds, while it is up.
    interval: u32,
    multiplier: u8,
    remote: Remote,
    /// A Poll Sequence is under way: intervals have changed, and the peer has not said yet that it knows.
    polling: bool,
    /// The peer is to be told that its poll was heard.
    answer: bool,
    /// When the peer counts as silent.
    expires: Option<Moment>,
    next: Moment,
}

/// What the peer said last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Remote {
    state: State,
    discriminator: u32,
    min_tx: u32,
    min_rx: u32,
    multiplier: u8,
    demand: bool,
}

const UNKNOWN: Remote = Remote {
    state: State::Down,
    discriminator: 0,
    min_tx: 0,
    // RFC 5880 section 6.8.1.
    min_rx: 1,
    multiplier: 0,
    demand: false,
};

/// The session came up or went down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    pub from: State,
    pub to: State,
    pub diagnostic: Diagnostic,
}

impl Session {
    pub const fn new(discriminator: u32, interval: u32, multiplier: u8, now: Moment) -> Self {
        Self {
            state: State::Down,
            diagnostic: Diagnostic::NONE,
            discriminator,
            interval,
            multiplier,
            remote: UNKNOWN,
            polling: false,
            answer: false,
            expires: None,
            next: now,
        }
    }

    /// Desired Min TX Interval in force.
    fn min_tx(&self) -> u32 {
        if self.state == State::Up { self.interval } else { self.interval.max(SLOW) }
    }

    /// After which silence the peer is gone (RFC 5880 section 6.8.4); in microseconds.
    fn detection(&self) -> u64 {
        u64::from(self.remote.multiplier) * u64::from(self.interval.max(self.remote.min_tx))
    }

    /// Between two packets, before jitter; none: the peer wants none.
    fn period(&self) -> Option<u32> {
        (self.remote.min_rx != 0).then(|| self.min_tx().max(self.remote.min_rx))
    }

    /// When something is due.
    pub fn deadline(&self) -> Option<Moment> {
        self.due().into_iter().chain(self.expires).min()
    }

    /// When the next packet is due.
    fn due(&self) -> Option<Moment> {
        // Demand mode of the peer: it wants packets only when they are an answer (RFC 5880 section 6.8.7).
        let quiet =
            self.remote.demand && self.state == State::Up && self.remote.state == State::Up && !self.polling;
        (self.period().is_some() && !quiet).then_some(self.next)
    }

    /// A packet that passed the checks and is for this session (RFC 5880 section 6.8.6).
    pub fn receive(&mut self, packet: &Packet, now: Moment) -> Option<Change> {
        let before = self.period();
        self.remote = Remote {
            state: packet.state,
            discriminator: packet.mine,
            min_tx: packet.min_tx,
            min_rx: packet.min_rx,
            multiplier: packet.multiplier,
            demand: packet.demand,
        };
        if packet.last {
            self.polling = false;
        }
        self.expires = Some(now + Duration::from_micros(self.detection()));
        let to = next_state(self.state, packet.state);
        let change = self.enter(to, Diagnostic::NEIGHBOUR_DOWN);
        if packet.poll {
            self.answer = true;
            self.next = now;
        }
        // Shorter intervals are kept at once, and a change of state is told at once.
        if change.is_some() || self.period() < before {
            self.next = self.next.min(now);
        }
        change
    }

    /// The time: the peer may be silent for too long.
    pub fn tick(&mut self, now: Moment) -> Option<Change> {
        if self.expires.is_none_or(|at| now < at) {
            return None;
        }
        self.expires = None;
        // The peer may have restarted: it is looked for anew.
        self.remote = UNKNOWN;
        self.polling = false;
        let to = if self.state == State::AdminDown { State::AdminDown } else { State::Down };
        let change = self.enter(to, Diagnostic::TIME_EXPIRED);
        if change.is_some() {
            self.next = self.next.min(now);
        }
        change
    }

    fn enter(&mut self, to: State, why_down: Diagnostic) -> Option<Change> {
        let from = std::mem::replace(&mut self.state, to);
        if from == to {
            return None;
        }
        match to {
            State::Down => self.diagnostic = why_down,
            // The intervals of an established session are agreed by a Poll Sequence (RFC 5880 section 6.8.3).
            State::Up => (self.diagnostic, self.polling) = (Diagnostic::NONE, self.interval < SLOW),
            State::Init | State::AdminDown => {}
        }
        if to != State::Up {
            self.polling = false;
        }
        Some(Change { from, to, diagnostic: self.diagnostic })
    }

    /// The packet that is due, if one is. `jitter`: 0 to 255, any number anew for every packet.
    pub fn transmit(&mut self, now: Moment, jitter: u8) -> Option<Packet> {
        let answer = std::mem::take(&mut self.answer);
        if !answer && self.due().is_none_or(|at| at > now) {
            return None;
        }
        if let Some(period) = self.period() {
            // Less by 0 to 25 %, and at least 10 % less where one lost packet is the end (RFC 5880 section 6.8.7).
            let (least, most) = if self.multiplier == 1 { (10, 25) } else { (0, 25) };
            let less = u64::from(period) * (least * 255 + (most - least) * u64::from(jitter)) / (255 * 100);
            self.next = now + Duration::from_micros(u64::from(period) - less);
        }
        Some(self.packet(answer))
    }

    /// The last packet: the peer need not wait.
    pub fn farewell(&mut self) -> Packet {
        (self.state, self.diagnostic) = (State::AdminDown, Diagnostic::ADMIN_DOWN);
        self.packet(false)
    }

    fn packet(&self, answer: bool) -> Packet {
        Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            // No packet is both (RFC 5880 section 6.5).
            poll: self.polling && !answer,
            last: answer,
            // The session's end is the end of the daemon that speaks VRRP, though forwarding goes on.
            control_independent: false,
            demand: false,
            multiplier: self.multiplier,
            mine: self.discriminator,
            yours: self.remote.discriminator,
            min_tx: self.min_tx(),
            min_rx: self.interval,
            min_echo_rx: 0,
        }
    }
}

/// RFC 5880 section 6.8.6, "If bfd.SessionState is ...".
const fn next_state(own: State, received: State) -> State {
    match (own, received) {
        (State::AdminDown, _) => State::AdminDown,
        (State::Down | State::Init | State::Up, State::AdminDown) => State::Down,
        (State::Down, State::Down) => State::Init,
        (State::Down, State::Init) | (State::Init, State::Init | State::Up) => State::Up,
        (State::Down, State::Up) => State::Down,
        (State::Init, State::Down) => State::Init,
        (State::Up, State::Down) => State::Down,
        (State::Up, State::Init | State::Up) => State::Up,
    }
}

#[cfg(test)]
mod tests;
