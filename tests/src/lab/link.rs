//! Links, addresses and routes, collected in a [`Plan`] and made with few calls of `ip -batch`: every veth pair of
//! the plan first, then all interfaces up, then what needs them up.

use std::{fmt::Write as _, io::Write as _, net::IpAddr, process::Stdio, time::Duration};

use super::{Error, Netns, Result, ethtool};

/// The kernel spreads such news at most a second late, a busy machine later.
const READY: Duration = Duration::from_secs(20);

/// One end of a veth pair.
#[derive(Debug, Clone)]
pub struct End {
    ns: Netns,
    name: String,
    mac: Option<[u8; 6]>,
    mtu: Option<u32>,
}

impl End {
    pub fn new(ns: &Netns, name: &str) -> Self {
        Self { ns: ns.clone(), name: name.to_owned(), mac: None, mtu: None }
    }

    pub fn mac(mut self, mac: [u8; 6]) -> Self {
        self.mac = Some(mac);
        self
    }

    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = Some(mtu);
        self
    }

    fn options(&self) -> String {
        let mut text = format!("name {} netns {}", self.name, self.ns.name());
        if let Some([a, b, c, d, e, f]) = self.mac {
            let _ = write!(text, " address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        }
        if let Some(mtu) = self.mtu {
            let _ = write!(text, " mtu {mtu}");
        }
        text
    }
}

/// What is to be made; nothing happens before [`Plan::apply`].
#[derive(Default)]
#[must_use = "a plan does nothing until it is applied"]
pub struct Plan {
    veths: Vec<String>,
    nodes: Vec<Node>,
}

struct Node {
    ns: Netns,
    /// `ip -batch` lines: making further interfaces and bringing all up, then the rest.
    links: String,
    rest: String,
    plain: Vec<String>,
    sysctls: Vec<(String, String)>,
}

impl Plan {
    /// A veth pair, both ends up, offloads off so that XDP sees what a wire would carry.
    pub fn veth(&mut self, a: &End, b: &End) -> &mut Self {
        self.veths.push(format!("link add {} type veth peer {}\n", a.options(), b.options()));
        for end in [a, b] {
            let node = self.node(&end.ns);
            node.plain.push(end.name.clone());
            let _ = writeln!(node.links, "link set {} up", end.name);
        }
        self
    }

    /// A Linux bridge, up: a switch that neither delays ports nor filters multicast.
    pub fn bridge(&mut self, ns: &Netns, name: &str) -> &mut Self {
        let node = self.node(ns);
        let _ = writeln!(
            node.links,
            "link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set {name} up"
        );
        self
    }

    /// Makes an interface a port of a bridge in the same namespace.
    pub fn port(&mut self, ns: &Netns, ifname: &str, bridge: &str) -> &mut Self {
        self.rest(ns, &format!("link set {ifname} master {bridge}"))
    }

    /// A VLAN interface upon another one, up.
    pub fn vlan(&mut self, ns: &Netns, parent: &str, id: u16, name: &str) -> &mut Self {
        let node = self.node(ns);
        let _ =
            writeln!(node.links, "link add link {parent} name {name} type vlan id {id}\nlink set {name} up");
        self
    }

    /// An address that can be used at once, for example `10.0.0.1/24` or `2001:db8::1/64`.
    pub fn addr(&mut self, ns: &Netns, ifname: &str, address: &str) -> &mut Self {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        self.rest(ns, &format!("addr add {address} dev {ifname}{nodad}"))
    }

    /// A route in the words of `ip route replace`, for example `default via 10.0.0.1`.
    pub fn route(&mut self, ns: &Netns, route: &str) -> &mut Self {
        self.rest(ns, &format!("route replace {route}"))
    }

    /// The default route of the gateway's address family.
    pub fn gateway(&mut self, ns: &Netns, gateway: IpAddr) -> &mut Self {
        self.route(ns, &format!("default via {gateway}"))
    }

    /// Any other line of `ip -batch`, done after links are up.
    pub fn rest(&mut self, ns: &Netns, line: &str) -> &mut Self {
        let _ = writeln!(self.node(ns).rest, "{line}");
        self
    }

    /// A sysctl, set last; see [`Netns::sysctl`] for the key.
    pub fn sysctl(&mut self, ns: &Netns, key: &str, value: &str) -> &mut Self {
        self.node(ns).sysctls.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Makes everything; fails at the first thing refused, with the lines that were tried.
    pub fn apply(&mut self) -> Result<()> {
        let Self { veths, nodes } = std::mem::take(self);
        ip_batch(None, &veths.concat())?;
        for node in &nodes {
            node.plain.iter().try_for_each(|ifname| node.ns.offloads_off(ifname))?;
            ip_batch(Some(&node.ns), &node.links)?;
        }
        for node in &nodes {
            node.plain.iter().try_for_each(|ifname| node.ns.wait_until_ready(ifname))?;
            ip_batch(Some(&node.ns), &node.rest)?;
            node.sysctls.iter().try_for_each(|(key, value)| node.ns.sysctl(key, value))?;
        }
        Ok(())
    }

    fn node(&mut self, ns: &Netns) -> &mut Node {
        let at = self.nodes.iter().position(|node| node.ns == *ns).unwrap_or_else(|| {
            self.nodes.push(Node {
                ns: ns.clone(),
                links: String::new(),
                rest: String::new(),
                plain: Vec::new(),
                sysctls: Vec::new(),
            });
            self.nodes.len() - 1
        });
        &mut self.nodes[at]
    }
}

fn ip_batch(ns: Option<&Netns>, script: &str) -> Result<()> {
    if script.is_empty() {
        return Ok(());
    }
    let ip = crate::skip::find_tool("ip").ok_or(Error::NoTool("ip"))?;
    let spawn_error = |source| Error::Spawn { program: "ip".to_owned(), source };
    let mut command = match ns {
        Some(ns) => ns.command(ip),
        None => std::process::Command::new(ip),
    };
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(spawn_error)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A broken pipe means that ip gave up early; its words on stderr say why.
        let _ = stdin.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().map_err(spawn_error)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Ip {
        place: ns.map_or_else(|| "this namespace".to_owned(), |ns| ns.name().to_owned()),
        stderr: String::from_utf8_lossy(&output.stderr).trim_end().to_owned(),
        script: script.to_owned(),
    })
}

impl Netns {
    /// The MAC address of an interface.
    pub fn mac(&self, ifname: &str) -> Result<[u8; 6]> {
        self.interface(ifname, "reading its MAC address", ethtool::mac)
    }

    /// The index of an interface.
    pub fn ifindex(&self, ifname: &str) -> Result<u32> {
        self.interface(ifname, "reading its index", ethtool::index)
    }

    /// Does what [`Plan::veth`] does for its ends to any interface: no offloads.
    pub fn offloads_off(&self, ifname: &str) -> Result<()> {
        self.interface(ifname, "turning offloads off", ethtool::offloads_off)
    }

    /// Waits until an interface that is up, as its peer is, can send; before, frames are lost without a word.
    fn wait_until_ready(&self, ifname: &str) -> Result<()> {
        self.run(|| {
            let mut outcome = Ok(false);
            let what = format!("{ifname} of {} to come up", self.name());
            super::wait_until(&what, READY, || {
                outcome = ethtool::is_ready(ifname);
                !matches!(outcome, Ok(false))
            })?;
            outcome.map(|_| ()).map_err(|source| Error::Interface {
                ns: self.name().to_owned(),
                ifname: ifname.to_owned(),
                what: "asking whether it is up",
                source,
            })
        })
    }

    /// Runs one or more lines of `ip -batch` in the namespace.
    pub fn ip(&self, lines: &str) -> Result<()> {
        ip_batch(Some(self), lines)
    }

    fn interface<T: Send>(
        &self,
        ifname: &str,
        what: &'static str,
        f: impl FnOnce(&str) -> std::io::Result<T> + Send,
    ) -> Result<T> {
        self.run(|| f(ifname)).map_err(|source| Error::Interface {
            ns: self.name().to_owned(),
            ifname: ifname.to_owned(),
            what,
            source,
        })
    }
}
