//! The atomic instructions of BPF (version 3 of the instruction set, Linux 5.12), which `core::sync::atomic` does not offer
//! for this target.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

// BPF knows one strength of each: with a result, sequentially consistent.
const ORDER: AtomicOrdering = AtomicOrdering::SeqCst;

/// Writes `new` if `old` is there still; else what is there now.
///
/// # Safety
/// `word` is 8-aligned and part of a map's value that the kernel keeps until this program returns.
#[inline(always)]
pub(crate) unsafe fn exchange(word: *mut u64, old: u64, new: u64) -> Result<(), u64> {
    // SAFETY: the caller's promise.
    let (found, done) = unsafe { atomic_cxchg::<u64, ORDER, ORDER>(word, old, new) };
    if done { Ok(()) } else { Err(found) }
}

/// Adds, wrapping around; what was there before.
///
/// # Safety
/// As for [`exchange`].
#[inline(always)]
pub(crate) unsafe fn add(word: *mut u64, number: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u64, u64, ORDER>(word, number) }
}
