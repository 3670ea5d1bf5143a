//! Who answers for an address: ARP requests from a port of its own, and every answer counts.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use crate::lab::{End, Netns, Node, Result, Sniffer, Topology};

/// What the watcher says it is: an address of the virtual network that nobody has.
const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 250);
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 250];
const NAME: &str = "watch";

/// A host on the switch that only asks for addresses.
pub struct Watcher {
    port: Sniffer,
    _ns: Netns,
}

impl Watcher {
    /// Joins the front network of a topology.
    pub fn join(topology: &Topology, bridge: &str) -> Result<Self> {
        let ns = topology.lab.netns(NAME)?;
        let mut plan = topology.lab.plan();
        plan.veth(&End::new(&ns, "eth0").mac(MAC), &End::new(&topology.switch, NAME))
            .port(&topology.switch, NAME, bridge)
            .apply()?;
        Ok(Self { port: Sniffer::open(&ns, "eth0")?, _ns: ns })
    }

    /// Asks once for each address; gives, in the same order, the hardware addresses that answered in time.
    pub fn ask(&self, addresses: &[Ipv4Addr], wait: Duration) -> Result<Vec<BTreeSet<[u8; 6]>>> {
        self.port.drain()?;
        for address in addresses {
            self.port.send_frame(&request(*address))?;
        }
        let mut found = vec![BTreeSet::new(); addresses.len()];
        let deadline = Instant::now() + wait;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let frame = self.port.recv(left, |frame| !frame.outgoing && reply(&frame.bytes).is_some())?;
            let Some((address, mac)) = frame.and_then(|frame| reply(&frame.bytes)) else { return Ok(found) };
            for (asked, found) in addresses.iter().zip(&mut found) {
                if *asked == address {
                    found.insert(mac);
                }
            }
        }
    }

    /// Whether this node alone answers for the address.
    pub fn is_sole(&self, node: &Node, address: Ipv4Addr, wait: Duration) -> Result<bool> {
        let mac = node.interfaces[0].mac;
        Ok(self.ask(&[address], wait)?[0].iter().eq([&mac]))
    }
}

/// RFC 826 over Ethernet.
fn request(target: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(MAC);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(MAC);
    frame.extend(OWN.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame.resize(60, 0);
    frame
}

/// Address and hardware address of an ARP reply to the watcher.
fn reply(frame: &[u8]) -> Option<(Ipv4Addr, [u8; 6])> {
    let arp = frame.get(14..42)?;
    let is_reply = frame[12..14] == [8, 6] && arp[6..8] == [0, 2] && arp[18..24] == MAC;
    let address: [u8; 4] = arp[14..18].try_into().ok()?;
    is_reply.then_some((Ipv4Addr::from(address), arp[8..14].try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_told_from_all_else() {
        let address = Ipv4Addr::new(192, 0, 2, 10);
        let mut frame = request(address);
        assert_eq!(reply(&frame), None);
        frame[21] = 2;
        frame[22..32].copy_from_slice(&[2, 0, 0, 0, 0, 2, 192, 0, 2, 10]);
        frame[32..38].copy_from_slice(&MAC);
        assert_eq!(reply(&frame), Some((address, [2, 0, 0, 0, 0, 2])));
        frame[37] ^= 1;
        assert_eq!(reply(&frame), None, "to somebody else");
        for length in 0..42 {
            assert_eq!(reply(&frame[..length]), None);
        }
    }
}
