//! BFD Control packets (RFC 5880 section 4.1) without authentication. Pure.

use std::time::Duration;

/// UDP port of single-hop sessions (RFC 5881 section 4).
pub const PORT: u16 = 3784;
/// TTL and hop limit of every packet (RFC 5881 section 5, GTSM).
pub const HOP_LIMIT: u8 = 255;
/// Octets of a packet without authentication.
pub const LENGTH: usize = 24;

const VERSION: u8 = 1;
const POLL: u8 = 0x20;
const FINAL: u8 = 0x10;
const CONTROL_INDEPENDENT: u8 = 0x08;
const AUTHENTICATION: u8 = 0x04;
const DEMAND: u8 = 0x02;
const MULTIPOINT: u8 = 0x01;

/// Of a session (RFC 5880 section 4.1, Sta).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    AdminDown,
    Down,
    Init,
    Up,
}

impl State {
    pub const ALL: [Self; 4] = [Self::AdminDown, Self::Down, Self::Init, Self::Up];

    pub const fn name(self) -> &'static str {
        match self {
            Self::AdminDown => "admin-down",
            Self::Down => "down",
            Self::Init => "init",
            Self::Up => "up",
        }
    }
}

/// Why a session went down last (RFC 5880 section 4.1, Diag).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Diagnostic(pub u8);

impl Diagnostic {
    pub const NONE: Self = Self(0);
    pub const TIME_EXPIRED: Self = Self(1);
    pub const NEIGHBOUR_DOWN: Self = Self(3);
    pub const ADMIN_DOWN: Self = Self(7);
    /// Five bits on the wire.
    const MASK: u8 = 0x1f;
}

/// A packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    pub diagnostic: Diagnostic,
    pub state: State,
    pub poll: bool,
    pub last: bool,
    /// The sender's forwarding does not depend on what speaks BFD.
    pub control_independent: bool,
    /// It wants no periodic packets.
    pub demand: bool,
    /// Packets that may be missed; never 0.
    pub multiplier: u8,
    /// My Discriminator; never 0.
    pub mine: u32,
    /// Your Discriminator; 0 as long as it does not know.
    pub yours: u32,
    /// Desired Min TX Interval, in microseconds.
    pub min_tx: u32,
    /// Required Min RX Interval, in microseconds; 0: send nothing.
    pub min_rx: u32,
    /// Required Min Echo RX Interval, in microseconds; 0: no echo.
    pub min_echo_rx: u32,
}

/// Why a packet is of no effect (RFC 5880 section 6.8.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it is {0} octets long, its header says otherwise")]
    Length(usize),
    #[error("version {0}; lbd knows version 1")]
    Version(u8),
    #[error("it wants authentication, which lbd has not")]
    Authentication,
    #[error("its multipoint bit is set")]
    Multipoint,
    #[error("a detection multiplier of 0")]
    Multiplier,
    #[error("a discriminator of 0")]
    Discriminator,
    #[error("no session is named, though the sender is not down")]
    NoSession,
    #[error("TTL {0} instead of 255: it may come from farther away than the link")]
    HopLimit(u8),
    #[error("it is for the discriminator {0:#010x}, which no session has")]
    OtherSession(u32),
}

impl Refusal {
    /// Every label, in the order of [`Refusal::number`].
    pub const LABELS: [&str; 9] = [
        "length",
        "version",
        "authentication",
        "multipoint",
        "multiplier",
        "discriminator",
        "no_session",
        "ttl",
        "other_session",
    ];

    pub(super) const fn number(&self) -> usize {
        match self {
            Self::Length(_) => 0,
            Self::Version(_) => 1,
            Self::Authentication => 2,
            Self::Multipoint => 3,
            Self::Multiplier => 4,
            Self::Discriminator => 5,
            Self::NoSession => 6,
            Self::HopLimit(_) => 7,
            Self::OtherSession(_) => 8,
        }
    }
}

