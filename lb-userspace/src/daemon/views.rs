//! What the control API and the metrics show of the engine.

use super::{engine::Engine, entries::address_of, hashes::Made, sessions::Obstacle, walk::Census};
use crate::{
    config::Origin as ConfigOrigin,
    control::api::{
        BackendView, ConfigView, DropView, InterfaceView, NatTotals, NatView, QuicView, ServiceView,
        SettingView, SlotsView, StatusView,
    },
    control::{command::CommandError, gradual::GradualView},
    dataplane::{DataplaneError, abi_name},
    health::TargetKey,
    model::ServiceSpec,
    plan,
    state::{EffectiveBackend, EffectiveService, Origin},
};
use lb_common::{
    abi::{ServiceEntry, Stats},
    core::DropReason,
};
use std::collections::{BTreeMap, HashMap};

/// Of several parts.
trait SumStats {
    fn sum_stats(self) -> Result<Stats, DataplaneError>;
}

impl<I: Iterator<Item = Result<Stats, DataplaneError>>> SumStats for I {
    fn sum_stats(mut self) -> Result<Stats, DataplaneError> {
        self.try_fold(Stats::default(), |sum, one| {
            let one = one?;
            Ok(Stats {
                packets: sum.packets.wrapping_add(one.packets),
                bytes: sum.bytes.wrapping_add(one.bytes),
            })
        })
    }
}

impl Engine {
    pub(super) fn status(&mut self) -> Result<StatusView, CommandError> {
        let failed = |error: crate::dataplane::DataplaneError| CommandError::Failed(error.to_string());
        let Made { config: config_hash, services: services_hash } = self.hashes();
        let link = self.link_warnings();
        let interfaces = self
            .config
            .node
            .interfaces
            .iter()
            .map(|name| match self.attached.iter().find(|a| a.interface == *name) {
                Some(attached) => InterfaceView {
                    name: name.clone(),
                    ifindex: attached.ifindex,
                    mode: attached.mode.name().to_owned(),
                    warning: attached.warning.clone(),
                },
                None => InterfaceView {
                    name: name.clone(),
                    ifindex: 0,
                    mode: "detached".to_owned(),
                    warning: Some(
                        "the interface is missing or could not be attached to; see the log".to_owned(),
                    ),
                },
            })
            .collect();
        Ok(StatusView {
            node: self.config.node.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi: abi_name(),
            program: self.kernel.tag().map_err(failed)?,
            kernel: nix::sys::utsname::uname()
                .map_or_else(|_| "unknown".to_owned(), |u| u.release().to_string_lossy().into_owned()),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            pid: std::process::id(),
            config_file: self.config_file.display().to_string(),
            config_hash,
            services_hash,
            tables: self.tables(),
            runtime_changes: self.changes.count(),
            revision: self.changes.revision(),
            interfaces,
            services: self.effective.services.len(),
            backends: self.effective.services.iter().map(|s| s.backends.len()).sum(),
            map_bytes: self.kernel.map_bytes(),
            tracked_flows: self.tracking.flows(),
            firewall: self.firewall.view(),
            half_open_flows: self.tracking.half_open(),
            refused_flows: self.kernel.maps().flow_stats().map_err(failed)?.refused,
            warnings: {
                let obstacles = self.nat.obstacles.iter().map(Obstacle::describe);
                obstacles.chain(link).chain(self.words_warning()).collect()
            },
            nat: self.kernel.maps().nat().stats().map_err(failed).map(|s| NatTotals {
                made: s.made,
                exhausted: s.exhausted,
                full: s.full,
            })?,
        })
    }

