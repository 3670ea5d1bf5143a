//! The standard network of the playground and the end-to-end tests.
//!
//! ```text
//!   one arm                                         two arms
//!
//!   client                                          client
//!     | 10.1.0.0/24  fd00:1::/64                      |
//!   router                                          router ----------------------+
//!     | 10.0.0.1  fd00::1                             | 10.2.0.1  fd00:2::1      | 10.0.0.1  fd00::1
//!   [br0: 10.0.0.0/16  fd00::/64]                   [front]                      |
//!     |      |      |      |                          |      |                   |
//!    lb1    lb2    web1   web2 ...                   lb1    lb2  (eth0)          |
//!    .2     .3     .11    .12                          |      |  (eth1 .2 .3)    |
//!                                                   [back: 10.0.0.0/16  fd00::/64]
//!                                                     |      |
//!                                                    web1   web2 ...
//! ```
//!
//! The router sends the prefixes of the virtual addresses to one of the balancers. Backends hold the virtual addresses
//! on their loopback without answering ARP for them, and their default route is the router: replies pass the balancers
//! by. Behind every balancer's interface the switch port carries a pass-all XDP program, without which veth would drop
//! what the balancer sends by XDP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{End, Error, Lab, Netns, Plan, Result};

/// What the router sends to a balancer.
const VIP_PREFIXES: [&str; 2] = ["192.0.2.0/24", "2001:db8::/64"];
/// The router's own address in those prefixes when they are on the link.
const ON_LINK: [&str; 2] = ["192.0.2.1/24", "2001:db8::1/64"];
/// Backend numbers begin here: 10.0.0.11 and fd00::11 are web1.
const FIRST_BACKEND: usize = 11;
/// The last group of an IPv6 address shows the number in decimal digits, at most four of them.
const MAX_BACKENDS: usize = 9_999 - FIRST_BACKEND;

/// Whether balancers reach the backends on the interface the packets came from (XDP_TX) or on another (redirect).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arms {
    #[default]
    One,
    Two,
}

/// Bytes per frame without the Ethernet header. With one arm the balancers' interfaces have `front`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mtu {
    pub client: u32,
    pub front: u32,
    pub back: u32,
}

impl Mtu {
    pub const fn all(bytes: u32) -> Self {
        Self { client: bytes, front: bytes, back: bytes }
    }
}

/// What kind of topology to build; `Shape::default()` has three backends, one arm, 1500 bytes everywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    pub backends: usize,
    pub arms: Arms,
    pub mtu: Mtu,
    /// The virtual addresses put on every backend's loopback.
    pub vips: Vec<IpAddr>,
    /// The virtual prefixes are on the front link (the router is 192.0.2.1 and 2001:db8::1 there) instead of being routed to
    /// a balancer: whoever answers ARP has them. For VRRP.
    pub vips_on_link: bool,
    /// A link between the balancers alone: `sync0`, 10.9.0.1 and .2, fd00:9::1 and ::2.
    pub sync_link: bool,
    /// Balancers beside the pair: lb3, lb4, ...
    pub more_balancers: usize,
    /// The balancers' kernels forward too, so that backends can use them as gateways for everything.
    pub lb_forwarding: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            backends: 3,
            arms: Arms::One,
            mtu: Mtu::all(1500),
            vips: vec![Ipv4Addr::new(192, 0, 2, 10).into(), IpAddr::V6(documentation(0x10))],
            vips_on_link: false,
            sync_link: false,
            more_balancers: 0,
            lb_forwarding: false,
        }
    }
}

/// An interface of a node with its addresses.
#[derive(Debug, Clone)]
pub struct Interface {
    pub name: String,
    pub mac: [u8; 6],
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

/// A host of the topology. `v4`, `v6` and `mac` are those of the interface towards the backends' network, for the
/// client those of its only one.
#[derive(Debug, Clone)]
pub struct Node {
    pub name: String,
    pub ns: Netns,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    pub mac: [u8; 6],
    pub interfaces: Vec<Interface>,
}

impl Node {
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|i| i.name == name)
    }

    /// Both addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// Where a backend sends what it has no better route for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gateway {
    Router,
    /// A balancer by its index, 0 or 1.
    Balancer(usize),
}

