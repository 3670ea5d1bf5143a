//! One connection: the handshake, and then reading, writing and the care of its keys, side by side.

use super::{
    handle::{LinkEvent, Peer, Shared, lock},
    noise::{Broken, Call, Direction, HANDSHAKE, MAX_SEALED, PROLOGUE, answer, read_sealed},
    outbox::Item,
    view::Reason,
    wire::{Assembly, Hello, Message, Role, parts},
};
use crate::model::SyncKey;
use std::{
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{MissedTickBehavior, interval, sleep, timeout},
};

/// A connection that says nothing for so long is dead: it is pinged every second.
const SILENCE: Duration = Duration::from_secs(5);
const PING: Duration = Duration::from_secs(1);
/// New keys are made this often.
const FRESH: Duration = Duration::from_secs(600);
/// How long an answer to new keys may take before they are asked for again.
const FRESH_ANSWER: Duration = Duration::from_secs(5);
/// How long a connection lives whose pre-shared key was taken out of the file.
const GRACE: Duration = Duration::from_secs(15);
/// Words of the link, pings for the most part, that wait for a peer at most.
const MAX_WORDS: usize = 600;
/// Bytes that are written at once.
const CHUNK: usize = 128 << 10;

/// A connection whose sides know each other.
pub(super) struct Joined {
    pub hello: Hello,
    pub version: u16,
    pub reader: BufReader<OwnedReadHalf>,
    pub writer: OwnedWriteHalf,
    pub rx: Direction,
    pub tx: Direction,
}

async fn send(
    writer: &mut (impl AsyncWrite + Unpin),
    tx: &mut Direction,
    message: &Message,
) -> Result<(), Broken> {
    let mut bytes = Vec::new();
    tx.seal(&message.encode(), &mut bytes)?;
    Ok(writer.write_all(&bytes).await?)
}

async fn send_plain(writer: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> Result<(), Broken> {
    let length = u16::try_from(message.len()).map_err(|_| Broken::Oversize(message.len()))?;
    Ok(writer.write_all(&[&length.to_be_bytes(), message].concat()).await?)
}

async fn receive(reader: &mut (impl AsyncRead + Unpin), rx: &mut Direction) -> Result<Message, Broken> {
    rx.open(&read_sealed(reader, MAX_SEALED).await?)
}

/// Whether this is a peer to talk to; the version that both speak.
fn judge(own: &Hello, theirs: &Hello) -> Result<u16, Broken> {
    if own.node == theirs.node {
        return Err(Broken::Itself(own.node.clone()));
    }
    own.common(theirs.versions).ok_or(Broken::Version { ours: own.versions, theirs: theirs.versions })
}

/// The caller's side, up to its decision to use the connection.
pub(super) async fn call(stream: TcpStream, key: &SyncKey, own: &Hello) -> Result<Joined, Broken> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let (call, first) =
        Call::begin(key, PROLOGUE).map_err(|_| Broken::Protocol("no handshake can be made"))?;
    send_plain(&mut writer, &first).await?;
    let second = match read_sealed(&mut reader, HANDSHAKE).await {
        Ok(second) => second,
        Err(Broken::Closed | Broken::Truncated | Broken::Io(_)) => return Err(Broken::Refused),
        Err(error) => return Err(error),
    };
    let session = call.end(&second)?;
    let (mut rx, mut tx) = (Direction::new(session.clone()), Direction::new(session));
    send(&mut writer, &mut tx, &Message::Hello(own.clone())).await?;
    let Message::Hello(hello) = receive(&mut reader, &mut rx).await? else {
        return Err(Broken::Protocol("no greeting"));
    };
    let version = judge(own, &hello)?;
    Ok(Joined { hello, version, reader, writer, rx, tx })
}

impl Joined {
    /// The caller's last word.
    pub(super) async fn confirm(&mut self) -> Result<(), Broken> {
        send(&mut self.writer, &mut self.tx, &Message::Use).await
    }
}

