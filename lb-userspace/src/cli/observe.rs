//! `lbctl flows` and `lbctl trace`, as they are printed.

use super::table::{Align, printable, table};
use crate::control::observe::{FlowsView, HeadersView, TraceLine, TraceView};
use std::fmt::Write as _;

pub fn headers(text: &mut String, headers: &HeadersView) {
    let vlan = headers.vlan.map(|vlan| format!(", VLAN {vlan}")).unwrap_or_default();
    let (source, destination) = (printable(&headers.source_mac), printable(&headers.destination_mac));
    let _ = writeln!(text, "  link    {source} -> {destination}{vlan}, {} bytes", headers.length);
    if let Some(outer) = &headers.outer {
        let _ = writeln!(text, "  outer   {}", printable(&outer.to_string()));
    }
    let _ = writeln!(text, "  packet  {}", printable(&headers.packet.to_string()));
}

pub fn flows(view: &FlowsView) -> String {
    const PLAIN: &str = "flows of plain slots need no entry and are not listed";
    let FlowsView { total, half_open, confirmed, closing, flows } = view;
    if *total == 0 {
        return format!("no tracked flows; {PLAIN}\n");
    }
    let mut text = table(
        [
            ("PROTO", Align::Left),
            ("CLIENT", Align::Left),
            ("VIP", Align::Left),
            ("SERVICE", Align::Left),
            ("BACKEND", Align::Left),
            ("STATE", Align::Left),
            ("IDLE", Align::Right),
            ("AS", Align::Left),
        ],
        flows.iter().map(|f| {
            [
                f.protocol.clone(),
                f.client.to_string(),
                f.vip.to_string(),
                f.service.clone().unwrap_or_else(|| "-".to_owned()),
                f.backend.clone().unwrap_or_else(|| "-".to_owned()),
                f.state.clone(),
                format!("{}s", f.idle_seconds),
                f.translated.map(|t| t.to_string()).unwrap_or_default(),
            ]
        }),
    );
    let shown = if flows.len() as u64 == *total { String::new() } else { format!(", {} shown", flows.len()) };
    let _ = writeln!(
        text,
        "\n{total} tracked{shown}: {confirmed} confirmed, {half_open} half-open, {closing} closing; {PLAIN}"
    );
    text
}

pub fn trace(line: &TraceLine) -> String {
    let view = match line {
        TraceLine::Packet(view) => view,
        TraceLine::Lost { lost } => return format!("({lost} records lost)\n"),
    };
    let TraceView {
        time,
        verdict,
        reason,
        service,
        backend,
        slot,
        protocol,
        source,
        destination,
        length,
        interface,
    } = view;
    let day = time.rem_euclid(86_400.0);
    let (hour, minute, second) = (day as u32 / 3_600, day as u32 / 60 % 60, day % 60.0);
    let mut text = format!(
        "{hour:02}:{minute:02}:{second:06.3}Z {interface} {protocol} {source} -> {destination}, {length} bytes: {verdict}"
    );
    if let Some(reason) = reason {
        let _ = write!(text, " ({reason})");
    }
    if let Some(service) = service {
        let _ = write!(text, ", {service}");
    }
    if let Some(slot) = slot {
        let _ = write!(text, " slot {slot}");
    }
    if let Some(backend) = backend {
        let _ = write!(text, " to {backend}");
    }
    printable(&text) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::observe::FlowView;

    #[test]
    fn a_record_is_one_line() {
        let view = TraceView {
            time: 86_400.0 + 3_725.25,
            verdict: "forward".to_owned(),
            reason: None,
            service: Some("www".to_owned()),
            backend: Some("web1".to_owned()),
            slot: Some(7),
            protocol: "tcp".to_owned(),
            source: ([10, 1, 0, 2], 4000).into(),
            destination: ([192, 0, 2, 10], 80).into(),
            length: 74,
            interface: "eth0".to_owned(),
        };
        assert_eq!(
            trace(&TraceLine::Packet(view)),
            "01:02:05.250Z eth0 tcp 10.1.0.2:4000 -> 192.0.2.10:80, 74 bytes: forward, www slot 7 to web1\n"
        );
        assert_eq!(trace(&TraceLine::Lost { lost: 3 }), "(3 records lost)\n");
    }

    #[test]
    fn what_is_not_listed_is_said() {
        assert!(flows(&FlowsView::default()).starts_with("no tracked flows; flows of plain slots"));
        let flow = FlowView {
            protocol: "tcp".to_owned(),
            client: ([10, 1, 0, 2], 4000).into(),
            vip: ([192, 0, 2, 10], 80).into(),
            service: Some("www".to_owned()),
            backend: None,
            state: "confirmed".to_owned(),
            idle_seconds: 4,
            translated: None,
        };
        let view = FlowsView { total: 2, confirmed: 2, flows: vec![flow], ..FlowsView::default() };
        let text = flows(&view);
        assert!(
            text.contains("tcp    10.1.0.2:4000  192.0.2.10:80  www      -        confirmed    4s\n"),
            "{text}"
        );
        assert!(text.contains("2 tracked, 1 shown: 2 confirmed, 0 half-open, 0 closing"), "{text}");
    }
}
