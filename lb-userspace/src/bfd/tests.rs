use super::*;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    time::{Duration, Instant},
};

fn spec(name: &str, local: [u8; 4], peer: [u8; 4]) -> BfdSpec {
    BfdSpec {
        name: name.parse().unwrap(),
        peer: peer.into(),
        local: local.into(),
        interval: Duration::from_millis(50),
        multiplier: 4,
    }
}

/// Two threads over the loopback interface: up, a polite end, and a silent one.
#[test]
fn two_threads_meet() {
    // Of this test alone, so that it can run beside itself.
    let octet = (std::process::id() % 250) as u8 + 1;
    let (one, two) = ([127, 84, octet, 1], [127, 84, octet, 2]);
    let spawn = |spec: BfdSpec| {
        let (tell, told) = mpsc::channel();
        let (bfd, notices) = Bfd::spawn(move |_, _, up| tell.send(up).unwrap_or_default()).unwrap();
        bfd.configure(vec![spec]);
        (bfd, told, notices)
    };
    let patience = Duration::from_secs(60);
    let (a, a_told, mut a_notices) = spawn(spec("a", one, two));
    let (b, b_told, _b_notices) = spawn(spec("b", two, one));
    assert_eq!(a_told.recv_timeout(patience), Ok(true));
    assert_eq!(b_told.recv_timeout(patience), Ok(true));
    let wait_for = |bfd: &Bfd, state: State| {
        let start = Instant::now();
        while bfd.views()[0].state != state {
            assert!(start.elapsed() < patience, "{:?}", bfd.views());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait_for(&a, State::Up);
    // A polite end is no silence: nothing is reported.
    b.stop();
    wait_for(&a, State::Down);
    assert_eq!(a.views()[0].diagnostic, Diagnostic::NEIGHBOUR_DOWN);
    assert_eq!(a_told.try_recv(), Err(mpsc::TryRecvError::Empty));
    // What is from somewhere else, or for nobody, is told once.
    let stranger = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    for _ in 0..5 {
        stranger.send_to(&[0; 24], (std::net::Ipv4Addr::from(one), packet::PORT)).unwrap();
    }
    let start = Instant::now();
    let mut refused = Vec::new();
    while refused.is_empty() || start.elapsed() < Duration::from_millis(300) {
        assert!(start.elapsed() < patience);
        if let Ok(Notice::Refused { refusal, .. }) = a_notices.try_recv() {
            refused.push(refusal);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(refused, [Refusal::HopLimit(64)]);
    let counted: Vec<_> = a.refused().counts().filter(|(_, count)| *count > 0).collect();
    assert_eq!(counted, [("ttl", 5)]);
    let session = Arc::clone(&a.views()[0].counters);
    let entered: Vec<_> = session.transitions().filter(|(state, _)| *state == State::Up).collect();
    assert_eq!(entered, [(State::Up, 1)]);
    let packets = |count: &AtomicU64| count.load(Relaxed);
    // Down, init and up were each said by either side at least once.
    assert!(packets(&session.received) >= 3 && packets(&session.sent) >= 3, "{session:?}");
    // Another interval is another session of the same name: it goes on counting.
    let received = packets(&session.received);
    a.configure(vec![BfdSpec { interval: Duration::from_millis(60), ..spec("a", one, two) }]);
    let start = Instant::now();
    while a.views()[0].spec.interval != Duration::from_millis(60) {
        assert!(start.elapsed() < patience, "{:?}", a.views());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(packets(&a.views()[0].counters.received) >= received);
    a.stop();
}