    pub(super) fn service(
        &self,
        service: &EffectiveService,
        parts: &[u32],
        ids: &HashMap<&str, Vec<u32>>,
        reasons: &HashMap<TargetKey, String>,
    ) -> Result<ServiceView, CommandError> {
        let failed = |error: crate::dataplane::DataplaneError| CommandError::Failed(error.to_string());
        let spec = &service.spec;
        let stats =
            parts.iter().map(|id| self.kernel.maps().service_stats(*id)).sum_stats().map_err(failed)?;
        let census: Vec<&Census> = parts.iter().filter_map(|id| self.walks.census(*id)).collect();
        let slots = census.iter().fold(SlotsView::default(), |sum, part| SlotsView {
            total: sum.total + part.slots.total,
            plain: sum.plain + part.slots.plain,
            moving: sum.moving + part.slots.moving,
            tracked: sum.tracked + part.slots.tracked,
        });
        let backends = service
            .backends
            .iter()
            .map(|backend| {
                let ids = ids.get(backend.spec.name.as_str()).map_or(&[][..], Vec::as_slice);
                let stats =
                    ids.iter().map(|id| self.kernel.maps().backend_stats(*id)).sum_stats().map_err(failed)?;
                let of = |slots: fn(&Census) -> &Vec<(u32, u32)>| -> u32 {
                    let all = census.iter().flat_map(|part| slots(part));
                    all.filter(|(backend, _)| ids.contains(backend)).map(|(_, slots)| slots).sum()
                };
                let view = self.backend(service, backend, of(|part| &part.owned), stats, reasons);
                let gradual = self.gradual_view(service, backend, ids, of(|part| &part.leaving));
                let passive = self.passive_view(service, &backend.spec.name, ids).map_err(failed)?;
                Ok(BackendView { gradual, passive, ..view })
            })
            .collect::<Result<_, CommandError>>()?;
        Ok(ServiceView {
            name: spec.name.to_string(),
            addresses: spec.addresses.clone(),
            port: spec.port.to_string(),
            protocol: spec.protocol,
            forward: spec.forward,
            scheduler: spec.scheduler,
            packets: stats.packets,
            bytes: stats.bytes,
            quic: spec
                .quic
                .as_ref()
                .map(|quic| QuicView { server_id_length: quic.server_id_length, config_id: quic.config_id }),
            slots,
            nat: self.nat_view(spec, parts),
            pool: self.pool_view(spec),
            backends,
        })
    }

    fn nat_view(&self, spec: &ServiceSpec, parts: &[u32]) -> Option<NatView> {
        let records = || parts.iter().filter_map(|id| self.image.services.get(id));
        let counts = || parts.iter().filter_map(|id| self.nat.living.get(id));
        (spec.forward.rewrites() && records().next().is_some()).then(|| NatView {
            always: records().any(|record| record.entry.flags & ServiceEntry::SESSIONS != 0),
            sessions: counts().map(|counts| counts.living).sum(),
            unanswered: counts().map(|counts| counts.unanswered).sum(),
            addresses: spec.snat.as_ref().map_or_else(Vec::new, |snat| snat.addresses.clone()),
            ports: spec.snat.as_ref().map(|snat| format!("{}-{}", snat.ports.0, snat.ports.1)),
        })
    }

    fn backend(
        &self,
        service: &EffectiveService,
        backend: &EffectiveBackend,
        slots: u32,
        stats: lb_common::abi::Stats,
        reasons: &HashMap<TargetKey, String>,
    ) -> BackendView {
        let key = TargetKey { service: service.spec.name.clone(), backend: backend.spec.name.clone() };
        let hop = self.hops.get(&backend.spec.address);
        let unreachable = match hop {
            Some(Err(error)) => Some(error.to_string()),
            Some(Ok(_)) | None => None,
        };
        let runtime =
            [backend.origin, backend.weight_origin, backend.admin_origin].contains(&Origin::Runtime);
        BackendView {
            name: backend.spec.name.to_string(),
            address: backend.spec.address,
            port: backend.spec.port.or(service.spec.port.single()),
            weight: backend.spec.weight,
            backup: self.stands_in(&service.spec, &backend.spec),
            server_id: service.spec.quic.as_ref().map(|quic| quic.server_id(&backend.spec).to_string()),
            admin: backend.admin,
            health: self.health_of(&service.spec, &backend.spec),
            health_reason: unreachable.or_else(|| reasons.get(&key).cloned()),
            slots,
            reachable: matches!(hop, Some(Ok(_))),
            origin: if runtime { "runtime" } else { "file" }.to_owned(),
            packets: stats.packets,
            bytes: stats.bytes,
            gradual: GradualView::default(),
            passive: None,
        }
    }

