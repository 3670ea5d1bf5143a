//! The state of the daemon and what changes it.

mod change;
mod converge;
mod reload;

use super::{
    entries::{address_of, hop_of},
    error::EngineError,
    flows::Rounds,
    sessions::NatState,
    trace::Tracers,
};
use crate::{
    config::Config,
    control::{gradual::ChangeOptions, tls::TlsDoor, watch::Watchers},
    dataplane::{Attached, Capacities, Kernel},
    events::Bus,
    health::{HealthEvent, HealthHandle, Target, TargetKey, VipWay},
    maglev,
    metrics::Instruments,
    model::{BackendSpec, Health, HealthCheck, ServiceSpec},
    net::{
        names::NameHandle,
        nexthop::{NextHop, Unresolved},
        watch::NextHopHandle,
    },
    plan::{self, Action, BuildError, Image, NextHopEntry, Tracking, TunnelSettings, WantedService},
    ramp,
    state::{self, Effective, RuntimeChanges, StateDir},
};
use lb_common::abi::{BackendEntry, VipEntry};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

/// Next hops that come in at once and are told one by one in the log; of more only how many they are.
const TOLD_ONE_BY_ONE: usize = 64;

/// What is known of the health of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    pub address: SocketAddr,
    pub health: Health,
    /// Its check found that it is only fit to stand in for others.
    pub stands_in: bool,
}

/// The daemon's state. Methods that change something carry the change out or leave everything as it was.
pub struct Engine {
    pub(super) config_file: PathBuf,
    pub(super) config: Config,
    pub(super) state_dir: StateDir,
    pub(super) changes: RuntimeChanges,
    pub(super) effective: Effective,
    pub(super) kernel: Kernel,
    /// What the maps hold.
    pub(super) image: Image,
    pub(super) firewall: super::firewall::InForce,
    pub(super) attached: Vec<Attached>,
    pub(super) health: BTreeMap<TargetKey, Known>,
    pub(super) hops: BTreeMap<IpAddr, Result<NextHopEntry, Unresolved>>,
    pub(super) tracking: Tracking,
    pub(super) rounds: Rounds,
    pub(super) tracers: Tracers,
    pub(super) pair: super::pair::Pair,
    pub(super) mirror: super::mirror::Mirror,
    pub(super) bgp: super::bgp::Bgp,
    pub(super) fleet: super::fleet::Fleet,
    pub(super) nat: NatState,
    pub(super) names: super::names::Names,
    pub(super) name_task: NameHandle,
    pub(super) passive: super::passive::Passive,
    pub(super) rings: maglev::Cache,
    /// The maps are not what is asked for: the last attempt failed.
    behind: bool,
    /// How the change under way is asked for.
    pub(super) asked: ChangeOptions,
    /// Who takes new flows, for slow starts.
    pub(super) watch: ramp::Watch,
    pub(super) hashes: super::hashes::Hashes,
    pub(super) calm: super::sizes::Calm,
    /// Where the image has what, once a part of it was looked for.
    pub(super) index: Option<plan::Index>,
    /// Health as an earlier daemon left it in the maps, until the checks of this one have spoken.
    remembered: BTreeMap<TargetKey, (IpAddr, Health)>,
    pub(super) started: Instant,
    pub(super) health_task: HealthHandle,
    pub(super) vip_way: VipWay,
    pub(super) hop_task: NextHopHandle,
    pub(super) pools: super::pool::Pools,
    pub(super) instruments: Instruments,
    pub(super) walks: super::walk::Walks,
    /// What happens is told here.
    pub(super) events: Bus,
    pub(super) watchers: Watchers,
    /// Of the API over TCP, if it is on.
    pub(super) tls_door: Option<TlsDoor>,
}

/// What the engine is made of.
pub struct Parts {
    pub config_file: PathBuf,
    pub config: Config,
    pub state_dir: StateDir,
    pub changes: RuntimeChanges,
    pub kernel: Kernel,
    pub health_task: HealthHandle,
    pub vip_way: VipWay,
    pub hop_task: NextHopHandle,
    pub name_task: NameHandle,
    pub instruments: Instruments,
    pub(super) fleet: super::fleet::Fleet,
    /// Made while the program was loaded.
    pub(super) rings: maglev::Ahead,
}

