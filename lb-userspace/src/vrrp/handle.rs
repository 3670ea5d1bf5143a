//! The daemon's hold on the VRRP threads.

use super::{
    fsm::AGREEMENT,
    heartbeat::{Claim, Heartbeat, Inbox, Input, Missing, Request, RequestError},
    keeper::{Desk, Keeper},
    notice::{Notice, NoticeReader, Notices, channel},
    peer::{Peer, Post, Word, Words},
    view::{Refused, RouterView},
    wake,
};
use crate::{
    dataplane::Addresses,
    model::{VrrpName, VrrpSpec},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::sync::{oneshot, watch};

/// Requests that wait at most.
const QUEUE: usize = 64;
/// Above everything ordinary, below the threads of the kernel that interrupts need.
const HEARTBEAT_PRIORITY: i32 = 50;
const KEEPER_PRIORITY: i32 = 49;

/// Where the answer to a request comes.
type Answer = oneshot::Receiver<Result<(), RequestError>>;

/// Two threads: the heartbeat and the keeper of the addresses.
#[derive(Debug)]
pub struct Vrrp {
    inbox: Inbox,
    views: watch::Receiver<Arc<Vec<RouterView>>>,
    refused: Arc<Refused>,
    threads: Vec<JoinHandle<()>>,
}

impl Vrrp {
    /// Starts both threads, in the network namespace of the caller; without routers they sleep.
    /// `addresses`: where the dataplane is told of the addresses and of how long it may answer for them.
    pub fn spawn(addresses: Addresses) -> io::Result<(Self, NoticeReader)> {
        let (notices, reader) = channel();
        let (queue, inputs) = mpsc::sync_channel::<Input>(QUEUE);
        let (waker, alarm) = wake::pair()?;
        let inbox = Inbox { queue, waker };
        let desk = Arc::<Desk>::default();
        let (keeper, keeper_waker) =
            Keeper::new(Arc::clone(&desk), inbox.clone(), notices.clone(), addresses)?;
        let (views_tx, views) = watch::channel(Arc::default());
        let refused = Arc::<Refused>::default();
        let notices_of_heart = notices.clone();
        let for_heart = Arc::clone(&refused);
        if let Err(error) = wake::lock_memory() {
            notices.send(Notice::Ordinary { what: "locked memory", error: error.to_string() });
        }
        let keeper = thread::Builder::new().name("vrrp-keeper".to_owned()).spawn(move || {
            prioritise(KEEPER_PRIORITY, None);
            keeper.run();
        })?;
        let heart = thread::Builder::new().name("vrrp-heartbeat".to_owned()).spawn(move || {
            prioritise(HEARTBEAT_PRIORITY, Some(&notices_of_heart));
            let keeper = (desk, keeper_waker);
            Heartbeat::new(inputs, alarm, keeper, notices_of_heart, views_tx, for_heart).run();
        })?;
        Ok((Self { inbox, views, refused, threads: vec![heart, keeper] }, reader))
    }

    /// The virtual routers, in place of those before. Those that are gone say good-bye.
    /// `held`: those that the operator keeps from being master; it counts for those that begin.
    pub fn configure(&self, specs: Vec<Arc<VrrpSpec>>, held: BTreeSet<VrrpName>) -> Result<(), RequestError> {
        self.inbox.send(Request::Configure(specs, held))
    }

    /// What is missing on this node for a master of each, beyond what the threads see themselves.
    pub fn track(&self, missing: BTreeMap<VrrpName, Vec<Missing>>) -> Result<(), RequestError> {
        self.inbox.send(Request::Track(missing))
    }

    /// For the thread of a faster detector (BFD): tells that the session of that name with the node of that address is
    /// up or down. Never waits.
    pub fn session_reporter(&self) -> impl Fn(VrrpName, IpAddr, bool) + Send + 'static {
        let inbox = self.inbox.clone();
        // Ended, or so far behind that its own timers are the faster ones.
        move |name, peer, up| drop(inbox.send(Request::Session { name, peer, up }))
    }

    /// Gives the addresses of a router to the peer; the answer comes when it has.
    pub fn failover(&self, name: VrrpName) -> Result<Answer, RequestError> {
        self.ask(|reply| Request::Failover(name, reply))
    }

    /// Keeps one router, or all, from being master, or lets it.
    pub fn hold(&self, name: Option<VrrpName>, on: bool) -> Result<Answer, RequestError> {
        self.ask(|reply| Request::Hold { name, on, reply })
    }

    /// Whether a peer is known to be alive that takes the addresses when this node is silent: leases that are given
    /// from now on end by themselves. Where nothing is known, a node whose daemon is silent answers until another one
    /// claims an address.
    pub fn peer_alive(&self, alive: bool) -> Result<(), RequestError> {
        self.inbox.send(Request::PeerAlive(alive))
    }

    /// The peer of that address and priority says by another way than VRRP, and has said for longer than any change of
    /// master takes, that it is master: a split brain, if this node is master, too.
    pub fn peer_is_master(&self, name: VrrpName, source: IpAddr, priority: u8) -> Result<(), RequestError> {
        self.inbox.send(Request::PeerMaster(name, (source, priority)))
    }

    /// Another node said that an address is its own.
    pub fn claimed(&self, claim: Claim) -> Result<(), RequestError> {
        self.inbox.send(Request::Claimed(claim))
    }

    fn ask(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<(), RequestError>>) -> Request,
    ) -> Result<Answer, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(request(reply))?;
        Ok(answer)
    }

    /// Lets the routers talk with the peer.
    pub fn connect(&self, peer: Arc<dyn Peer>) -> Result<(), RequestError> {
        self.inbox.send(Request::Word(Word::Connect(Post(peer))))
    }

    /// What the peer's words to the routers go by.
    pub fn words(&self) -> Words {
        Words(self.inbox.clone())
    }

    /// These routers lack the peer's state, and leave a living master alone, at most for so long.
    pub fn gate(&self, instances: Vec<VrrpName>, most: Duration) -> Result<(), RequestError> {
        self.inbox.send(Request::Word(Word::Gate(instances, wake::clock() + most)))
    }

    /// Changes of [`Vrrp::views`].
    pub fn watch(&self) -> watch::Receiver<Arc<Vec<RouterView>>> {
        self.views.clone()
    }

    /// The routers as they are, in the order of the configuration.
    pub fn views(&self) -> Arc<Vec<RouterView>> {
        Arc::clone(&self.views.borrow())
    }

    pub fn refused(&self) -> &Arc<Refused> {
        &self.refused
    }

    /// Hands over to the peer what can be, says good-bye, takes the addresses off, and ends. Waits for that, which is
    /// a matter of milliseconds, and at most [`AGREEMENT`] longer where a peer does not answer.
    pub fn stop(mut self) {
        let (done, left) = mpsc::sync_channel(1);
        if self.inbox.send(Request::LeaveAll(done)).is_ok() {
            // Its own timer ends it; the rest is for a thread that is late.
            let _ = left.recv_timeout(AGREEMENT * 2);
        }
        if self.inbox.send(Request::Stop).is_err() {
            // It has ended, or never reads again: nobody will answer.
            return;
        }
        for thread in std::mem::take(&mut self.threads) {
            // A panic was reported by the hook.
            let _ = thread.join();
        }
    }
}

fn prioritise(priority: i32, notices: Option<&Notices>) {
    if let (Err(error), Some(notices)) = (wake::real_time(priority), notices) {
        notices.send(Notice::Ordinary { what: "real-time priority", error: error.to_string() });
    }
}
