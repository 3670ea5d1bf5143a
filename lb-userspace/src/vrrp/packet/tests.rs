use super::*;
use crate::model::VrrpVersion::{V2, V3};
use proptest::prelude::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn group(source: IpAddr) -> IpAddr {
    Family::of(source).vrrp_group()
}

fn datagram(source: IpAddr, payload: &[u8]) -> Datagram<'_> {
    Datagram { source, destination: group(source), hop_limit: Some(255), payload }
}

fn advert(version: VrrpVersion, addresses: &[&str]) -> Advert {
    let addresses = addresses.iter().map(|a| ip(a)).collect();
    Advert { version, router_id: 51, priority: 150, interval: Duration::from_secs(1), addresses }
}

/// The sums are added up by hand, word by word as they lie in the packet.
#[test]
fn the_layout_is_that_of_the_rfcs() {
    let source = ip("10.0.0.2");
    let v2 = advert(V2, &["192.0.2.10"]).encode(ChecksumForm::Plain, source, group(source));
    assert_eq!(v2[..6], [0x21, 51, 150, 1, 0, 1]);
    assert_eq!(v2[8..], [192, 0, 2, 10, 0, 0, 0, 0, 0, 0, 0, 0]);
    let sum: u32 = 0x2133 + 0x9601 + 0x0001 + 0xc000 + 0x020a;
    let folded = !((sum & 0xffff) + (sum >> 16)) as u16;
    assert_eq!(v2[6..8], folded.to_be_bytes());

    let v3 = advert(V3, &["192.0.2.10"]).encode(ChecksumForm::Plain, source, group(source));
    assert_eq!(v3[..6], [0x31, 51, 150, 1, 0, 100]);
    assert_eq!(v3.len(), 12);
    let sum: u32 = 0x3133 + 0x9601 + 0x0064 + 0xc000 + 0x020a;
    let plain = !((sum & 0xffff) + (sum >> 16)) as u16;
    assert_eq!(v3[6..8], plain.to_be_bytes());
    let v3 = advert(V3, &["192.0.2.10"]).encode(ChecksumForm::Pseudo, source, group(source));
    // 10.0.0.2, 224.0.0.18, protocol 112, 12 octets.
    let sum = sum + 0x0a00 + 0x0002 + 0xe000 + 0x0012 + 112 + 12;
    let sum = (sum & 0xffff) + (sum >> 16);
    let pseudo = !((sum & 0xffff) + (sum >> 16)) as u16;
    assert_eq!(v3[6..8], pseudo.to_be_bytes());

    let source = ip("fe80::2");
    let v6 = advert(V3, &["fe80::10", "2001:db8::10"]).encode(ChecksumForm::Plain, source, group(source));
    assert_eq!(v6.len(), 8 + 32);
    assert_eq!(v6[..6], [0x31, 51, 150, 2, 0, 100]);
    let (_, form) = parse(&datagram(source, &v6)).unwrap();
    assert_eq!(form, ChecksumForm::Pseudo, "over IPv6 there is no choice");
}

#[test]
fn all_ipv4_checksums_are_taken_and_told_apart() {
    let (source, peer) = (ip("10.0.0.2"), ip("10.0.0.3"));
    for form in [ChecksumForm::Plain, ChecksumForm::Pseudo, ChecksumForm::PseudoGroup] {
        let bytes = advert(V3, &["192.0.2.10"]).encode(form, source, peer);
        let unicast = Datagram { source, destination: peer, hop_limit: Some(255), payload: &bytes };
        assert_eq!(parse(&unicast).unwrap(), (advert(V3, &["192.0.2.10"]), form));
    }
}

#[test]
fn ethernet_padding_is_tolerated_and_no_other_trailer() {
    let source = ip("10.0.0.2");
    let mut bytes = advert(V3, &["192.0.2.10"]).encode(ChecksumForm::Plain, source, group(source));
    bytes.resize(26, 0);
    assert!(parse(&datagram(source, &bytes)).is_ok());
    bytes.push(0);
    assert_eq!(parse(&datagram(source, &bytes)), Err(Refusal::Length { found: 27, expected: 12 }));
    let many = advert(V3, &["192.0.2.10"; 6]);
    let mut bytes = many.encode(ChecksumForm::Plain, source, group(source));
    bytes.push(0);
    assert_eq!(parse(&datagram(source, &bytes)), Err(Refusal::Length { found: 33, expected: 32 }));
}

/// A change of a good packet, and the label of the refusal.
#[test]
fn every_broken_packet_has_its_reason() {
    let source = ip("10.0.0.2");
    type Change = fn(&mut Vec<u8>);
    let rows: [(&str, VrrpVersion, Change); 9] = [
        ("length", V3, |b| b.truncate(7)),
        ("length", V3, |b| b.truncate(11)),
        ("length", V2, |b| b.truncate(12)),
        ("version", V3, |b| b[0] = 0x41),
        ("type", V3, |b| b[0] = 0x32),
        ("checksum", V3, |b| b[11] ^= 1),
        ("checksum", V2, |b| b[1] ^= 1),
        ("authentication", V2, |b| b[4] = 1),
        ("zero_interval", V3, |b| b[5] = 0),
    ];
    for (label, version, change) in rows {
        let mut bytes = advert(version, &["192.0.2.10"]).encode(ChecksumForm::Plain, source, group(source));
        change(&mut bytes);
        if label != "checksum" && bytes.len() >= 12 {
            bytes[6..8].fill(0);
            let sum = csum::finish(csum::sum_bytes(&bytes));
            bytes[6..8].copy_from_slice(&sum.to_ne_bytes());
        }
        let refusal = parse(&datagram(source, &bytes)).unwrap_err();
        assert_eq!(refusal.label(), label, "{refusal}");
    }
    let none = advert(V3, &[]).encode(ChecksumForm::Plain, source, group(source));
    assert_eq!(parse(&datagram(source, &none)), Err(Refusal::NoAddress));
    let v2 = advert(V2, &["192.0.2.10"]).encode(ChecksumForm::Plain, source, group(source));
    assert_eq!(parse(&datagram(ip("fe80::2"), &v2)), Err(Refusal::Version(2)), "version 2 over IPv6");
}