impl Engine {
    /// Takes over what the kernel holds. Nothing is changed yet but that flows of backends that are gone are forgotten.
    pub fn adopt(parts: Parts) -> Result<Self, EngineError> {
        let image = parts.kernel.observe()?;
        let events = Bus::default();
        let holds = parts.state_dir.load_holds().unwrap_or_else(|error| {
            tracing::error!(error, "what was held by the operator cannot be read: nothing is held");
            state::Holds::default()
        });
        let mut engine = Self {
            pools: super::pool::Pools::adopt(&image, &parts.instruments, events.clone()),
            watchers: Watchers::new(events.clone()),
            events,
            tls_door: None,
            names: super::names::remembered(&parts.config.node.state_dir),
            passive: super::ejections::remembered(&parts.config),
            name_task: parts.name_task,
            config_file: parts.config_file,
            config: parts.config,
            state_dir: parts.state_dir,
            changes: parts.changes,
            effective: Effective::default(),
            kernel: parts.kernel,
            firewall: super::firewall::InForce::default(),
            attached: Vec::new(),
            health: BTreeMap::new(),
            hops: BTreeMap::new(),
            tracking: Tracking::new(Instant::now()),
            rounds: Rounds::default(),
            tracers: Tracers::default(),
            pair: super::pair::Pair::new(holds),
            mirror: super::mirror::Mirror::new(Arc::clone(&parts.instruments.sync)),
            bgp: super::bgp::Bgp::new(!image.services.is_empty()),
            fleet: parts.fleet,
            nat: NatState::default(),
            asked: ChangeOptions::default(),
            watch: ramp::Watch::default(),
            rings: maglev::Cache::with(parts.rings),
            behind: true,
            hashes: super::hashes::Hashes::default(),
            calm: super::sizes::Calm::default(),
            index: None,
            remembered: remembered(&image),
            started: Instant::now(),
            health_task: parts.health_task,
            vip_way: parts.vip_way,
            hop_task: parts.hop_task,
            instruments: parts.instruments,
            walks: super::walk::Walks::default(),
            image,
        };
        // Next hops go on as they are until the kernel says otherwise.
        for record in engine.image.backends.values().filter(|r| r.entry.ifindex != 0) {
            engine.hops.insert(address_of(&record.entry), Ok(hop_of(&record.entry)));
        }
        engine.kernel.settle_marks(&engine.image)?;
        engine.forget_strangers()?;
        // What happened to routes meanwhile nobody has told the program.
        engine.kernel.maps().nat().routes_changed();
        engine.apply_names();
        engine.effective = state::apply(&engine.config.services, &engine.changes);
        engine.hop_task.set_destinations(destinations(&engine.effective));
        engine.adopt_words();
        Ok(engine)
    }

    /// Waits until every next hop is known or known not to be there, at most so long.
    pub async fn settle_hops(&self, patience: Duration) -> bool {
        self.hop_task.settled(patience).await
    }

    /// See [`Engine::converge`], which takes the time.
    pub(super) fn carry_out(&mut self) -> Result<Vec<Action>, EngineError> {
        self.hashes.forget();
        self.index = None;
        let result = self.try_carry_out();
        self.behind = result.is_err();
        result
    }

