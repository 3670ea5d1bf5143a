//! The loop of the sessions: wait for packets, for a configuration, or for the next deadline; read what came; then look at
//! the timers, in that order, as VRRP's heartbeat does.

use super::{
    Counters, Notice, Refused, SessionView,
    fsm::{Change, Session},
    packet::{self, Diagnostic, HOP_LIMIT, Refusal, State, micros},
    port::{Arrived, Receiver, Sender},
};
use crate::{
    model::{BfdSpec, VrrpName},
    vrrp::{
        timing::Moment,
        wake::{Alarm, clock},
    },
};
use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};
use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io,
    net::IpAddr,
    sync::{Arc, atomic::Ordering::Relaxed, mpsc as sync_mpsc},
    time::{Duration, SystemTime},
};
use tokio::sync::{mpsc, watch};

/// Packets read from one socket before the others and the timers have their turn.
const BATCH: usize = 64;
/// One notice of a kind in this time.
const NOTICE_PERIOD: Duration = Duration::from_secs(10);
/// Sockets that are missing are tried again this often.
const RETRY: Duration = Duration::from_secs(1);

pub(super) enum Input {
    Configure(Vec<BfdSpec>),
    Stop,
}

/// Tells that a peer is there, or has become silent.
pub(super) type Report = Box<dyn Fn(VrrpName, IpAddr, bool) + Send>;

struct Entry {
    spec: BfdSpec,
    session: Session,
    sender: Option<Sender>,
    since: SystemTime,
    trouble: Option<String>,
    counters: Arc<Counters>,
}

pub(super) struct Sessions {
    inputs: sync_mpsc::Receiver<Input>,
    alarm: Alarm,
    notices: mpsc::Sender<Notice>,
    views: watch::Sender<Arc<Vec<SessionView>>>,
    refused: Arc<Refused>,
    report: Report,
    entries: Vec<Entry>,
    receivers: BTreeMap<IpAddr, Receiver>,
    /// When missing sockets are tried again.
    retry: Option<Moment>,
    refusals_told: HashMap<std::mem::Discriminant<Refusal>, (Moment, u64)>,
    chance: Chance,
    changed: bool,
}

/// Numbers for discriminators, ports and jitter: none that others could tell before, and none that must be a secret.
struct Chance(RandomState, u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.1 += 1;
        let mut hasher = self.0.build_hasher();
        hasher.write_u64(self.1);
        hasher.finish()
    }
}

impl Sessions {
    pub(super) fn new(
        inputs: sync_mpsc::Receiver<Input>,
        alarm: Alarm,
        notices: mpsc::Sender<Notice>,
        (views, refused): (watch::Sender<Arc<Vec<SessionView>>>, Arc<Refused>),
        report: Report,
    ) -> Self {
        Self {
            inputs,
            alarm,
            notices,
            views,
            refused,
            report,
            entries: Vec::new(),
            receivers: BTreeMap::new(),
            retry: None,
            refusals_told: HashMap::new(),
            chance: Chance(RandomState::new(), 0),
            changed: false,
        }
    }

    /// Until it is told to stop; then every peer is told.
    pub(super) fn run(mut self) {
        loop {
            self.wait();
            self.alarm.drain();
            self.read();
            loop {
                match self.inputs.try_recv() {
                    Ok(Input::Configure(specs)) => self.configure(specs),
                    Ok(Input::Stop) | Err(sync_mpsc::TryRecvError::Disconnected) => {
                        self.entries.iter_mut().for_each(Entry::farewell);
                        return;
                    }
                    Err(sync_mpsc::TryRecvError::Empty) => break,
                }
            }
            let now = clock();
            if self.retry.is_some_and(|at| at <= now) {
                self.open(now);
            }
            for at in 0..self.entries.len() {
                let change = self.entries[at].session.tick(now);
                self.tell(at, change);
                let jitter = self.chance.next() as u8;
                self.entries[at].transmit(now, jitter);
            }
            if std::mem::take(&mut self.changed) {
                let views = self.entries.iter().map(|entry| SessionView {
                    spec: entry.spec.clone(),
                    state: entry.session.state,
                    diagnostic: entry.session.diagnostic,
                    since: entry.since,
                    trouble: entry.trouble.clone(),
                    counters: Arc::clone(&entry.counters),
                });
                self.views.send_replace(Arc::new(views.collect()));
            }
        }
    }

    fn wait(&self) {
        let with_socket = self.entries.iter().filter(|entry| entry.sender.is_some());
        let due = with_socket.filter_map(|entry| entry.session.deadline()).chain(self.retry).min();
        let timeout = due.map(|due| TimeSpec::from_duration(due.since(clock())));
        let alarm = [PollFd::new(self.alarm.fd(), PollFlags::POLLIN)];
        let receivers = self.receivers.values().map(|r| PollFd::new(r.fd(), PollFlags::POLLIN));
        let mut fds: Vec<PollFd<'_>> = alarm.into_iter().chain(receivers).collect();
        // Interrupted or timed out: the loop looks at everything either way.
        let _ = ppoll(&mut fds, timeout, None);
    }