/// A network that is up. Dropping it removes everything.
pub struct Topology {
    pub client: Node,
    pub router: Node,
    /// Both balancers: `eth0`, with two arms also `eth1` towards the backends, with `sync_link` also `sync0`.
    pub lb: [Node; 2],
    /// Those beside the pair, of the same form.
    pub more: Vec<Node>,
    /// `web1`, `web2`, ... each with `eth0`.
    pub backends: Vec<Node>,
    /// The namespace of the bridges: `br0`, or `front` and `back`; its ports are called after the nodes.
    pub switch: Netns,
    pub shape: Shape,
    // Last, so that what the fields above hold is gone when the namespaces go.
    pub lab: Lab,
}

/// One leg of a node during building.
struct Leg {
    interface: Interface,
    bridge: &'static str,
    port: String,
    mtu: u32,
}

impl Topology {
    /// Builds in a lab of its own, beside all others.
    pub fn new(shape: &Shape) -> Result<Self> {
        Self::build(Lab::new()?, shape)
    }

    pub fn build(lab: Lab, shape: &Shape) -> Result<Self> {
        if shape.backends > MAX_BACKENDS {
            return Err(Error::TooManyBackends { backends: shape.backends, max: MAX_BACKENDS });
        }
        let mut plan = lab.plan();
        let switch = lab.netns("switch")?;
        for bridge in bridges(shape.arms) {
            plan.bridge(&switch, bridge);
        }
        let host = |name: &str, legs: Vec<Leg>, plan: &mut Plan| join(&lab, plan, &switch, name, legs);

        let inside_mtu = match shape.arms {
            Arms::One => shape.mtu.front,
            Arms::Two => shape.mtu.back,
        };
        let mut router = host("router", router_legs(shape, inside_mtu), &mut plan)?;
        let mut lb = [
            host("lb1", balancer_legs(shape, inside_mtu, 2), &mut plan)?,
            host("lb2", balancer_legs(shape, inside_mtu, 3), &mut plan)?,
        ];
        let more = (0..shape.more_balancers)
            .map(|i| host(&format!("lb{}", i + 3), balancer_legs(shape, inside_mtu, i + 4), &mut plan))
            .collect::<Result<Vec<_>>>()?;
        let backends = (0..shape.backends)
            .map(|i| {
                let name = format!("web{}", i + 1);
                let leg = Leg {
                    interface: inside("eth0", FIRST_BACKEND + i),
                    bridge: inside_bridge(shape.arms),
                    port: name.clone(),
                    mtu: shape.mtu.back,
                };
                host(&name, vec![leg], &mut plan)
            })
            .collect::<Result<Vec<_>>>()?;
        let client = client(&lab, &mut plan, &mut router, shape.mtu.client)?;
        if shape.sync_link {
            sync_link(&mut plan, &mut lb);
        }

        for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            plan.sysctl(&router.ns, key, "1");
            for lb in lb.iter().chain(&more).filter(|_| shape.lb_forwarding) {
                plan.sysctl(&lb.ns, key, "1");
            }
        }
        let (front, inside) = (router.interfaces[0].clone(), &router);
        for node in lb.iter().chain(&more) {
            plan.gateway(&node.ns, front.v4.into()).gateway(&node.ns, front.v6.into());
        }
        for node in &backends {
            plan.gateway(&node.ns, inside.v4.into()).gateway(&node.ns, inside.v6.into());
            // arp_ignore 1: a virtual address on the loopback is not answered for on eth0 (IPv6 never does that);
            // arp_announce 2: nor is it told to others as the sender of an ARP request.
            plan.sysctl(&node.ns, "net.ipv4.conf.all.arp_ignore", "1");
            plan.sysctl(&node.ns, "net.ipv4.conf.all.arp_announce", "2");
            for vip in &shape.vips {
                plan.addr(&node.ns, "lo", &host_prefix(*vip));
            }
        }
        if shape.vips_on_link {
            for address in ON_LINK {
                plan.addr(&router.ns, &front.name, address);
            }
        }
        plan.apply()?;

