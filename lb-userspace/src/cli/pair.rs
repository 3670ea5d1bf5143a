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
        pair::PairView,
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
  lbctl pair hold off

After a failover this node leaves the new master alone, whatever its priority, until that one leaves or fails.
Neither outlives a restart of lbd.";

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
        PairCommand::Hold { switch, instance } => {
            client.pair_hold(*switch == Switch::On, instance.as_ref()).await
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
        for fault in &view.faults {
            let _ = writeln!(text, "{name}: {}", printable(fault));
        }
        if view.held {
            let _ = writeln!(text, "{name}: held; `lbctl pair hold off` ends it");
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
            let _ = writeln!(text, "{name}: heard another master {} times", view.split_brains);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

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
            faults: vec!["tracked interface eth1 is down".to_owned()],
            held: true,
            handed_over: false,
            waits_for_state: false,
            adverts_sent: 7,
            adverts_received: 9,
            split_brains: 0,
            transitions: [("backup".to_owned(), 2)].into(),
        };
        let expected = "\
NAME    ID  STATE   PRIORITY  ADDRESSES                       MASTER          SINCE  WHY
public  51  backup  90 of 150 192.0.2.10/24, 2001:db8::10/64  10.0.0.3 (100)  1m 1s  10.0.0.3 is a better master
public: tracked interface eth1 is down
public: held; `lbctl pair hold off` ends it
";
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeezed(&render_at(&[view], 1061.0)), squeezed(expected));
        assert_eq!(render(&[]), "no [[vrrp]] in the configuration\n");
    }
}
