//! The tables the core reads, as a trait: BPF maps in the kernel, plain memory elsewhere; and the token
//! bucket that limits what the balancer sends of its own.

use super::{
    affinity::{Place, Step, choose_flow},
    parse::{Chain, walk_extensions},
    quic::{self, Format, Route},
};
use crate::abi::{
    BackendEntry, Bucket, CidKey, FlowEntry, FlowKey4, FlowKey6, PortKey, PortRangeKey, ServiceEntry, Slot,
    VipEntry,
};
use crate::packet::Packet;

/// What the core looks things up in. Addresses are as they stand in the packet.
pub trait Tables {
    /// The VIP of an IPv4 address.
    fn vip4(&self, address: [u8; 4]) -> Option<&VipEntry>;
    /// The VIP of an IPv6 address.
    fn vip6(&self, address: &[u8; 16]) -> Option<&VipEntry>;
    /// Service of an exact port of a VIP with many rules.
    fn port(&self, key: &PortKey) -> Option<u32>;
    /// Service of a port range of a VIP with many rules: longest prefix match.
    fn port_range(&self, key: &PortRangeKey) -> Option<u32>;
    /// The service of an id.
    fn service(&self, id: u32) -> Option<&ServiceEntry>;
    /// A word of the ring array, read atomically.
    fn slot(&self, index: u32) -> Option<Slot>;
    /// The backend of an id.
    fn backend(&self, id: u32) -> Option<&BackendEntry>;
    /// The entry of a flow, to read and to write.
    fn flow4(&self, key: &FlowKey4) -> Option<impl FlowCell>;
    /// The same for IPv6.
    fn flow6(&self, key: &FlowKey6) -> Option<impl FlowCell>;
    /// Records a flow; false if there is no room. An entry that is there already stays as it is.
    fn add_flow4(&self, key: &FlowKey4, entry: FlowEntry) -> bool;
    /// The same for IPv6.
    fn add_flow6(&self, key: &FlowKey6, entry: FlowEntry) -> bool;
    /// The backend whose server id is in QUIC connection IDs.
    fn cid(&self, key: &CidKey) -> Option<u32>;
    /// Nanoseconds of the monotonic clock.
    fn now_ns(&self) -> u64;
    /// Takes one token for an ICMP answer; false if there is none.
    fn icmp_token(&self) -> bool;

    /// Walks the IPv6 extension headers. A rare path: the kernel program puts it out of line, where the
    /// verifier goes through it once and not once for each way that leads there.
    #[inline(always)]
    fn extensions<P: Packet>(&self, packet: &P, l3: usize, first: u8) -> Chain {
        walk_extensions(packet, l3, first)
    }

    /// Chooses the backend of a flow whose slot is not plain; 0 = nobody. As rare as `extensions`.
    #[inline(always)]
    fn choose<P: Packet>(&self, packet: &P, place: Place, slot: Slot, hash: u64, step: Step) -> u32
    where
        Self: Sized,
    {
        choose_flow(packet, self, place, slot, hash, step)
    }

    /// Reads the QUIC header of a datagram. As rare as `extensions`: services of other protocols do without.
    #[inline(always)]
    fn quic<P: Packet>(&self, packet: &P, place: Place, format: Format) -> Route
    where
        Self: Sized,
    {
        quic::route(packet, self, place, format)
    }
}

/// The place of a flow's entry in the table.
pub trait FlowCell {
    /// The entry, read at once.
    fn load(&self) -> FlowEntry;
    /// Replaces it at once.
    fn store(&self, entry: FlowEntry);
}

/// A flow's key, of either family.
pub trait FlowKey: Copy {
    /// The flow's entry.
    fn find<T: Tables>(&self, tables: &T) -> Option<impl FlowCell>;
    /// Records the flow.
    fn add<T: Tables>(&self, tables: &T, entry: FlowEntry) -> bool;
}

impl FlowKey for FlowKey4 {
    #[inline(always)]
    fn find<T: Tables>(&self, tables: &T) -> Option<impl FlowCell> {
        tables.flow4(self)
    }
    #[inline(always)]
    fn add<T: Tables>(&self, tables: &T, entry: FlowEntry) -> bool {
        tables.add_flow4(self, entry)
    }
}

impl FlowKey for FlowKey6 {
    #[inline(always)]
    fn find<T: Tables>(&self, tables: &T) -> Option<impl FlowCell> {
        tables.flow6(self)
    }
    #[inline(always)]
    fn add<T: Tables>(&self, tables: &T, entry: FlowEntry) -> bool {
        tables.add_flow6(self, entry)
    }
}

impl Bucket {
    /// Takes one token at time `now_ns`, after refilling at `rate` tokens a second up to `burst`.
    #[inline(always)]
    pub fn take(&mut self, now_ns: u64, rate: u64, burst: u64) -> bool {
        const SECOND: u64 = 1_000_000_000;
        let elapsed = now_ns.saturating_sub(self.refilled_ns);
        if self.refilled_ns == 0 || elapsed >= SECOND {
            self.tokens =
                if self.refilled_ns == 0 || rate >= burst { burst } else { (self.tokens + rate).min(burst) };
            self.refilled_ns = now_ns;
        } else {
            let earned = elapsed * rate / SECOND;
            if earned > 0 {
                self.tokens = (self.tokens + earned).min(burst);
                // Whole tokens only: the rest of the time goes on counting.
                self.refilled_ns += earned * SECOND / rate.max(1);
            }
        }
        if self.tokens == 0 {
            return false;
        }
        self.tokens -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_gives_no_more_than_burst_and_rate(
            steps in proptest::collection::vec(0..50_000_000u64, 1..400), rate in 1..2_000u64, burst in 1..200u64,
        ) {
            let mut bucket = Bucket::default();
            let (start, mut now, mut taken) = (1_000u64, 1_000u64, 0u64);
            for step in steps {
                now += step;
                taken += u64::from(bucket.take(now, rate, burst));
            }
            prop_assert!(taken <= burst + (now - start) * rate / 1_000_000_000 + 1);
        }
    }

    #[test]
    fn an_empty_bucket_fills_at_its_rate() {
        let mut bucket = Bucket::default();
        assert_eq!((0..20).filter(|_| bucket.take(1, 10, 5)).count(), 5);
        assert!(!bucket.take(50_000_000, 10, 5));
        assert!(bucket.take(101_000_001, 10, 5));
        assert!(!bucket.take(101_000_002, 10, 5));
    }
}
