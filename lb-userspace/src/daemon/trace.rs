//! `lbctl trace`: records of the program to whoever asked for them.

use super::{engine::Engine, events::Event, explain::interface, flows::monotonic_ns, headers};
use crate::{
    control::{
        command::{CommandError, Reply},
        observe::{AskTrace, TraceLine, TraceView},
    },
    plan,
};
use lb_common::{
    abi::{Note, TraceEvent},
    core::DropReason,
};
use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, SystemTime},
};
use tokio::sync::mpsc;

/// Lines that wait for a slow reader; further ones are lost, and counted.
const WAITING: usize = 1_024;
/// Traces at once.
const MOST: usize = 16;
/// How often it is looked who has gone.
pub(super) const PRUNE: Duration = Duration::from_millis(250);

/// Everybody who traces.
#[derive(Default)]
pub(super) struct Tracers {
    all: Vec<Tracer>,
    /// One packet in so many is recorded; 0 = none.
    sample: u32,
    /// Records that the program could not write, as last seen.
    lost: u64,
}

struct Tracer {
    ask: AskTrace,
    lines: mpsc::Sender<TraceLine>,
    /// Records of other samples to leave out before the next one.
    skip: u32,
    /// Not told yet.
    lost: u64,
}

impl Tracer {
    /// One packet in how many it wants.
    fn sample(&self) -> u32 {
        self.ask.sample.unwrap_or(1).max(1)
    }

    fn wants(&self, view: &TraceView) -> bool {
        let AskTrace { service, source, dest, verdict, sample: _ } = &self.ask;
        service.as_ref().is_none_or(|s| view.service.as_ref() == Some(s))
            && source.is_none_or(|prefix| prefix.contains(&view.source.ip()))
            && dest.is_none_or(|dest| dest == view.destination)
            && verdict.as_ref().is_none_or(|v| *v == view.verdict)
    }

    /// Gives it a line if it wants it; `sample` is what the program samples by.
    fn give(&mut self, view: &TraceView, sample: u32) {
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        self.skip = (self.sample() / sample.max(1)).saturating_sub(1);
        if self.wants(view) {
            self.tell_lost();
            if self.lines.try_send(TraceLine::Packet(view.clone())).is_err() {
                self.lost += 1;
            }
        }
    }

    fn tell_lost(&mut self) {
        if self.lost > 0 && self.lines.try_send(TraceLine::Lost { lost: self.lost }).is_ok() {
            self.lost = 0;
        }
    }
}

impl Tracers {
    pub(super) fn any(&self) -> bool {
        !self.all.is_empty()
    }
}

impl Engine {
    /// Begins a trace, and with the first one the recording.
    pub(super) fn start_trace(&mut self, ask: AskTrace, reply: Reply<mpsc::Receiver<TraceLine>>) {
        let result = self.try_start(ask);
        let _ = reply.send(result);
        // The asker may have gone meanwhile.
        self.prune_tracers();
    }

    fn try_start(&mut self, ask: AskTrace) -> Result<mpsc::Receiver<TraceLine>, CommandError> {
        if self.tracers.all.len() >= MOST {
            return Err(CommandError::Conflict(format!(
                "{MOST} traces are running already; end one of them"
            )));
        }
        if let Some(name) = &ask.service
            && !self.effective.services.iter().any(|s| s.spec.name.as_str() == name)
        {
            let names: Vec<_> = self.effective.services.iter().map(|s| s.spec.name.to_string()).collect();
            let error = format!("no service '{name}'; there are: {}", names.join(", "));
            return Err(CommandError::NotFound(error));
        }
        let (lines, receiver) = mpsc::channel(WAITING);
        self.tracers.all.push(Tracer { ask, lines, skip: 0, lost: 0 });
        if let Err(error) = self.set_sample() {
            self.tracers.all.pop();
            if let Err(second) = self.set_sample() {
                tracing::error!(%second, "could not end a trace that could not begin");
            }
            return Err(CommandError::Failed(error.to_string()));
        }
        Ok(receiver)
    }

    /// What is recorded is the least that serves everybody.
    fn set_sample(&mut self) -> Result<(), crate::dataplane::DataplaneError> {
        let sample = self.tracers.all.iter().map(Tracer::sample).min().unwrap_or(0);
        if sample != self.tracers.sample {
            self.kernel.trace(sample)?;
            tracing::info!(
                one_packet_in = sample,
                "{}",
                if sample == 0 { "tracing ends" } else { "tracing" }
            );
            if self.tracers.sample == 0 {
                self.tracers.lost = 0;
            }
            self.tracers.sample = sample;
        }
        Ok(())
    }

    /// Takes those out who have gone; with the last one the recording ends. Tells the others what was lost.
    pub(super) fn prune_tracers(&mut self) {
        match self.kernel.trace_lost() {
            Ok(lost) => {
                // Fewer: another program was put in its place, when the maps grew.
                let more = lost.checked_sub(self.tracers.lost).unwrap_or(lost);
                self.tracers.lost = lost;
                for tracer in &mut self.tracers.all {
                    tracer.lost += more;
                    tracer.tell_lost();
                }
            }
            Err(error) => tracing::warn!(%error, "it is not known how many records of the trace are lost"),
        }
        self.tracers.all.retain(|tracer| !tracer.lines.is_closed());
        if let Err(error) = self.set_sample() {
            tracing::error!(%error, "could not end the trace; trying again");
        }
    }