        let topology = Self { client, router, lb, more, backends, switch, shape: shape.clone(), lab };
        if !shape.vips_on_link {
            topology.route_vips_to(0)?;
        }
        for port in topology.balancer_ports() {
            topology.lab.attach_pass(&topology.switch, &port)?;
        }
        Ok(topology)
    }

    /// Every balancer, the pair first.
    pub fn balancers(&self) -> impl Iterator<Item = &Node> {
        self.lb.iter().chain(&self.more)
    }

    /// The switch's ends of the balancers' links.
    fn balancer_ports(&self) -> Vec<String> {
        let back: &[&str] = match self.shape.arms {
            Arms::One => &[],
            Arms::Two => &["-back"],
        };
        self.balancers()
            .flat_map(|lb| [""].iter().chain(back).map(|suffix| format!("{}{suffix}", lb.name)))
            .collect()
    }

    /// Makes the router send the virtual prefixes to a balancer, 0 or 1. From then on no new packet goes to the other.
    pub fn route_vips_to(&self, balancer: usize) -> Result<()> {
        let leg = &self.lb[balancer].interfaces[0];
        let [v4, v6] = VIP_PREFIXES;
        self.router.ns.ip(&format!("route replace {v4} via {}\nroute replace {v6} via {}\n", leg.v4, leg.v6))
    }

    /// Changes the default routes of a backend (by index): `Gateway::Balancer` for modes where replies return through
    /// the balancer.
    pub fn set_gateway(&self, backend: usize, gateway: Gateway) -> Result<()> {
        let node = match gateway {
            Gateway::Router => &self.router,
            Gateway::Balancer(index) => &self.lb[index],
        };
        let mut plan = self.lab.plan();
        let ns = &self.backends[backend].ns;
        plan.gateway(ns, node.v4.into()).gateway(ns, node.v6.into()).apply()
    }

    /// Puts a further virtual address on every backend's loopback; it must lie in 192.0.2.0/24 or 2001:db8::/64.
    pub fn add_vip(&self, vip: IpAddr) -> Result<()> {
        let mut plan = self.lab.plan();
        for node in &self.backends {
            plan.addr(&node.ns, "lo", &host_prefix(vip));
        }
        plan.apply()
    }

    /// The first IPv4 virtual address of the shape.
    ///
    /// # Panics
    /// When the shape has none.
    pub fn vip4(&self) -> IpAddr {
        *self.shape.vips.iter().find(|vip| vip.is_ipv4()).expect("the shape has an IPv4 virtual address")
    }

    /// The first IPv6 virtual address of the shape.
    ///
    /// # Panics
    /// When the shape has none.
    pub fn vip6(&self) -> IpAddr {
        *self.shape.vips.iter().find(|vip| vip.is_ipv6()).expect("the shape has an IPv6 virtual address")
    }

    /// All hosts, for loops.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        [&self.client, &self.router].into_iter().chain(self.balancers()).chain(&self.backends)
    }
}

const fn bridges(arms: Arms) -> &'static [&'static str] {
    match arms {
        Arms::One => &["br0"],
        Arms::Two => &["front", "back"],
    }
}

const fn inside_bridge(arms: Arms) -> &'static str {
    match arms {
        Arms::One => "br0",
        Arms::Two => "back",
    }
}

/// The router's first leg is the one towards the balancers.
fn router_legs(shape: &Shape, inside_mtu: u32) -> Vec<Leg> {
    let leg = |interface, bridge, port: &str, mtu| Leg { interface, bridge, port: port.to_owned(), mtu };
    match shape.arms {
        Arms::One => vec![leg(inside("lan0", 1), "br0", "router", inside_mtu)],
        Arms::Two => vec![
            leg(front("front0", 1), "front", "router", shape.mtu.front),
            leg(inside("lan0", 1), "back", "router-back", inside_mtu),
        ],
    }
}

fn balancer_legs(shape: &Shape, inside_mtu: u32, number: usize) -> Vec<Leg> {
    let name = format!("lb{}", number - 1);
    match shape.arms {
        Arms::One => {
            vec![Leg { interface: inside("eth0", number), bridge: "br0", port: name, mtu: inside_mtu }]
        }
        Arms::Two => vec![
            Leg {
                interface: front("eth0", number),
                bridge: "front",
                port: name.clone(),
                mtu: shape.mtu.front,
            },
            Leg {
                interface: inside("eth1", number),
                bridge: "back",
                port: format!("{name}-back"),
                mtu: inside_mtu,
            },
        ],
    }
}