/// The side that is called, up to the caller's last word.
pub(super) async fn be_called(stream: TcpStream, keys: &[SyncKey], own: &Hello) -> Result<Joined, Broken> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let first = read_sealed(&mut reader, HANDSHAKE).await?;
    let (session, second) = answer(keys, PROLOGUE, &first)?;
    send_plain(&mut writer, &second).await?;
    let (mut rx, mut tx) = (Direction::new(session.clone()), Direction::new(session));
    // The first message may have been recorded; the greeting proves that the caller is there.
    let Message::Hello(hello) = receive(&mut reader, &mut rx).await? else {
        return Err(Broken::Protocol("no greeting"));
    };
    send(&mut writer, &mut tx, &Message::Hello(own.clone())).await?;
    let version = judge(own, &hello)?;
    match receive(&mut reader, &mut rx).await? {
        Message::Use => Ok(Joined { hello, version, reader, writer, rx, tx }),
        _ => Err(Broken::Protocol("a greeting without an end")),
    }
}

/// New keys that are being made.
#[derive(Default)]
struct Care {
    call: Option<Call>,
    called: Option<Instant>,
    asked: Option<Instant>,
    /// Since when the key in use is in the file no more.
    unwanted: Option<Instant>,
    fresh: Option<Instant>,
    hash: Vec<u8>,
}

/// Until the connection ends, or its peer is told to. Why it did.
pub(super) async fn run(shared: &Shared, peer: &Peer, joined: Joined) -> Broken {
    let Joined { reader, writer, rx, tx, .. } = joined;
    let care =
        Mutex::new(Care { fresh: Some(Instant::now()), hash: rx.session.hash.clone(), ..Care::default() });
    tokio::select! {
        error = read(shared, peer, reader, rx, &care) => error,
        error = write(shared, peer, writer, tx) => error,
        error = tend(shared, peer, &care) => error,
        () = peer.end.notified() => Broken::Replaced,
    }
}

async fn read(
    shared: &Shared,
    peer: &Peer,
    mut reader: BufReader<OwnedReadHalf>,
    rx: Direction,
    care: &Mutex<Care>,
) -> Broken {
    let mut inbound = Inbound { shared, peer, rx, care, next: None, assembly: Assembly::default() };
    loop {
        let sealed = match timeout(SILENCE, read_sealed(&mut reader, MAX_SEALED)).await {
            Ok(Ok(sealed)) => sealed,
            Ok(Err(error)) => return error,
            Err(_) => return Broken::Silent(SILENCE.as_secs()),
        };
        peer.traffic.received.fetch_add(sealed.len() as u64 + 2, Relaxed);
        if let Err(error) = inbound.take(&sealed).await {
            return error;
        }
    }
}

struct Inbound<'a> {
    shared: &'a Shared,
    peer: &'a Peer,
    rx: Direction,
    care: &'a Mutex<Care>,
    /// The keys that the caller is about to use.
    next: Option<Direction>,
    assembly: Assembly,
}

