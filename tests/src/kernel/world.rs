//! The services the tests forward to, described once as the daemon would, and where each packet should go.

use crate::packets::Packet;
use lb_common::{
    abi::{BackendEntry, PortRule, Slot, VipEntry},
    core::DropReason,
    hash,
};
use lb_userspace::{
    maglev,
    model::{
        Admin, BackendSpec, Forward, GradualSpec, GuardSpec, Health, HealthSpec, OnAllDown, PoolSpec,
        PortSpec, Protocol, QuicSpec, Scheduler, ServiceSpec,
    },
    plan::{self, Image, NextHopEntry, ServiceRecord, TunnelSettings, WantedBackend, WantedService},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

/// Slots of the ring array: more than the world needs.
pub const RING_CAPACITY: u32 = 4096;
/// Backends of the backend array: more than the world needs.
pub const BACKEND_CAPACITY: u32 = 128;

const MTU: u16 = 1500;
const RING_SIZE: u32 = 31;
const GUE_PORT: u16 = 6080;
/// Config id of the QUIC services, whose server ids are the last two bytes of a backend's address.
pub const QUIC_CONFIG: u8 = 2;

/// Services and the image of them.
pub struct World {
    pub wanted: Vec<WantedService>,
    pub image: Image,
    /// IPv4 VIPs whose tables contradict themselves (TCP, every port), and how each packet is refused.
    pub broken: Vec<(Ipv4Addr, DropReason)>,
}

/// Where a packet should go, from the description alone: Maglev's ring and the flow hash, no tables.
#[derive(Debug)]
pub struct Predicted<'a> {
    pub service: &'a WantedService,
    pub service_id: u32,
    pub backend: &'a WantedBackend,
    pub backend_id: u32,
    pub hop: NextHopEntry,
    /// The flow hash.
    pub hash: u64,
}

/// VIP number `n` of a family.
#[must_use]
pub fn vip(n: u8, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()).into()
    } else {
        Ipv4Addr::new(192, 0, 2, n).into()
    }
}

/// A backend reached over IPv4 or IPv6; every third goes back out of the ingress, every third into VLAN 100.
fn backend(n: u8, family: u8) -> WantedBackend {
    let (ifindex, vlan) = [(super::INGRESS, 0), (7, 0), (8, 100)][usize::from(n % 3)];
    let (address, source) = if family == 6 {
        let address = |last| IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last));
        (address(n.into()), address(0xffff))
    } else {
        (IpAddr::from([10, 0, 0, n]), IpAddr::from([10, 0, 0, 254]))
    };
    WantedBackend {
        standby: false,
        panic: false,
        spec: BackendSpec {
            name: format!("web{n}").parse().expect("a name"),
            address,
            port: None,
            weight: 1 + u16::from(n % 3),
            backup: false,
        },
        admin: Admin::Enabled,
        health: Health::Up,
        next_hop: Some(NextHopEntry {
            ifindex,
            dst_mac: [2, 0, 0, 0, 1, n],
            src_mac: [2, 0, 0, 0, 2, n],
            vlan,
            mtu: MTU,
            source: Some(source),
        }),
        ramp: None,
    }
}

fn service(
    name: &str,
    vip_number: u8,
    port: PortSpec,
    protocol: Protocol,
    forward: Forward,
    backends: Vec<WantedBackend>,
) -> WantedService {
    WantedService {
        part: 0,
        spec: ServiceSpec {
            name: name.parse().expect("a name"),
            addresses: vec![vip(vip_number, false), vip(vip_number, true)],
            port,
            protocol,
            forward,
            scheduler: Scheduler::Maglev,
            ring_size: Some(RING_SIZE),
            seed: 0x6c62_6400 + u64::from(vip_number),
            idle_timeout: Duration::from_secs(300),
            gue_port: GUE_PORT,
            snat: None,
            health: HealthSpec::default(),
            passive: None,
            guard: GuardSpec::default(),
            gradual: GradualSpec::default(),
            pool: PoolSpec::default(),
            quic: (protocol == Protocol::Quic).then(|| QuicSpec {
                server_id_length: 2,
                config_id: QUIC_CONFIG,
                server_ids: BTreeMap::new(),
            }),
            backends: backends.iter().map(|b| b.spec.clone()).collect(),
        },
        ring_size: RING_SIZE,
        no_quorum: false,
        withdrawn: false,
        backends,
    }
}

/// Where the tunnels of the world come from.
#[must_use]
pub fn tunnel() -> TunnelSettings {
    TunnelSettings {
        source_ipv4: "198.18.0.0/16".parse().expect("a prefix"),
        source_ipv6: "100::/64".parse().expect("a prefix"),
        gue_source_ipv4: None,
        gue_source_ipv6: None,
        vip_flags: VipEntry::ECHO | VipEntry::FRAGMENTS,
        declined: std::collections::BTreeSet::new(),
    }
}

