//! Every tracked flow, whichever table it is in. Reads the pins, so that it can be done beside the daemon's loop.

use super::{DataplaneError, batch};
use crate::plan::Flow;
use aya::{Pod, maps::MapData};
use lb_common::abi::{FlowEntry, FlowKey4, FlowKey6, HalfOpen, SessionOut};
use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::AsFd as _,
    path::Path,
};

/// Calls `visit` with every tracked flow, its entry and, for a NAT session, its source towards the backend.
pub fn tracked_flows(
    maps_dir: &Path,
    mut visit: impl FnMut(Flow, FlowEntry, Option<SocketAddr>),
) -> Result<(), DataplaneError> {
    read::<FlowKey4, HalfOpen>(maps_dir, "HALF_OPEN4", |key, value| {
        visit(Flow::V4(*key), FlowEntry(value.entry), None);
    })?;
    read::<FlowKey6, HalfOpen>(maps_dir, "HALF_OPEN6", |key, value| {
        visit(Flow::V6(*key), FlowEntry(value.entry), None);
    })?;
    read::<FlowKey4, u64>(maps_dir, "FLOWS4", |key, entry| visit(Flow::V4(*key), FlowEntry(*entry), None))?;
    read::<FlowKey6, u64>(maps_dir, "FLOWS6", |key, entry| visit(Flow::V6(*key), FlowEntry(*entry), None))?;
    read::<FlowKey6, SessionOut>(maps_dir, "SESSIONS_OUT", |key, session| {
        let address = IpAddr::V6(Ipv6Addr::from(session.source)).to_canonical();
        let translated = SocketAddr::new(address, u16::from_be_bytes(session.port));
        visit(Flow::V6(*key), FlowEntry(session.entry), Some(translated));
    })
}

fn read<K: Pod + Default, V: Pod + Default>(
    maps_dir: &Path,
    name: &'static str,
    visit: impl FnMut(&K, &V),
) -> Result<(), DataplaneError> {
    let map = MapData::from_pin(maps_dir.join(name)).map_err(DataplaneError::map(name))?;
    batch::for_each(map.fd().as_fd(), visit).map_err(|source| DataplaneError::Read { map: name, source })
}