    fn try_carry_out(&mut self) -> Result<Vec<Action>, EngineError> {
        self.choose_ring_sizes()?;
        self.effective = state::apply(&self.config.services, &self.changes);
        self.open_vip_way()?;
        self.keep_ramps();
        self.limit_ejections();
        let mut wanted = self.wanted();
        let verdicts = self.judge(&mut wanted);
        let wanted = plan::split(wanted, &plan::Instances::of(&self.config.vrrp));
        let avoid = self.tracking.reserved();
        let tunnel = self.tunnel();
        self.firewall.refresh(&self.config.firewall, self.changes.lists());
        let mut goal = loop {
            self.image.resting = self.tracking.resting(Instant::now());
            match plan::build(&wanted, &self.image, &tunnel, &avoid, &mut self.rings) {
                Ok(goal) => break goal,
                Err(BuildError::RingFull { needed, capacity }) => {
                    let ring = (capacity + needed).next_power_of_two();
                    let backends = self.image.backend_capacity;
                    self.grow(Capacities { ring, backends, ..Capacities::default() })?;
                }
                Err(BuildError::BackendsFull { capacity }) => {
                    let total: usize = wanted.iter().map(|s| s.backends.len()).sum();
                    let backends =
                        (total as u32 + avoid.len() as u32 + 2).max(capacity + 1).next_power_of_two();
                    let ring = self.image.ring_capacity;
                    self.grow(Capacities { ring, backends, ..Capacities::default() })?;
                }
                Err(error @ (BuildError::TooManyServices { .. } | BuildError::SchedulesFull { .. })) => {
                    return Err(error.into());
                }
                Err(error @ (BuildError::TooManyNatPorts { .. } | BuildError::PoolsFull { .. })) => {
                    return Err(error.into());
                }
            }
        };
        plan::install(&mut goal, self.firewall.prefixes());
        let actions = plan::diff(&self.image, &goal);
        for action in &actions {
            tracing::debug!(%action, "changing the maps");
        }
        self.kernel.execute(&actions)?;
        self.tracking.note_changes(&self.image, &goal, Instant::now());
        self.image = goal;
        self.hop_task.set_destinations(destinations(&self.effective));
        self.aim_checks();
        self.set_targets();
        // Every backend has a word of this daemon's own now.
        self.remembered.clear();
        self.put_in_force(verdicts);
        self.mirror.changed();
        Ok(actions)
    }

    fn grow(&mut self, capacities: Capacities) -> Result<(), EngineError> {
        tracing::info!(ring = capacities.ring, backends = capacities.backends, "growing the maps");
        self.kernel.grow(capacities)?;
        let followed = std::mem::take(&mut self.image.followed);
        self.image = Image { followed, ..self.kernel.observe()? };
        self.passive.begin_anew();
        Ok(())
    }

    /// A service's ring keeps the size it was first made with: another one would rehash every flow.
    fn choose_ring_sizes(&mut self) -> Result<(), EngineError> {
        if self.pick_ring_sizes() {
            self.state_dir.store(&self.changes)?;
        }
        Ok(())
    }

    /// True if any was chosen.
    pub(super) fn pick_ring_sizes(&mut self) -> bool {
        let mut chosen = false;
        for service in &self.config.services {
            // A name may get more addresses than it has today.
            let named = self.config.names.get(&service.name).map_or(0, Vec::len);
            let backends = service.backends.len() + 4 * named;
            let fits = |kept: u32| kept as usize >= backends;
            if service.ring_size.is_none() && !self.changes.ring_size(&service.name).is_some_and(fits) {
                let size = maglev::default_size(backends);
                chosen |= self.changes.set_ring_size(&service.name, size);
            }
        }
        chosen
    }

    pub(super) fn tunnel(&self) -> TunnelSettings {
        let (node, tunnel) = (&self.config.node, &self.config.tunnel);
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        TunnelSettings {
            vip_flags: flag(node.answer_ping, VipEntry::ECHO) | flag(node.fragments, VipEntry::FRAGMENTS),
            declined: self.config.declined(),
            source_ipv4: tunnel.source_ipv4,
            source_ipv6: tunnel.source_ipv6,
            gue_source_ipv4: tunnel.gue_source_ipv4,
            gue_source_ipv6: tunnel.gue_source_ipv6,
        }
    }

    /// The services in force, each backend with its states and its next hop.
    pub(super) fn wanted(&self) -> Vec<WantedService> {
        self.effective.services.iter().map(|service| self.wanted_service(service)).collect()
    }

    /// The last word of the checks; before the first one, what the maps remember of an earlier daemon's.
    pub(super) fn health_of(&self, service: &ServiceSpec, backend: &BackendSpec) -> Health {
        let address = backend.address;
        let key = TargetKey { service: service.name.clone(), backend: backend.name.clone() };
        if let Some(known) = self.health.get(&key).filter(|known| known.address.ip() == address) {
            return known.health;
        }
        match self.remembered.get(&key) {
            Some((known, health)) if *known == address => *health,
            _ if service.health.check == HealthCheck::None => Health::Unknown,
            _ => service.health.initial,
        }
    }