impl Inbound<'_> {
    async fn tell(&self, event: LinkEvent) {
        // The daemon ends: so will this task.
        let _ = self.shared.events.send(event).await;
    }

    async fn take(&mut self, sealed: &[u8]) -> Result<(), Broken> {
        let (shared, peer) = (self.shared, self.peer);
        let oversize = || Broken::Oversize(super::MAX_FRAME + 1);
        match self.rx.open(sealed)? {
            Message::Hello(_) | Message::Use => return Err(Broken::Protocol("a second greeting")),
            Message::Part(part) => self.assembly.add(&part).ok_or_else(oversize)?,
            Message::End(part) => {
                let frame = self.assembly.end(&part).ok_or_else(oversize)?;
                self.tell(LinkEvent::Frame(Arc::clone(&peer.name), frame)).await;
            }
            Message::Ping(token) => peer.outbox.push(Message::Pong(token)),
            Message::Pong(token) => {
                let rtt = nanos(peer).saturating_sub(token).max(1);
                peer.traffic.rtt.store(rtt, Relaxed);
            }
            Message::Status(status) => {
                shared.beats.status(&peer.name, &status);
                *lock(&peer.status) = status;
            }
            Message::Role(role, instance) => self.role(role, instance).await,
            Message::Fresh1(call) if !peer.dialled => {
                let keys = shared.settings.borrow().keys.clone();
                match answer(&keys, &self.rx.session.hash, &call) {
                    Ok((session, answer)) => {
                        self.next = Some(Direction::new(session.clone()));
                        peer.outbox.push_switch(Message::Fresh2(answer), session);
                    }
                    // The connection is good as it is: this node has the new key not yet.
                    Err(error) => shared.reject(Reason::Key, &peer.name, &error),
                }
            }
            Message::Fresh2(answer) if peer.dialled => {
                let call = lock(self.care).call.take().ok_or(Broken::Protocol("an answer to nothing"))?;
                let session = call.end(&answer)?;
                self.rx = Direction::new(session.clone());
                self.switched();
                peer.outbox.push_switch(Message::Fresh3, session);
            }
            Message::Fresh3 if !peer.dialled => {
                self.rx = self.next.take().ok_or(Broken::Protocol("an end of nothing"))?;
                self.switched();
            }
            Message::AskFresh if peer.dialled => begin_fresh(shared, peer, &mut lock(self.care)),
            Message::Fresh1(_) | Message::Fresh2(_) | Message::Fresh3 | Message::AskFresh => {
                return Err(Broken::Protocol("the other side's word"));
            }
            Message::Close(cause) => {
                shared.beats.farewell(&peer.name);
                return Err(Broken::Farewell(cause));
            }
            Message::Unknown(kind) => {
                tracing::debug!(peer = %peer.name, kind, "sync: a record of a later version");
            }
        }
        Ok(())
    }

    async fn role(&self, role: Role, instance: crate::model::VrrpName) {
        let peer = Arc::clone(&self.peer.name);
        match role {
            // Straight to the heartbeat: the old master waits for nothing else.
            Role::Taken => {
                let words = lock(&self.shared.words).clone();
                if let Some(words) = words {
                    words.granted(instance);
                }
            }
            Role::TakeOver => {
                lock(&self.shared.givers).insert(instance.clone(), Arc::clone(&peer));
                self.tell(LinkEvent::TakeOver { peer, instance }).await;
            }
            Role::Want => self.tell(LinkEvent::Wanted { peer, instance }).await,
        }
    }

    fn switched(&self) {
        let mut care = lock(self.care);
        (care.fresh, care.called, care.asked) = (Some(Instant::now()), None, None);
        care.hash.clone_from(&self.rx.session.hash);
        let key = self.rx.session.key.clone();
        let mut known = lock(&self.peer.key);
        if *known != key {
            tracing::info!(peer = %self.peer.name, from = known.id, to = key.id, "sync: the key was changed");
            *known = key;
        }
    }
}

