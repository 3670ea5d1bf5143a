//! The namespace that probes are sent from: a thread enters a new one, and all it has is a TUN device.

use super::ViaError;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{
    AddressMessageBuilder, Handle, LinkUnspec, RouteMessageBuilder,
    packet_route::{address::AddressMessage, route::RouteScope},
};
use std::{
    collections::BTreeSet,
    fs::OpenOptions,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
};

const DEVICE: &str = "vip";
/// IPv6's least (RFC 8200 section 5): with any tunnel it fits into every egress of 1,348 bytes and more.
const MTU: u32 = 1280;

/// Puts the calling thread into a new network namespace, for good, and makes the device there.
pub(super) fn enter() -> Result<OwnedFd, ViaError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| ViaError {
        doing: "make a network namespace",
        source: error.into(),
        advice: "it takes CAP_SYS_ADMIN: add it to AmbientCapabilities and CapabilityBoundingSet of the unit, or set via = \"backend\"",
    })?;
    let failed = |source| ViaError {
        doing: "make a TUN device",
        source,
        advice: "it takes /dev/net/tun (modprobe tun) and CAP_NET_ADMIN",
    };
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(failed)?;
    // SAFETY: a C structure of integers and bytes, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives on the stack for the whole call.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    Ok(tun.into())
}

/// The device's addresses.
pub(super) struct Device {
    handle: Handle,
    index: u32,
    addresses: BTreeSet<IpAddr>,
}

impl Device {
    /// Sets the device up, in the namespace's runtime.
    pub(super) async fn set_up() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let index = nix::net::if_::if_nametoindex(DEVICE)?;
        let up = LinkUnspec::new_with_index(index).mtu(MTU).up().build();
        handle.link().set(up).execute().await.map_err(io::Error::other)?;
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).scope(RouteScope::Link);
        handle.route().add(v4.build()).execute().await.map_err(io::Error::other)?;
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().output_interface(index);
        // A kernel may be without IPv6.
        if let Err(error) = handle.route().add(v6.build()).execute().await {
            tracing::debug!(%error, "no IPv6 for checks of virtual addresses");
        }
        Ok(Self { handle, index, addresses: BTreeSet::new() })
    }

    /// Gives the device these addresses and no others.
    pub(super) async fn set_addresses(&mut self, wanted: &BTreeSet<IpAddr>) {
        for address in &self.addresses - wanted {
            let removed = self.handle.address().del(self.message(address)).execute().await;
            self.addresses.remove(&address);
            log(address, removed);
        }
        for address in wanted - &self.addresses {
            let length = if address.is_ipv4() { 32 } else { 128 };
            let added = self.handle.address().add(self.index, address, length).execute().await;
            if added.is_ok() {
                self.addresses.insert(address);
            }
            log(address, added);
        }
    }

    fn message(&self, address: IpAddr) -> AddressMessage {
        match address {
            IpAddr::V4(v4) => {
                AddressMessageBuilder::<Ipv4Addr>::new().index(self.index).address(v4, 32).build()
            }
            IpAddr::V6(v6) => {
                AddressMessageBuilder::<Ipv6Addr>::new().index(self.index).address(v6, 128).build()
            }
        }
    }
}

fn log(address: IpAddr, result: Result<(), rtnetlink::Error>) {
    if let Err(error) = result {
        tracing::error!(%address, %error, "checks of virtual addresses cannot come from this address");
    }
}
