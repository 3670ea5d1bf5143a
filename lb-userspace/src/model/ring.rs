//! Sizes of Maglev rings.

/// Smallest ring of a service, in slots.
pub const MIN_RING: u32 = 3;
/// Largest ring of a service, in slots.
pub const MAX_RING: u32 = lb_common::abi::MAX_RING;

/// True for a size a ring can have: a prime (Maglev, section 3.4) within the bounds, which are prime.
pub fn is_ring_size(size: u32) -> bool {
    (MIN_RING..=MAX_RING).contains(&size)
        && (2..).take_while(|d| d * d <= size).all(|d| !size.is_multiple_of(d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_sizes_are_the_primes_in_between() {
        // A sieve, to count them another way.
        let mut composite = vec![false; MAX_RING as usize + 10];
        for n in 2..composite.len() {
            for multiple in (2 * n..composite.len()).step_by(n) {
                composite[multiple] = true;
            }
        }
        for n in 0..composite.len() as u32 {
            let prime = (MIN_RING..=MAX_RING).contains(&n) && !composite[n as usize];
            assert_eq!(is_ring_size(n), prime, "{n}");
        }
        assert!(is_ring_size(MIN_RING) && is_ring_size(MAX_RING));
    }
}
