//! The observed program: the balancer's own path over the balancer's own maps, loaded a second time to be asked
//! (`explain`), or to be attached in the balancer's place while somebody traces. Loaded at its first use.

use super::{DataplaneError, kernel, maps::Mapped};
use aya::{
    Ebpf,
    maps::{Map, MapData, PerCpuArray, PerCpuValues, RingBuf},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use lb_common::abi::{Note, Watch, WatchMode};
use std::{path::Path, sync::atomic::Ordering};

pub(super) const OBSERVED: &str = "observed";
const NOTES: &str = "NOTES";
/// Longest frame that a test run takes in one piece on every kernel: a page less headroom and the tail the kernel keeps.
pub const LONGEST_FRAME: usize = 3_400;
/// Room for what the program puts in front.
const ROOM: usize = 512;

/// What became of a frame, and what the program met on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// `enum xdp_action`.
    pub verdict: u32,
    pub note: Note,
    /// The frame after the run.
    pub frame: Vec<u8>,
}

/// The program loaded in one of its ways.
pub struct Observed {
    ebpf: Ebpf,
    notes: PerCpuArray<MapData, Watch>,
}

impl Observed {
    /// Loads the program over the maps pinned in `maps_dir`, all of which must be there.
    pub fn load(maps_dir: &Path, mode: WatchMode) -> Result<Self, DataplaneError> {
        let mode = [mode as u8];
        let mut ebpf = kernel::loader(maps_dir, super::Capacities::default(), |_| false)?
            .override_global("MODE", &mode[..], true)
            .load(super::LB)
            .map_err(|source| DataplaneError::Load(Box::new(source)))?;
        kernel::program_named(&mut ebpf, OBSERVED)?
            .load()
            .map_err(|source| DataplaneError::Program { program: OBSERVED, source: Box::new(source) })?;
        let notes = ebpf.take_map(NOTES).unwrap_or_else(|| panic!("the program has no map {NOTES}"));
        let notes = notes.try_into().map_err(DataplaneError::map(NOTES))?;
        Ok(Self { ebpf, notes })
    }

    pub(super) fn program(&mut self) -> Result<&mut Xdp, DataplaneError> {
        kernel::program_named(&mut self.ebpf, OBSERVED)
    }

    /// Runs the program on a frame of 14 to [`LONGEST_FRAME`] bytes.
    pub fn run(&mut self, frame: &[u8]) -> Result<Ran, DataplaneError> {
        let cpus = aya::util::nr_cpus().unwrap_or(1);
        let nothing = PerCpuValues::try_from(vec![Watch::default(); cpus])
            .map_err(|source| DataplaneError::Read { map: NOTES, source })?;
        self.notes.set(0, nothing, 0).map_err(DataplaneError::map(NOTES))?;
        let mut out = vec![0; frame.len() + ROOM];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = self
            .program()?
            .test_run(options)
            .map_err(|source| DataplaneError::Program { program: OBSERVED, source: Box::new(source) })?;
        let notes = self.notes.get(&0, 0).map_err(DataplaneError::map(NOTES))?;
        // Whichever CPU it was.
        let note = notes.iter().map(|watch| watch.note).find(|note| note.has(Note::RAN)).unwrap_or_default();
        out.truncate(result.data_size_out as usize);
        Ok(Ran { verdict: result.return_value, note, frame: out })
    }

    /// Records that were not written since the program was loaded: over the limit, or no room.
    pub fn lost(&self) -> Result<u64, DataplaneError> {
        let notes = self.notes.get(&0, 0).map_err(DataplaneError::map(NOTES))?;
        Ok(notes.iter().map(|watch| watch.lost).sum())
    }
}

/// The daemon's end of `EVENTS`. One reader only: the position is the map's.
pub fn events(maps_dir: &Path) -> Result<RingBuf<MapData>, DataplaneError> {
    const EVENTS: &str = "EVENTS";
    let map = MapData::from_pin(maps_dir.join(EVENTS)).map_err(DataplaneError::map(EVENTS))?;
    RingBuf::try_from(Map::RingBuf(map)).map_err(DataplaneError::map(EVENTS))
}

/// Sets `Control::trace`, and leaves the other fields alone.
pub(super) fn sample(maps_dir: &Path, one_in: u32) -> Result<(), DataplaneError> {
    const CONTROL: &str = "CONTROL";
    /// The word that holds `trace` and nothing else.
    const WORD: usize = std::mem::offset_of!(lb_common::abi::Control, trace) / 8;
    let map = MapData::from_pin(maps_dir.join(CONTROL)).map_err(DataplaneError::map(CONTROL))?;
    let mapped = Mapped::new(CONTROL, map)?;
    let mut word = [0; 8];
    word[..4].copy_from_slice(&one_in.to_ne_bytes());
    mapped.word(0, WORD).store(u64::from_ne_bytes(word), Ordering::Release);
    Ok(())
}
