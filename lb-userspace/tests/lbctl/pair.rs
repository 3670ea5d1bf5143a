//! What the engine of these tests says of the pair.

use super::engine::changed;
use lb_userspace::control::{
    command::CommandError,
    pair::{BfdStats, PairCommand, PairView},
};

pub fn obey(command: PairCommand, note: impl Fn(String)) {
    match command {
        PairCommand::List(reply) => drop(reply.send(Ok(vec![public()]))),
        PairCommand::Refused(reply) => drop(reply.send(Ok(Vec::new()))),
        PairCommand::Bfd(reply) => drop(reply.send(Ok(BfdStats::default()))),
        PairCommand::Link(reply) => drop(reply.send(Ok(None))),
        PairCommand::Failover { name, by, reply } => {
            note(by);
            let known = name.as_str() == "public";
            let error = || CommandError::NotFound(format!("no VRRP instance '{name}'"));
            let done = || changed(format!("{name} is handed over to the peer"));
            drop(reply.send(known.then(done).ok_or_else(error)));
        }
        PairCommand::Hold { name, on, by, reply } => {
            note(by);
            let what = name.map_or("every instance".to_owned(), |name| name.to_string());
            let how = if on { "held" } else { "released" };
            drop(reply.send(Ok(changed(format!("{what} is {how}")))));
        }
    }
}

fn public() -> PairView {
    PairView {
        name: "public".to_owned(),
        interface: "eth0".to_owned(),
        router_id: 51,
        version: 3,
        state: "master".to_owned(),
        priority: 150,
        effective_priority: 150,
        addresses: vec!["192.0.2.10/24".to_owned(), "2001:db8::10/64".to_owned()],
        peers: Vec::new(),
        master: None,
        master_priority: None,
        // A day ago or thousands: shown in days.
        since: 0.0,
        reason: "no master was heard".to_owned(),
        faults: Vec::new(),
        missing: Vec::new(),
        group: None,
        bfd: Vec::new(),
        held: false,
        hold_by: None,
        hold_since: None,
        handed_over: false,
        waits_for_state: false,
        adverts_sent: 3,
        adverts_received: 1,
        split_brains: 0,
        address_claims: 0,
        held_by: "interface".to_owned(),
        lease: 3.0,
        warnings: Vec::new(),
        transitions: [("backup".to_owned(), 1), ("master".to_owned(), 1)].into(),
    }
}
