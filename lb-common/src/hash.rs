//! The flow hash. Its output is a contract between nodes and versions: the golden vectors below may
//! never change, or every flow of every ring would move at an upgrade.

/// A 64-bit finalizer (Stafford's variant 13 of MurmurHash3's): a bijection whose every output bit
/// depends on every input bit.
#[inline(always)]
pub const fn mix(mut x: u64) -> u64 {
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Hash of an IPv4 flow. `src` is the source address as its four bytes read big endian, `ports` the
/// source port in the upper and the destination port in the lower half, `seed` the service's.
///
/// The destination address is left out on purpose, as in Katran and Maglev: a client keeps its backend
/// on whichever of a service's addresses it comes in.
#[inline(always)]
pub const fn flow4(seed: u64, src: u32, ports: u32) -> u64 {
    mix(seed ^ ((src as u64) << 32 | ports as u64))
}

/// Hash of an IPv6 flow: `hi` and `lo` are the halves of the source address, read big endian.
#[inline(always)]
pub const fn flow6(seed: u64, hi: u64, lo: u64, ports: u32) -> u64 {
    mix(mix(seed ^ hi).wrapping_add(lo) ^ (ports as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The slot of a ring of `size` slots, by multiply and shift over the upper half of the hash
/// (Lemire, "Fast random integer generation in an interval", 2019, section 4).
#[inline(always)]
pub const fn slot(hash: u64, size: u32) -> u32 {
    (((hash >> 32) * size as u64) >> 32) as u32
}

/// The bits of a hash that vary a tunnel's outer header: the lower half, which does not choose the slot.
#[inline(always)]
pub const fn entropy(hash: u64) -> u32 {
    hash as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn golden_vectors() {
        let flows4 = [
            (0, 0, 0, 0),
            (1, 0, 0, 0x5692_161d_100b_05e5),
            (0, 0xc000_0201, 0x9c40_0050, 0x78fe_db20_d341_f782),
        ];
        for (seed, src, ports, expected) in flows4 {
            assert_eq!(flow4(seed, src, ports), expected, "flow4({seed:#x}, {src:#x}, {ports:#x})");
        }
        assert_eq!(flow6(0x6c62_6400, 0x2001_0db8_0000_0000, 1, 0x9c40_01bb), 0xd478_8af8_fcac_4f11);
        assert_eq!(slot(u64::MAX, 65_537), 65_536);
        assert_eq!(slot(0, 65_537), 0);
        assert_eq!(slot(1 << 63, 10_007), 5_003);
    }

    /// 1,000,000 flows over 997 slots: chi squared within five standard deviations of its mean.
    #[test]
    fn flows_spread_evenly() {
        const SLOTS: u32 = 997;
        const FLOWS: u32 = 1_000_000;
        for v6 in [false, true] {
            let mut counts = vec![0u32; SLOTS as usize];
            for i in 0..FLOWS {
                // What real clients look like: few addresses, consecutive ports.
                let (addr, ports) = (0x0a00_0000 + i / 1000, (32_768 + i % 1000) << 16 | 443);
                let hash = if v6 {
                    flow6(7, 0x2001_0db8 << 32, u64::from(addr), ports)
                } else {
                    flow4(7, addr, ports)
                };
                counts[slot(hash, SLOTS) as usize] += 1;
            }
            let mean = f64::from(FLOWS) / f64::from(SLOTS);
            let chi: f64 = counts.iter().map(|c| (f64::from(*c) - mean).powi(2) / mean).sum();
            let dof = f64::from(SLOTS - 1);
            assert!(
                (chi - dof).abs() < 5.0 * (2.0 * dof).sqrt(),
                "chi squared {chi} for {dof} degrees (v6: {v6})"
            );
        }
    }
}
