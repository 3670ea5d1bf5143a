//! The balancer's program in the kernel, run on single frames by BPF_PROG_TEST_RUN, and its twin on the host.
//!
//! No pins, no interfaces: maps are filled from an [`Image`] by the daemon's own code, and every counter is read
//! before and after, so that a test can say what moved and that nothing else did.

mod address;
mod beside;
mod counters;
mod held;
mod host;
mod pool;
pub mod sound;
mod world;

pub use beside::{Flood, Runner};
pub use counters::{Counter, Counters, Flows};
pub use host::Host;
pub use pool::Balancer;
use pool::Room;
pub use world::{
    BACKEND_CAPACITY, Predicted, QUIC_CONFIG, RING_CAPACITY, World, client_address, plain_world, tunnel, vip,
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues},
    programs::{TestRun, TestRunOptions, Xdp},
};
use lb_common::abi::{
    Bucket, CLAIM_BUCKET, ECHO_BUCKET, EXPIRED_BUCKET, FlowEntry, FlowKey4, FlowKey6, FlowStats, FragmentKey,
    FragmentTrace, HALF_OPEN_CAPACITY, HOLD_BUCKET, HalfOpen, ICMP_BUCKET, NEIGHBOUR_BUCKET, RESET_BUCKET,
    Schedule, Signal, Stats, UNREACHABLE_BUCKET,
};
use lb_userspace::{
    dataplane::{self, Maps},
    plan::{self, Action, Flow, Image},
};
use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

/// All of them.
pub const SIGNALS: [Signal; 5] =
    [Signal::Syn, Signal::Watched, Signal::Repeat, Signal::Refused, Signal::Reset];

/// What a program answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Aborted,
    Drop,
    Pass,
    /// Back out of the interface it came in by.
    Tx,
    /// Out of another one.
    Redirect,
}

impl Verdict {
    fn from_code(code: u32) -> Self {
        match code {
            1 => Self::Drop,
            2 => Self::Pass,
            3 => Self::Tx,
            4 => Self::Redirect,
            _ => Self::Aborted,
        }
    }
}

/// The interface a test frame comes in by: the loopback device.
pub const INGRESS: u32 = 1;

/// A program that is loaded, without pins.
pub struct Program {
    ebpf: Ebpf,
    name: &'static str,
    out: Vec<u8>,
}

impl Program {
    /// Loads the program `name` of an ELF; maps named in `capacities` get so many entries. Needs root: a test
    /// that cannot load the program has not tested it, so this panics.
    #[must_use]
    pub fn load(elf: &[u8], name: &'static str, capacities: &[(&'static str, u32)]) -> Self {
        Self::load_pinned(elf, name, capacities, None)
    }

    /// The same, with the balancer's maps pinned in a directory, where another program finds them.
    #[must_use]
    pub fn load_pinned(
        elf: &[u8],
        name: &'static str,
        capacities: &[(&'static str, u32)],
        pins: Option<&Path>,
    ) -> Self {
        let mut loader = EbpfLoader::new();
        for map in lb_common::abi::INVENTORY.iter().map(|map| map.name).chain(["AYA_LOGS"]) {
            if let Some(dir) = pins {
                loader.map_pin_path(map, dir.join(map));
            }
        }
        for (map, entries) in capacities {
            loader.map_max_entries(map, *entries);
        }
        let mut ebpf = loader.load(elf).expect("the ELF loads; this test needs root or CAP_BPF and friends");
        let program: &mut Xdp = ebpf.program_mut(name).expect(name).try_into().expect("an XDP program");
        program.load().expect("the verifier takes the program");
        Self { ebpf, name, out: vec![0; 16_384] }
    }

    /// The maps and programs.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Another handle of a per-CPU array.
    pub fn per_cpu<T: Pod>(&self, name: &str) -> PerCpuArray<MapData, T> {
        let map = self.ebpf.map(name).unwrap_or_else(|| panic!("a map {name}"));
        let Map::PerCpuArray(data) = map else { panic!("{name} is no per-CPU array") };
        let id = data.info().expect("map info").id();
        let again = MapData::from_id(id).expect("a map of this id");
        PerCpuArray::try_from(Map::PerCpuArray(again)).expect("a per-CPU array of these values")
    }

    /// A descriptor of a per-CPU array.
    fn descriptor(&self, name: &str) -> OwnedFd {
        let map = self.ebpf.map(name).unwrap_or_else(|| panic!("a map {name}"));
        let Map::PerCpuArray(data) = map else { panic!("{name} is no per-CPU array") };
        data.fd().as_fd().try_clone_to_owned().expect("another descriptor")
    }

    /// Another handle of a hash map.
    pub fn hash<K: Pod, V: Pod>(&self, name: &str) -> HashMap<MapData, K, V> {
        let map = self.ebpf.map(name).unwrap_or_else(|| panic!("a map {name}"));
        let (Map::HashMap(data) | Map::LruHashMap(data)) = map else { panic!("{name} is no hash map") };
        let id = data.info().expect("map info").id();
        let again = MapData::from_id(id).expect("a map of this id");
        let again = match map {
            Map::LruHashMap(_) => Map::LruHashMap(again),
            _ => Map::HashMap(again),
        };
        HashMap::try_from(again).expect("a hash map of these keys and values")
    }

    /// Another handle of an array.
    pub fn array<V: Pod>(&self, name: &str) -> Array<MapData, V> {
        let map = self.ebpf.map(name).unwrap_or_else(|| panic!("a map {name}"));
        let Map::Array(data) = map else { panic!("{name} is no array") };
        let again = MapData::from_id(data.info().expect("map info").id()).expect("a map of this id");
        Array::try_from(Map::Array(again)).expect("an array of these values")
    }

    /// Runs the program on a frame of at least 14 bytes.
    pub fn run(&mut self, frame: &[u8]) -> Outcome {
        self.run_again(frame, 1)
    }

    /// Runs the program `times` times, each run on the frame the one before left.
    pub fn run_again(&mut self, frame: &[u8], times: u32) -> Outcome {
        let program = self.ebpf.program(self.name).expect(self.name);
        let program: &Xdp = program.try_into().expect("an XDP program");
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut self.out),
            repeat: times,
            ..TestRunOptions::new()
        };
        let result = program
            .test_run(options)
            .unwrap_or_else(|error| panic!("a test run of {} bytes: {error}", frame.len()));
        let frame = self.out[..result.data_size_out as usize].to_vec();
        Outcome { verdict: Verdict::from_code(result.return_value), frame }
    }
}