#[test]
fn every_unexpected_packet_has_its_reason() {
    let local = ["10.0.0.1/24".parse().unwrap(), "fe80::1/64".parse().unwrap()];
    let peers = [ip("172.16.0.9")];
    let good = Expect {
        version: V3,
        owner: false,
        interval: Duration::from_secs(1),
        local: &local,
        peers: &[],
        min_ttl: 250,
    };
    let unicast = Expect { peers: &peers, ..good.clone() };
    let own = local[0].addr();
    type Row<'a> = (Option<&'a str>, Advert, IpAddr, IpAddr, Option<u8>, &'a Expect<'a>);
    let four = || advert(V3, &["192.0.2.10"]);
    let six = || advert(V3, &["fe80::10"]);
    let owner = Expect { owner: true, ..good.clone() };
    let v2 = Expect { version: V2, interval: Duration::from_secs(2), ..good.clone() };
    let all4 = Family::V4.vrrp_group();
    let all6 = Family::V6.vrrp_group();
    let rows: Vec<Row<'_>> = vec![
        (None, four(), ip("10.0.0.2"), all4, Some(255), &good),
        (None, six(), ip("fe80::2"), all6, Some(255), &good),
        (Some("ttl"), four(), ip("10.0.0.2"), all4, Some(254), &good),
        (Some("ttl"), six(), ip("fe80::2"), all6, None, &good),
        (Some("own_address"), four(), ip("10.0.0.1"), all4, Some(255), &good),
        (Some("subnet"), four(), ip("10.0.1.2"), all4, Some(255), &good),
        (Some("subnet"), six(), ip("2001:db8::2"), all6, Some(255), &good),
        (Some("unicast"), four(), ip("10.0.0.2"), own, Some(255), &good),
        (Some("version"), advert(V2, &["192.0.2.10"]), ip("10.0.0.2"), all4, Some(255), &good),
        (Some("interval"), advert(V2, &["192.0.2.10"]), ip("10.0.0.2"), all4, Some(255), &v2),
        (Some("owner"), four(), ip("10.0.0.2"), all4, Some(255), &owner),
        (None, four(), peers[0], own, Some(250), &unicast),
        (Some("ttl"), four(), peers[0], own, Some(249), &unicast),
        (Some("peer"), four(), ip("10.0.0.2"), own, Some(255), &unicast),
        (Some("multicast"), four(), peers[0], all4, Some(255), &unicast),
    ];
    for (label, advert, source, destination, hop_limit, expect) in rows {
        let found = Datagram { source, destination, hop_limit, payload: &[] };
        let result = advert.check(&found, expect);
        assert_eq!(result.as_ref().err().map(Refusal::label), label, "{found:?}: {result:?}");
        assert!(label.is_none_or(|label| Refusal::LABELS.contains(&label)));
    }
}

fn any_address(v6: bool) -> BoxedStrategy<IpAddr> {
    if v6 {
        any::<[u8; 16]>().prop_map(IpAddr::from).boxed()
    } else {
        any::<[u8; 4]>().prop_map(IpAddr::from).boxed()
    }
}

fn any_version(v6: bool) -> BoxedStrategy<VrrpVersion> {
    if v6 { Just(V3).boxed() } else { prop_oneof![Just(V2), Just(V3)].boxed() }
}

fn any_advert() -> impl Strategy<Value = (Advert, IpAddr, IpAddr)> {
    any::<bool>().prop_flat_map(|v6| {
        let addresses = proptest::collection::vec(any_address(v6), 1..40);
        let parts = (any_version(v6), addresses, any::<(u8, u8)>(), (1u64..256, 1u64..4096));
        (parts, any_address(v6), any_address(v6)).prop_map(|(parts, source, destination)| {
            let (version, addresses, (router_id, priority), (seconds, units)) = parts;
            let interval = match version {
                V2 => Duration::from_secs(seconds),
                V3 => Duration::from_millis(units * 10),
            };
            (Advert { version, router_id, priority, interval, addresses }, source, destination)
        })
    })
}

proptest! {
    #[test]
    fn what_is_sent_is_read(
        (advert, source, destination) in any_advert(),
        form in prop_oneof![Just(ChecksumForm::Plain), Just(ChecksumForm::Pseudo)],
    ) {
        let bytes = advert.encode(form, source, destination);
        let found = Datagram { source, destination, hop_limit: Some(255), payload: &bytes };
        let (read, _) = parse(&found).unwrap();
        prop_assert_eq!(read, advert);
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>, source in any_address(false), source6 in any_address(true)) {
        let _ = parse(&datagram(source, &bytes));
        let _ = parse(&datagram(source6, &bytes));
    }

    /// One changed bit is always found: by the checksum, if by nothing else.
    #[test]
    fn damage_is_noticed((advert, source, destination) in any_advert(), at: prop::sample::Index, bit in 0..8u8) {
        let mut bytes = advert.encode(ChecksumForm::Pseudo, source, destination);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let found = Datagram { source, destination, hop_limit: Some(255), payload: &bytes };
        let damaged = parse(&found);
        // Version 2 to 3 changes what the checksum covers.
        let read = damaged.map(|(advert, _)| advert);
        prop_assert!(read.is_err(), "{:?}", read);
    }
}
