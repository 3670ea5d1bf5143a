//! `lbctl pair`.

use super::{
    parse,
    table::{
        Align::{Left, Right},
        duration, printable, table,
    },
};
use crate::{
    control::{
        api::ChangeView,
        client::{Client, ClientError},
        pair::{BfdView, PairView},
    },
    model::VrrpName,
};
use clap::{Subcommand, ValueEnum};
use std::{fmt::Write as _, time::SystemTime};

pub const PAIR_EXAMPLES: &str = "\
Examples:
  lbctl pair                       who has the addresses, and why?
  lbctl pair failover public       this node gives them to the peer, now
  lbctl pair hold                  maintenance: this node gives all away and takes none
  lbctl pair hold --off            and back

After a failover this node leaves the new master alone, whatever its priority, until that one leaves
or fails, or until lbd is restarted. A hold lasts until it is ended, over restarts of lbd and of the
host; `lbctl reset` does not end it. What is said of one instance of a group is said of all.";

#[derive(Debug, Subcommand)]
pub enum PairCommand {
    /// Gives the addresses of an instance to the peer; on the node that is master
    #[command(after_help = PAIR_EXAMPLES)]
    Failover {
        /// Name of the instance, as in `lbctl pair`
        #[arg(value_name = "NAME", value_parser = parse::vrrp)]
        name: VrrpName,
    },
    /// Keeps this node from being master, for maintenance
    #[command(after_help = PAIR_EXAMPLES)]
    Hold {
        /// `off` ends it
        #[arg(value_enum, default_value_t)]
        switch: Switch,
        /// Ends it, as `off`
        #[arg(long = "off", conflicts_with = "switch")]
        end: bool,
        /// Only this instance
        #[arg(long, value_name = "NAME", value_parser = parse::vrrp)]
        instance: Option<VrrpName>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Switch {
    #[default]
    On,
    Off,
}

/// Hands over or holds.
pub async fn change(client: &Client, command: &PairCommand) -> Result<ChangeView, ClientError> {
    match command {
        PairCommand::Failover { name } => client.pair_failover(name).await,
        PairCommand::Hold { switch, end, instance } => {
            client.pair_hold(*switch == Switch::On && !end, instance.as_ref()).await
        }
    }
}

pub fn render(views: &[PairView]) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |now| now.as_secs_f64());
    render_at(views, now)
}

fn render_at(views: &[PairView], now: f64) -> String {
    if views.is_empty() {
        return "no [[vrrp]] in the configuration\n".to_owned();
    }
    let mut text = table(
        [
            ("NAME", Left),
            ("ID", Right),
            ("STATE", Left),
            ("PRIORITY", Right),
            ("ADDRESSES", Left),
            ("MASTER", Left),
            ("SINCE", Right),
            ("WHY", Left),
        ],
        views.iter().map(|view| {
            let priority = if view.priority == view.effective_priority {
                view.priority.to_string()
            } else {
                format!("{} of {}", view.effective_priority, view.priority)
            };
            let master = match (view.state.as_str(), view.master, view.master_priority) {
                ("master", ..) => "this node".to_owned(),
                (_, Some(address), Some(priority)) => format!("{address} ({priority})"),
                _ => "-".to_owned(),
            };
            [
                view.name.clone(),
                view.router_id.to_string(),
                view.state.clone(),
                priority,
                view.addresses.join(", "),
                master,
                duration(now - view.since),
                view.reason.clone(),
            ]
        }),
    );
    for view in views {
        let name = printable(&view.name);
        for missing in &view.missing {
            let cause = printable(&missing.cause);
            let _ = match missing.weight {
                0 => writeln!(text, "{name}: fault: {cause}"),
                weight => writeln!(text, "{name}: {weight:+}: {cause}"),
            };
        }
        for warning in &view.warnings {
            let _ = writeln!(text, "{name}: warning: {}", printable(warning));
        }
        if view.held {
            let by = view.hold_by.as_deref().map_or(String::new(), |by| format!(" by {}", printable(by)));
            let since =
                view.hold_since.map_or(String::new(), |since| format!(" for {}", duration(now - since)));
            let _ = writeln!(text, "{name}: held{by}{since}; `lbctl pair hold --off` ends it");
        }
        for session in &view.bfd {
            let BfdView { name: of, peer, state, since, trouble, .. } = session;
            let trouble = trouble.as_deref().map_or(String::new(), |why| format!(": {}", printable(why)));
            let (of, state, since) = (printable(of), printable(state), duration(now - since));
            let _ = writeln!(text, "{name}: BFD session {of} with {peer}: {state} for {since}{trouble}");
        }
        if let Some(group) = &view.group {
            let _ = writeln!(text, "{name}: goes with the group {}", printable(group));
        }
        if view.handed_over {
            let _ = writeln!(text, "{name}: handed over; it leaves the new master alone");
        }
        if view.waits_for_state {
            let _ = writeln!(
                text,
                "{name}: waits for the peer's state; until then it leaves a living master alone"
            );
        }
        if view.split_brains > 0 {
            let _ = writeln!(text, "{name}: there was another master {} times", view.split_brains);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::pair::MissingView;

    #[test]
    fn what_an_operator_sees() {
        let view = PairView {
            name: "public".to_owned(),
            interface: "eth0".to_owned(),
            router_id: 51,
            version: 3,
            state: "backup".to_owned(),
            priority: 150,
            effective_priority: 90,
            addresses: vec!["192.0.2.10/24".to_owned(), "2001:db8::10/64".to_owned()],
            peers: Vec::new(),
            master: Some([10, 0, 0, 3].into()),
            master_priority: Some(100),
            since: 1000.0,
            reason: "10.0.0.3 is a better master".to_owned(),
            faults: ["tracked interface eth1 is down", "script check: ended with status 1"]
                .map(str::to_owned)
                .into(),
            missing: vec![
                MissingView { cause: "tracked interface eth1 is down".to_owned(), weight: -60 },
                MissingView { cause: "script check: ended with status 1".to_owned(), weight: 0 },
            ],
            group: Some("site".to_owned()),
            bfd: vec![BfdView {
                name: "fast".to_owned(),
                peer: [10, 0, 0, 3].into(),
                state: "up".to_owned(),
                since: 1051.0,
                trouble: None,
                packets_sent: 9,
                packets_received: 8,
                transitions: [("up".to_owned(), 1)].into(),
            }],
            held: true,
            hold_by: Some("uid 0 (root)".to_owned()),
            hold_since: Some(941.0),
            handed_over: false,
            waits_for_state: false,
            adverts_sent: 7,
            adverts_received: 9,
            split_brains: 0,
            address_claims: 0,
            held_by: "interface".to_owned(),
            lease: 3.0,
            warnings: vec!["advertisements cannot be sent to 10.0.0.9: no route".to_owned()],
            transitions: [("backup".to_owned(), 2)].into(),
        };
        let expected = "\
NAME    ID  STATE   PRIORITY  ADDRESSES                       MASTER          SINCE  WHY
public  51  backup  90 of 150 192.0.2.10/24, 2001:db8::10/64  10.0.0.3 (100)  1m 1s  10.0.0.3 is a better master
public: -60: tracked interface eth1 is down
public: fault: script check: ended with status 1
public: warning: advertisements cannot be sent to 10.0.0.9: no route
public: held by uid 0 (root) for 2m 0s; `lbctl pair hold --off` ends it
public: BFD session fast with 10.0.0.3: up for 10s
public: goes with the group site
";
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeezed(&render_at(&[view], 1061.0)), squeezed(expected));
        assert_eq!(render(&[]), "no [[vrrp]] in the configuration\n");
    }
}