/// What became of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    /// The frame after the run.
    pub frame: Vec<u8>,
}

/// A loaded balancer with an image in its maps: what a [`Balancer`] is made of.
pub struct Loaded {
    program: Program,
    maps: Maps,
    image: Image,
    service_stats: PerCpuArray<MapData, Stats>,
    backend_stats: OwnedFd,
    drops: PerCpuArray<MapData, u64>,
    buckets: PerCpuArray<MapData, Bucket>,
    flows4: HashMap<MapData, FlowKey4, u64>,
    flows6: HashMap<MapData, FlowKey6, u64>,
    half_open4: HashMap<MapData, FlowKey4, HalfOpen>,
    half_open6: HashMap<MapData, FlowKey6, HalfOpen>,
    fragments: HashMap<MapData, FragmentKey, FragmentTrace>,
    held: held::Held,
    neighbourhood: address::Neighbourhood,
    schedules: Array<MapData, Schedule>,
}

impl Loaded {
    /// Loads the balancer. Its maps are empty.
    fn load(room: Room, pins: Option<&Path>) -> Self {
        let half_open = room.flows.min(HALF_OPEN_CAPACITY);
        let capacities = [
            ("FLOWS4", room.flows),
            ("FLOWS6", room.flows),
            ("HALF_OPEN4", half_open),
            ("HALF_OPEN6", half_open),
            ("RING", room.ring),
            ("BACKENDS", room.backends),
            ("BACKEND_STATS", room.backends),
            ("ACTIVE", room.backends),
            ("BACKEND_SIGNALS", room.backends),
            ("BACKEND_NAMES", room.backends),
        ];
        let mut program = Program::load_pinned(dataplane::LB, "lb", &capacities, pins);
        Self {
            service_stats: program.per_cpu("SERVICE_STATS"),
            backend_stats: program.descriptor("BACKEND_STATS"),
            drops: program.per_cpu("DROPS"),
            buckets: program.per_cpu("BUCKETS"),
            flows4: program.hash("FLOWS4"),
            flows6: program.hash("FLOWS6"),
            half_open4: program.hash("HALF_OPEN4"),
            half_open6: program.hash("HALF_OPEN6"),
            schedules: program.array("SCHEDULES"),
            fragments: program.hash("FRAGMENTS"),
            held: held::Held::of(&program),
            neighbourhood: address::Neighbourhood::of(&program),
            maps: Maps::take(program.ebpf()).expect("all maps"),
            image: Image::empty(room.ring, room.backends),
            program,
        }
    }

