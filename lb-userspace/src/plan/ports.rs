//! The port rules of a VIP: inline while they fit, else spilled into the two port maps.

use crate::model::PortSpec;
use lb_common::abi::{INLINE_RULES, PortKey, PortRangeKey, PortRule, VipEntry};

/// One port specification of a VIP and the service it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    pub port: PortSpec,
    pub proto: u8,
    pub service: u32,
}

/// The entry of a VIP and what spills.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VipTables {
    pub entry: VipEntry,
    pub ports: Vec<(PortKey, u32)>,
    pub ranges: Vec<(PortRangeKey, u32)>,
}

/// Lays out the claims of one VIP: exact ports first, then ranges, then "every port".
#[must_use]
pub fn lay_out(vip: u32, claims: &[Claim]) -> VipTables {
    let mut claims = claims.to_vec();
    claims.sort_by_key(|c| (kind(c.port), c.port.bounds(), c.proto));
    let mut entry = VipEntry { vip, flags: 0, rules: [PortRule::NONE; INLINE_RULES] };
    if claims.len() <= INLINE_RULES {
        for (rule, claim) in entry.rules.iter_mut().zip(&claims) {
            let (lo, hi) = claim.port.bounds();
            *rule = PortRule { lo, hi, service: claim.service as u16, proto: claim.proto, pad: 0 };
        }
        return VipTables { entry, ports: Vec::new(), ranges: Vec::new() };
    }
    entry.flags = VipEntry::SPILLED;
    let (mut ports, mut ranges) = (Vec::new(), Vec::new());
    for claim in &claims {
        let proto = u16::from(claim.proto);
        match claim.port {
            PortSpec::Exact(port) => ports.push((PortKey { vip, port, proto }, claim.service)),
            PortSpec::Range(lo, hi) => {
                for (start, bits) in aligned_blocks(lo, hi) {
                    ranges.push((range_key(vip, proto, start, bits), claim.service));
                }
            }
            PortSpec::Any => ranges.push((range_key(vip, proto, 0, 0), claim.service)),
        }
    }
    VipTables { entry, ports, ranges }
}

fn kind(port: PortSpec) -> u8 {
    match port {
        PortSpec::Exact(_) => 0,
        PortSpec::Range(..) => 1,
        PortSpec::Any => 2,
    }
}

/// A trie key for the block of ports that share the upper `bits` bits with `start`.
fn range_key(vip: u32, proto: u16, start: u16, bits: u32) -> PortRangeKey {
    PortRangeKey {
        prefix_len: PortRangeKey::FIXED_BITS + bits,
        vip: vip.to_be_bytes(),
        proto: proto.to_be_bytes(),
        port: start.to_be_bytes(),
    }
}

/// The aligned power-of-two blocks that make up `lo..=hi`: first port and number of significant bits.
fn aligned_blocks(lo: u16, hi: u16) -> Vec<(u16, u32)> {
    let (mut at, end) = (u32::from(lo), u32::from(hi) + 1);
    let mut blocks = Vec::new();
    while at < end {
        // The largest block that starts here (0 is aligned to everything) and does not reach past the end.
        let aligned = if at == 0 { 16 } else { at.trailing_zeros().min(16) };
        let size = (0..=aligned).rev().find(|bits| at + (1 << bits) <= end).unwrap_or(0);
        blocks.push((at as u16, 16 - size));
        at += 1 << size;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_cover_the_range_once(a: u16, b: u16, probe: u16) {
            let (lo, hi) = (a.min(b), a.max(b));
            let blocks = aligned_blocks(lo, hi);
            prop_assert!(blocks.len() <= 30);
            let hits = blocks.iter().filter(|(start, bits)| {
                let mask = if *bits == 0 { 0 } else { u16::MAX << (16 - bits) };
                prop_assert_eq_ok(*start & !mask, 0) && probe & mask == *start
            }).count();
            prop_assert_eq!(hits, usize::from((lo..=hi).contains(&probe)));
        }
    }

    fn prop_assert_eq_ok(a: u16, b: u16) -> bool {
        assert_eq!(a, b, "a block is aligned to its size");
        true
    }
}