    /// It takes new flows only where others cannot: by configuration, or because its check says so.
    pub(super) fn stands_in(&self, service: &ServiceSpec, backend: &BackendSpec) -> bool {
        let by_check = || {
            let known = self.health.get(&TargetKey::of(&service.name, &backend.name));
            known.is_some_and(|known| known.address.ip() == backend.address && known.stands_in)
        };
        backend.backup || service.health.check.finds_stand_ins() && by_check()
    }

    fn set_targets(&mut self) {
        let services = self.effective.services.iter();
        let targets: Vec<Target> = services.flat_map(|service| self.targets_of(service)).collect();
        let known = |target: &Target| {
            let before = self.health.get(&target.key).filter(|known| known.address == target.address);
            let stands_in = before.is_some_and(|known| known.stands_in);
            Known { address: target.address, health: target.initial, stands_in }
        };
        self.health = targets.iter().map(|target| (target.key.clone(), known(target))).collect();
        let services: BTreeSet<&str> = self.effective.services.iter().map(|s| s.spec.name.as_str()).collect();
        self.instruments.health.retain(|service| services.contains(service));
        self.instruments.pulse.retain(|service| services.contains(service));
        self.health_task.set_targets(targets);
    }

    /// Attaches to the configured interfaces.
    pub fn attach(&mut self) -> Result<(), EngineError> {
        let interfaces = self.config.node.interfaces.clone();
        self.attach_to(&interfaces)
    }

    fn attach_to(&mut self, interfaces: &[String]) -> Result<(), EngineError> {
        self.attached = self.kernel.attach(interfaces, self.config.node.xdp_mode)?;
        Ok(())
    }

    /// Backends went up or down. Many at once, as when a switch fails, are one change of the maps; and a first word
    /// that says "up" is none, since a backend counts as up until it is found down.
    pub fn health_changed(&mut self, events: &[HealthEvent]) {
        let mut matters = BTreeSet::new();
        for event in events {
            let Some(known) = self.health.get_mut(&event.key).filter(|known| known.address == event.address)
            else {
                continue;
            };
            let previous = std::mem::replace(&mut known.health, event.health);
            let (service, backend) = (&event.key.service, &event.key.backend);
            let (from, to, reason) = (previous, event.health, &event.reason);
            if from != to {
                self.instruments.pulse.health_changed(service.as_str(), to);
            }
            if std::mem::replace(&mut known.stands_in, event.stands_in) != event.stands_in {
                matters.insert(service.clone());
                let stands_in = event.stands_in;
                tracing::info!(%service, %backend, stands_in, "its check tells another role");
            }
            if (previous == Health::Down) == (event.health == Health::Down) {
                tracing::debug!(%service, %backend, %from, %to, reason, "health known");
            } else {
                matters.insert(service.clone());
                tracing::info!(%service, %backend, %from, %to, reason, "health changed");
            }
            self.note_health(event, previous);
        }
        if !matters.is_empty() {
            let result = self.converge_part(&matters);
            self.log_failure(result, "a change of health");
            self.track_pair();
            self.look_at_gate();
        }
        self.tell_news();
    }

    /// Next hops were found, changed or lost.
    pub fn hops_changed(&mut self, updates: Vec<(IpAddr, Result<NextHop, Unresolved>)>) {
        let changed = self.note_hops(updates);
        if !changed.is_empty() {
            let result = self.converge_part(&self.services_at(&changed));
            self.log_failure(result, "a change of next hops");
            self.look_at_gate();
        }
    }