    /// Ends every trace and watch, as the daemon ends.
    pub(super) fn end_traces(&mut self) {
        self.watchers.end();
        self.tracers.all.clear();
        self.prune_tracers();
    }

    /// Records came.
    pub(super) fn take_events(&mut self, events: &[Event]) {
        if !self.tracers.any() {
            return;
        }
        let offset = wall_clock() - monotonic_ns() as f64 / 1e9;
        for event in events {
            if let Event::Trace(event) = event {
                let view = self.trace_view(event, offset);
                let sample = self.tracers.sample;
                self.tracers.all.iter_mut().for_each(|tracer| tracer.give(&view, sample));
            }
        }
    }

    fn trace_view(&self, event: &TraceEvent, offset: f64) -> TraceView {
        const XDP_PASS: u32 = 2;
        let known = |what: u32| event.known & what != 0;
        let reason = known(Note::REASON).then(|| DropReason::ALL.get(event.reason as usize)).flatten();
        let end = |address: [u8; 16], port: [u8; 2]| {
            SocketAddr::new(IpAddr::V6(Ipv6Addr::from(address)).to_canonical(), u16::from_be_bytes(port))
        };
        let name = |identity| plan::name_of(identity).to_owned();
        let services = &self.image.services;
        let backends = &self.image.backends;
        TraceView {
            time: event.time_ns as f64 / 1e9 + offset,
            verdict: match (reason, event.verdict) {
                (Some(_), _) => "drop",
                (None, XDP_PASS) => "pass",
                (None, _) => "forward",
            }
            .to_owned(),
            reason: reason.map(|reason| reason.name().to_owned()),
            service: services.get(&event.service).filter(|_| known(Note::SERVICE)).map(|s| name(&s.identity)),
            backend: backends.get(&event.backend).filter(|_| known(Note::BACKEND)).map(|b| name(&b.identity)),
            slot: known(Note::SLOT).then_some(event.slot),
            protocol: headers::protocol(event.protocol),
            source: end(event.source, event.source_port),
            destination: end(event.destination, event.destination_port),
            length: event.length,
            interface: interface(event.ifindex),
        }
    }
}

/// Seconds since 1970.
fn wall_clock() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(source: [u8; 4], verdict: &str) -> TraceView {
        TraceView {
            time: 1.0,
            verdict: verdict.to_owned(),
            reason: None,
            service: Some("www".to_owned()),
            backend: None,
            slot: None,
            protocol: "tcp".to_owned(),
            source: (source, 4000).into(),
            destination: ([192, 0, 2, 10], 80).into(),
            length: 60,
            interface: "eth0".to_owned(),
        }
    }

    fn tracer(ask: AskTrace, room: usize) -> (Tracer, mpsc::Receiver<TraceLine>) {
        let (lines, receiver) = mpsc::channel(room);
        (Tracer { ask, lines, skip: 0, lost: 0 }, receiver)
    }

    fn received(receiver: &mut mpsc::Receiver<TraceLine>) -> Vec<TraceLine> {
        std::iter::from_fn(|| receiver.try_recv().ok()).collect()
    }

    #[test]
    fn a_filter_keeps_what_fits() {
        let ask = AskTrace {
            service: Some("www".to_owned()),
            source: Some("10.1.0.0/24".parse().unwrap()),
            dest: Some(([192, 0, 2, 10], 80).into()),
            verdict: Some("drop".to_owned()),
            sample: None,
        };
        let fits = |ask: &AskTrace| tracer(ask.clone(), 1).0.wants(&view([10, 1, 0, 2], "drop"));
        assert!(fits(&ask) && fits(&AskTrace::default()));
        assert!(!tracer(ask.clone(), 1).0.wants(&view([10, 1, 1, 2], "drop")));
        assert!(!tracer(ask.clone(), 1).0.wants(&view([10, 1, 0, 2], "forward")));
        assert!(!fits(&AskTrace { service: Some("dns".to_owned()), ..ask.clone() }));
        assert!(!fits(&AskTrace { dest: Some(([192, 0, 2, 10], 81).into()), ..ask }));
    }

    #[test]
    fn a_slow_reader_is_told_what_it_missed() {
        let (mut tracer, mut lines) = tracer(AskTrace::default(), 2);
        (0..5).for_each(|_| tracer.give(&view([10, 1, 0, 2], "drop"), 1));
        assert_eq!((received(&mut lines).len(), tracer.lost), (2, 3));
        tracer.give(&view([10, 1, 0, 2], "drop"), 1);
        let got = received(&mut lines);
        assert_eq!((got[0].clone(), got.len(), tracer.lost), (TraceLine::Lost { lost: 3 }, 2, 0));
    }

    #[test]
    fn each_trace_gets_its_own_share() {
        let (mut all, mut every) = tracer(AskTrace { sample: Some(10), ..AskTrace::default() }, 100);
        let (mut few, mut some) = tracer(AskTrace { sample: Some(200), ..AskTrace::default() }, 100);
        for _ in 0..100 {
            all.give(&view([10, 1, 0, 2], "forward"), 10);
            few.give(&view([10, 1, 0, 2], "forward"), 10);
        }
        assert_eq!((received(&mut every).len(), received(&mut some).len()), (100, 5));
    }
}