/// Every mode over both families for TCP and UDP at port 80 of VIPs 10 to 15 (services `dsr4-tcp` to `gue6-udp`), and:
///
/// - 20: inline rules, TCP 80, 8000 to 8099 and every port, UDP 53;
/// - 21: spilled rules, TCP 80, 81, 82, 8000 to 8098 and 9001 to 9006, UDP 53 and every port;
/// - 23: no backend takes packets; 26: no next hop; 27: a backend that is the VIP itself (GUE, UDP, every port);
/// - 24, 25: QUIC at 80 by DSR (`quic4`) and GUE over IPv6 (`quic6`), server ids of two bytes;
/// - 28: an egress of 150 bytes, 29: of 100 bytes (IPIP, TCP 80);
/// - 35: no backend takes packets, and clients are told (`refusing-tcp`, `refusing-udp`: DSR and GUE);
/// - 30 to 34: tables that contradict themselves ([`World::broken`]).
#[must_use]
pub fn plain_world() -> World {
    use Forward::{Dsr, Gue, Ipip};
    use PortSpec::{Any, Exact, Range};
    use Protocol::{Quic, Tcp, Udp};
    let three = |family| (1..=3).map(|n| backend(n, family)).collect::<Vec<_>>();
    let one = |n| vec![backend(n, 4)];
    let mut wanted = Vec::new();
    for (i, (forward, family)) in
        [(Dsr, 4), (Dsr, 6), (Ipip, 4), (Ipip, 6), (Gue, 4), (Gue, 6)].into_iter().enumerate()
    {
        for protocol in [Tcp, Udp] {
            let name = format!("{forward}{family}-{protocol}");
            wanted.push(service(&name, 10 + i as u8, Exact(80), protocol, forward, three(family)));
        }
    }
    for (name, vip_number, port, protocol, number) in [
        ("inline-exact", 20, Exact(80), Tcp, 1),
        ("inline-range", 20, Range(8000, 8099), Tcp, 2),
        ("inline-any", 20, Any, Tcp, 3),
        ("inline-udp", 20, Exact(53), Udp, 4),
        ("spill-80", 21, Exact(80), Tcp, 5),
        ("spill-81", 21, Exact(81), Tcp, 6),
        ("spill-82", 21, Exact(82), Tcp, 7),
        ("spill-range", 21, Range(8000, 8098), Tcp, 8),
        ("spill-odd-range", 21, Range(9001, 9006), Tcp, 9),
        ("spill-udp", 21, Exact(53), Udp, 10),
        ("spill-any-udp", 21, Any, Udp, 11),
    ] {
        wanted.push(service(name, vip_number, port, protocol, Dsr, one(number)));
    }
    let mut disabled = one(1);
    disabled[0].admin = Admin::Disabled;
    wanted.push(service("empty", 23, Exact(80), Tcp, Dsr, disabled));
    for (name, protocol, forward) in [("refusing-tcp", Tcp, Dsr), ("refusing-udp", Udp, Gue)] {
        let mut disabled = one(1);
        disabled[0].admin = Admin::Disabled;
        let mut refusing = service(name, 35, Exact(80), protocol, forward, disabled);
        refusing.spec.pool.on_all_down = OnAllDown::Reject;
        wanted.push(refusing);
    }
    wanted.push(service("no-hop", 26, Exact(80), Tcp, Dsr, one(1)));
    let mut itself = one(3);
    itself[0].spec.address = vip(27, false);
    wanted.push(service("itself", 27, Any, Udp, Gue, itself));
    for (name, vip_number, mtu) in [("mtu150", 28, 150), ("mtu100", 29, 100)] {
        let mut small = one(3);
        small[0].next_hop.as_mut().expect("a next hop").mtu = mtu;
        wanted.push(service(name, vip_number, Exact(80), Tcp, Ipip, small));
    }
    wanted.push(service("quic4", 24, Exact(80), Quic, Dsr, three(4)));
    wanted.push(service("quic6", 25, Exact(80), Quic, Gue, three(6)));
    let empty = Image::empty(RING_CAPACITY, BACKEND_CAPACITY);
    let mut image = plan::build(
        &wanted,
        &empty,
        &tunnel(),
        &BTreeSet::new(),
        &mut lb_userspace::maglev::Cache::default(),
    )
    .expect("an image");
    let no_hop = image.service_id("no-hop").expect("a service");
    for record in image.backends.values_mut().filter(|record| record.entry.service == no_hop) {
        record.entry.ifindex = 0;
    }
    let broken = break_tables(&mut image);
    World { wanted, image, broken }
}

