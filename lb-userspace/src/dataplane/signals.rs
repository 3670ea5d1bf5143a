//! The map of the signs of backends' health: read only.

use super::{DataplaneError, maps::take};
use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray},
};
use lb_common::abi::Signals;

/// Handle of `BACKEND_SIGNALS`.
pub struct SignalMap(PerCpuArray<MapData, Signals>);

impl SignalMap {
    /// Takes the map out of a loaded program.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DataplaneError> {
        Ok(Self(take(ebpf, "BACKEND_SIGNALS")?))
    }

    /// The signals of a backend, summed over the CPUs; they wrap around, and begin anew in maps that have grown.
    pub fn of(&self, backend: u32) -> Result<Signals, DataplaneError> {
        let values = self.0.get(&backend, 0).map_err(DataplaneError::map("BACKEND_SIGNALS"))?;
        Ok(values.iter().fold(Signals::default(), |sum, one| sum.plus(*one)))
    }
}