    pub(super) fn drops(&self) -> Result<Vec<DropView>, CommandError> {
        DropReason::ALL
            .iter()
            .map(|reason| {
                Ok(DropView {
                    reason: reason.name().to_owned(),
                    packets: self
                        .kernel
                        .maps()
                        .drops(*reason)
                        .map_err(|e| CommandError::Failed(e.to_string()))?,
                    help: reason.help().to_owned(),
                })
            })
            .collect()
    }

    pub(super) fn config_view(&mut self) -> ConfigView {
        let hash = self.hashes().config;
        let mut effective = self.config.without_services();
        effective.origins = self.config.origins.clone();
        effective.services = self.effective.services.iter().map(|s| s.spec.clone()).collect();
        let mut places = BTreeMap::new();
        let mut settings: Vec<SettingView> = effective
            .settings()
            .into_iter()
            .inspect(|setting| {
                if let ConfigOrigin::File { file, line } = setting.origin {
                    places.insert(setting.key.clone(), format!("{}:{line}", self.config.files[file]));
                }
            })
            .map(|setting| SettingView {
                origin: match setting.origin {
                    ConfigOrigin::Default => "default".to_owned(),
                    ConfigOrigin::File { file, .. } if Some(file) == self.config.fleet_file => {
                        "fleet".to_owned()
                    }
                    ConfigOrigin::File { .. } => "file".to_owned(),
                },
                key: setting.key,
                value: setting.value,
                by: None,
                at: None,
            })
            .collect();
        for (service, spec) in
            self.config.names.iter().flat_map(|(s, specs)| specs.iter().map(move |spec| (s, spec)))
        {
            for backend in &spec.made {
                let prefix = format!("service.{service}.backend.{backend}.");
                for setting in settings.iter_mut().filter(|s| s.key.starts_with(&prefix)) {
                    "dns".clone_into(&mut setting.origin);
                }
            }
        }
        self.mark_firewall_changes(&mut settings);
        for service in &self.effective.services {
            for backend in &service.backends {
                let prefix = format!("service.{}.backend.{}", service.spec.name, backend.spec.name);
                if backend.origin == Origin::Runtime {
                    for setting in settings.iter_mut().filter(|s| s.key.starts_with(&format!("{prefix}."))) {
                        "runtime".clone_into(&mut setting.origin);
                    }
                }
                if backend.weight_origin == Origin::Runtime {
                    for setting in settings.iter_mut().filter(|s| s.key == format!("{prefix}.weight")) {
                        "runtime".clone_into(&mut setting.origin);
                    }
                }
                settings.push(SettingView {
                    key: format!("{prefix}.admin"),
                    value: serde_json::json!(backend.admin),
                    origin: if backend.admin_origin == Origin::Runtime { "runtime" } else { "default" }
                        .to_owned(),
                    by: None,
                    at: None,
                });
            }
            for name in &service.removed {
                settings.push(SettingView {
                    key: format!("service.{}.backend.{name}", service.spec.name),
                    value: serde_json::json!("removed"),
                    origin: "runtime".to_owned(),
                    by: None,
                    at: None,
                });
            }
        }
        self.sign(&mut settings);
        settings.extend(self.hold_settings());
        for setting in settings.iter().filter(|setting| !["file", "fleet"].contains(&setting.origin.as_str()))
        {
            places.remove(&setting.key);
        }
        let file = self.config_file.display().to_string();
        ConfigView { file, hash, settings, places }
    }

    /// Every address in the image, for `explain`.
    pub(super) fn backend_name(&self, id: u32) -> String {
        self.image.backends.get(&id).map_or_else(
            || format!("id {id}"),
            |r| format!("{} ({})", plan::name_of(&r.identity), address_of(&r.entry)),
        )
    }
}
