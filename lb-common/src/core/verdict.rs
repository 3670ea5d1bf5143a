//! What the core answers.

use super::{Ip, affinity::Step};
use crate::abi::BackendEntry;

/// What happens to a packet.
pub enum Decision<'t> {
    /// Not for us: the kernel takes it, untouched.
    Pass,
    /// For us, and refused.
    Drop(Refusal),
    /// To a backend.
    Forward(Forward<'t>),
    /// Answered by the balancer itself, back out of the port it came in by.
    Answer(Answer),
    /// To a backend, with a session of NAT; the backend here is for a flow that has none yet.
    Session(Forward<'t>, Step),
    /// Perhaps what a backend answers: to be asked of NAT.
    Back(Back),
    /// An ICMP error about what a backend of NAT sent, to that backend; the one here is for a flow without a session. Or a
    /// fragment behind the first, whose trace says how to rewrite it.
    Steer(Forward<'t>),
    /// Perhaps a question for a virtual address, or somebody's claim to one: see [`super::neighbour`].
    Neighbour(Neighbour),
}

/// A frame of address resolution.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Neighbour {
    /// Offset of the ARP packet or IPv6 header.
    pub l3: usize,
    pub v6: bool,
}

/// A packet that may be on its way back from a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Back {
    /// Offset of its IP header.
    pub l3: usize,
    pub v6: bool,
    /// It is for a source address of NAT sessions.
    pub pool: bool,
    /// RSTs are counted: [`super::passive::watch_reply`].
    pub watched: bool,
}

/// A packet that the balancer answers itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    pub kind: AnswerKind,
    /// Offset of the IP header.
    pub l3: usize,
    /// Offset of the transport header from it.
    pub header_len: usize,
    /// True for IPv6.
    pub v6: bool,
}

/// What is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum AnswerKind {
    /// An echo request: see [`super::echo::reply`].
    Echo = 0,
    /// TTL or hop limit ended here: see [`super::icmp::expired`].
    Expired = 1,
    /// A TCP segment to a service that nobody serves: see [`super::reject::reset`].
    Reset = 2,
    /// A UDP datagram to such a service: see [`super::icmp::Message::port_unreachable`].
    Unreachable = 3,
}

impl AnswerKind {
    /// What is counted when it was answered.
    #[inline(always)]
    #[must_use]
    pub const fn answered(self) -> DropReason {
        match self {
            Self::Echo => DropReason::EchoAnswered,
            Self::Expired => DropReason::TtlExceeded,
            Self::Reset | Self::Unreachable => DropReason::Rejected,
        }
    }

    /// What is counted when it was not.
    #[inline(always)]
    #[must_use]
    pub const fn unanswered(self) -> DropReason {
        match self {
            Self::Echo => DropReason::EchoUnanswered,
            Self::Expired => DropReason::TtlExceededUnanswered,
            Self::Reset | Self::Unreachable => DropReason::RejectedUnanswered,
        }
    }
}

/// A packet refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub reason: DropReason,
}

/// A packet on its way to a backend.
pub struct Forward<'t> {
    /// Service id: index of its counters.
    pub service: u32,
    /// Backend id: index of its counters.
    pub backend_id: u32,
    pub backend: &'t BackendEntry,
    pub ip: Ip,
    /// The flow hash; its lower half varies the outer header.
    pub hash: u64,
    /// Index of the slot of the flow's hash, which chose the backend unless a connection ID did, within the service's ring.
    pub slot: u32,
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $help:literal;)*) => {
        /// Why a packet was dropped: the index of its counter in `DROPS`.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u32)]
        pub enum DropReason {
            $($(#[$doc])* #[doc = $help] $variant = $number,)*
        }

        impl DropReason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The label of its counter.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// One line for an operator.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }
        }
    };
}

drop_reasons! {
    Truncated = 0, "truncated", "the frame ends inside a header";
    IpHeader = 1, "ip_header", "IP version or header length is impossible";
    IpLength = 2, "ip_length", "the IP length is beyond the frame or inside a header";
    IpFlags = 3, "ip_flags", "the reserved IPv4 flag is set";
    Fragment = 4, "fragment", "a fragment that cannot be told a backend";
    TtlExceeded = 5, "ttl_exceeded", "TTL or hop limit ended here; the sender was told";
    Ipv6Extension = 6, "ipv6_extension", "too many or impossible IPv6 extension headers";
    TcpHeader = 7, "tcp_header", "the TCP data offset is impossible";
    TcpFlags = 8, "tcp_flags", "no TCP segment has these flags";
    UdpLength = 9, "udp_length", "the UDP length does not fit the IP length";
    NoBackend = 10, "no_backend", "every backend of the service is down, drained or disabled";
    NoNextHop = 11, "no_next_hop", "the backend has no route or no neighbour entry";
    TooBig = 12, "too_big", "larger than the egress takes; the sender was told";
    TooBigUnanswered = 13, "too_big_unanswered", "larger than the egress takes; not told: the rate limit on ICMP, or a sender that is no single host";
    NoHeadroom = 14, "no_headroom", "the driver leaves no room for the outer header";
    Internal = 15, "internal", "the tables contradict themselves; please report it";
    Denied = 16, "denied", "the source is on the deny list";
    NotAllowed = 17, "not_allowed", "the source is not on the service's allow list";
    SourceLimit = 18, "source_limit", "the source sends more than the service's limit for one source";
    ServiceLimit = 19, "service_limit", "the service receives more than its limit";
    FragmentUnknown = 20, "fragment_unknown", "a later fragment of a datagram whose first one was not seen in time";
    TtlExceededUnanswered = 21, "ttl_exceeded_unanswered", "TTL or hop limit ended here; not told: the rate limit on ICMP, or a sender that is no single host";
    IcmpQuote = 22, "icmp_quote", "an ICMP error about a service whose quote does not tell the flow";
    NatSession = 23, "nat_session", "no NAT session, and nothing that could begin one";
    NatExhausted = 24, "nat_exhausted", "no source port was free for a new NAT session";
    NatFull = 25, "nat_full", "no room for a new NAT session";
    NatUntranslatable = 26, "nat_untranslatable", "the packet has no equivalent in the other IP version";
    EchoAnswered = 27, "echo_answered", "an echo request to a virtual address, answered here: nothing is lost";
    EchoUnanswered = 28, "echo_unanswered", "an echo request to a virtual address, not answered: the rate limit, or a sender that is no single host";
    FragmentHeld = 29, "fragment_held", "a fragment before the first one of its datagram, kept for a moment: counted again as what becomes of it";
    Rejected = 30, "rejected", "nobody of the service takes it, and on_all_down is \"reject\"; the sender was told";
    RejectedUnanswered = 31, "rejected_unanswered", "nobody of the service takes it, and on_all_down is \"reject\"; not told: the rate limit, or a sender that is no single host";
    NeighbourAnswered = 32, "neighbour_answered", "a question for the MAC address of a virtual address, answered here: nothing is lost";
    NeighbourUnanswered = 33, "neighbour_unanswered", "a question for the MAC address of a virtual address, not answered: the rate limit, or no valid question";
    LeaseOver = 34, "lease_over", "a question for the MAC address of a virtual address that another node has: this node's lease is over";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_distinct_and_fit_the_map() {
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert!((*reason as u32) < crate::abi::DROP_CAPACITY);
            assert!(DropReason::ALL[..i].iter().all(|other| other.name() != reason.name()));
        }
    }
}
