//! The programs with filled tables: verified first, then measured.

use crate::{
    Flows, Mode, Scenario,
    frames::{
        self, CLIENT, ENTROPY_BITS, EXIT_MACS, GUE_PORT, NAT_BACKEND, NAT_PORT, TCP_PORT, UDP_PORT, VIP4,
        VIP6,
    },
};
use anyhow::{Context as _, anyhow, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuValues, lpm_trie::Key},
    programs::{TestRun, TestRunOptions, Xdp},
};
use ipnet::{IpNet, Ipv4Net};
use lb_common::{
    abi::{
        BackendEntry, Control, Exit, ForwardKind, MAX_RING, NatKey, NatOrigin, PROTO_TCP, PROTO_UDP,
        PortRule, ServiceEntry, Slot, Stats, VipEntry,
    },
    core::{
        DropReason,
        nat::{Address, mark},
    },
    hash,
};
use lb_userspace::{
    dataplane,
    model::{Prefixes, Verdict},
    plan,
};
use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

const DROP: u32 = 1;
const PASS: u32 = 2;
const TX: u32 = 3;

/// The loopback interface, on which `BPF_PROG_TEST_RUN` has packets arrive: sent back out of it, not redirected.
const IFINDEX: u32 = 1;
const BACKENDS: u32 = 100;
const TCP_SERVICE: u32 = 1;
const UDP_SERVICE: u32 = 2;
const PROGRAMS: [&str; 15] = [
    "nat4_one",
    "nat4_many",
    "back4_one",
    "lb4_one",
    "lb4_many",
    "lb4_new",
    "lb4_random",
    "lb6_one",
    "lb6_many",
    "floor4_one",
    "floor4_many",
    "floor4_new",
    "floor4_random",
    "floor6_one",
    "floor6_many",
];

/// The maps of one of the two ELFs.
struct Tables {
    backends: Array<MapData, BackendEntry>,
    services: PerCpuArray<MapData, Stats>,
    backend_stats: PerCpuArray<MapData, Stats>,
    drops: PerCpuArray<MapData, u64>,
    vips: HashMap<MapData, [u8; 4], VipEntry>,
    entries: Array<MapData, ServiceEntry>,
    control: Array<MapData, Control>,
}

pub struct Fixture {
    /// The program as it is attached.
    lb: Ebpf,
    lb_tables: Tables,
    /// The same path within the benchmark's entry points, and the floor.
    bench: Ebpf,
    tables: Tables,
    settings: Array<MapData, u32>,
    count: PerCpuArray<MapData, u64>,
    load_time: Duration,
}

/// One round's figures of a scenario: nanoseconds a packet, rounded down.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub ns: u32,
    pub floor_ns: u32,
}

/// What counters tell.
struct Counted {
    service: Stats,
    /// Packets by backend, from id 1 on.
    backends: Vec<u64>,
    dropped: u64,
    denied: u64,
}

impl Fixture {
    pub fn new() -> anyhow::Result<Self> {
        let load = |elf| EbpfLoader::new().load(elf).context("cannot load the programs: root is needed");
        let mut lb = load(dataplane::LB)?;
        let mut bench = load(dataplane::BENCH)?;
        let start = Instant::now();
        program(&mut lb, "lb")?.load().context("the kernel refused the balancer's program")?;
        let load_time = start.elapsed();
        for name in PROGRAMS {
            program(&mut bench, name)?.load().with_context(|| format!("the kernel refused {name}"))?;
        }
        let lb_tables = fill(&mut lb)?;
        let tables = fill(&mut bench)?;
        let settings = take(&mut bench, "BENCH")?;
        let count = take(&mut bench, "COUNT")?;
        Ok(Self { lb, lb_tables, bench, tables, settings, count, load_time })
    }

    /// The program's size, in a line.
    pub fn describe(&mut self) -> String {
        let info = program(&mut self.lb, "lb").ok().and_then(|p| p.info().ok());
        let number = |value: Option<u32>| value.map_or_else(|| "?".to_owned(), |n| n.to_string());
        format!(
            "lb: {} instructions verified, {} bytes of machine code, loaded in {:.1} ms",
            number(info.as_ref().and_then(|i| i.verified_instruction_count())),
            number(info.as_ref().map(|i| i.size_jitted())),
            self.load_time.as_secs_f64() * 1e3
        )
    }