    /// Turns what the maps hold into this image, by the daemon's own actions.
    pub fn set_image(&mut self, image: &Image) {
        for action in plan::diff(&self.image, image) {
            self.maps.apply(&action).expect("a change of the maps");
        }
        self.image = image.clone();
    }

    /// Carries out single actions. The image that [`Balancer::set_image`] starts from follows.
    pub fn execute(&mut self, actions: &[Action]) {
        for action in actions {
            self.maps.apply(action).expect("a change of the maps");
            self.image.apply(action);
        }
    }

    /// Every tracked flow with its whole entry.
    #[must_use]
    pub fn entries(&self) -> Vec<(Flow, FlowEntry)> {
        self.maps.flows().expect("the flow tables")
    }

    /// Every handshake under way.
    #[must_use]
    pub fn half_open(&self) -> Vec<(Flow, HalfOpen)> {
        self.maps.half_open().expect("the tables of handshakes")
    }

    /// Forgets handshakes as the daemon does.
    pub fn forget_half_open(&mut self, flows: &[(Flow, HalfOpen)]) {
        for (flow, half) in flows {
            self.maps.forget_half_open(flow, *half).expect("a change of the tables of handshakes");
        }
    }

    /// Open flows of a backend of a least-connections service, as the program counts them.
    #[must_use]
    pub fn active(&self, backend: u32) -> i64 {
        self.maps.active(backend)
    }

    /// Forgets flows as the daemon does.
    pub fn forget(&mut self, flows: &[(Flow, FlowEntry)]) {
        for (flow, entry) in flows {
            self.maps.forget(flow, *entry).expect("a change of the flow tables");
        }
    }

    /// Forgets the traces of fragments: they live for a time that a slow test may exceed.
    pub fn forget_fragments(&mut self) {
        let keys: Vec<_> = self.fragments.keys().collect::<Result<_, _>>().expect("the traces");
        for key in keys {
            self.fragments.remove(&key).expect("a trace that is there");
        }
    }

    /// Makes every trace of a fragment so many nanoseconds older.
    pub fn age_fragments(&mut self, by: u64) {
        let traces: Vec<_> = self.fragments.iter().collect::<Result<_, _>>().expect("the traces");
        for (key, trace) in traces {
            let older = FragmentTrace { seen_ns: trace.seen_ns.saturating_sub(by), ..trace };
            self.fragments.insert(key, older, 0).expect("a trace that is there is replaced");
        }
    }

    /// Makes every entry older by so many units of its clock: tests need not wait.
    pub fn age(&mut self, units: u16) {
        for (flow, entry) in self.entries() {
            let old =
                FlowEntry(entry.0 & !(0xffff << 32) | u64::from(entry.seen().wrapping_sub(units)) << 32);
            let result = match flow {
                Flow::V4(key) => self.flows4.insert(key, old.0, 0),
                Flow::V6(key) => self.flows6.insert(key, old.0, 0),
            };
            result.expect("an entry that is there is replaced");
        }
        for (flow, half) in self.half_open() {
            let seen = FlowEntry(half.entry).seen().wrapping_sub(units);
            let old = HalfOpen { entry: half.entry & !(0xffff << 32) | u64::from(seen) << 32, ..half };
            let result = match flow {
                Flow::V4(key) => self.half_open4.insert(key, old, 0),
                Flow::V6(key) => self.half_open6.insert(key, old, 0),
            };
            result.expect("an entry that is there is replaced");
        }
        for id in self.image.services.keys() {
            let schedule = self.schedules.get(id, 0).expect("SCHEDULES");
            if schedule.homed_ns != 0 {
                let by = u64::from(units) << FlowEntry::SEEN_SHIFT;
                let older = Schedule { homed_ns: schedule.homed_ns.saturating_sub(by).max(1), ..schedule };
                self.schedules.set(*id, older, 0).expect("SCHEDULES");
            }
        }
    }

    /// Forgets that datagram flows of scheduled services may be at home without an entry.
    pub fn forget_homed(&mut self) {
        for id in self.image.services.keys() {
            let schedule = self.schedules.get(id, 0).expect("SCHEDULES");
            self.schedules.set(*id, Schedule { homed_ns: 0, ..schedule }, 0).expect("SCHEDULES");
        }
    }

