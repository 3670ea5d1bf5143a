use super::*;

fn terms(id: u64) -> BeatTerms {
    BeatTerms { id, key: STANDARD_NO_PAD.encode([id as u8; 32]), port: 9760, interval_us: 10_000 }
}

fn at(ms: u64) -> Moment {
    Moment(ms * 1_000_000)
}

const TEN: Duration = Duration::from_millis(10);

type Own = BTreeMap<VrrpName, InstanceStatus>;

fn name(name: &str) -> VrrpName {
    name.parse().unwrap()
}

fn status(state: &str, own: &[[u8; 4]]) -> InstanceStatus {
    let own = own.iter().map(|address| IpAddr::from(*address)).collect();
    InstanceStatus { state: state.to_owned(), priority: 100, gated: false, own }
}

fn told(instances: &Own) -> Status {
    Status { services: String::new(), instances: instances.clone() }
}

/// What the second one of a pair has.
fn own() -> Own {
    [(name("public"), status("backup", &[[10, 0, 0, 2]]))].into()
}

/// Two that have met; the first one is master and is heard over its interface.
fn pair() -> (Beats, Beats) {
    let (one, two) = (Beats::default(), Beats::default());
    let address = |n| SocketAddr::from(([10, 9, 0, n], 9760));
    one.meet(&"two".into(), address(2), &terms(1), &terms(2));
    two.meet(&"one".into(), address(1), &terms(2), &terms(1));
    one.status("two", &told(&own()));
    two.status("one", &told(&[(name("public"), status("master", &[[10, 0, 0, 1]]))].into()));
    (one, two)
}

#[test]
fn silence_on_every_way_is_told_once() {
    let (one, two) = pair();
    for ms in (0..100).step_by(10) {
        let beats = one.due(TEN);
        assert_eq!(beats.len(), 2, "the link's way and that over the interface");
        assert_eq!(beats[1].0, SocketAddr::from(([10, 0, 0, 2], 9760)));
        for (to, beat) in beats {
            two.take(&beat, to.ip(), at(1000 + ms)).unwrap();
        }
        assert!(two.judge(at(1000 + ms), &own()).is_empty());
    }
    assert_eq!(two.beating("one"), Some(true));
    assert!(two.judge(at(1120), &own()).is_empty(), "30 ms of silence are over only later");
    let told = two.judge(at(1121), &own());
    assert_eq!(told, [("one".into(), TEN, vec![name("public")])]);
    assert!(two.judge(at(1200), &own()).is_empty());
    assert_eq!(two.beating("one"), Some(false));
}

fn all(to: &Beats, beats: &[(SocketAddr, [u8; LENGTH])], ms: u64) {
    for (address, beat) in beats {
        to.take(beat, address.ip(), at(ms)).unwrap();
    }
}

/// Heartbeats come on both ways, and then, for a while, on one of them.
fn both_and_then(one: &Beats, two: &Beats, only: usize) {
    let send = |ms, ways: &[usize]| {
        let beats = one.due(TEN);
        for (to, beat) in ways.iter().map(|way| &beats[*way]) {
            two.take(beat, to.ip(), at(ms)).unwrap();
        }
    };
    send(1000, &[0, 1]);
    for ms in (1010..1200).step_by(10) {
        send(ms, &[only]);
        assert!(two.judge(at(ms), &own()).is_empty());
    }
}

#[test]
fn a_cut_network_is_no_dead_master() {
    // The link's own network is cut: the other way goes on.
    let (one, two) = pair();
    both_and_then(&one, &two, 1);
    // The way over the interface is cut first, then the link's: the advertisements decide.
    let (one, two) = pair();
    both_and_then(&one, &two, 0);
    assert_eq!(two.judge(at(1300), &own()), [("one".into(), TEN, vec![])]);
    // Only the link's way ever worked.
    let (one, two) = pair();
    let (to, beat) = one.due(TEN)[0];
    two.take(&beat, to.ip(), at(1000)).unwrap();
    assert_eq!(two.judge(at(1100), &own()), [("one".into(), TEN, vec![])]);
    // It has said farewell, or that it sends no more.
    let (one, two) = pair();
    all(&two, &one.due(TEN), 1000);
    two.farewell("one");
    assert_eq!(two.judge(at(1100), &own()), [("one".into(), TEN, vec![])]);
    let (one, two) = pair();
    all(&two, &one.due(Duration::ZERO), 1000);
    assert!(two.judge(at(9000), &own()).is_empty());
    assert_eq!(two.beating("one"), None);
}

