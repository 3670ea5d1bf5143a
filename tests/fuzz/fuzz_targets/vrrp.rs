//! The VRRP codec: no packet makes it panic, and what it takes it writes so that it reads back.
//!
//! The first octet chooses the family, the rest is the packet.
#![no_main]

use lb_userspace::vrrp::packet::{Datagram, parse};
use libfuzzer_sys::fuzz_target;
use std::net::IpAddr;

fuzz_target!(|bytes: &[u8]| {
    let Some((first, payload)) = bytes.split_first() else { return };
    let (source, destination): (IpAddr, IpAddr) = if first & 1 == 0 {
        ([10, 0, 0, 2].into(), [224, 0, 0, 18].into())
    } else {
        ("fe80::2".parse().unwrap(), "ff02::12".parse().unwrap())
    };
    let datagram = Datagram { source, destination, hop_limit: Some(255), payload };
    if let Ok((advert, form)) = parse(&datagram) {
        let written = advert.encode(form, source, destination);
        let again = parse(&Datagram { payload: &written, ..datagram });
        assert_eq!(again.map(|(advert, _)| advert), Ok(advert));
    }
});
