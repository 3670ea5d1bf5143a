//! Telling the neighbours who has an address: gratuitous ARP and unsolicited neighbour advertisements. Pure: the
//! frames, and when they are due.

use super::timing::Moment;
use lb_common::csum;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

const BROADCAST: [u8; 6] = [0xff; 6];
/// Of ff02::1, all nodes (RFC 2464 section 7).
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;
const ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// RFC 4861 section 4.4.
const ROUTER: u8 = 0x80;
const OVERRIDE: u8 = 0x20;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;

/// The frames that announce an address once. ARP in both forms, request and reply: there is equipment that takes
/// only one of them. `router`: this node forwards IPv6, which hosts must go on believing (RFC 4861 section 7.2.5).
pub(super) fn frames(address: IpAddr, mac: [u8; 6], router: bool) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(address) => [ARP_REQUEST, ARP_REPLY].map(|form| arp(address, mac, form)).into(),
        IpAddr::V6(address) => vec![neighbour_advertisement(address, mac, router)],
    }
}

fn arp(address: Ipv4Addr, mac: [u8; 6], form: u8) -> Vec<u8> {
    let mut frame = Vec::with_capacity(60);
    frame.extend(BROADCAST);
    frame.extend(mac);
    frame.extend(ETHERTYPE_ARP);
    // Ethernet, IPv4, six and four octets.
    frame.extend([0, 1, 8, 0, 6, 4, 0, form]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend(BROADCAST);
    frame.extend(address.octets());
    frame
}

fn neighbour_advertisement(address: Ipv6Addr, mac: [u8; 6], router: bool) -> Vec<u8> {
    let flags = OVERRIDE | if router { ROUTER } else { 0 };
    let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    message.extend(address.octets());
    message.extend([TARGET_LINK_LAYER_ADDRESS, 1]);
    message.extend(mac);
    let length = u16::try_from(message.len()).unwrap_or(0).to_be_bytes();
    let sum = csum::sum_bytes(&message)
        + csum::sum_bytes(&address.octets())
        + csum::sum_bytes(&ALL_NODES.octets())
        + csum::sum_bytes(&length)
        + csum::sum_bytes(&[0, ICMPV6]);
    message[2..4].copy_from_slice(&csum::finish(sum).to_ne_bytes());

    let mut frame = Vec::with_capacity(86);
    frame.extend(ALL_NODES_MAC);
    frame.extend(mac);
    frame.extend(ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length);
    // RFC 4861 section 7.1.2: hop limit 255, else it is not believed.
    frame.extend([ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

/// Between the announcements of a burst: a switch that learns slowly, a host that was busy.
const SPACING: Duration = Duration::from_millis(40);
/// From the end of one burst to the second: a switch that was still learning its tree.
const SECOND_BURST: Duration = Duration::from_secs(5);

/// When to announce. At most one burst runs: reasons that come while it does start it anew no more often than once
/// a second, so that nobody can make this node flood the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Schedule {
    repeat: u8,
    refresh: Duration,
    started: Option<Moment>,
    left: u8,
    bursts: u8,
    due: Option<Moment>,
    /// There was a reason to begin anew, too early.
    again: bool,
}

const NOT_OFTENER_THAN: Duration = Duration::from_secs(1);

impl Schedule {
    pub(super) const fn new(repeat: u8, refresh: Duration) -> Self {
        Self { repeat, refresh, started: None, left: 0, bursts: 0, due: None, again: false }
    }

    /// The node has just become master.
    pub(super) fn begin(&mut self, now: Moment) {
        self.started = Some(now);
        (self.left, self.bursts) = (self.repeat, 2);
        self.due = (self.repeat > 0).then_some(now);
        self.again = false;
    }

    /// There is a reason to announce again.
    pub(super) fn again(&mut self, now: Moment) {
        match self.started.map(|started| started + NOT_OFTENER_THAN) {
            // Put off, not dropped: whoever else announced may have been the last one.
            Some(earliest) if now < earliest => {
                self.again = true;
                self.due = Some(self.due.map_or(earliest, |due| due.min(earliest)));
            }
            Some(_) | None => self.begin(now),
        }
    }

    /// With other numbers from now on.
    pub(super) fn tune(&mut self, repeat: u8, refresh: Duration) {
        (self.repeat, self.refresh) = (repeat, refresh);
        if self.started.is_some() && self.due.is_none() && !refresh.is_zero() {
            (self.left, self.due) = (1, self.started.map(|started| started + refresh));
        }
    }

    /// The node is no longer master.
    pub(super) fn stop(&mut self) {
        *self = Self::new(self.repeat, self.refresh);
    }

    pub(super) const fn due(&self) -> Option<Moment> {
        self.due
    }

    /// True if the addresses are to be announced now.
    pub(super) fn tick(&mut self, now: Moment) -> bool {
        if self.due.is_none_or(|due| now < due) {
            return false;
        }
        if self.again && self.started.is_some_and(|started| now.since(started) >= NOT_OFTENER_THAN) {
            self.begin(now);
        }
        self.left = self.left.saturating_sub(1);
        self.due = if self.left > 0 {
            Some(now + SPACING)
        } else if self.bursts > 1 {
            (self.bursts, self.left) = (1, self.repeat);
            Some(now + SECOND_BURST)
        } else {
            (self.bursts, self.left) = (0, 1);
            (!self.refresh.is_zero()).then_some(now + self.refresh)
        };
        if self.again {
            let earliest = self.started.map(|started| started + NOT_OFTENER_THAN);
            self.due = self.due.min(earliest).or(earliest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    #[test]
    fn arp_in_both_forms() {
        let frames = frames([192, 0, 2, 10].into(), MAC, true);
        let expected = |form| {
            let mut frame = vec![0xff; 6];
            frame
                .extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, form, 2, 0, 0, 0, 0, 1, 192, 0, 2, 10]);
            frame.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 192, 0, 2, 10]);
            frame
        };
        assert_eq!(frames, [expected(1), expected(2)]);
    }

    #[test]
    fn a_neighbour_advertisement_has_a_right_checksum() {
        let address: Ipv6Addr = "2001:db8::10".parse().unwrap();
        let frame = &frames(address.into(), MAC, true)[0];
        assert_eq!(frame.len(), 14 + 40 + 32);
        let (header, message) = frame[14..].split_at(40);
        assert_eq!((header[7], message[0], message[4]), (255, 136, 0xa0));
        assert_eq!(frames(address.into(), MAC, false)[0][14 + 40 + 4], 0x20);
        assert_eq!(message[8..24], address.octets());
        let pseudo = csum::sum_bytes(&header[8..40]) + csum::sum_bytes(&[0, 32, 0, 58]);
        assert_eq!(csum::finish(pseudo + csum::sum_bytes(message)), 0);
    }

    /// The moments, in milliseconds, at which it announces until `end`.
    fn run(schedule: &mut Schedule, from: u64, end: u64, again: &[u64]) -> Vec<u64> {
        let mut sent = Vec::new();
        for ms in from..end {
            let now = Moment(ms * 1_000_000);
            if again.contains(&ms) {
                schedule.again(now);
            }
            if schedule.tick(now) {
                sent.push(ms);
            }
        }
        sent
    }

    #[test]
    fn two_bursts_and_then_refreshes() {
        let mut schedule = Schedule::new(3, Duration::from_secs(10));
        assert_eq!(schedule.due(), None);
        schedule.begin(Moment(0));
        let sent = run(&mut schedule, 0, 30_000, &[]);
        assert_eq!(sent, [0, 40, 80, 5080, 5120, 5160, 15_160, 25_160]);
        schedule.stop();
        assert_eq!(schedule.due(), None);
        let mut quiet = Schedule::new(1, Duration::ZERO);
        quiet.begin(Moment(0));
        assert_eq!(run(&mut quiet, 0, 30_000, &[]), [0, 5000]);
    }

    #[test]
    fn who_provokes_announcements_gets_few() {
        let mut schedule = Schedule::new(5, Duration::ZERO);
        schedule.begin(Moment(0));
        let every: Vec<u64> = (0..10_000).collect();
        let sent = run(&mut schedule, 0, 10_000, &every);
        assert_eq!(sent.len(), 50, "five a second");
    }

    #[test]
    fn a_reason_that_comes_too_early_waits() {
        let mut schedule = Schedule::new(2, Duration::ZERO);
        schedule.begin(Moment(0));
        assert_eq!(run(&mut schedule, 0, 20_000, &[300]), [0, 40, 1000, 1040, 6040, 6080]);
    }

    #[test]
    fn a_refresh_that_is_configured_later_begins() {
        let mut schedule = Schedule::new(1, Duration::ZERO);
        schedule.begin(Moment(0));
        assert_eq!(run(&mut schedule, 0, 10_000, &[]), [0, 5000]);
        schedule.tune(1, Duration::from_secs(4));
        assert_eq!(run(&mut schedule, 10_000, 20_000, &[]), [10_000, 14_000, 18_000]);
    }
}