    /// Takes next hops in without acting on them; the addresses whose next hop differs.
    pub fn note_hops(&mut self, updates: Vec<(IpAddr, Result<NextHop, Unresolved>)>) -> HashSet<IpAddr> {
        let mut changed = HashSet::new();
        let (many, mut found) = (updates.len() > TOLD_ONE_BY_ONE, 0);
        let mut missing: BTreeMap<String, (IpAddr, usize)> = BTreeMap::new();
        for (address, update) in updates {
            let entry = match update {
                Ok(hop) => Ok(NextHopEntry {
                    ifindex: hop.ifindex,
                    dst_mac: hop.dst_mac,
                    src_mac: hop.src_mac,
                    vlan: hop.vlan.unwrap_or(0),
                    mtu: hop.mtu,
                    source: hop.source,
                }),
                // Merely asked again: what was known is good until the answer.
                Err(error) if error.is_transient() && matches!(self.hops.get(&address), Some(Ok(_))) => {
                    continue;
                }
                Err(error) => Err(error),
            };
            if self.hops.get(&address) != Some(&entry) {
                match &entry {
                    Ok(hop) if many => {
                        found += 1;
                        tracing::debug!(%address, ifindex = hop.ifindex, "next hop found");
                    }
                    Ok(hop) => tracing::info!(%address, ifindex = hop.ifindex, "next hop found"),
                    Err(error) if error.is_transient() => tracing::debug!(%address, %error),
                    // Behind a gateway that is dead they all have the same.
                    Err(error) if many => {
                        let (_, count) = missing.entry(error.to_string()).or_insert((address, 0_usize));
                        *count += 1;
                        tracing::debug!(%address, %error, "no next hop");
                    }
                    Err(error) => tracing::warn!(%address, %error, "no next hop"),
                }
                self.instruments.pulse.hop_changed(entry.is_ok());
                self.hops.insert(address, entry);
                changed.insert(address);
            }
        }
        if many {
            // One after the other they leave the tree's nodes half empty.
            self.hops = std::mem::take(&mut self.hops).into_iter().collect();
        }
        if found > 0 {
            tracing::info!(count = found, "next hops found");
        }
        for (error, (address, count)) in missing.iter().take(TOLD_ONE_BY_ONE) {
            tracing::warn!(%address, more = count - 1, error, "no next hop");
        }
        if missing.len() > TOLD_ONE_BY_ONE {
            tracing::warn!(
                count = missing.len() - TOLD_ONE_BY_ONE,
                "no next hop, for other reasons (--log debug has them)"
            );
        }
        changed
    }

    /// Links came or went.
    pub fn links_changed(&mut self) {
        self.instruments.pulse.links_changed();
        let index = |name: &str| nix::net::if_::if_nametoindex(name).ok();
        // One that is gone must not keep the program from another that has come back.
        let (there, gone): (Vec<_>, Vec<_>) =
            self.config.node.interfaces.iter().cloned().partition(|name| index(name).is_some());
        if !gone.is_empty() {
            tracing::error!(interfaces = ?gone, "these interfaces are gone; attaching when they come back");
        }
        if let Err(error) = self.attach_to(&there) {
            tracing::error!(%error, "not attached to every interface");
            self.attached.retain(|a| there.contains(&a.interface) && index(&a.interface) == Some(a.ifindex));
        }
        self.track_pair();
    }

    pub(super) fn converge_or_log(&mut self, why: &str) {
        let result = self.converge();
        self.log_failure(result, why);
    }

    fn log_failure(&mut self, result: Result<Vec<Action>, EngineError>, why: &str) {
        if let Err(error) = result {
            tracing::error!(%error, "could not carry out {why}; forwarding goes on as before");
        }
        self.tell_news();
    }
}

/// What the maps say of the backends' health.
fn remembered(image: &Image) -> BTreeMap<TargetKey, (IpAddr, Health)> {
    image
        .backends
        .values()
        .filter_map(|record| {
            let service = image.services.get(&record.entry.service)?;
            let key = TargetKey {
                service: plan::name_of(&service.identity).parse().ok()?,
                backend: plan::name_of(&record.identity).parse().ok()?,
            };
            let down = record.entry.flags & BackendEntry::DOWN != 0;
            Some((key, (address_of(&record.entry), if down { Health::Down } else { Health::Up })))
        })
        .collect()
}

fn destinations(effective: &Effective) -> HashSet<IpAddr> {
    effective.services.iter().flat_map(|s| &s.backends).map(|b| b.spec.address).collect()
}