    /// Does the scenario do what its name says?
    pub fn verify(&mut self, scenario: &Scenario) -> anyhow::Result<()> {
        let frame = frames::input(scenario);
        self.switch(scenario)?;
        let backends = self.set_backends(scenario)?;
        let expected = if scenario.mode == Mode::Pass { PASS } else { TX };

        // The program as it is attached: one packet.
        let before = self.lb_tables.counted(scenario)?;
        let (verdict, out) = run_once(program(&mut self.lb, "lb")?, &frame, 1)?;
        ensure!(verdict == expected, "the balancer's verdict is {verdict}, not {expected}");
        frames::check_output(scenario, &frame, &out, &backends).context("the balancer's output")?;
        check_counters(scenario, &frame, 1, &before, &self.lb_tables.counted(scenario)?)?;

        // The benchmark's entry point: as many packets, each accounted for, and each undone.
        let (path, floor) = programs(scenario);
        let packets = if scenario.flows == Flows::One { 2_000 } else { 100_000 };
        self.configure(scenario, &frame, true)?;
        let before = self.tables.counted(scenario)?;
        let (verdict, out) = run_once(program(&mut self.bench, path)?, &frame, packets)?;
        ensure!(verdict == expected, "{path}: verdict {verdict}, not {expected}");
        check_counters(scenario, &frame, packets, &before, &self.tables.counted(scenario)?).context(path)?;
        self.check_undone(scenario, &frame, &out).context(path)?;

        self.configure(scenario, &frame, false)?;
        let before = self.tables.counted(scenario)?;
        let (verdict, out) = run_once(program(&mut self.bench, floor)?, &frame, packets)?;
        ensure!(verdict == TX, "{floor}: verdict {verdict}, not {TX} ({DROP} = no frame of a kind it knows)");
        self.check_undone(scenario, &frame, &out).context(floor)?;
        let after = self.tables.counted(scenario)?;
        ensure!(before.service == after.service, "{floor} moved the balancer's counters");
        Ok(())
    }

    /// The packet is as it went in, but for the flow of the last run and the checksums of what was changed and changed
    /// back.
    fn check_undone(&self, scenario: &Scenario, frame: &[u8], out: &[u8]) -> anyhow::Result<()> {
        let mut expected = frame.to_vec();
        let (source, ports) = if scenario.v6 { (14 + 8 + 12, 14 + 40) } else { (14 + 12, 14 + 20) };
        let number: u64 = self.count.get(&0, 0)?.iter().sum();
        let flow = match scenario.flows {
            Flows::One => None,
            Flows::Many(flows) => Some(hash::slot(hash::mix(number), flows)),
            Flows::New => Some((number as u32).wrapping_mul(0x9e37_79b1) & 0x3fff_ffff),
            Flows::Random => {
                let random = hash::mix(number);
                expected[source..source + 4].copy_from_slice(&(random as u32).to_be_bytes());
                let port = 0x8000 | (random >> 32) as u16;
                expected[ports..ports + 2].copy_from_slice(&port.to_be_bytes());
                None
            }
        };
        if let Some(flow) = flow {
            expected[source..source + 4].copy_from_slice(&(0x0a00_0000 + (flow >> 6)).to_be_bytes());
            expected[ports..ports + 2].copy_from_slice(&(0x8000 + (flow & 0x3f) as u16).to_be_bytes());
        }
        let mut out = out.to_vec();
        if !scenario.v6 && out.len() >= 26 {
            out[24..26].copy_from_slice(&expected[24..26]);
        }
        if matches!(scenario.mode, Mode::Nat | Mode::NatBack) && out.len() >= 52 {
            out[50..52].copy_from_slice(&expected[50..52]);
        }
        ensure!(out == expected, "the next run would not see the packet it should");
        Ok(())
    }

    /// Figures of one round.
    pub fn measure(
        &mut self,
        scenario: &Scenario,
        packets: u32,
        floor_first: bool,
    ) -> anyhow::Result<Sample> {
        let frame = frames::input(scenario);
        self.switch(scenario)?;
        self.set_backends(scenario)?;
        let (path, floor) = programs(scenario);
        let mut sample = Sample { ns: 0, floor_ns: 0 };
        for is_path in [!floor_first, floor_first] {
            self.configure(scenario, &frame, is_path)?;
            let ns = timed(program(&mut self.bench, if is_path { path } else { floor })?, &frame, packets)?;
            *(if is_path { &mut sample.ns } else { &mut sample.floor_ns }) = ns;
        }
        Ok(sample)
    }