/// Reads a packet, and refuses what RFC 5880 section 6.8.6 wants discarded before a session is looked for.
pub fn parse(bytes: &[u8]) -> Result<Packet, Refusal> {
    let Some(head) = bytes.first_chunk::<LENGTH>() else { return Err(Refusal::Length(bytes.len())) };
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (version, flags, length) = (head[0] >> 5, head[1], usize::from(head[3]));
    if version != VERSION {
        return Err(Refusal::Version(version));
    }
    if length < LENGTH || length > bytes.len() {
        return Err(Refusal::Length(bytes.len()));
    }
    if head[2] == 0 {
        return Err(Refusal::Multiplier);
    }
    if flags & MULTIPOINT != 0 {
        return Err(Refusal::Multipoint);
    }
    let state = State::ALL[usize::from(flags >> 6)];
    let packet = Packet {
        diagnostic: Diagnostic(head[0] & Diagnostic::MASK),
        state,
        poll: flags & POLL != 0,
        last: flags & FINAL != 0,
        control_independent: flags & CONTROL_INDEPENDENT != 0,
        demand: flags & DEMAND != 0,
        multiplier: head[2],
        mine: word(4),
        yours: word(8),
        min_tx: word(12),
        min_rx: word(16),
        min_echo_rx: word(20),
    };
    if packet.mine == 0 {
        return Err(Refusal::Discriminator);
    }
    if packet.yours == 0 && !matches!(state, State::Down | State::AdminDown) {
        return Err(Refusal::NoSession);
    }
    if flags & AUTHENTICATION != 0 {
        return Err(Refusal::Authentication);
    }
    Ok(packet)
}

impl Packet {
    pub fn encode(&self) -> [u8; LENGTH] {
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        let mut bytes = [0; LENGTH];
        bytes[0] = VERSION << 5 | self.diagnostic.0 & Diagnostic::MASK;
        bytes[1] = (self.state as u8) << 6
            | flag(self.poll, POLL)
            | flag(self.last, FINAL)
            | flag(self.control_independent, CONTROL_INDEPENDENT)
            | flag(self.demand, DEMAND);
        bytes[2] = self.multiplier;
        bytes[3] = LENGTH as u8;
        let words = [self.mine, self.yours, self.min_tx, self.min_rx, self.min_echo_rx];
        for (place, word) in bytes[4..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }
}

/// As on the wire; the longest is more than an hour.
pub fn micros(interval: Duration) -> u32 {
    u32::try_from(interval.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// By hand from the figure of RFC 5880 section 4.1: up, poll, three packets at 10 ms, echo off.
    const BYTES: [u8; LENGTH] =
        [0x20, 0xe0, 3, 24, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0x27, 0x10, 0, 0, 0x27, 0x10, 0, 0, 0, 0];

    fn packet() -> Packet {
        Packet {
            diagnostic: Diagnostic::NONE,
            state: State::Up,
            poll: true,
            last: false,
            control_independent: false,
            demand: false,
            multiplier: 3,
            mine: 7,
            yours: 9,
            min_tx: 10_000,
            min_rx: 10_000,
            min_echo_rx: 0,
        }
    }

    #[test]
    fn as_in_the_rfc() {
        assert_eq!(parse(&BYTES), Ok(packet()));
        assert_eq!(packet().encode(), BYTES);
        let with = |at: usize, byte: u8| {
            let mut bytes = BYTES;
            bytes[at] = byte;
            parse(&bytes)
        };
        assert_eq!(with(0, 0x21).unwrap().diagnostic, Diagnostic::TIME_EXPIRED);
        assert_eq!(with(0, 0x40), Err(Refusal::Version(2)));
        assert_eq!(with(1, 0xe4), Err(Refusal::Authentication));
        assert_eq!(with(1, 0xe1), Err(Refusal::Multipoint));
        assert_eq!(with(2, 0), Err(Refusal::Multiplier));
        assert_eq!(with(3, 23), Err(Refusal::Length(24)));
        assert_eq!(with(3, 25), Err(Refusal::Length(24)));
        assert_eq!(with(7, 0), Err(Refusal::Discriminator));
        assert_eq!(with(11, 0), Err(Refusal::NoSession));
        assert_eq!(parse(&BYTES[..23]), Err(Refusal::Length(23)));
        assert_eq!(with(11, 0).map_err(|refusal| Refusal::LABELS[refusal.number()]), Err("no_session"));
        // Down, it need not know.
        let mut down = BYTES;
        (down[1], down[11]) = (0x40, 0);
        assert_eq!(parse(&down).map(|packet| (packet.state, packet.yours)), Ok((State::Down, 0)));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_what_is_taken_reads_back(bytes in proptest::collection::vec(any::<u8>(), 0..40), fix: bool) {
            let mut bytes = bytes;
            if fix && bytes.len() >= LENGTH {
                (bytes[0], bytes[3]) = (bytes[0] & 0x1f | 0x20, LENGTH as u8);
            }
            if let Ok(packet) = parse(&bytes) {
                prop_assert_eq!(parse(&packet.encode()), Ok(packet));
            }
        }
    }
}
