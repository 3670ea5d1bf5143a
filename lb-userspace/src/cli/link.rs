//! The sync link in `lbctl pair`.

use super::table::{
    Align::{Left, Right},
    bytes, duration, printable, table,
};
use crate::control::link::SyncView;
use std::{fmt::Write as _, time::SystemTime};

/// Nothing without a link.
pub fn render(view: &SyncView) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |now| now.as_secs_f64());
    render_at(view, now)
}

fn render_at(view: &SyncView, now: f64) -> String {
    let mut text = String::new();
    if !view.peers.is_empty() {
        let header = [
            ("PEER", Left),
            ("ADDRESS", Left),
            ("UP", Right),
            ("RTT", Right),
            ("HEARTBEATS", Left),
            ("SERVICES", Left),
            ("KEY", Left),
            ("WAITING", Right),
        ];
        let rows = view.peers.iter().map(|peer| {
            let services = match (peer.same_services, peer.services_hash.is_empty()) {
                (true, _) => "the same",
                (false, true) => "not told yet",
                (false, false) => "DIFFERENT",
            };
            let beats = match peer.beating {
                Some(true) => "yes",
                Some(false) => "SILENT",
                None => "off",
            };
            [
                peer.name.clone(),
                peer.address.clone(),
                duration(now - peer.since),
                peer.rtt_seconds.map_or("-".to_owned(), |rtt| format!("{:.1} ms", rtt * 1000.0)),
                beats.to_owned(),
                services.to_owned(),
                peer.key.clone(),
                bytes(peer.queued_bytes),
            ]
        });
        text += &table(header, rows);
    }
    for waiting in &view.waiting {
        let _ = writeln!(text, "no peer at {}: {}", waiting.address, printable(&waiting.reason));
    }
    for peer in view.peers.iter().filter(|peer| !peer.same_services && !peer.services_hash.is_empty()) {
        let _ = writeln!(
            text,
            "{}: its services are configured otherwise: compare `lbctl config show` on both nodes",
            printable(&peer.name)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::link::{PeerView, WaitingView};

    #[test]
    fn what_an_operator_sees() {
        let view = SyncView {
            peers: vec![PeerView {
                name: "lb2".to_owned(),
                address: "10.9.0.2:9760".to_owned(),
                since: 1000.0,
                version: "0.1.0".to_owned(),
                protocol: 1,
                key: "spring".to_owned(),
                services_hash: "00ff".to_owned(),
                same_services: false,
                instances: [("public".to_owned(), "master".to_owned())].into(),
                sent_bytes: 1,
                received_bytes: 2,
                queued_bytes: 2048,
                rtt_seconds: Some(0.0004),
                beating: Some(true),
            }],
            waiting: vec![WaitingView {
                address: ([10, 9, 0, 3], 9760).into(),
                reason: "Connection refused (os error 111)".to_owned(),
            }],
            rejected: Vec::new(),
        };
        let expected = "\
PEER  ADDRESS        UP    RTT     HEARTBEATS  SERVICES   KEY     WAITING
lb2   10.9.0.2:9760  1m 1s 0.4 ms  yes         DIFFERENT  spring  2.0 KiB
no peer at 10.9.0.3:9760: Connection refused (os error 111)
lb2: its services are configured otherwise: compare `lbctl config show` on both nodes
";
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeezed(&render_at(&view, 1061.0)), squeezed(expected));
        assert_eq!(render(&SyncView::default()), "");
    }
}