/// Since the connection's beginning.
fn nanos(peer: &Peer) -> u64 {
    u64::try_from(peer.installed.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn begin_fresh(shared: &Shared, peer: &Peer, care: &mut Care) {
    if care.called.is_some_and(|at| at.elapsed() < FRESH_ANSWER) {
        return;
    }
    let key = shared.settings.borrow().keys[0].clone();
    match Call::begin(&key, &care.hash) {
        Ok((call, first)) => {
            (care.call, care.called) = (Some(call), Some(Instant::now()));
            peer.outbox.push(Message::Fresh1(first));
        }
        Err(error) => tracing::error!(%error, "sync: no new keys can be made"),
    }
}

/// Pings, and keys that are to change.
async fn tend(shared: &Shared, peer: &Peer, care: &Mutex<Care>) -> Broken {
    let mut settings = shared.settings.subscribe();
    let mut status = shared.status.subscribe();
    status.mark_changed();
    let mut ping = interval(PING);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ping.tick() => {
                if peer.outbox.words() > MAX_WORDS {
                    return Broken::Protocol("the peer reads nothing");
                }
                peer.outbox.push(Message::Ping(nanos(peer)));
            }
            Ok(()) = settings.changed() => {}
            Ok(()) = status.changed() => {
                let status = status.borrow_and_update().clone();
                peer.outbox.push(Message::Status(status));
                continue;
            }
        }
        let keys = settings.borrow_and_update().keys.clone();
        let current = lock(&peer.key).clone();
        let accepted = keys.iter().any(|key| key.secret() == current.secret());
        let mut care = lock(care);
        if accepted {
            care.unwanted = None;
        } else if care.unwanted.get_or_insert_with(Instant::now).elapsed() > GRACE {
            return Broken::KeyGone(current.id);
        }
        if peer.dialled {
            let old = care.fresh.is_some_and(|at| at.elapsed() > FRESH);
            if old || keys[0].secret() != current.secret() {
                begin_fresh(shared, peer, &mut care);
            }
        } else if !accepted && care.asked.is_none_or(|at| at.elapsed() > FRESH_ANSWER) {
            care.asked = Some(Instant::now());
            peer.outbox.push(Message::AskFresh);
        }
    }
}

async fn write(shared: &Shared, peer: &Peer, mut writer: OwnedWriteHalf, mut tx: Direction) -> Broken {
    let mut bucket = Bucket { tokens: 0.0, filled: Instant::now() };
    let mut bytes = Vec::with_capacity(CHUNK);
    loop {
        let mut next = Some(peer.outbox.pop().await);
        while let Some((item, room)) = next.take() {
            if room {
                // The daemon ends: so will this task.
                let _ = shared.events.send(LinkEvent::Room(Arc::clone(&peer.name))).await;
            }
            let framed = matches!(item, Item::Frame(_));
            let begun = bytes.len();
            if let Err(error) = seal(item, &mut tx, &mut bytes) {
                return error;
            }
            let rate = shared.settings.borrow().spec.max_bandwidth;
            if let (true, Some(rate)) = (framed, rate) {
                bucket.take((bytes.len() - begun) as f64, rate as f64, peer).await;
                break;
            }
            if bytes.len() < CHUNK {
                next = peer.outbox.try_pop();
            }
        }
        if let Err(error) = writer.write_all(&bytes).await {
            return error.into();
        }
        peer.traffic.sent.fetch_add(bytes.len() as u64, Relaxed);
        bytes.clear();
    }
}

fn seal(item: Item, tx: &mut Direction, bytes: &mut Vec<u8>) -> Result<(), Broken> {
    match item {
        Item::Frame(frame) => parts(frame).try_for_each(|part| tx.seal(&part.encode(), bytes)),
        Item::Message(message) => tx.seal(&message.encode(), bytes),
        Item::Switch(message, session) => {
            tx.seal(&message.encode(), bytes)?;
            *tx = Direction::new(*session);
            Ok(())
        }
    }
}

/// A limit on frames. A word of a hand-over behind them makes it yield: the word waits for what is queued, and that is
/// bounded.
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    async fn take(&mut self, bytes: f64, rate: f64, peer: &Peer) {
        loop {
            let now = Instant::now();
            // A tenth of a second's worth may go at once.
            let filled = self.tokens + now.duration_since(self.filled).as_secs_f64() * rate;
            (self.tokens, self.filled) = (filled.min(rate / 10.0), now);
            if self.tokens >= 0.0 || peer.outbox.is_urgent() {
                // May be below zero, so that a frame larger than the bucket passes.
                self.tokens = (self.tokens - bytes).max(-rate);
                return;
            }
            sleep(Duration::from_millis(2)).await;
        }
    }
}