/// Adds VIPs 30 to 34, whose tables the daemon would never write.
fn break_tables(image: &mut Image) -> Vec<(Ipv4Addr, DropReason)> {
    const FIRST: u32 = 50;
    let template = image.services[&1];
    let backend_template = *image.backends.values().next().expect("a backend");
    let ring_end =
        image.services.values().map(|s| s.entry.ring_base + s.entry.ring_size).max().unwrap_or_default();
    let with = |base, size| {
        let mut record: ServiceRecord = template;
        (record.entry.ring_base, record.entry.ring_size) = (base, size);
        record
    };
    let bad_kind = 100;
    let mut entry = BackendEntry { kind: 9, service: FIRST + 3, vlan: 0, ..backend_template.entry };
    entry.ifindex = 7;
    image.backends.insert(bad_kind, plan::BackendRecord { entry, ..backend_template });
    let mut broken = Vec::new();
    let mut add = |n: u8, service: u16, reason| {
        let mut entry = VipEntry { vip: 1000 + u32::from(n), flags: 0, rules: [PortRule::NONE; 4] };
        entry.rules[0] = PortRule { lo: 0, hi: u16::MAX, service, proto: 6, pad: 0 };
        let address = Ipv4Addr::new(192, 0, 2, n);
        image.vips.insert(address.into(), entry);
        broken.push((address, reason));
    };
    // A service id beyond the array; a ring beyond the array; a slot that names a backend beyond the
    // array; a backend of a mode unknown; a service that is gone.
    add(30, 5000, DropReason::Internal);
    add(31, FIRST as u16, DropReason::Internal);
    add(32, FIRST as u16 + 1, DropReason::Internal);
    add(33, FIRST as u16 + 3, DropReason::Internal);
    add(34, FIRST as u16 + 4, DropReason::NoBackend);
    image.services.insert(FIRST, with(RING_CAPACITY, 13));
    image.services.insert(FIRST + 1, with(ring_end, 13));
    image.rings.insert(FIRST + 1, vec![Slot::plain(BACKEND_CAPACITY, 0); 13].into());
    image.services.insert(FIRST + 3, with(ring_end + 13, 13));
    image.rings.insert(FIRST + 3, vec![Slot::plain(bad_kind, 0); 13].into());
    broken
}

impl World {
    /// The service of this name.
    #[must_use]
    pub fn service(&self, name: &str) -> &WantedService {
        self.wanted
            .iter()
            .find(|s| s.spec.name.as_str() == name)
            .unwrap_or_else(|| panic!("no service {name}"))
    }

    /// Where a packet of this service should go. Panics if the service has no backend.
    #[must_use]
    pub fn predict(&self, name: &str, packet: &Packet) -> Predicted<'_> {
        let service = self.service(name);
        let service_id = self.image.service_id(name).expect("a service of this name in the image");
        let (src, dst) = packet.ports();
        let ports = u32::from(src) << 16 | u32::from(dst);
        let hash = match packet.addresses().0 {
            IpAddr::V4(src) => hash::flow4(service.spec.seed, src.to_bits(), ports),
            IpAddr::V6(src) => {
                let bits = src.to_bits();
                hash::flow6(service.spec.seed, (bits >> 64) as u64, bits as u64, ports)
            }
        };
        let members: Vec<_> = service
            .backends
            .iter()
            .map(|b| maglev::Member::new(maglev::key(b.spec.address, 0), b.spec.weight))
            .collect();
        let ring = maglev::ring(service.spec.seed, service.ring_size, &members);
        let slot = hash::slot(hash, service.ring_size);
        let backend = &service.backends[ring[slot as usize].expect("a backend") as usize];
        let octets = match backend.spec.address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let (backend_id, _) = self
            .image
            .backends
            .iter()
            .find(|(_, r)| r.entry.service == service_id && r.entry.outer_dst.starts_with(&octets))
            .expect("the backend in the image");
        let hop = backend.next_hop.expect("a next hop");
        Predicted { service, service_id, backend, backend_id: *backend_id, hop, hash }
    }

    /// A packet to a service's VIP and first port, from client number `client`.
    #[must_use]
    pub fn packet(&self, name: &str, v6: bool, client: u16) -> Packet {
        let spec = &self.service(name).spec;
        let vip = *spec.addresses.iter().find(|a| a.is_ipv6() == v6).expect("a VIP of this family");
        let port = spec.port.bounds().0.max(1);
        let src = client_address(v6, client);
        let (src, dst) = ((src, 40_000 + client % 1000).into(), (vip, port).into());
        match spec.protocol {
            Protocol::Tcp => Packet::tcp(src, dst),
            Protocol::Udp | Protocol::Quic => Packet::udp(src, dst),
        }
    }

    /// Every VIP.
    #[must_use]
    pub fn vips(&self) -> Vec<IpAddr> {
        self.image.vips.keys().copied().collect()
    }
}

/// Address of client number `n`.
#[must_use]
pub fn client_address(v6: bool, n: u16) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, n).into()
    } else {
        let [hi, lo] = n.to_be_bytes();
        Ipv4Addr::new(203, 0, hi, lo).into()
    }
}
