//! A balancer whose host is gone, and back: its cables are deleted and made anew.

use super::{Arms, End, Interface, Node, Result, Topology};

impl Topology {
    /// Deletes every cable of a balancer at once, as the end of its host or namespace does: nothing it sends arrives from
    /// this moment on, and its interfaces are gone with their addresses. The link between the balancers goes too.
    pub fn unplug(&self, balancer: usize) -> Result<()> {
        let lines: String =
            self.cables(balancer).iter().map(|(_, port, _)| format!("link del {port}\n")).collect();
        self.switch.ip(&lines)?;
        if self.lb[balancer].interface(SYNC).is_some() {
            self.lb[balancer].ns.ip(&format!("link del {SYNC}\n"))?;
        }
        Ok(())
    }

    /// Makes the cables of an unplugged balancer anew, with the addresses they had.
    pub fn plug(&self, balancer: usize) -> Result<()> {
        let node = &self.lb[balancer];
        let mut plan = self.lab.plan();
        for (interface, port, bridge) in self.cables(balancer) {
            let mtu = if bridge == "back" { self.shape.mtu.back } else { self.shape.mtu.front };
            plan.veth(
                &End::new(&node.ns, &interface.name).mac(interface.mac).mtu(mtu),
                &End::new(&self.switch, &port).mtu(mtu),
            )
            .port(&self.switch, &port, bridge)
            .addr(
                &node.ns,
                &interface.name,
                &format!("{}/{}", interface.v4, if bridge == "front" { 24 } else { 16 }),
            )
            .addr(&node.ns, &interface.name, &format!("{}/64", interface.v6));
        }
        let front = &self.router.interfaces[0];
        plan.gateway(&node.ns, front.v4.into()).gateway(&node.ns, front.v6.into());
        if node.interface(SYNC).is_some() {
            self.plug_sync(&mut plan);
        }
        plan.apply()?;
        for (_, port, _) in self.cables(balancer) {
            self.lab.attach_pass(&self.switch, &port)?;
        }
        Ok(())
    }

    fn plug_sync(&self, plan: &mut super::Plan) {
        let sides: Vec<(&Node, &Interface)> =
            self.lb.iter().filter_map(|node| Some((node, node.interface(SYNC)?))).collect();
        if let [(a, one), (b, two)] = sides[..] {
            plan.veth(&End::new(&a.ns, SYNC).mac(one.mac), &End::new(&b.ns, SYNC).mac(two.mac));
            for (node, side) in [(a, one), (b, two)] {
                plan.addr(&node.ns, SYNC, &format!("{}/24", side.v4));
                plan.addr(&node.ns, SYNC, &format!("{}/64", side.v6));
            }
        }
    }

    /// Interface, port of the switch and bridge.
    fn cables(&self, balancer: usize) -> Vec<(&Interface, String, &'static str)> {
        let node = &self.lb[balancer];
        node.interfaces
            .iter()
            .filter_map(|interface| match (interface.name.as_str(), self.shape.arms) {
                ("eth0", Arms::One) => Some((interface, node.name.clone(), "br0")),
                ("eth0", Arms::Two) => Some((interface, node.name.clone(), "front")),
                ("eth1", Arms::Two) => Some((interface, format!("{}-back", node.name), "back")),
                _ => None,
            })
            .collect()
    }
}

const SYNC: &str = "sync0";
