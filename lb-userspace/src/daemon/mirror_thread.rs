//! The mirror: one thread that waits for the link, the engine or the next round, feeds [`Sender`] and [`Receiver`], and
//! carries out what they ask for.
//!
//! It reads the flow tables every [`PACE`], and never for more than a tenth of the time; slot words go out as soon as the
//! engine has changed them. Every wait is a channel's receive or a sleep, which may be abandoned at any time.

use super::{Order, Shared};
use crate::{
    dataplane::{DataplaneError, FlowMaps, monotonic_ns},
    flowsync::{Copies, Effect, Key, Offer, Receiver, Scope, Sender, Table, Value},
    link::{Full, Link, LinkEvent, PeerId},
    plan::LAG,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    path::Path,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};
use tokio::{sync::mpsc, time::sleep_until};

/// Between two looks at the flow tables.
const PACE: Duration = Duration::from_millis(100);
/// A look that took so long is followed by so many times as much without one.
const REST: u32 = 9;
/// Frames taken in before anything else gets its turn.
const TURN: usize = 64;

pub(super) fn spawn(
    maps_dir: &Path,
    events: mpsc::Receiver<LinkEvent>,
    orders: mpsc::UnboundedReceiver<Order>,
    forward: mpsc::Sender<LinkEvent>,
    shared: Arc<Shared>,
) -> io::Result<()> {
    let maps = FlowMaps::open(maps_dir).map_err(io::Error::other)?;
    let limits = maps.limits().map_err(io::Error::other)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let mirror = MirrorThread {
        maps,
        limits,
        link: None,
        forward,
        shared,
        scope: Arc::default(),
        peers: BTreeMap::new(),
        copies: Copies::default(),
        flushes: Vec::new(),
        flushed: false,
        due: Instant::now(),
    };
    thread::Builder::new()
        .name("mirror".to_owned())
        .spawn(move || runtime.block_on(mirror.run(events, orders)))?;
    Ok(())
}

struct MirrorThread {
    maps: FlowMaps,
    limits: BTreeMap<Table, usize>,
    link: Option<Link>,
    /// What is for the engine.
    forward: mpsc::Sender<LinkEvent>,
    shared: Arc<Shared>,
    scope: Arc<Scope>,
    peers: BTreeMap<PeerId, PeerState>,
    /// Of the entries that all nodes of a fleet have.
    copies: Copies,
    flushes: Vec<std::sync::mpsc::Sender<()>>,
    /// Since the last of them was asked for, everything was said.
    flushed: bool,
    /// When the tables are looked at next.
    due: Instant,
}

#[derive(Debug)]
struct PeerState {
    sender: Sender,
    receiver: Receiver,
    /// When everything there was had been handed to the link.
    told: Instant,
    /// A round found nothing that it had to leave, and its frames are not all with the link.
    whole: Option<Instant>,
    heard: Instant,
}

impl PeerState {
    /// The tables stay as they are: this node may be the next master.
    fn stop(&mut self) {
        self.receiver.stop();
        self.sender.stop();
    }
}

