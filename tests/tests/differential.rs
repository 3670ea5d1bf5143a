//! The core on the host against the program in the kernel, on generated packets: verdict, rewritten bytes and
//! counters agree bit for bit. And on the host alone, where frames may be shorter than the kernel takes and a
//! million is soon done: no panic, and every packet that leaves is well-formed to a parser that is not ours.
//! The first needs root.

use lb_common::{
    abi::{BackendEntry, Slot, SlotState},
    core::DropReason,
};
use lb_tests::{
    kernel::{Balancer, Counters, Host, Outcome, Verdict, World, plain_world, sound, vip},
    packets::{Extension, Generator, Packet, Rng, describe},
};
use lb_userspace::plan::Image;

/// Change it to try other packets: `LBD_SEED=7 cargo test -p lb-tests --test differential`.
const SEED: u64 = 0x6c62_6431;
/// Ports that some VIP has, and some that none has.
const ODD_PORTS: [u16; 8] = [53, 81, 8000, 8099, 9001, 443, 6080, 0];
/// Longer than any egress takes.
const MAX_PAYLOAD: usize = 2000;
/// A page less the room the kernel keeps around the frame: beyond it a test run makes fragments of a frame, of which
/// the program sees the first.
const MAX_FRAME: usize = 3_400;
/// Services whose counters are compared.
const SERVICES: u32 = 64;

fn seed() -> u64 {
    match std::env::var("LBD_SEED") {
        Ok(text) => text.parse().expect("LBD_SEED is a number"),
        Err(_) => SEED,
    }
}

fn generator(world: &World) -> Generator {
    // The VIPs of the modes (10 to 15), which have TCP and UDP, more often than the odd ones.
    let mut vips = world.vips();
    for n in 10..=15 {
        vips.extend([vip(n, false), vip(n, true)].repeat(6));
    }
    let ports = [&[80; 40], &ODD_PORTS[..]].concat();
    Generator::new(seed(), &vips, &ports, MAX_PAYLOAD)
}

/// The bytes of a dropped frame are nobody's.
fn agree(kernel: &Outcome, host: &Outcome) -> bool {
    kernel.verdict == host.verdict && (kernel.verdict == Verdict::Drop || kernel.frame == host.frame)
}

fn compare(kernel: &mut Balancer, host: &mut Host<'_>, frame: &[u8], name: impl Fn() -> String) -> Verdict {
    let (found, expected) = (kernel.run(frame), host.run(frame));
    assert!(
        agree(&found, &expected),
        "{}\nkernel: {:?}\n{}\nhost: {:?}\n{}\nin: {}",
        name(),
        found.verdict,
        describe(&found.frame),
        expected.verdict,
        describe(&expected.frame),
        describe(frame)
    );
    found.verdict
}

/// Runs frames through both; counters are compared after every batch, and where they differ the batch is
/// repeated frame by frame to name the culprit.
fn compare_all(frames: impl Fn(u64) -> Vec<u8>, numbers: std::ops::Range<u64>) -> ([u64; 5], Counters) {
    const BATCH: u64 = 1_000;
    let world = plain_world();
    let mut kernel = Balancer::new(&world.image);
    let mut host = Host::new(&world.image);
    let mut verdicts = [0; 5];
    let mut at = numbers.start;
    while at < numbers.end {
        let batch = at..numbers.end.min(at + BATCH);
        kernel.forget_fragments();
        host.forget_fragments();
        for number in batch.clone() {
            let name = || format!("frame {number} of seed {}", seed());
            verdicts[compare(&mut kernel, &mut host, &frames(number), name) as usize] += 1;
        }
        if kernel.counters(SERVICES) != host.counters() {
            let (mut kernel, mut host) = (Balancer::new(&world.image), Host::new(&world.image));
            for number in batch {
                let frame = frames(number);
                kernel.run(&frame);
                host.run(&frame);
                let (found, expected) = (kernel.counters(SERVICES), host.counters());
                assert!(
                    found == expected,
                    "frame {number} of seed {}\nkernel: {found:?}\nhost: {expected:?}\n{}",
                    seed(),
                    describe(&frame)
                );
            }
            panic!("counters differ, but not for any single frame: {:?}", host.counters());
        }
        at += BATCH;
    }
    (verdicts, host.counters())
}

