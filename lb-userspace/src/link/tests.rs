//! Two links in one process, over loopback, and what an attacker could send them.

use super::*;
use crate::model::{SyncKey, SyncSpec};
use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::mpsc, time::timeout};

const PATIENCE: Duration = Duration::from_secs(30);

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn settings(node: &str, listen: SocketAddr, peer: SocketAddr, keys: &[u8]) -> Settings {
    Settings {
        spec: SyncSpec {
            listen,
            peers: vec![peer],
            key_file: "/nowhere".into(),
            heartbeat: Duration::from_millis(20),
            max_bandwidth: None,
            takeover_wait: Duration::ZERO,
        },
        keys: keys.iter().map(|byte| SyncKey::new(None, [*byte; 32])).collect(),
        node: node.to_owned(),
    }
}

struct Node {
    link: Link,
    events: mpsc::Receiver<LinkEvent>,
}

impl Node {
    fn new(settings: Settings) -> Self {
        let (sender, events) = mpsc::channel(16);
        Self { link: Link::spawn(settings, sender).unwrap(), events }
    }

    async fn next(&mut self) -> LinkEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("an event in time").expect("the link lives")
    }

    async fn up(&mut self, name: &str) {
        loop {
            if let LinkEvent::Up { peer, .. } = self.next().await {
                assert_eq!(&*peer, name);
                return;
            }
        }
    }

    /// The next frame; other events are passed over.
    async fn frame(&mut self) -> Vec<u8> {
        loop {
            if let LinkEvent::Frame(_, frame) = self.next().await {
                return frame;
            }
        }
    }

    fn rejected(&self, reason: &str) -> u64 {
        self.link.rejected().into_iter().find(|(name, _)| *name == reason).expect("a reason").1
    }

    async fn wait_for_rejected(&self, reason: &str, count: u64) {
        wait(&format!("{reason}: {:?}", self.link.rejected()), || self.rejected(reason) >= count).await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.link.stop();
    }
}

async fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// `a` is called by `b`, and calls nobody.
async fn pair() -> (Node, Node, SocketAddr) {
    let (at, other) = (free_port(), free_port());
    let mut a = Node::new(settings("a", at, "127.0.0.1:1".parse().unwrap(), &[1]));
    let mut b = Node::new(settings("b", other, at, &[1]));
    a.up("b").await;
    b.up("a").await;
    (a, b, at)
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_come_in_order_and_push_back() {
    let (mut a, mut b, _) = pair().await;
    assert_eq!(a.link.try_send("c", vec![]), Err(Full::Down));
    assert_eq!(a.link.try_send("b", vec![0; MAX_FRAME + 1]), Err(Full::TooLong(MAX_FRAME + 1)));
    for frame in [vec![], vec![7], vec![8; MAX_FRAME]] {
        a.link.try_send("b", frame.clone()).unwrap();
        b.link.try_send("a", frame.clone()).unwrap();
        assert!(b.frame().await == frame && a.frame().await == frame);
    }
    // As long as b reads nothing, a's queue fills, and no further.
    let numbered = |n: u32| [n.to_be_bytes().as_slice(), &[9; 60_000]].concat();
    let mut sent = 0;
    let begun = Instant::now();
    loop {
        match a.link.try_send("b", numbered(sent)) {
            Ok(()) => sent += 1,
            Err(Full::Queue) if begun.elapsed() > Duration::from_secs(1) => break,
            Err(Full::Queue) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(a.link.view().peers[0].queued <= 4 << 20);
    // The other direction is not concerned, nor is the connection.
    b.link.try_send("a", vec![1]).unwrap();
    assert_eq!(a.frame().await, [1]);
    for n in 0..sent {
        assert!(b.frame().await == numbered(n), "frame {n} of {sent}");
    }
    assert!(matches!(a.next().await, LinkEvent::Room(peer) if &*peer == "b"));
    a.link.try_send("b", vec![2]).unwrap();
    assert_eq!(b.frame().await, [2]);
    let view = a.link.view().peers.remove(0);
    assert!(view.sent > 60_000 * u64::from(sent) && view.version == 1, "{view:?}");
    wait("heartbeats and pings", || {
        let view = a.link.view().peers.remove(0);
        view.beating == Some(true) && view.rtt.is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn words_are_behind_frames_and_find_their_peer() {
    let (mut a, mut b, _) = pair().await;
    let public: crate::model::VrrpName = "public".parse().unwrap();
    // Nobody has told that it is backup.
    assert!(!a.link.say(Role::TakeOver, &public));
    b.link.tell_instances([("public", "backup", 100)]);
    a.link.tell_instances([("public", "master", 150)]);
    wait("a knows", || a.link.reaches(Role::TakeOver, &public)).await;
    wait("b knows", || b.link.reaches(Role::Want, &public)).await;
    assert!(!a.link.reaches(Role::Want, &public) && !b.link.reaches(Role::Taken, &public));
    a.link.try_send("b", vec![1; 50_000]).unwrap();
    assert!(a.link.say(Role::TakeOver, &public));
    a.link.try_send("b", vec![2]).unwrap();
    assert!(matches!(b.next().await, LinkEvent::Frame(_, frame) if frame.len() == 50_000));
    assert!(matches!(b.next().await, LinkEvent::TakeOver { instance, .. } if instance == public));
    assert!(matches!(b.next().await, LinkEvent::Frame(_, frame) if frame == [2]));
    // The answer goes to whom it came from, once.
    assert!(b.link.say(Role::Taken, &public) && !b.link.say(Role::Taken, &public));
    assert!(b.link.say(Role::Want, &public));
    assert!(matches!(a.next().await, LinkEvent::Wanted { instance, .. } if instance == public));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_holds_frames_and_lets_go_for_words() {
    let (at, other) = (free_port(), free_port());
    let mut slow = settings("a", at, other, &[1]);
    slow.spec.max_bandwidth = Some(500_000);
    let mut a = Node::new(slow);
    let mut b = Node::new(settings("b", other, "127.0.0.1:1".parse().unwrap(), &[1]));
    a.up("b").await;
    b.up("a").await;
    let public: crate::model::VrrpName = "public".parse().unwrap();
    b.link.tell_instances([("public", "backup", 100)]);
    wait("a knows", || a.link.reaches(Role::TakeOver, &public)).await;
    // Four seconds' worth, through which the link pings and tells of itself.
    let begun = Instant::now();
    for _ in 0..40 {
        a.link.try_send("b", vec![3; 50_000]).unwrap();
    }
    for n in 0..40 {
        b.frame().await;
        a.link.tell_services(&n.to_string());
    }
    // A tenth of a second's worth may go at once, and the last one need not be paid for.
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(3600), "{took:?} for two megabytes");
    // Six seconds' worth.
    for _ in 0..60 {
        a.link.try_send("b", vec![3; 50_000]).unwrap();
    }
    let begun = Instant::now();
    assert!(a.link.say(Role::TakeOver, &public));
    while !matches!(b.next().await, LinkEvent::TakeOver { .. }) {}
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}: the word waited for the limit", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn both_call_and_one_connection_stays() {
    for _ in 0..4 {
        let (at, other) = (free_port(), free_port());
        let a = Node::new(settings("a", at, other, &[1]));
        let b = Node::new(settings("b", other, at, &[1]));
        let (mut a, mut b) = (a, b);
        a.up("b").await;
        b.up("a").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        wait("one connection", || a.link.connected().len() == 1 && b.link.connected().len() == 1).await;
        // The same one for both: what goes into one end comes out of the other.
        a.link.try_send("b", vec![1]).unwrap();
        b.link.try_send("a", vec![2]).unwrap();
        assert_eq!((a.frame().await, b.frame().await), (vec![2], vec![1]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_does_not_talk_to_itself_nor_by_another_key() {
    let (at, other) = (free_port(), free_port());
    let itself = Node::new(settings("a", at, at, &[1]));
    itself.wait_for_rejected("itself", 1).await;
    let stranger = Node::new(settings("b", other, at, &[2, 3]));
    itself.wait_for_rejected("key", 1).await;
    assert!(itself.link.connected().is_empty() && stranger.link.connected().is_empty());
    wait("it is said where", || stranger.link.view().waiting.iter().any(|(to, _)| *to == at)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_change_inside_the_connection() {
    let (a, b, at) = pair().await;
    let other = b.link.view().peers[0].address;
    let since = (a.link.view().peers[0].since, b.link.view().peers[0].since);
    let key = |node: &Node| node.link.view().peers[0].key.clone();
    let old = key(&a);
    let nowhere = "127.0.0.1:1".parse().unwrap();
    let own = b.link.listen();
    // The calling side has the new one first; the other does not know it yet, and nothing is lost.
    b.link.configure(settings("b", own, other, &[2, 1]));
    a.wait_for_rejected("key", 1).await;
    assert_eq!((key(&a), key(&b)), (old.clone(), old.clone()));
    a.link.configure(settings("a", at, nowhere, &[1, 2]));
    wait("the new key is used", || key(&a) != old && key(&b) == key(&a)).await;
    a.link.configure(settings("a", at, nowhere, &[3, 2]));
    b.link.configure(settings("b", own, other, &[2, 3]));
    // The old one of two goes from the side that is called: it asks for another.
    a.link.configure(settings("a", at, nowhere, &[3]));
    b.link.configure(settings("b", own, other, &[3, 2]));
    wait("the third key is used", || key(&a) == SyncKey::new(None, [3; 32]).id && key(&b) == key(&a)).await;
    assert_eq!((a.link.view().peers[0].since, b.link.view().peers[0].since), since);
}

// ---- attacks ----------------------------------------------------------------------------------------------

/// Between two nodes: records what the caller says, and changes an octet if told to.
struct Middle {
    at: SocketAddr,
    recorded: Arc<Mutex<Vec<u8>>>,
    /// The next so many octets from the caller pass, then one is changed; 0: none is.
    change: Arc<AtomicUsize>,
}

impl Middle {
    fn new(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let (recorded, change) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::<AtomicUsize>::default());
        let (recorder, changer) = (Arc::clone(&recorded), Arc::clone(&change));
        // Ends with the process.
        std::thread::spawn(move || {
            for caller in listener.incoming().map_while(Result::ok) {
                let Ok(called) = TcpStream::connect(to) else { continue };
                let (mut from, mut into) = (caller.try_clone().unwrap(), called.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut { called }, &mut { caller }));
                let (recorder, changer) = (Arc::clone(&recorder), Arc::clone(&changer));
                std::thread::spawn(move || {
                    let mut buffer = [0; 65_536];
                    while let Ok(length @ 1..) = from.read(&mut buffer) {
                        let bytes = &mut buffer[..length];
                        recorder.lock().unwrap().extend_from_slice(bytes);
                        if changer.swap(0, Ordering::SeqCst) > 0 {
                            bytes[length - 1] ^= 1;
                        }
                        if into.write_all(bytes).is_err() {
                            break;
                        }
                    }
                    let _ = into.shutdown(Shutdown::Both);
                    let _ = from.shutdown(Shutdown::Both);
                });
            }
        });
        Self { at, recorded, change }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_changed_on_its_way_or_said_again_has_no_effect() {
    let (at, other) = (free_port(), free_port());
    let middle = Middle::new(at);
    let mut a = Node::new(settings("a", at, "127.0.0.1:1".parse().unwrap(), &[1]));
    let mut b = Node::new(settings("b", other, middle.at, &[1]));
    a.up("b").await;
    b.up("a").await;
    b.link.try_send("a", b"first".to_vec()).unwrap();
    assert_eq!(a.frame().await, b"first");
    let recorded = middle.recorded.lock().unwrap().clone();

    // All of it again, from the handshake on: it is not taken for the peer, and the peer stays.
    let since = a.link.view().peers[0].since;
    let mut again = TcpStream::connect(at).unwrap();
    again.write_all(&recorded).unwrap();
    a.wait_for_rejected("corrupt", 1).await;
    assert_eq!(a.link.view().peers[0].since, since);
    assert!(a.events.try_recv().is_err(), "nothing came of it");

    // One octet changed on the way ends the connection; a new one is made, and nothing wrong came.
    middle.change.store(1, Ordering::SeqCst);
    b.link.try_send("a", b"second".to_vec()).unwrap();
    a.wait_for_rejected("corrupt", 2).await;
    a.up("b").await;
    b.up("a").await;
    b.link.try_send("a", b"third".to_vec()).unwrap();
    assert_eq!(a.frame().await, b"third");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_counted_and_bounded() {
    let (mut a, b, at) = pair().await;
    let say = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    };
    drop(say(&[0xff, 0xff, 1, 2, 3]));
    a.wait_for_rejected("oversize", 1).await;
    drop(say(&[0, 48, 1, 2]));
    a.wait_for_rejected("truncated", 1).await;
    drop(say(&[&[0, 48][..], &[7; 48]].concat()));
    a.wait_for_rejected("key", 1).await;
    // Those that say a little and wait: a bounded number, for a bounded time.
    let slow: Vec<TcpStream> = (0..60).map(|_| say(&[0])).collect();
    a.wait_for_rejected("busy", 20).await;
    a.wait_for_rejected("timeout", 10).await;
    drop(slow);
    // Forged heartbeats too.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(&[0; 44], at).unwrap();
    a.wait_for_rejected("heartbeat", 1).await;
    b.link.try_send("a", vec![5]).unwrap();
    assert_eq!(a.frame().await, [5], "the peer was never disturbed");
}
