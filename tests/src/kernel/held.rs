//! The daemon's part in holding fragments: being there, reading them, sending them again.

use super::{INGRESS, Loaded, Outcome, Program, Verdict};
use aya::{
    maps::{Array, Map, MapData, RingBuf},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use lb_common::abi::{Control, HeldFrame, RESENT};

/// The maps that holding takes.
pub(super) struct Held {
    ring: RingBuf<MapData>,
    control: Array<MapData, Control>,
}

impl Held {
    pub(super) fn of(program: &Program) -> Self {
        let again = |name: &str| {
            let map = program.ebpf.map(name).unwrap_or_else(|| panic!("a map {name}"));
            let (Map::Array(data) | Map::RingBuf(data)) = map else { panic!("{name} is of another kind") };
            MapData::from_id(data.info().expect("map info").id()).expect("a map of this id")
        };
        Self {
            ring: RingBuf::try_from(Map::RingBuf(again("HELD"))).expect("a ring buffer"),
            control: Array::try_from(Map::Array(again("CONTROL"))).expect("an array of switches"),
        }
    }
}

impl Loaded {
    /// Has the program hold fragments until then, by the monotonic clock.
    pub fn hold_until(&mut self, ns: u64) {
        let mut control = self.held.control.get(&0, 0).expect("CONTROL");
        control.hold_until_ns = ns;
        self.held.control.set(0, control, 0).expect("CONTROL");
    }

    /// What was held since the last call.
    pub fn held(&mut self) -> Vec<HeldFrame> {
        let mut frames = Vec::new();
        while let Some(record) = self.held.ring.next() {
            frames.push(HeldFrame::read(&record).expect("a record that is in order"));
        }
        frames
    }

    /// Sends a frame through the program a second time.
    pub fn resend(&mut self, frame: &[u8]) -> Outcome {
        let marked = [&RESENT[..], frame].concat();
        let context = [RESENT.len() as u32, marked.len() as u32, 0, INGRESS, 0, 0];
        let context: Vec<u8> = context.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut out = vec![0; 8192];
        let program: &Xdp = self.program.ebpf.program("lb").expect("lb").try_into().expect("an XDP program");
        let options = TestRunOptions {
            data_in: Some(&marked),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let result = program.test_run(options).expect("a test run");
        let frame = out[RESENT.len()..result.data_size_out as usize].to_vec();
        Outcome { verdict: Verdict::from_code(result.return_value), frame }
    }
}