impl MirrorThread {
    async fn run(
        mut self,
        mut events: mpsc::Receiver<LinkEvent>,
        mut orders: mpsc::UnboundedReceiver<Order>,
    ) {
        loop {
            let any = self.peers.values().any(|peer| peer.sender.is_connected());
            tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some(order) => {
                        // What came before a change of roles counts as it did then.
                        while let Ok(event) = events.try_recv() {
                            self.event(event).await;
                        }
                        self.carry_out();
                        self.order(order);
                    }
                    None => return,
                },
                event = events.recv() => {
                    let Some(event) = event else { return };
                    self.event(event).await;
                    for _ in 0..TURN {
                        let Ok(event) = events.try_recv() else { break };
                        self.event(event).await;
                    }
                    self.carry_out();
                }
                () = sleep_until(self.due.into()), if any => { self.round(); }
            }
            self.push();
            // Somebody waits, and there was more than fits at once.
            while !self.flushes.is_empty()
                && !self.flushed
                && self.peers.values().all(|peer| !peer.sender.is_full())
            {
                self.flushed = self.round();
                self.push();
            }
            self.measure();
        }
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Link(link) => {
                self.link = link;
                if self.link.is_none() {
                    // The end of a connection that ended with its link may have gone untold.
                    self.peers.values_mut().for_each(PeerState::stop);
                }
            }
            Order::Scope(scope) => {
                self.scope = scope;
                for peer in self.peers.values_mut() {
                    peer.receiver.rescope(&self.scope);
                }
                self.carry_out();
                self.describe();
            }
            Order::Flush(done) => {
                self.flushes.push(done);
                self.flushed = self.round();
            }
            // Who asked may have lost patience.
            Order::Settle(done) => _ = done.send(()),
        }
    }

    async fn event(&mut self, event: LinkEvent) {
        match &event {
            LinkEvent::Up { peer, .. } => {
                let now = Instant::now();
                let limits = self.limits.clone();
                let state = self.peers.entry(Arc::clone(peer)).or_insert_with(|| PeerState {
                    sender: Sender::default(),
                    receiver: Receiver::new(limits),
                    told: now,
                    whole: None,
                    heard: now,
                });
                state.receiver.stop();
                state.sender.begin();
                (state.told, state.heard, state.whole) = (now, now, None);
                self.describe();
                self.due = now;
                // Before the engine asks.
                self.measure();
            }
            LinkEvent::Frame(peer, bytes) => {
                let Some(state) = self.peers.get_mut(peer) else { return };
                state.heard = Instant::now();
                if let Err(error) = state.receiver.frame(bytes, &self.scope, monotonic_ns()) {
                    self.shared.metrics.refused.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%peer, %error, "a frame of flow state is of no use");
                }
                return;
            }
            LinkEvent::Room(_) => return,
            LinkEvent::TakeOver { .. } | LinkEvent::Wanted { .. } => {}
            LinkEvent::Down { peer, .. } => {
                if let Some(state) = self.peers.get_mut(peer) {
                    state.stop();
                    // What it has not told will not come.
                    self.shared.note_unsure();
                }
            }
        }
        // What came before is done before.
        self.carry_out();
        // The engine never waits for this thread's reading of events but with a limit.
        let _ = self.forward.send(event).await;
    }

    /// Says what of services, backends and words is new.
    fn describe(&mut self) {
        for peer in self.peers.values_mut() {
            peer.sender.describe(&self.scope);
        }
    }

    /// Looks at every entry. True if every peer that is there was told all.
    fn round(&mut self) -> bool {
        let begun = Instant::now();
        self.describe();
        let (scope, maps) = (Arc::clone(&self.scope), &self.maps);
        let connected = self.peers.values().filter(|peer| peer.sender.is_connected()).count();
        let ready = |peer: &&mut PeerState| peer.sender.is_connected() && !peer.sender.is_full();
        let mut peers: Vec<&mut PeerState> = self.peers.values_mut().filter(ready).collect();
        let clock = monotonic_ns();
        let looks = scope.has_entries() || peers.iter().any(|peer| peer.sender.entries() > 0);
        let mut all = peers.len() == connected;
        let mut result = Ok(());
        let copies = &mut self.copies;
        if !scope.has_entries() {
            copies.clear();
        }
        copies.begin();
        let mut rounds: Vec<_> =
            peers.iter_mut().map(|peer| (peer.sender.round(&scope, clock), &mut peer.whole)).collect();
        if looks && !rounds.is_empty() {
            result = Table::ALL.into_iter().try_for_each(|table| {
                maps.read(table, |key, value| {
                    let whose = scope.whose(&key, &value, copies);
                    // Nearly always there is one peer.
                    for (round, _) in &mut rounds {
                        round.entry(key, value.clone(), whose);
                    }
                })
            });
        }
        match result {
            Ok(()) => {
                if looks && !rounds.is_empty() {
                    copies.end();
                }
                for (round, whole) in rounds {
                    if round.finish() {
                        *whole = Some(begun);
                    } else {
                        all = false;
                    }
                }
            }
            // What was not read does not count as gone.
            Err(error) => {
                all = false;
                // Who waits for the whole of it is told by the silence.
                self.flushes.clear();
                tracing::error!(%error, "could not look at the flow tables for the peer");
            }
        }
        let took = begun.elapsed();
        self.shared.metrics.rounds.fetch_add(1, Ordering::Relaxed);
        self.due = Instant::now() + PACE.max(took * REST);
        all
    }

    /// Hands to the link what it has room for.
    fn push(&mut self) {
        let Some(link) = self.link.clone() else { return };
        let mut empty = true;
        for (name, peer) in &mut self.peers {
            while let Some(frame) = peer.sender.next() {
                match link.try_send(name, frame.clone()) {
                    Ok(()) => peer.sender.sent(),
                    Err(Full::Queue) => break,
                    Err(error @ (Full::Down | Full::TooLong(_))) => {
                        // Its end, or its next beginning, is told by an event.
                        tracing::debug!(peer = %name, %error, "no flow state to this peer");
                        peer.sender.stop();
                    }
                }
            }
            let waits = peer.sender.next().is_some();
            empty &= !waits;
            if !waits && let Some(begun) = peer.whole.take() {
                peer.told = begun;
            }
        }
        if empty && self.flushed {
            for done in self.flushes.drain(..) {
                // Who asked may have lost patience.
                let _ = done.send(());
            }
        }
    }

    /// Does what the receivers ask for.
    fn carry_out(&mut self) {
        let mut news = self.note_claims();
        let mut offers: HashMap<Key, (Value, Offer)> = HashMap::new();
        for (name, peer) in &mut self.peers {
            let mut entries: HashMap<Key, Option<(Value, u32)>> = HashMap::new();
            let mut complete: Option<BTreeSet<u32>> = None;
            for effect in peer.receiver.effects() {
                match effect {
                    Effect::Put(key, value, part) => drop(entries.insert(key, Some((value, part)))),
                    Effect::Gone(key) => drop(entries.insert(key, None)),
                    Effect::Offer(key, value, offer) => {
                        // Of two peers the later word, of one its last.
                        let met =
                            |(value, offer): &(Value, Offer)| value.entry.seen().wrapping_sub(offer.lead);
                        let offered = (value, offer);
                        let older =
                            |other: &(Value, Offer)| met(&offered).wrapping_sub(met(other)) > u16::MAX / 2;
                        if !offers.get(&key).is_some_and(older) {
                            offers.insert(key, offered);
                        }
                    }
                    Effect::Words { service, instance, followed } => {
                        self.shared.inbox().take((service, instance), followed);
                        news = true;
                    }
                    Effect::Resize { service, instance, size } => {
                        self.shared.inbox().sizes.insert((service, instance), size);
                        news = true;
                    }
                    Effect::Complete(parts) => complete = Some(parts),
                    Effect::AskAgain => {
                        tracing::warn!(peer = %name, "flow state was lost on the way: the peer is asked for all of it");
                        peer.sender.ask_again();
                    }
                    Effect::BeginAgain => peer.sender.begin(),
                }
            }
            let mut result = write(&self.maps, entries);
            if let Some(parts) = complete {
                result = result.and(remove_others(&self.maps, &self.scope, &parts, &peer.receiver));
                news = true;
                tracing::info!(peer = %name, entries = peer.receiver.entries(), "the peer's flow state is here");
            }
            if let Err(error) = result {
                self.shared.metrics.failed.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, "could not write all flows of the peer");
            }
        }
        if let Err(error) = self.accept(offers) {
            self.shared.metrics.failed.fetch_add(1, Ordering::Relaxed);
            self.shared.note_unsure();
            tracing::error!(%error, "could not write all flows of the fleet: slots settle later for it");
        }
        self.measure();
        if news {
            self.shared.news.notify_one();
        }
    }

    /// Writes what peers offer where it counts.
    fn accept(&mut self, offers: HashMap<Key, (Value, Offer)>) -> Result<(), DataplaneError> {
        let mut new: BTreeMap<Table, Vec<(Key, Value)>> = BTreeMap::new();
        let mut newer: BTreeMap<Table, Vec<(Key, Value, u32)>> = BTreeMap::new();
        for (key, (value, offer)) in offers {
            let here = self.maps.get(&key)?;
            let taken = self.copies.takes(&key, here.as_ref(), &value, offer, &self.scope);
            let Some(taken) = taken else {
                if Copies::contests(here.as_ref(), &value) {
                    self.peers.values_mut().for_each(|peer| peer.sender.tell_again(&key));
                }
                continue;
            };
            self.copies.wrote(key, &value, taken);
            match here {
                None => new.entry(key.table).or_default().push((key, value)),
                Some(_) => newer.entry(key.table).or_default().push((key, value, offer.part)),
            }
        }
        let replaced = newer.into_iter().try_for_each(|(table, entries)| self.maps.put(table, &entries));
        // A packet may have made one meanwhile.
        let inserted = new.into_iter().try_for_each(|(table, entries)| self.maps.put_new(table, &entries));
        replaced.and(inserted)
    }

    /// Takes note of which peers are there and what they claim. True if that is something else than before.
    fn note_claims(&self) -> bool {
        let there = self.peers.iter().filter(|(_, peer)| peer.sender.is_connected());
        let now = there.map(|(name, peer)| (Arc::clone(name), peer.receiver.claim())).collect();
        let mut inbox = self.shared.inbox();
        let differs = inbox.claims != now;
        inbox.claims = now;
        differs
    }

    fn measure(&self) {
        let late = |at: Instant| at.elapsed() > LAG;
        let unsure = |peer: &PeerState| {
            !peer.receiver.is_complete() || !peer.sender.has_ended() || late(peer.heard) || late(peer.told)
        };
        if self.peers.values().any(|peer| peer.sender.is_connected() && unsure(peer)) {
            self.shared.note_unsure();
        }
        let connected = || self.peers.values().filter(|peer| peer.sender.is_connected());
        if connected().next().is_some() {
            let complete = connected().all(|peer| peer.receiver.is_complete());
            self.shared.complete.store(complete, Ordering::Release);
        }
        let metrics = &self.shared.metrics;
        let now = Instant::now();
        let lag = |at: fn(&PeerState) -> Instant| {
            connected().map(|peer| now.duration_since(at(peer)).as_millis() as u64).max().unwrap_or(0)
        };
        let sum = |of: fn(&PeerState) -> u64| self.peers.values().map(of).sum::<u64>();
        let set = |gauge: &std::sync::atomic::AtomicU64, value: u64| gauge.store(value, Ordering::Relaxed);
        set(&metrics.peers, connected().count() as u64);
        set(&metrics.complete, connected().filter(|peer| peer.receiver.is_complete()).count() as u64);
        set(&metrics.send_lag_ms, lag(|peer| peer.told));
        set(&metrics.receive_lag_ms, lag(|peer| peer.heard));
        set(&metrics.sent, sum(|peer| peer.sender.put));
        set(&metrics.sent_gone, sum(|peer| peer.sender.gone));
        set(&metrics.received, sum(|peer| peer.receiver.put));
        set(&metrics.received_gone, sum(|peer| peer.receiver.gone));
        set(&metrics.held, sum(|peer| peer.receiver.entries() as u64));
        set(&metrics.told, sum(|peer| peer.sender.entries() as u64));
        set(&metrics.dropped[0], sum(|peer| peer.receiver.dropped.service));
        set(&metrics.dropped[1], sum(|peer| peer.receiver.dropped.backend));
        set(&metrics.dropped[2], sum(|peer| peer.receiver.dropped.full));
        set(&metrics.dropped[3], sum(|peer| peer.receiver.dropped.authority));
    }
}

