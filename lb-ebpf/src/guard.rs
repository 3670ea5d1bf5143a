//! The firewall's maps. The marks are read in line; what they leave open, allow lists and limits are functions of
//! their own, like those in [`outline`](crate::outline).

use crate::{atomic, frame::Frame, maps, observe, outline::opaque, tables::Maps};
use aya_ebpf::{bindings::xdp_md, helpers::bpf_ktime_get_ns, maps::lpm_trie::Key};
use lb_common::{
    abi::{Arrivals, Control, Limits, SourceKey},
    core::{
        affinity::{Place, Step},
        guard::{self, Arrival, Guard},
    },
};

/// Insert only where there is no entry: another CPU may have seen the source first.
const BPF_NOEXIST: u64 = 1;

/// The verdict of `DENY4` on an address.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn verdict4(address: u64) -> u64 {
    maps::DENY4.get(Key::new(32, (address as u32).to_be_bytes())).copied().unwrap_or(0).into()
}

/// The verdict of `DENY6` on an address.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn verdict6(hi: u64, lo: u64) -> u64 {
    maps::DENY6.get(Key::new(128, bytes(hi, lo))).copied().unwrap_or(0).into()
}

/// Is the address on the service's allow list?
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn allowed4(service: u64, address: u64) -> u64 {
    let key = (service << 32 | address & 0xffff_ffff).to_be_bytes();
    maps::ALLOWED4.get(Key::new(64, key)).is_some().into()
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn allowed6(service: u64, hi: u64, lo: u64) -> u64 {
    let mut key = [0; 20];
    key[..4].copy_from_slice(&(service as u32).to_be_bytes());
    key[4..12].copy_from_slice(&hi.to_be_bytes());
    key[12..].copy_from_slice(&lo.to_be_bytes());
    maps::ALLOWED6.get(Key::new(160, key)).is_some().into()
}

/// See [`guard::admit`]; `flags` holds the service's flags and, in its last byte, the step.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn admit(ctx: *mut xdp_md, place: u64, service: u64, flags: u64) -> u64 {
    let step = Step::from_u64(flags & 0xff);
    let (place, service, flags) = (Place(opaque(place)), service as u32, (flags >> 8) as u32);
    guard::admit(&Frame::new(ctx), &Maps::new(ctx), place, service, flags, step).0
}

#[inline(always)]
fn bytes(hi: u64, lo: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&hi.to_be_bytes());
    bytes[8..].copy_from_slice(&lo.to_be_bytes());
    bytes
}

/// A time in a map's value.
struct Time(*mut u64);

impl Arrival for Time {
    #[inline(always)]
    fn load(&self) -> u64 {
        // SAFETY: a u64 of a map's value, 8-aligned, which the kernel keeps until this program returns. A volatile
        // read is one load instruction: never torn.
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    fn replace(&self, seen: u64, new: u64) -> Result<(), u64> {
        if observe::dry() {
            return Ok(());
        }
        // SAFETY: as in `load`; every CPU changes it by this instruction only.
        unsafe { atomic::exchange(self.0, seen, new) }
    }
}

/// The two times of a bucket.
#[inline(always)]
fn times(arrivals: *mut Arrivals) -> [Time; 2] {
    // SAFETY: places inside the value, none of which is read here.
    unsafe { [Time(&raw mut (*arrivals).packets), Time(&raw mut (*arrivals).connections)] }
}

impl<const OBSERVED: bool> Guard for Maps<OBSERVED> {
    #[inline(always)]
    fn regions4(&self, word: u32) -> u64 {
        // SAFETY: an array element of 8 bytes, 8-aligned; the daemon writes it with one atomic store.
        maps::REGIONS4.get_ptr(word).map_or(0, |word| unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn marks4(&self, word: u32) -> u64 {
        // SAFETY: as in `regions4`.
        maps::MARKS4.get_ptr(word).map_or(0, |word| unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn marks6(&self, word: u32) -> u64 {
        // SAFETY: as in `regions4`.
        maps::MARKS6.get_ptr(word).map_or(0, |word| unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn short_prefixes6(&self) -> bool {
        maps::CONTROL.get(0).is_some_and(|control| control.flags & Control::SHORT_PREFIXES6 != 0)
    }

    #[inline(always)]
    fn verdict4(&self, address: u32) -> u32 {
        verdict4(address.into()) as u32
    }

    #[inline(always)]
    fn verdict6(&self, hi: u64, lo: u64) -> u32 {
        verdict6(hi, lo) as u32
    }

    #[inline(always)]
    fn allowed4(&self, service: u32, address: u32) -> bool {
        allowed4(service.into(), address.into()) != 0
    }

    #[inline(always)]
    fn allowed6(&self, service: u32, hi: u64, lo: u64) -> bool {
        allowed6(service.into(), hi, lo) != 0
    }

    #[inline(always)]
    fn limits(&self, service: u32) -> Option<&Limits> {
        maps::LIMITS.get(service)
    }

    #[inline(always)]
    fn service_arrivals(&self, service: u32) -> Option<[impl Arrival; 2]> {
        maps::SERVICE_LIMITS.get_ptr_mut(service).map(times)
    }

    #[inline(always)]
    fn source_arrivals(&self, key: &SourceKey, first: Arrivals) -> Option<[impl Arrival; 2]> {
        let found = maps::SOURCES.get_ptr_mut(key);
        if found.is_none() && !observe::dry() {
            // Lost against another CPU, or no element free on this one: the packet is one more than the limit.
            let _ = maps::SOURCES.insert(key, first, BPF_NOEXIST);
        }
        found.map(times)
    }

    #[inline(always)]
    fn time_ns(&self) -> u64 {
        // SAFETY: a helper call without arguments.
        unsafe { bpf_ktime_get_ns() }
    }
}