/// Makes a host and hangs its legs on the bridges.
fn join(lab: &Lab, plan: &mut Plan, switch: &Netns, name: &str, legs: Vec<Leg>) -> Result<Node> {
    let ns = lab.netns(name)?;
    for leg in &legs {
        let Interface { name: ifname, mac, v4, v6 } = &leg.interface;
        // 10.0.0.0/16 has room for many backends; the other networks have a handful of hosts.
        let bits = if leg.bridge == "front" { 24 } else { 16 };
        plan.veth(&End::new(&ns, ifname).mac(*mac).mtu(leg.mtu), &End::new(switch, &leg.port).mtu(leg.mtu))
            .port(switch, &leg.port, leg.bridge)
            .addr(&ns, ifname, &format!("{v4}/{bits}"))
            .addr(&ns, ifname, &format!("{v6}/64"));
    }
    Ok(node(name, ns, legs.into_iter().map(|leg| leg.interface).collect()))
}

/// The client hangs on the router directly.
fn client(lab: &Lab, plan: &mut Plan, router: &mut Node, mtu: u32) -> Result<Node> {
    let ns = lab.netns("client")?;
    let (ours, theirs) = (address("eth0", 1, 2), address("client0", 1, 1));
    plan.veth(
        &End::new(&ns, &ours.name).mac(ours.mac).mtu(mtu),
        &End::new(&router.ns, &theirs.name).mac(theirs.mac).mtu(mtu),
    );
    for (ns, side) in [(&ns, &ours), (&router.ns, &theirs)] {
        plan.addr(ns, &side.name, &format!("{}/24", side.v4)).addr(
            ns,
            &side.name,
            &format!("{}/64", side.v6),
        );
    }
    plan.gateway(&ns, theirs.v4.into()).gateway(&ns, theirs.v6.into());
    // Room for ten thousand connections in a row without waiting for TIME_WAIT.
    plan.sysctl(&ns, "net.ipv4.ip_local_port_range", "10240 65535");
    plan.sysctl(&ns, "net.ipv4.tcp_tw_reuse", "1");
    router.interfaces.push(theirs);
    Ok(node("client", ns, vec![ours]))
}

fn sync_link(plan: &mut Plan, lb: &mut [Node; 2]) {
    let sides = [address("sync0", 9, 1), address("sync0", 9, 2)];
    let [a, b] = [0, 1].map(|i: usize| End::new(&lb[i].ns, "sync0").mac(sides[i].mac));
    plan.veth(&a, &b);
    for (node, side) in lb.iter_mut().zip(sides) {
        plan.addr(&node.ns, "sync0", &format!("{}/24", side.v4));
        plan.addr(&node.ns, "sync0", &format!("{}/64", side.v6));
        node.interfaces.push(side);
    }
}

fn node(name: &str, ns: Netns, interfaces: Vec<Interface>) -> Node {
    // The last leg of a host is the inside one.
    let (v4, v6, mac) = interfaces
        .last()
        .map_or((Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED, [0; 6]), |i| (i.v4, i.v6, i.mac));
    Node { name: name.to_owned(), ns, v4, v6, mac, interfaces }
}

fn inside(name: &str, number: usize) -> Interface {
    address(name, 0, number)
}

fn front(name: &str, number: usize) -> Interface {
    address(name, 2, number)
}

/// The addresses of host `number` in network `net`: 10.net.x.y with x.y the number, fd00:net::number with the number
/// written in decimal digits, and a MAC address made of both.
fn address(name: &str, net: u8, number: usize) -> Interface {
    let [high, low] = u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes();
    let digits = u16::from_str_radix(&number.to_string(), 16).unwrap_or(u16::MAX);
    Interface {
        name: name.to_owned(),
        mac: [0x02, 0, 0, net, high, low],
        v4: Ipv4Addr::new(10, net, high, low),
        v6: Ipv6Addr::new(0xfd00, net.into(), 0, 0, 0, 0, 0, digits),
    }
}

fn documentation(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host)
}

fn host_prefix(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_backend_has_addresses_of_its_own() {
        let all: Vec<_> = (0..MAX_BACKENDS).map(|i| inside("eth0", FIRST_BACKEND + i)).collect();
        assert_eq!(all[0].v4, Ipv4Addr::new(10, 0, 0, 11));
        assert_eq!(all[0].v6.to_string(), "fd00::11");
        assert_eq!(all.iter().map(|i| i.v4).collect::<HashSet<_>>().len(), MAX_BACKENDS);
        assert_eq!(all.iter().map(|i| i.v6).collect::<HashSet<_>>().len(), MAX_BACKENDS);
        assert_eq!(all.iter().map(|i| i.mac).collect::<HashSet<_>>().len(), MAX_BACKENDS);
    }
}