/// The last word on each entry.
fn write(maps: &FlowMaps, entries: HashMap<Key, Option<(Value, u32)>>) -> Result<(), DataplaneError> {
    let mut put: BTreeMap<Table, Vec<(Key, Value, u32)>> = BTreeMap::new();
    let mut gone: BTreeMap<Table, Vec<Key>> = BTreeMap::new();
    for (key, value) in entries {
        match value {
            Some((value, part)) => put.entry(key.table).or_default().push((key, value, part)),
            None => gone.entry(key.table).or_default().push(key),
        }
    }
    // Room first.
    let removed = gone.into_iter().try_for_each(|(table, keys)| maps.remove(table, &keys));
    let written = put.into_iter().try_for_each(|(table, entries)| maps.put(table, &entries));
    removed.and(written)
}

/// Entries of parts that follow the peer, and that the peer does not have.
fn remove_others(
    maps: &FlowMaps,
    scope: &Scope,
    parts: &BTreeSet<u32>,
    receiver: &Receiver,
) -> Result<(), DataplaneError> {
    for table in Table::ALL {
        let mut old = Vec::new();
        maps.read(table, |key, value| {
            let part = scope.part_of(value.entry.backend()).map(|(id, _)| id);
            if part.is_some_and(|part| parts.contains(&part)) && !receiver.has(&key) {
                old.push(key);
            }
        })?;
        maps.remove(table, &old)?;
    }
    Ok(())
}
