//! The observed program against the one that is attached, on the same maps: asked, it says what the other then does, and
//! changes nothing. Needs root.

use lb_common::{
    abi::{BackendEntry, Note, Slot, SlotState, WatchMode},
    core::DropReason,
};
use lb_tests::{
    kernel::{Balancer, Counter, Verdict, World, plain_world, vip},
    packets::{Generator, Rng, describe},
};
use lb_userspace::{dataplane::Observed, net::bpffs, plan::Image};
use std::{
    fs,
    path::{Path, PathBuf},
};

const SEED: u64 = 0x7365_6531;
const SERVICES: u32 = 64;
/// See `differential`.
const MAX_FRAME: usize = 3_400;

/// A directory on bpffs.
struct Pins(PathBuf);

impl Pins {
    fn new(name: &str) -> Self {
        let path = Path::new("/sys/fs/bpf").join(format!("lbd-test-{name}-{}", std::process::id()));
        bpffs::ensure(&path).expect("a BPF file system");
        Self(path)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn generator(world: &World) -> Generator {
    let mut vips = world.vips();
    for n in 10..=15 {
        vips.extend([vip(n, false), vip(n, true)].repeat(6));
    }
    let ports = [&[80; 40], &[53, 81, 8000, 8099, 443, 0][..]].concat();
    Generator::new(SEED, &vips, &ports, 2_000).with_clients(60)
}

/// Slots in every state, and backends that are dead or live another life.
fn disturbed(image: &Image, phase: u16, rng: &mut Rng) -> Image {
    let mut image = image.clone();
    let backends = image.backends.clone();
    for (id, ring) in &mut image.rings {
        let own: Vec<u32> =
            backends.iter().filter(|(_, b)| b.entry.service == *id).map(|(id, _)| *id).chain([0]).collect();
        let mut disturb = |word: &mut Slot| {
            let (owner, home) = (rng.pick(&own), rng.pick(&own));
            *word = match rng.below(4) {
                0 => *word,
                1 => Slot::plain(owner, phase),
                2 => Slot::new(owner, owner, SlotState::Tracked, phase),
                _ => Slot::new(owner, home, SlotState::Moving, phase),
            };
        };
        ring.update(|words| words.iter_mut().for_each(&mut disturb));
    }
    for backend in image.backends.values_mut() {
        if rng.percent(20) {
            backend.entry.flags |= BackendEntry::DEAD;
        }
        backend.entry.incarnation = phase / 2;
    }
    image
}

/// What the notes of explained packets add up to.
fn expected(note: &Note, counters: &mut Vec<Counter>) {
    if note.has(Note::REASON) {
        counters.push(DropReason::ALL[note.reason as usize].into());
    } else if note.has(Note::BACKEND) {
        counters.extend([Counter::Service(note.service), Counter::Backend(note.backend)]);
    }
}

/// A fragment before the first one of its datagram: asked, the program says whether it would hold it, and does not.
#[test]
fn explaining_holds_nothing() {
    let world = plain_world();
    let pins = Pins::new("observe-held");
    let mut live = Balancer::pinned(&world.image, &pins.0);
    let mut asked = Observed::load(&pins.0, WatchMode::Explain).expect("the observed program");
    let mut reason =
        |frame: &[u8]| DropReason::ALL[asked.run(frame).expect("a test run").note.reason as usize];
    for v6 in [false, true] {
        let whole = world.packet("ipip4-udp", v6, 1).with_ip_len(600);
        let frame = whole.fragments(1, 256)[1].build();
        live.hold_until(0);
        assert_eq!(reason(&frame), DropReason::FragmentUnknown);
        live.hold_until(u64::MAX);
        live.set_tokens(1);
        for _ in 0..3 {
            assert_eq!(reason(&frame), DropReason::FragmentHeld, "no token is used up");
        }
        assert_eq!(live.held(), []);
        let before = live.counters(SERVICES);
        assert_eq!(live.run(&frame).verdict, Verdict::Drop);
        let held = live.counters(SERVICES).since(&before);
        assert_eq!((held.packets(DropReason::FragmentHeld), live.held().len()), (1, 1));
        live.set_tokens(0);
        assert_eq!(reason(&frame), DropReason::FragmentUnknown, "the limit");
    }
}

#[test]
fn what_is_explained_happens_and_nothing_happens_by_explaining() {
    const PHASES: u16 = 6;
    const PACKETS: u64 = 1_500;
    let world = plain_world();
    let pins = Pins::new("observe");
    let generator = generator(&world);
    let mut live = Balancer::pinned(&world.image, &pins.0);
    let mut asked = Observed::load(&pins.0, WatchMode::Explain).expect("the observed program");
    let mut rng = Rng::new(SEED);
    let (mut verdicts, mut found_flows, mut records) = ([0; 5], 0, 0);
    for phase in 0..PHASES {
        live.set_image(&disturbed(&world.image, phase, &mut rng));
        // The limit on ICMP answers is asked for and not used up.
        live.set_tokens(if phase == 3 { 0 } else { 1_000_000 });
        let frame = |number: u64| {
            let mut frame = generator.frame(u64::from(phase) * PACKETS + number);
            frame.truncate(MAX_FRAME);
            frame
        };
        let before = (live.counters(SERVICES), live.entries(), live.observe());
        for number in 0..PACKETS {
            asked.run(&frame(number)).expect("a test run");
        }
        assert_eq!(live.counters(SERVICES), before.0, "explaining counts nothing");
        assert_eq!(live.entries(), before.1, "explaining records nothing and touches no entry");
        assert!(live.observe() == before.2, "explaining changes no table");

        let mut counted = Vec::new();
        for number in 0..PACKETS {
            let frame = frame(number);
            let said = asked.run(&frame).expect("a test run");
            let done = live.run(&frame);
            let name = format!("phase {phase}, frame {number} of seed {SEED}: {}", describe(&frame));
            assert_eq!(said.verdict, done.verdict as u32, "{name}");
            assert!(
                done.verdict == Verdict::Drop || said.frame == done.frame,
                "{name}\nsaid: {}\ndone: {}",
                describe(&said.frame),
                describe(&done.frame)
            );
            verdicts[done.verdict as usize] += 1;
            found_flows += u32::from(said.note.has(Note::FLOW));
            records += u32::from(said.note.has(Note::RECORDS));
            expected(&said.note, &mut counted);
        }
        let after = live.counters(SERVICES);
        let mut kinds = counted.clone();
        kinds.sort();
        kinds.dedup();
        for kind in kinds {
            let said = counted.iter().filter(|c| **c == kind).count() as u64;
            assert_eq!(after.of(kind) - before.0.of(kind), said, "phase {phase}: {kind:?}");
        }
    }
    for verdict in [Verdict::Drop, Verdict::Pass, Verdict::Tx, Verdict::Redirect] {
        assert!(verdicts[verdict as usize] > 100, "{verdict:?}: {verdicts:?}");
    }
    assert!(found_flows > 100 && records > 100, "{found_flows} flows found, {records} would be recorded");
}

/// The program that traces does what the balancer does, counters and flows included.
#[test]
fn tracing_changes_no_outcome() {
    const PACKETS: u64 = 3_000;
    let world = plain_world();
    let mut rng = Rng::new(SEED);
    let image = disturbed(&world.image, 1, &mut rng);
    let pins = [Pins::new("traced"), Pins::new("plain")];
    let mut traced_maps = Balancer::pinned(&image, &pins[0].0);
    let mut plain = Balancer::pinned(&image, &pins[1].0);
    traced_maps.set_tokens(1_000_000);
    plain.set_tokens(1_000_000);
    let mut traced = Observed::load(&pins[0].0, WatchMode::Trace).expect("the observed program");
    let generator = generator(&world);
    for number in 0..PACKETS {
        let mut frame = generator.frame(number);
        frame.truncate(MAX_FRAME);
        let (ran, done) = (traced.run(&frame).expect("a test run"), plain.run(&frame));
        assert_eq!(ran.verdict, done.verdict as u32, "frame {number}: {}", describe(&frame));
        assert!(done.verdict == Verdict::Drop || ran.frame == done.frame, "frame {number}");
    }
    assert_eq!(traced_maps.counters(SERVICES), plain.counters(SERVICES));
    assert_eq!(traced_maps.flows(), plain.flows());
    assert_eq!(traced.lost().expect("NOTES"), 0, "nobody asked for records");
}