/// The peer is master of three, on networks of their own.
#[test]
fn silence_counts_for_routers_on_whose_interface_it_was_heard() {
    let (a, b, c) = ([10, 1, 0, 2], [10, 2, 0, 2], [10, 3, 0, 2]);
    let own: Own = [("a", a), ("b", b), ("c", c)]
        .map(|(router, address)| (name(router), status("backup", &[address])))
        .into();
    // Heartbeats come on the link's way and these of the interfaces until 1,100 ms, and then on none.
    let silent = |ways: &[[u8; 4]], also: Option<[u8; 4]>| {
        let (one, two) = (Beats::default(), Beats::default());
        let link = |n| SocketAddr::from(([10, 9, 0, n], 9760));
        one.meet(&"two".into(), link(2), &terms(1), &terms(2));
        two.meet(&"one".into(), link(1), &terms(2), &terms(1));
        one.status("two", &told(&own));
        let masters = own.keys().map(|router| (router.clone(), status("master", &[]))).collect();
        two.status("one", &told(&masters));
        for ms in (1000..=1100).step_by(10) {
            for (to, beat) in one.due(TEN) {
                let early = ms < 1050 && also.is_some_and(|also| to.ip() == IpAddr::from(also));
                if early || to == link(2) || ways.iter().any(|way| to.ip() == IpAddr::from(*way)) {
                    two.take(&beat, to.ip(), at(ms)).unwrap();
                }
            }
            assert!(two.judge(at(ms), &own).is_empty());
        }
        let [(_, _, routers)] = <[_; 1]>::try_from(two.judge(at(1200), &own)).unwrap();
        routers.into_iter().map(|router| router.to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(silent(&[a, b, c], None), "a b c");
    assert_eq!(silent(&[a, c], None), "a c", "b's network may be cut while its master serves there");
    assert_eq!(silent(&[a], Some(b)), "a", "b's failed before the others");
    assert_eq!(silent(&[], Some(b)), "");
    assert_eq!(silent(&[], None), "");
}

#[test]
fn a_datagram_tells_which_address_it_came_to() {
    let socket = open(0).unwrap();
    let port = socket.local_addr().unwrap().port();
    for to in ["127.0.0.1", "127.0.0.2", "::1"].map(|to| to.parse::<IpAddr>().unwrap()) {
        if to.is_ipv6() && socket.local_addr().unwrap().is_ipv4() {
            continue;
        }
        let any = if to.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { Ipv6Addr::LOCALHOST.into() };
        let sender = UdpSocket::bind((any, 0)).unwrap();
        sender.send_to(&[7; LENGTH], (to, port)).unwrap();
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        ppoll(&mut fds, Some(TimeSpec::from_duration(Duration::from_secs(10))), None).unwrap();
        let mut buffer = [0; LENGTH + 1];
        assert_eq!(receive(&socket, &mut buffer).unwrap(), (LENGTH, sender.local_addr().unwrap(), to));
    }
    assert!(receive(&socket, &mut [0; LENGTH]).is_err(), "nothing is waited for");
}

#[test]
fn forged_and_repeated_ones_have_no_effect() {
    let (one, two) = pair();
    let (to, beat) = one.due(TEN)[0];
    let to = to.ip();
    for at_byte in 0..LENGTH {
        let mut forged = beat;
        forged[at_byte] ^= 1;
        // Two octets are nobody's, but authenticated as well.
        assert_eq!(two.take(&forged, to, at(1)), Err(Reason::Beat), "octet {at_byte}");
    }
    assert_eq!(two.take(&beat[..LENGTH - 1], to, at(1)), Err(Reason::Beat));
    assert_eq!(two.take(&[], to, at(1)), Err(Reason::Beat));
    assert_eq!(two.beating("one"), None, "nothing had an effect");
    two.take(&beat, to, at(1)).unwrap();
    assert_eq!(two.take(&beat, to, at(2)), Err(Reason::BeatReplayed));
    // Of another connection: not even as a forgery while it may still be on its way.
    two.meet(&"one".into(), ([10, 9, 0, 1], 9760).into(), &terms(5), &terms(6));
    two.take(&beat, to, at(3)).unwrap();
    assert_eq!(two.beating("one"), None);
    two.meet(&"one".into(), ([10, 9, 0, 1], 9760).into(), &terms(7), &terms(8));
    assert_eq!(two.take(&beat, to, at(4)), Err(Reason::Beat));
}