    /// Switches on what the scenario is about, and nothing else: the deny list, or what a plan switches on for `nat`.
    fn switch(&mut self, scenario: &Scenario) -> anyhow::Result<()> {
        let nat = matches!(scenario.mode, Mode::Nat | Mode::NatBack);
        for tables in [&mut self.lb_tables, &mut self.tables] {
            let mut entry = tables.vips.get(&VIP4, 0)?;
            entry.flags = if scenario.firewall { VipEntry::FILTERED } else { 0 };
            entry.flags |= if nat { VipEntry::POOL } else { 0 };
            tables.vips.insert(VIP4, entry, 0)?;
            let mut service = tables.entries.get(&TCP_SERVICE, 0)?;
            service.flags = if nat { ServiceEntry::HAIRPIN } else { 0 };
            tables.entries.set(TCP_SERVICE, service, 0)?;
            let flags = if nat { Control::NAT } else { 0 };
            tables.control.set(0, Control { flags, ..Control::default() }, 0)?;
        }
        Ok(())
    }

    /// Backends that are reached in the scenario's way.
    fn set_backends(&mut self, scenario: &Scenario) -> anyhow::Result<Vec<BackendEntry>> {
        let kind = match scenario.mode {
            Mode::Dsr | Mode::Pass => ForwardKind::Dsr,
            Mode::Ipip => ForwardKind::Ipip,
            Mode::Gue => ForwardKind::Gue,
            Mode::Nat | Mode::NatBack => ForwardKind::Nat,
        };
        let mut entries = Vec::new();
        for id in 1..=BACKENDS {
            let (mut outer_src, mut outer_dst) = ([0; 16], [0; 16]);
            let host = id as u8;
            if scenario.v6 {
                outer_src[..2].copy_from_slice(&[0xfd, 0]);
                outer_dst[..2].copy_from_slice(&[0xfd, 1]);
                outer_dst[15] = host;
            } else {
                outer_src[..2].copy_from_slice(&[198, 18]);
                outer_dst[..4].copy_from_slice(&[10, 1, 0, host]);
            }
            let entry = BackendEntry {
                l2: [2, 0, 0, 0, 9, host, 2, 0, 0, 0, 0, 1],
                ifindex: IFINDEX,
                outer_src,
                outer_dst,
                mtu: 1500,
                kind: kind as u8,
                family: if scenario.v6 { 6 } else { 4 },
                entropy_bits: ENTROPY_BITS,
                port: if kind == ForwardKind::Nat { NAT_PORT } else { GUE_PORT },
                service: TCP_SERVICE,
                ..BackendEntry::default()
            };
            self.lb_tables.backends.set(id, entry, 0)?;
            self.tables.backends.set(id, entry, 0)?;
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Tells the entry points about the flows, and what to undo.
    fn configure(&mut self, scenario: &Scenario, frame: &[u8], path: bool) -> anyhow::Result<()> {
        let flows = if let Flows::Many(flows) = scenario.flows { flows } else { 1 };
        let outer = if frame[14] >> 4 == 6 { 40 } else { 20 };
        let grown = match scenario.mode {
            Mode::Ipip if path => outer,
            Mode::Gue if path => outer + 8,
            _ => 0,
        };
        self.settings.set(0, flows, 0)?;
        self.settings.set(1, grown, 0)?;
        Ok(())
    }
}

impl Tables {
    fn counted(&self, scenario: &Scenario) -> anyhow::Result<Counted> {
        let sum = |stats: &PerCpuArray<MapData, Stats>, id: u32| -> anyhow::Result<Stats> {
            Ok(stats.get(&id, 0)?.iter().fold(Stats::default(), |a, b| Stats {
                packets: a.packets + b.packets,
                bytes: a.bytes + b.bytes,
            }))
        };
        let mut dropped = 0;
        for reason in DropReason::ALL {
            dropped += self.drops.get(&(*reason as u32), 0)?.iter().sum::<u64>();
        }
        let denied = self.drops.get(&(DropReason::Denied as u32), 0)?.iter().sum::<u64>();
        let service = if scenario.transport == crate::Transport::Udp { UDP_SERVICE } else { TCP_SERVICE };
        let backends: anyhow::Result<Vec<u64>> =
            (1..=BACKENDS).map(|id| Ok(sum(&self.backend_stats, id)?.packets)).collect();
        Ok(Counted { service: sum(&self.services, service)?, backends: backends?, dropped, denied })
    }
}

/// Did the counters move by exactly these packets, and over as many backends as there should be?
fn check_counters(
    scenario: &Scenario,
    frame: &[u8],
    packets: u32,
    before: &Counted,
    after: &Counted,
) -> anyhow::Result<()> {
    let service = after.service.packets - before.service.packets;
    let bytes = after.service.bytes - before.service.bytes;
    let dropped = after.dropped - before.dropped;
    let denied = after.denied - before.denied;
    // Replies are counted nowhere: what a backend sends of its own accord does not pass by.
    let uncounted = matches!(scenario.mode, Mode::Pass | Mode::NatBack);
    let expected = if uncounted { 0 } else { u64::from(packets) - denied };
    ensure!(service == expected, "the service counted {service} packets, not {expected}");
    ensure!(bytes == expected * frames::ip_len(frame) as u64, "the service counted {bytes} bytes");
    ensure!(dropped == denied, "{dropped} packets were dropped, {denied} of them denied");
    // So few that what a packet costs is what one costs that is let through.
    let few = if scenario.firewall && packets > 1 { 1..=u64::from(packets) / 20 } else { 0..=0 };
    ensure!(few.contains(&denied), "{denied} packets were denied");
    let moved: Vec<u64> = after.backends.iter().zip(&before.backends).map(|(a, b)| a - b).collect();
    ensure!(moved.iter().sum::<u64>() == expected, "the backends did not count {expected} packets together");
    let busy = moved.iter().filter(|packets| **packets > 0).count();
    if uncounted {
        return Ok(());
    }
    if scenario.flows == Flows::One || packets == 1 {
        ensure!(busy == 1, "one flow went to {busy} backends");
    } else {
        // Five standard deviations of a fair share of 1,000 packets, flows drawn more than once included.
        let share = expected / u64::from(BACKENDS);
        let fair = share * 3 / 4..=share * 5 / 4;
        ensure!(
            moved.iter().all(|m| fair.contains(m)),
            "packets are spread unevenly over the backends: {moved:?}"
        );
    }
    Ok(())
}

/// Entry points of a scenario: the path and its floor.
fn programs(scenario: &Scenario) -> (&'static str, &'static str) {
    match (scenario.mode, scenario.flows) {
        (Mode::Nat, Flows::One) => return ("nat4_one", "floor4_one"),
        (Mode::Nat, _) => return ("nat4_many", "floor4_many"),
        (Mode::NatBack, _) => return ("back4_one", "floor4_one"),
        _ => {}
    }
    match (scenario.v6, scenario.flows) {
        (false, Flows::One) => ("lb4_one", "floor4_one"),
        (false, Flows::Many(_)) => ("lb4_many", "floor4_many"),
        (false, Flows::New) => ("lb4_new", "floor4_new"),
        (false, Flows::Random) => ("lb4_random", "floor4_random"),
        (true, Flows::One) => ("lb6_one", "floor6_one"),
        (true, Flows::Many(_) | Flows::New | Flows::Random) => ("lb6_many", "floor6_many"),
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("the ELF has no program {name}"))?;
    Ok(program.try_into()?)
}

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<T> {
    let map = ebpf.take_map(name).with_context(|| format!("the ELF has no map {name}"))?;
    T::try_from(map).with_context(|| format!("map {name}"))
}

/// Runs the program; verdict and packet of the last run.
fn run_once(program: &Xdp, frame: &[u8], repeat: u32) -> anyhow::Result<(u32, Vec<u8>)> {
    let mut out = vec![0; frame.len() + 64];
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.data_out = Some(&mut out);
    options.repeat = repeat;
    let result = program.test_run(options)?;
    let (verdict, len) = (result.return_value, result.data_size_out as usize);
    out.truncate(len);
    Ok((verdict, out))
}

/// Runs the program; the kernel's figure for one packet.
fn timed(program: &Xdp, frame: &[u8], repeat: u32) -> anyhow::Result<u32> {
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.repeat = repeat;
    Ok(u32::try_from(program.test_run(options)?.duration.as_nanos())?)
}

/// A deny list of 100,000 prefixes from /22 to /32, most of them long ones as such lists have, with its marks.
fn deny(ebpf: &mut Ebpf) -> anyhow::Result<()> {
    const PREFIXES: usize = 100_000;
    let mut prefixes = Prefixes::new();
    let mut number = 0;
    while prefixes.len() < PREFIXES {
        number += 1;
        let random = hash::mix(number << 32);
        let len = match random >> 60 {
            0 => 22,
            1 => 23,
            2..=6 => 24,
            7..=9 => 25 + (random >> 56 & 3) as u8,
            _ => 32,
        };
        let net = Ipv4Net::new(Ipv4Addr::from(random as u32), len)?.trunc();
        prefixes.insert(net.into(), Verdict::Deny);
    }
    let mut trie: LpmTrie<MapData, [u8; 4], u32> = take(ebpf, "DENY4")?;
    for net in prefixes.keys() {
        if let IpNet::V4(net) = net {
            trie.insert(
                &Key::new(net.prefix_len().into(), net.network().octets()),
                Verdict::Deny.number(),
                0,
            )?;
        }
    }
    let marks = plan::marks4(&prefixes);
    for (name, words) in [("REGIONS4", plan::regions4(&marks)), ("MARKS4", marks)] {
        let mut map: Array<MapData, u64> = take(ebpf, name)?;
        for (index, word) in words.into_iter().enumerate().filter(|(_, word)| *word != 0) {
            map.set(index as u32, word, 0)?;
        }
    }
    Ok(())
}

/// What replies of the `nat` backend become, and the way to the client, which holds for as long as the benchmark runs.
fn replies(ebpf: &mut Ebpf) -> anyhow::Result<()> {
    let bytes = |address: [u8; 4]| Address::mapped(u32::from_ne_bytes(address)).bytes();
    let mut origins: HashMap<MapData, NatKey, NatOrigin> = take(ebpf, "NATS")?;
    let key =
        NatKey { address: bytes(NAT_BACKEND), port: NAT_PORT.to_be_bytes(), proto: u16::from(PROTO_TCP) };
    let origin = NatOrigin {
        vip: bytes(VIP4),
        service: TCP_SERVICE,
        backend: 1,
        port: TCP_PORT.to_be_bytes(),
        ..NatOrigin::default()
    };
    origins.insert(key, origin, 0)?;
    let bit = mark(Address::read(&key.address));
    let mut marks: Array<MapData, u64> = take(ebpf, "NAT_MARKS")?;
    marks.set(bit / 64, 1 << (bit % 64), 0)?;
    let client = Address::mapped(u32::from_ne_bytes(CLIENT));
    let exit = Exit {
        destination: client.bytes(),
        asked_ns: u64::MAX - 2 * Exit::LIFETIME_NS,
        ifindex: IFINDEX,
        l2: EXIT_MACS,
        mtu: 1500,
        ..Exit::default()
    };
    let mut exits: PerCpuArray<MapData, Exit> = take(ebpf, "EXITS")?;
    let everywhere = vec![exit; aya::util::nr_cpus().map_err(|(what, error)| anyhow!("{what}: {error}"))?];
    exits.set(Exit::place(client), PerCpuValues::try_from(everywhere)?, 0)?;
    Ok(())
}

/// Two services of one ring on a VIP of each family.
fn fill(ebpf: &mut Ebpf) -> anyhow::Result<Tables> {
    let rule = |port: u16, proto: u8, service: u32| PortRule {
        lo: port,
        hi: port,
        service: service as u16,
        proto,
        pad: 0,
    };
    let mut rules = [PortRule::NONE; 4];
    rules[0] = rule(TCP_PORT, PROTO_TCP, TCP_SERVICE);
    rules[1] = rule(UDP_PORT, PROTO_UDP, UDP_SERVICE);
    let entry = VipEntry { vip: 1, flags: 0, rules };
    let mut vips4: HashMap<MapData, [u8; 4], VipEntry> = take(ebpf, "VIPS4")?;
    vips4.insert(VIP4, entry, 0)?;
    let mut vips6: HashMap<MapData, [u8; 16], VipEntry> = take(ebpf, "VIPS6")?;
    vips6.insert(VIP6, entry, 0)?;
    deny(ebpf)?;
    let mut services: Array<MapData, ServiceEntry> = take(ebpf, "SERVICES")?;
    let service = ServiceEntry {
        ring_size: MAX_RING,
        seed: 0x1234_5678_9abc_def0,
        idle_ns: 300_000_000_000,
        ..ServiceEntry::default()
    };
    services.set(TCP_SERVICE, service, 0)?;
    services.set(UDP_SERVICE, service, 0)?;
    replies(ebpf)?;
    let mut ring: Array<MapData, u64> = take(ebpf, "RING")?;
    for index in 0..MAX_RING {
        ring.set(index, Slot::plain(1 + index % BACKENDS, 0).0, 0)?;
    }
    Ok(Tables {
        vips: vips4,
        entries: services,
        control: take(ebpf, "CONTROL")?,
        backends: take(ebpf, "BACKENDS")?,
        services: take(ebpf, "SERVICE_STATS")?,
        backend_stats: take(ebpf, "BACKEND_STATS")?,
        drops: take(ebpf, "DROPS")?,
    })
}
