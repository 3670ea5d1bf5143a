//! A million packets of structured garbage in every mode, every length from 14 to 200 among them: the program in the
//! kernel and the core on the host agree on verdict and bytes, what leaves is well-formed to a parser that is not ours,
//! and the counters add up to the packets that came in. And on the host alone from a length of 0. The first needs root.

mod twin;

use lb_common::core::{DropReason, nat};
use lb_tests::{
    kernel::{
        Balancer, Counter, Counters, Host, Outcome, Verdict, World, plain_world,
        sound::{self, Fate},
        vip,
    },
    packets::{Generator, check, describe},
};

/// Change it to try other packets: `LBD_SEED=7 cargo test -p lb-tests --test garbage`.
const SEED: u64 = 0x6761_7262;
const PACKETS: u64 = 1_000_000;
/// The tests have as many threads, each with a program of its own.
const THREADS: u64 = 2;
const SERVICES: u32 = 64;
const SHORTEST: usize = 14;
const LONGEST: usize = 200;
/// Reasons whose packets are answered and counted.
const ANSWERED: [DropReason; 4] =
    [DropReason::TooBig, DropReason::EchoAnswered, DropReason::TtlExceeded, DropReason::Rejected];
/// The traces of fragments are forgotten so often: the kernel has room for so many at least.
const BATCH: usize = 500;

fn seed() -> u64 {
    std::env::var("LBD_SEED").map_or(SEED, |text| text.parse().expect("LBD_SEED is a number"))
}

fn generator(world: &World) -> Generator {
    // The VIPs of the modes more often than those of the odd tables.
    let mut vips = world.vips();
    for n in [10, 11, 12, 13, 14, 15, 24, 25, 28] {
        vips.extend([vip(n, false), vip(n, true)].repeat(4));
    }
    Generator::new(seed(), &vips, &[80, 80, 80, 80, 80, 80, 80, 80, 80, 80, 53, 8000], 300)
}

/// How often each fate was met.
#[derive(Debug, Clone, Copy, Default)]
struct Tally([u64; 4]);

impl Tally {
    fn add(&mut self, fate: Fate) {
        self.0[fate as usize] += 1;
    }

    fn of(&self, fate: Fate) -> u64 {
        self.0[fate as usize]
    }

    fn all(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Nothing is lost: each packet was sent, answered, passed or dropped, and counted for what it was.
    #[track_caller]
    fn adds_up(&self, counters: &Counters) {
        let sum = |wanted: fn(&Counter) -> bool| -> u64 {
            counters.iter().filter(|(counter, _)| wanted(counter)).map(|(_, (packets, _))| packets).sum()
        };
        let services = sum(|counter| matches!(counter, Counter::Service(_)));
        let drops = sum(|counter| matches!(counter, Counter::Drop(_)));
        let answers: u64 = ANSWERED.iter().map(|reason| counters.packets(*reason)).sum();
        assert_eq!(services, self.of(Fate::Forwarded), "{counters:?}");
        assert_eq!(services, sum(|counter| matches!(counter, Counter::Backend(_))), "{counters:?}");
        assert_eq!(answers, self.of(Fate::Answered), "{counters:?}");
        assert_eq!(drops, self.of(Fate::Dropped) + self.of(Fate::Answered), "{counters:?}");
        assert_eq!(services + drops + self.of(Fate::Passed), self.all(), "packets in: {counters:?}");
    }
}

#[track_caller]
fn judge(number: u64, frame: &[u8], outcome: &Outcome) -> Fate {
    sound::check(frame, outcome).unwrap_or_else(|why| {
        panic!(
            "frame {number} of seed {}: {why}\nin: {}\nout: {}",
            seed(),
            describe(frame),
            describe(&outcome.frame)
        )
    })
}

/// One thread's share of the numbers.
fn in_the_kernel(numbers: impl Iterator<Item = u64>) -> (Tally, Counters) {
    let world = plain_world();
    let generator = generator(&world);
    let (mut kernel, mut host) = (Balancer::new(&world.image), Host::new(&world.image));
    let mut tally = Tally::default();
    for (nth, number) in numbers.enumerate() {
        if nth.is_multiple_of(BATCH) {
            kernel.forget_fragments();
            host.forget_fragments();
        }
        let length = SHORTEST + (number % (LONGEST - SHORTEST + 1) as u64) as usize;
        let frame = generator.garbage(number, length);
        let (found, expected) = (kernel.run(&frame), host.run(&frame));
        // The bytes of a dropped frame are nobody's.
        let agree = found.verdict == expected.verdict
            && (found.verdict == Verdict::Drop || found.frame == expected.frame);
        assert!(
            agree,
            "frame {number} of seed {}\nkernel: {:?}\n{}\nhost: {:?}\n{}\nin: {}",
            seed(),
            found.verdict,
            describe(&found.frame),
            expected.verdict,
            describe(&expected.frame),
            describe(&frame)
        );
        tally.add(judge(number, &frame, &found));
    }
    let counters = kernel.counters(SERVICES);
    assert_eq!(counters, host.counters(), "(kernel, host)");
    tally.adds_up(&counters);
    (tally, counters)
}

#[test]
fn a_million_in_the_kernel() {
    let shares = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || in_the_kernel((thread..PACKETS).step_by(THREADS as usize))))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a share")).collect::<Vec<_>>()
    });
    let (mut all, mut counters) = (Tally::default(), Counters::default());
    for (tally, share) in shares {
        for (sum, n) in all.0.iter_mut().zip(tally.0) {
            *sum += n;
        }
        counters = counters.and(&share);
    }
    assert_eq!(all.all(), PACKETS);
    // Garbage is worth something only if much of it gets far.
    assert!(all.of(Fate::Forwarded) > PACKETS / 10, "{all:?}");
    assert!(all.of(Fate::Passed) > PACKETS / 20, "{all:?}");
    assert!(all.of(Fate::Dropped) > PACKETS / 10, "{all:?}");
    assert!(all.of(Fate::Answered) > 100, "{all:?}");
    let world = plain_world();
    let modes = ["dsr4", "dsr6", "ipip4", "ipip6", "gue4", "gue6"];
    for name in modes.map(|mode| format!("{mode}-udp")).iter().map(String::as_str).chain(["quic4", "quic6"]) {
        let id = world.image.service_id(name).expect("a service");
        let sent = counters.packets(Counter::Service(id));
        assert!(sent > 1_000, "only {sent} packets left by {name}");
    }
}