    fn configure(&mut self, specs: Vec<BfdSpec>) {
        let now = clock();
        let mut before = std::mem::take(&mut self.entries);
        for spec in specs {
            let same = before.iter().position(|entry| entry.spec == spec);
            let of_name = before.iter().find(|entry| entry.spec.name == spec.name);
            let counters = of_name.map(|entry| Arc::clone(&entry.counters)).unwrap_or_default();
            let entry = same.map(|at| before.swap_remove(at)).unwrap_or_else(|| {
                let discriminator = (self.chance.next() as u32).max(1);
                Entry {
                    session: Session::new(discriminator, micros(spec.interval), spec.multiplier, now),
                    spec,
                    sender: None,
                    since: SystemTime::now(),
                    trouble: None,
                    counters,
                }
            });
            self.entries.push(entry);
        }
        before.iter_mut().for_each(Entry::farewell);
        self.receivers.retain(|local, _| self.entries.iter().any(|entry| entry.spec.local == *local));
        self.changed = true;
        self.open(now);
    }

    /// Opens what sockets are missing: an address may come later than the daemon.
    fn open(&mut self, now: Moment) {
        self.retry = None;
        for entry in &mut self.entries {
            if entry.sender.is_some() {
                continue;
            }
            let local = entry.spec.local;
            let chance = self.chance.next() as u16;
            let receivers = &mut self.receivers;
            let opened = (|| -> io::Result<Sender> {
                if let std::collections::btree_map::Entry::Vacant(vacant) = receivers.entry(local) {
                    vacant.insert(Receiver::open(local)?);
                }
                Sender::open(local, chance)
            })();
            match opened {
                Ok(sender) => (entry.sender, entry.trouble) = (Some(sender), None),
                Err(error) => {
                    self.retry = Some(now + RETRY);
                    let text = format!("{local}: {error}");
                    if entry.trouble.as_ref() != Some(&text) {
                        let name = entry.spec.name.clone();
                        let _ = self.notices.try_send(Notice::Socket { name, text: text.clone() });
                        entry.trouble = Some(text);
                    }
                }
            }
            self.changed = true;
        }
    }

    fn read(&mut self) {
        let mut arrived = Vec::new();
        for (local, receiver) in &self.receivers {
            for _ in 0..BATCH {
                let Ok(Some(packet)) = receiver.receive() else { break };
                arrived.push((*local, packet));
            }
        }
        for (local, arrived) in arrived {
            match self.judge(local, &arrived) {
                Ok((at, packet)) => {
                    let now = clock();
                    self.entries[at].counters.received.fetch_add(1, Relaxed);
                    let change = self.entries[at].session.receive(&packet, now);
                    self.tell(at, change);
                    let jitter = self.chance.next() as u8;
                    self.entries[at].transmit(now, jitter);
                }
                Err(refusal) => self.refuse(arrived.source, refusal),
            }
        }
    }

    /// Which session a packet is for (RFC 5880 section 6.8.6).
    fn judge(&self, local: IpAddr, arrived: &Arrived) -> Result<(usize, packet::Packet), Refusal> {
        if let Some(limit) = arrived.hop_limit.filter(|limit| *limit != HOP_LIMIT) {
            return Err(Refusal::HopLimit(limit));
        }
        let packet = packet::parse(&arrived.bytes)?;
        let is_for = |entry: &Entry| {
            let named = packet.yours == 0 || packet.yours == entry.session.discriminator;
            named && entry.spec.peer == arrived.source && entry.spec.local == local
        };
        let at = self.entries.iter().position(is_for);
        at.map(|at| (at, packet)).ok_or(Refusal::OtherSession(packet.yours))
    }

    fn tell(&mut self, at: usize, change: Option<Change>) {
        let Some(Change { from, to, diagnostic }) = change else { return };
        let entry = &mut self.entries[at];
        entry.since = SystemTime::now();
        entry.counters.entered(to);
        self.changed = true;
        let (name, peer) = (entry.spec.name.clone(), entry.spec.peer);
        match (from, to) {
            (_, State::Up) => (self.report)(name.clone(), peer, true),
            (State::Up, _) if diagnostic == Diagnostic::TIME_EXPIRED => {
                (self.report)(name.clone(), peer, false);
            }
            _ => {}
        }
        let _ = self.notices.try_send(Notice::Changed { name, peer, from, to, diagnostic });
    }

    fn refuse(&mut self, source: IpAddr, refusal: Refusal) {
        self.refused.count(&refusal);
        let now = clock();
        let kind = std::mem::discriminant(&refusal);
        let (told, more) = self.refusals_told.entry(kind).or_insert((Moment(0), 0));
        if *told != Moment(0) && now.since(*told) < NOTICE_PERIOD {
            *more += 1;
            return;
        }
        let more = std::mem::take(more);
        *told = now;
        let _ = self.notices.try_send(Notice::Refused { source, refusal, more });
    }
}

impl Entry {
    fn transmit(&mut self, now: Moment, jitter: u8) {
        if self.sender.is_none() {
            return;
        }
        if let Some(packet) = self.session.transmit(now, jitter) {
            self.send(&packet);
        }
    }

    fn farewell(&mut self) {
        let packet = self.session.farewell();
        self.send(&packet);
    }

    fn send(&self, packet: &packet::Packet) {
        let Some(sender) = &self.sender else { return };
        // What cannot be sent is missed by the peer, and that is what it is to notice.
        if sender.send(self.spec.peer, &packet.encode()).is_ok() {
            self.counters.sent.fetch_add(1, Relaxed);
        }
    }
}
