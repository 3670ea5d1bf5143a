//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are kept in host order over big-endian words that were loaded as they stand: RFC 1071
//! section 2 (B) shows that the byte order of the words does not matter as long as the result is
//! stored the way the words were loaded.

/// Folds a sum of 16- or 32-bit words to 16 bits.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    // A u64 sum of fewer than 2^32 words of 32 bits: three folds reach 16 bits plus a carry, the fourth takes it in.
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The checksum field for a sum over the covered words, the field itself counted as zero.
#[inline(always)]
pub const fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// RFC 1624 equation 3: the checksum after one 16-bit word changed from `old` to `new`, all three in
/// the order they stand in the packet.
#[inline(always)]
pub const fn update16(check: u16, old: u16, new: u16) -> u16 {
    !fold(!check as u64 + !old as u64 + new as u64)
}

/// Sum of the 16-bit words of `bytes`, loaded in host order; an odd last byte is padded with zero.
/// For tests and rare paths.
pub fn sum_bytes(bytes: &[u8]) -> u64 {
    let mut sum = 0;
    let mut words = bytes.chunks_exact(2);
    for word in &mut words {
        sum += u64::from(u16::from_ne_bytes([word[0], word[1]]));
    }
    if let [last] = words.remainder() {
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// The example of RFC 1071 section 3.
    #[test]
    fn rfc1071_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(u16::from_be(fold(sum_bytes(&bytes))), 0xddf2);
    }

    /// The example of RFC 1624 section 4: equation 3 gives 0x0000 where equation 2 gave 0xffff.
    #[test]
    fn rfc1624_example() {
        assert_eq!(update16(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    proptest! {
        #[test]
        fn an_update_equals_a_new_sum(mut bytes in proptest::collection::vec(any::<u8>(), 20..21), at in 0..10usize, new: [u8; 2]) {
            let before = finish(sum_bytes(&bytes));
            let old = [bytes[2 * at], bytes[2 * at + 1]];
            bytes[2 * at] = new[0];
            bytes[2 * at + 1] = new[1];
            let after = finish(sum_bytes(&bytes));
            let updated = update16(before, u16::from_ne_bytes(old), u16::from_ne_bytes(new));
            // 0x0000 and 0xffff are the same number in ones' complement; a header is never all zero.
            prop_assert!(updated == after || (updated ^ after) == 0xffff && (after == 0 || updated == 0));
        }

        #[test]
        fn folding_keeps_the_sum(words: Vec<u32>) {
            let sum: u64 = words.iter().map(|w| u64::from(*w)).sum();
            prop_assert_eq!(u64::from(fold(sum)) % 0xffff, sum % 0xffff);
        }
    }
}
