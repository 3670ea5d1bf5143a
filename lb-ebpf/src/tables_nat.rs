//! The core's tables of NAT over the maps.

use crate::{
    maps, observe, outline_nat,
    tables::{BPF_NOEXIST, Cell, EEXIST, Maps},
};
use aya_ebpf::{helpers::bpf_ktime_get_coarse_ns, maps::HashMap};
use lb_common::{
    abi::{Exit, FlowKey6, NatKey, NatOrigin, Pool, SessionBack, SessionOut},
    core::{
        FlowCell,
        nat::{Added, Address, NatTables, Outcome, Way},
    },
};

#[inline(always)]
fn add<V>(map: &HashMap<FlowKey6, V>, key: &FlowKey6, value: &V) -> Added {
    if observe::dry() {
        return Added::Full;
    }
    match map.insert(key, value, BPF_NOEXIST) {
        Ok(()) => Added::Made,
        Err(EEXIST) => Added::Exists,
        Err(_) => Added::Full,
    }
}

impl NatTables for Maps<false> {
    #[inline(always)]
    fn nat(&self, key: &NatKey) -> Option<&NatOrigin> {
        // SAFETY: the value is plain data; the kernel frees it after a grace period this program is inside of.
        unsafe { maps::NATS.get(key) }
    }

    #[inline(always)]
    fn way(&self, v6: bool, from: Address, to: Address) -> Way<'_> {
        let place = Exit::place(to);
        let Some(control) = maps::CONTROL.get(0) else { return Way::None };
        // SAFETY: a helper call without arguments.
        let now = unsafe { bpf_ktime_get_coarse_ns() };
        let dry = observe::dry();
        if !dry
            && let Some(exit) = maps::EXITS.get(place)
            && exit.holds(to, now, control.routes)
        {
            return exit.way();
        }
        if v6 {
            outline_nat::way6(self.ctx(), from.hi, from.lo, to.hi, to.lo);
        } else {
            outline_nat::way4(self.ctx(), from.v4().into(), to.v4().into());
        }
        // What is only asked leaves the others' answers alone.
        if dry {
            return outline_nat::scratch().map_or(Way::None, |scratch| scratch.exit.way());
        }
        maps::EXITS.get(place).map_or(Way::None, Exit::way)
    }

    #[inline(always)]
    fn session_out(&self, key: &FlowKey6) -> Option<(SessionOut, impl FlowCell)> {
        let session = maps::SESSIONS_OUT.get_ptr_mut(key)?;
        // SAFETY: plain data, which the kernel keeps until this program returns; the entry is its first word, which is
        // read again on its own where it matters.
        Some(unsafe { (*session, Cell(session.cast())) })
    }

    #[inline(always)]
    fn session_back(&self, key: &FlowKey6) -> Option<(SessionBack, impl FlowCell)> {
        let session = maps::SESSIONS_BACK.get_ptr_mut(key)?;
        // SAFETY: as in `session_out`.
        Some(unsafe { (*session, Cell(session.cast())) })
    }

    #[inline(always)]
    fn add_session_out(&self, key: &FlowKey6, session: &SessionOut) -> Added {
        add(&maps::SESSIONS_OUT, key, session)
    }

    #[inline(always)]
    fn replace_session_out(&self, key: &FlowKey6, session: &SessionOut) -> bool {
        !observe::dry() && maps::SESSIONS_OUT.insert(key, session, 0).is_ok()
    }

    #[inline(always)]
    fn add_session_back(&self, key: &FlowKey6, session: &SessionBack) -> Added {
        add(&maps::SESSIONS_BACK, key, session)
    }

    #[inline(always)]
    fn remove_session_back(&self, key: &FlowKey6) {
        if !observe::dry() {
            // It may be gone already: the daemon forgets sessions too.
            let _ = maps::SESSIONS_BACK.remove(key);
        }
    }

    #[inline(always)]
    fn pool(&self, service: u32) -> Option<&Pool> {
        maps::POOLS.get(service)
    }

    #[inline(always)]
    fn pool_address(&self, index: u32) -> Option<Address> {
        maps::POOL_ADDRESSES.get(index).map(Address::read)
    }

    #[inline(always)]
    fn count_session(&self, outcome: Outcome) {
        if !observe::dry()
            && let Some(stats) = maps::NAT_STATS.get_ptr_mut(0)
        {
            // SAFETY: this CPU's own element.
            unsafe {
                match outcome {
                    Outcome::Made => (*stats).made += 1,
                    Outcome::Exhausted => (*stats).exhausted += 1,
                    Outcome::Full => (*stats).full += 1,
                }
            }
        }
    }
}