    /// Makes every watched SYN so many nanoseconds older.
    pub fn age_syns(&mut self, by: u64) {
        let mut cells = self.program.array::<u64>("SYNS");
        for index in 0..cells.len() {
            let cell = cells.get(&index, 0).expect("SYNS");
            if cell != 0 {
                let time = (cell as u16).wrapping_sub((by >> 27) as u16);
                cells.set(index, cell & !0xffff | u64::from(time), 0).expect("SYNS");
            }
        }
    }

    /// What the maps hold, read back.
    #[must_use]
    pub fn observe(&self) -> Image {
        self.maps.observe().expect("the maps")
    }

    /// Leaves exactly so many ICMP answers on each CPU: the last refill lies in the future, so time adds none.
    pub fn set_tokens(&mut self, tokens: u64) {
        self.set_bucket(Bucket { refilled_ns: u64::MAX, tokens });
    }

    /// Sets every bucket of ICMP answers and of held fragments of every CPU; the default is that of a program just loaded.
    pub fn set_bucket(&mut self, bucket: Bucket) {
        let cpus = aya::util::nr_cpus().expect("the number of CPUs");
        let values = PerCpuValues::try_from(vec![bucket; cpus]).expect("a value for each CPU");
        for number in [
            ICMP_BUCKET,
            ECHO_BUCKET,
            EXPIRED_BUCKET,
            HOLD_BUCKET,
            RESET_BUCKET,
            UNREACHABLE_BUCKET,
            NEIGHBOUR_BUCKET,
            CLAIM_BUCKET,
        ] {
            let values = PerCpuValues::try_from(values.to_vec()).expect("a value for each CPU");
            self.buckets.set(number, values, 0).expect("BUCKETS");
        }
    }

    /// Runs the program on a frame of at least 14 bytes.
    pub fn run(&mut self, frame: &[u8]) -> Outcome {
        self.run_again(frame, 1)
    }

    /// Runs the program `times` times, each run on the frame the one before left.
    pub fn run_again(&mut self, frame: &[u8], times: u32) -> Outcome {
        self.program.run_again(frame, times)
    }

    /// Every tracked flow.
    #[must_use]
    pub fn flows(&self) -> Flows {
        let mut flows = Flows::default();
        for (flow, entry) in self.maps.flows().expect("the flow tables") {
            match flow {
                Flow::V4(key) => flows.add4(key, entry),
                Flow::V6(key) => flows.add6(key, entry),
            }
        }
        for (flow, half) in self.half_open() {
            match flow {
                Flow::V4(key) => flows.add_half_open4(key, half),
                Flow::V6(key) => flows.add_half_open6(key, half),
            }
        }
        flows
    }

    /// Every counter of the first `services` service ids, of all backends and of all drop reasons, even those that do not
    /// exist yet; what is zero is left out.
    #[must_use]
    pub fn counters(&self, services: u32) -> Counters {
        let mut counters = Counters::default();
        let sum = |values: &PerCpuValues<Stats>| {
            values.iter().fold((0, 0), |sum, v| (sum.0 + v.packets, sum.1 + v.bytes))
        };
        for id in 0..services {
            let stats = sum(&self.service_stats.get(&id, 0).expect("SERVICE_STATS"));
            counters.add_stats(Counter::Service(id), stats);
        }
        // Thousands of entries before and after every frame: one call for all of them.
        let backends = pool::read_per_cpu(self.backend_stats.as_fd(), self.image.backend_capacity, 2);
        for (id, words) in (0..).zip(backends.expect("BACKEND_STATS").chunks(2 * pool::cpus())) {
            let sum = words.chunks(2).fold((0, 0), |sum, v| (sum.0 + v[0], sum.1 + v[1]));
            counters.add_stats(Counter::Backend(id), sum);
        }
        for number in 0..lb_common::abi::DROP_CAPACITY {
            let dropped = self.drops.get(&number, 0).expect("DROPS").iter().sum();
            counters.add_stats(Counter::Drop(number), (dropped, 0));
        }
        for id in 0..self.image.backend_capacity {
            let mut signals = self.maps.signals().of(id).expect("BACKEND_SIGNALS");
            for signal in SIGNALS {
                let count = u64::from(*signals.of(signal));
                counters.add_stats(Counter::Signal(id, signal), (count, 0));
            }
        }
        let FlowStats { inserted, refused } = self.maps.flow_stats().expect("FLOW_STATS");
        counters.add_stats(Counter::FlowsRecorded, (inserted, 0));
        counters.add_stats(Counter::FlowsRefused, (refused, 0));
        counters
    }
}