#[test]
fn host_and_kernel_agree_on_generated_packets() {
    const PACKETS: u64 = 200_000;
    let world = plain_world();
    let generator = generator(&world);
    let (verdicts, counters) = compare_all(
        |number| {
            let mut frame = generator.frame(number);
            frame.truncate(MAX_FRAME);
            frame
        },
        0..PACKETS,
    );
    // The generator is worth something only if it reaches everything.
    let name = |verdict: Verdict| verdicts[verdict as usize];
    assert_eq!(name(Verdict::Aborted), 0);
    for verdict in [Verdict::Drop, Verdict::Pass, Verdict::Tx, Verdict::Redirect] {
        assert!(name(verdict) > PACKETS / 40, "{verdict:?}: {} of {PACKETS}", name(verdict));
    }
    // A single packet never runs out of headroom; and this world has neither lists, limits, sessions nor
    // addresses of VRRP.
    let elsewhere = |reason: DropReason| {
        matches!(
            reason,
            DropReason::NoHeadroom
                | DropReason::Denied
                | DropReason::NotAllowed
                | DropReason::SourceLimit
                | DropReason::ServiceLimit
                | DropReason::NatSession
                | DropReason::NatExhausted
                | DropReason::NatFull
                | DropReason::NatUntranslatable
                | DropReason::FragmentHeld
                | DropReason::NeighbourAnswered
                | DropReason::NeighbourUnanswered
                | DropReason::LeaseOver
                | DropReason::NotAccepted
        )
    };
    for reason in DropReason::ALL.iter().filter(|reason| !elsewhere(**reason)) {
        assert!(counters.packets(*reason) > 0, "no packet was dropped for {reason:?}");
    }
}

/// Slots that change hands: the same flows again and again, while owners, homes, states and incarnations change under
/// them. The flow tables agree as well (but for the time in them, which is the kernel's).
#[test]
fn host_and_kernel_agree_on_flows_through_changes() {
    const PHASES: usize = 12;
    const PACKETS: u64 = 4_000;
    let world = plain_world();
    let mut rng = Rng::new(seed());
    let images: Vec<Image> = (0..PHASES).map(|phase| disturbed(&world.image, phase, &mut rng)).collect();
    let generator = generator(&world).with_clients(200);
    let (mut kernel, mut host) = (Balancer::new(&world.image), Host::new(&world.image));
    let mut largest = 0;
    for (phase, image) in images.iter().enumerate() {
        kernel.set_image(image);
        host.set_image(image);
        for number in 0..PACKETS {
            if number % 500 == 0 {
                kernel.forget_fragments();
                host.forget_fragments();
            }
            let number = phase as u64 * PACKETS + number;
            let mut frame = generator.frame(number);
            frame.truncate(MAX_FRAME);
            let name = || format!("phase {phase}, frame {number} of seed {}", seed());
            compare(&mut kernel, &mut host, &frame, name);
        }
        assert_eq!(kernel.counters(SERVICES), host.counters(), "phase {phase} (kernel, host)");
        let (found, expected) = (kernel.flows(), host.flows());
        assert_eq!(found, expected, "phase {phase} (kernel, host)");
        largest = largest.max(found.v4.len()).max(found.v6.len());
    }
    assert!(largest > 200, "only {largest} flows were ever tracked");
}

