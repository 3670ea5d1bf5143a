//! What the daemon says at one moment, and what two such moments say of the time between.

use crate::control::{
    api::{DropView, ServiceView, StatusView},
    client::{Client, ClientError},
    pair::PairView,
};
use serde::Serialize;
use std::{collections::HashMap, time::Instant};

/// All that is shown.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    pub at: Instant,
    pub status: StatusView,
    pub services: Vec<ServiceView>,
    pub drops: Vec<DropView>,
    pub pair: Vec<PairView>,
}

impl Reading {
    pub(super) async fn take(client: &Client) -> Result<Self, ClientError> {
        let status = client.status().await?;
        let services = client.services().await?;
        // The counters of services are what rates are made of.
        let at = Instant::now();
        Ok(Self { at, status, services, drops: client.drops().await?, pair: client.pair().await? })
    }

    /// For `-o json`.
    pub(super) fn with_rates<'a>(&'a self, rates: &Rates) -> impl Serialize + 'a {
        #[derive(Serialize)]
        struct Row<'a> {
            service: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            backend: Option<&'a str>,
            packets_per_second: f64,
            bits_per_second: f64,
        }
        #[derive(Serialize)]
        struct All<'a> {
            status: &'a StatusView,
            services: &'a [ServiceView],
            drops: &'a [DropView],
            pair: &'a [PairView],
            rates: Vec<Row<'a>>,
        }
        let row = |service: &'a str, backend: Option<&'a str>| {
            let rate = rates.of(service, backend)?;
            Some(Row { service, backend, packets_per_second: rate.packets, bits_per_second: rate.bits })
        };
        let rows = self.services.iter().flat_map(|service| {
            std::iter::once(None)
                .chain(service.backends.iter().map(|backend| Some(backend.name.as_str())))
                .filter_map(move |backend| row(&service.name, backend))
        });
        All {
            rates: rows.collect(),
            status: &self.status,
            services: &self.services,
            drops: &self.drops,
            pair: &self.pair,
        }
    }
}

/// Per second.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Rate {
    pub packets: f64,
    pub bits: f64,
}

/// By name of the service, and of the backend; drops by reason.
#[derive(Debug, Clone, Default)]
pub(super) struct Rates {
    rows: HashMap<(String, Option<String>), Rate>,
    drops: HashMap<String, f64>,
    pub sum: Option<Rate>,
}

impl Rates {
    /// What is new, or begins anew from 0, has no rate yet.
    pub(super) fn between(before: &Reading, now: &Reading) -> Self {
        let seconds = now.at.saturating_duration_since(before.at).as_secs_f64();
        if seconds <= 0.0 {
            return Self::default();
        }
        let mut rates = Self::default();
        let rate = |(packets, bytes): (u64, u64), (old_packets, old_bytes): (u64, u64)| {
            Some(Rate {
                packets: packets.checked_sub(old_packets)? as f64 / seconds,
                bits: 8.0 * bytes.checked_sub(old_bytes)? as f64 / seconds,
            })
        };
        let old: HashMap<&str, &ServiceView> = before.services.iter().map(|s| (s.name.as_str(), s)).collect();
        for service in &now.services {
            let Some(old) = old.get(service.name.as_str()) else { continue };
            if let Some(rate) = rate((service.packets, service.bytes), (old.packets, old.bytes)) {
                let sum = rates.sum.get_or_insert_default();
                sum.packets += rate.packets;
                sum.bits += rate.bits;
                rates.rows.insert((service.name.clone(), None), rate);
            }
            for backend in &service.backends {
                let Some(old) = old.backends.iter().find(|old| old.name == backend.name) else { continue };
                if let Some(rate) = rate((backend.packets, backend.bytes), (old.packets, old.bytes)) {
                    rates.rows.insert((service.name.clone(), Some(backend.name.clone())), rate);
                }
            }
        }
        for drop in &now.drops {
            let old = before.drops.iter().find(|old| old.reason == drop.reason);
            if let Some(packets) = old.and_then(|old| drop.packets.checked_sub(old.packets)) {
                rates.drops.insert(drop.reason.clone(), packets as f64 / seconds);
            }
        }
        rates
    }

    pub(super) fn of(&self, service: &str, backend: Option<&str>) -> Option<Rate> {
        self.rows.get(&(service.to_owned(), backend.map(str::to_owned))).copied()
    }

    /// Packets per second dropped for the reason.
    pub(super) fn dropped(&self, reason: &str) -> Option<f64> {
        self.drops.get(reason).copied()
    }
}
