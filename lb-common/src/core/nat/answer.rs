//! What a rare path of NAT made of a packet, in one number that passes between kernel functions.

use crate::core::DropReason;

/// See [`Verdict`]; from the low bits up: `verdict:8 | backend or reason or MTU:24 | ifindex:32`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer(pub u64);

/// What became of the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Verdict {
    /// Not of NAT: the packet is untouched, the kernel takes it.
    Pass = 0,
    /// Refused, for [`Answer::reason`].
    Drop = 1,
    /// Rewritten; it leaves through [`Answer::ifindex`].
    Send = 2,
    /// Larger than [`Answer::mtu`], untouched.
    TooBig = 3,
    /// Needs no session after all: the packet goes on as one without.
    Plain = 4,
    /// A session may know: ask for it.
    Session = 5,
    /// An ICMP message: look into it.
    Icmp = 6,
    /// The other side speaks the other IP version.
    Cross = 7,
    /// A session is to be made, then ask again as for a beginning; [`Answer::own`].
    Make = 8,
}

impl Answer {
    /// See [`Verdict::Pass`].
    pub const PASS: Self = Self(Verdict::Pass as u64);
    /// See [`Verdict::Plain`].
    pub const PLAIN: Self = Self(Verdict::Plain as u64);
    /// See [`Verdict::Session`].
    pub const SESSION: Self = Self(Verdict::Session as u64);
    /// See [`Verdict::Icmp`].
    pub const ICMP: Self = Self(Verdict::Icmp as u64);

    /// See [`Verdict::Drop`].
    #[inline(always)]
    pub const fn drop(reason: DropReason) -> Self {
        Self(Verdict::Drop as u64 | (reason as u64) << 8)
    }

    /// See [`Verdict::Make`].
    #[inline(always)]
    pub const fn make(own: bool) -> Self {
        Self(Verdict::Make as u64 | (own as u64) << 8)
    }

    /// See [`Verdict::Send`]; `backend` is 0 on the way back.
    #[inline(always)]
    pub const fn send(ifindex: u32, backend: u32) -> Self {
        Self(Verdict::Send as u64 | (backend as u64 & 0xff_ffff) << 8 | (ifindex as u64) << 32)
    }

    /// See [`Verdict::TooBig`].
    #[inline(always)]
    pub const fn too_big(mtu: u16) -> Self {
        Self(Verdict::TooBig as u64 | (mtu as u64) << 8)
    }

    /// See [`Verdict::Cross`].
    #[inline(always)]
    pub const fn cross(backend: u32) -> Self {
        Self(Verdict::Cross as u64 | (backend as u64 & 0xff_ffff) << 8)
    }

    /// What became of the packet.
    #[inline(always)]
    pub const fn verdict(self) -> Verdict {
        match self.0 as u8 {
            0 => Verdict::Pass,
            2 => Verdict::Send,
            3 => Verdict::TooBig,
            4 => Verdict::Plain,
            5 => Verdict::Session,
            6 => Verdict::Icmp,
            7 => Verdict::Cross,
            8 => Verdict::Make,
            _ => Verdict::Drop,
        }
    }

    /// The client is a backend of the service.
    #[inline(always)]
    pub const fn own(self) -> bool {
        self.0 >> 8 & 1 != 0
    }

    /// The number of the [`DropReason`].
    #[inline(always)]
    pub const fn reason(self) -> u32 {
        (self.0 >> 8) as u32 & 0xff_ffff
    }

    /// The backend it goes to.
    #[inline(always)]
    pub const fn backend(self) -> u32 {
        (self.0 >> 8) as u32 & 0xff_ffff
    }

    /// The largest packet that would have fitted.
    #[inline(always)]
    pub const fn mtu(self) -> u16 {
        (self.0 >> 8) as u16
    }

    /// The egress.
    #[inline(always)]
    pub const fn ifindex(self) -> u32 {
        (self.0 >> 32) as u32
    }
}