#[test]
fn a_million_on_the_host_from_no_byte_on() {
    let world = plain_world();
    let generator = generator(&world);
    let mut host = Host::new(&world.image);
    let mut tally = Tally::default();
    for number in 0..PACKETS {
        let frame = generator.garbage(1 << 40 | number, (number % (LONGEST + 1) as u64) as usize);
        let outcome = host.run(&frame);
        tally.add(judge(number, &frame, &outcome));
    }
    assert_eq!(tally.all(), PACKETS);
    tally.adds_up(&host.counters());
}

/// Both ways of NAT, sessions and errors and fragments among them, from no byte on: what is not ours is untouched, what
/// leaves is well-formed.
#[test]
fn a_million_on_the_host_through_nat() {
    let world = plain_world();
    let generator = generator(&world).with_clients(200);
    let host = twin::Twin::new();
    let (mut sent, mut dropped, mut sessions) = (0u64, 0u64, 0);
    for number in 0..PACKETS {
        if number.is_multiple_of(20_000) {
            sessions = sessions.max(host.sessions());
            host.forget();
        }
        let frame = generator.garbage(1 << 41 | number, (number % (LONGEST + 1) as u64) as usize);
        let Some((answer, out)) = host.run(&frame) else { continue };
        let what = || {
            format!("frame {number} of seed {}\nin: {}\nout: {}", seed(), describe(&frame), describe(&out))
        };
        match answer.verdict() {
            nat::Verdict::Send => {
                sent += 1;
                let before = check::parse(&frame).unwrap_or_else(|why| panic!("{why}: {}", what()));
                let after = check::parse(&out).unwrap_or_else(|why| panic!("{why}: {}", what()));
                assert_eq!(after.ttl, before.ttl - 1, "{}", what());
                if after.src.is_ipv6() == before.src.is_ipv6() {
                    assert_eq!(after.ip.len(), before.ip.len(), "{}", what());
                    assert_eq!(after.checksum_ok, before.checksum_ok, "{}", what());
                }
            }
            nat::Verdict::Drop => dropped += 1,
            nat::Verdict::Pass | nat::Verdict::Plain | nat::Verdict::TooBig => {
                assert!(out == frame, "{:?}: {}", answer.verdict(), what());
            }
            other => panic!("{other:?} is no end: {}", what()),
        }
    }
    assert!(sent > PACKETS / 20 && dropped > PACKETS / 100, "{sent} sent, {dropped} dropped");
    assert!(sessions > 400, "{sessions} sessions");
}