/// The image with slots in every state, and backends dead or in another life.
fn disturbed(image: &Image, phase: usize, rng: &mut Rng) -> Image {
    let mut image = image.clone();
    let services: Vec<u32> =
        image.services.keys().copied().filter(|id| image.rings.contains_key(id)).collect();
    for id in services {
        let backends: Vec<u32> = image
            .backends
            .iter()
            .filter(|(_, b)| b.entry.service == id)
            .map(|(id, _)| *id)
            .chain([0])
            .collect();
        let mut disturb = |word: &mut Slot| {
            let (owner, home) = (rng.pick(&backends), rng.pick(&backends));
            *word = match rng.below(4) {
                0 => *word,
                1 => Slot::plain(owner, phase as u16),
                2 => Slot::new(owner, owner, SlotState::Tracked, phase as u16),
                _ => Slot::new(owner, home, SlotState::Moving, phase as u16),
            };
        };
        let ring = image.rings.get_mut(&id).expect("a ring");
        ring.update(|words| words.iter_mut().for_each(&mut disturb));
    }
    for backend in image.backends.values_mut() {
        if rng.percent(20) {
            backend.entry.flags |= BackendEntry::DEAD;
        }
        backend.entry.incarnation = (phase / 3) as u16 + u16::from(rng.percent(10));
    }
    image
}

/// Every length from 14 to 200 of packets of every kind, cut with the IP length left as it was and with it cut too.
#[test]
fn host_and_kernel_agree_on_every_truncation() {
    let world = plain_world();
    let mut packets: Vec<Packet> = Vec::new();
    for service in ["dsr4-tcp", "ipip6-udp", "gue6-tcp", "gue6-udp"] {
        for v6 in [false, true] {
            for tags in [vec![], vec![(0x8100, 5)], vec![(0x88a8, 5), (0x8100, 6)]] {
                let packet = world.packet(service, v6, 1).with(|p| p.tags = tags);
                packets.push(packet.with(|p| match v6 {
                    false => p.v4().options = vec![1; 24],
                    true => p.v6().extensions = vec![Extension::options(0, 2), Extension::authentication(3)],
                }));
                packets.push(packet.with_ip_len(190));
            }
        }
    }
    let cut = |number: u64| {
        let packet = &packets[number as usize / (187 * 2)];
        let len = 14 + (number as usize / 2) % 187;
        let mut frame = packet.build();
        if len < frame.len() {
            frame.truncate(len);
            let at = packet.l3() + if packet.is_v6() { 4 } else { 2 };
            if number % 2 == 1 && frame.len() > at + 1 {
                let inside = len - packet.l3();
                let says = if packet.is_v6() { inside.saturating_sub(40) } else { inside };
                frame[at..at + 2].copy_from_slice(&(says as u16).to_be_bytes());
            }
        }
        frame
    };
    compare_all(cut, 0..packets.len() as u64 * 187 * 2);
}

/// A million frames, most of them bent a little, some of them shorter than the kernel takes.
#[test]
fn the_host_survives_a_million_frames() {
    let world = plain_world();
    let generator = generator(&world);
    let mut host = Host::new(&world.image);
    let mut forwarded = 0u32;
    for number in 0..100_000u64 {
        let base = generator.frame(1 << 40 | number);
        for bend in 0..10usize {
            let mut frame = base.clone();
            // Bend 0 leaves it alone; then one byte after the other of the first 180, or the end.
            if bend > 0 {
                let place = (number as usize * 9 + bend) % 200;
                match frame.get_mut(place) {
                    Some(byte) if place < 180 => *byte = byte.wrapping_add((number >> 3) as u8 | 1),
                    _ => frame.truncate(number as usize % 64),
                }
            }
            let outcome = host.run(&frame);
            if let Err(why) = sound::check(&frame, &outcome) {
                panic!(
                    "frame {number}, bend {bend} of seed {}: {why}\nin: {}\nout: {}",
                    seed(),
                    describe(&frame),
                    describe(&outcome.frame)
                );
            }
            forwarded += u32::from(matches!(outcome.verdict, Verdict::Tx | Verdict::Redirect));
        }
    }
    assert!(forwarded > 150_000, "{forwarded} of a million were forwarded: the generator misses its mark");
}

#[test]
fn the_host_survives_short_frames() {
    let world = plain_world();
    let mut host = Host::new(&world.image);
    for v6 in [false, true] {
        let frame = world.packet("gue6-tcp", v6, 1).build();
        for len in 0..=14 {
            assert_eq!(host.run(&frame[..len]).verdict, Verdict::Pass);
            assert_eq!(host.run(&[0xff; 14][..len]).verdict, Verdict::Pass);
        }
    }
}
