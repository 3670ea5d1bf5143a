//! What random virtual routers refer to, and the link between the nodes.

use crate::model::{BfdSpec, FileSpec, GroupSpec, PairSpec, ScriptSpec, SyncSpec, VrrpName, VrrpSpec};
use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

/// What the virtual routers refer to. Two of them are a group.
pub(super) fn parts(routers: &mut [VrrpSpec]) -> PairSpec {
    let mut parts = PairSpec::default();
    if let [one, two] = routers {
        let name: VrrpName = "site".parse().unwrap();
        (one.group, two.group) = (Some(name.clone()), Some(name.clone()));
        parts.groups = vec![GroupSpec { name, members: vec![two.name.clone(), one.name.clone()] }];
    }
    let ms = Duration::from_millis;
    parts.scripts = vec![ScriptSpec {
        name: "check".parse().unwrap(),
        command: ["/bin/check", "\"it\"", "\\"].map(str::to_owned).to_vec(),
        interval: ms(2000),
        timeout: ms(1500),
        rise: 3,
        fall: 1,
        user: "nobody".to_owned(),
        initial_up: routers.is_empty(),
        weight: 20,
    }];
    parts.files = vec![FileSpec { name: "load".parse().unwrap(), path: "/run/a load".into(), weight: -3 }];
    parts.bfd = vec![BfdSpec {
        name: "fast".parse().unwrap(),
        peer: [10, 0, 0, 3].into(),
        local: [10, 0, 0, 2].into(),
        interval: ms(10),
        multiplier: 5,
    }];
    parts
}

pub(super) fn link() -> SyncSpec {
    SyncSpec {
        listen: (Ipv4Addr::new(10, 9, 0, 1), 9760).into(),
        peers: vec![
            (Ipv4Addr::new(10, 9, 0, 2), 9760).into(),
            (Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2), 9760).into(),
        ],
        key_file: "/etc/lbd/sync.keys".into(),
        heartbeat: Duration::from_millis(20),
        max_bandwidth: Some(1_500_000),
        takeover_wait: Duration::from_secs(7),
    }
}
