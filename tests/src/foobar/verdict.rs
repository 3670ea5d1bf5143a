//! What is promised for an event, and whether the requests that it touched were served so.

use super::{
    load::Record,
    report::{errors, retries},
};

/// Balancers tell each other of connections ten times a second; twice that, for machines that are late.
const TOLD_WITHIN_MS: u64 = 200;
/// The longest gap of a planned change, beside that of calm: a lost SYN is sent again after a second.
pub const PLANNED_MS: u64 = 1000;
/// The longest gap where a balancer goes or comes: the takeover itself, and a SYN that was lost twice (sent again after
/// one second, and after two more). The same where a database server comes back: commits wait a second for it.
pub const TAKEOVER_MS: u64 = 3000;
/// By how much a death may be known later than the checks' settings say, because processes wait for a busy machine.
const LATE_MS: u64 = 1500;

/// What befell the requests while nothing was done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Calm {
    pub longest: u64,
    pub reopened: u32,
}

/// A server that crashed. Times in ms since 1970.
#[derive(Debug, Clone, Copy)]
pub struct Crash {
    pub server: &'static str,
    /// It ends the browsers' connections itself, and is not behind those that do.
    pub web: bool,
    pub killed: u64,
    /// When both balancers said so.
    pub known: u64,
    /// Within which time (ms) they should, by the settings of their checks.
    pub detection: u64,
}

/// What is promised for an event.
pub enum Promise {
    /// No request fails, no connection is lost, nobody waits longer than so many ms.
    Nothing { gap: u64 },
    /// A server crashes: what was in flight there may fail, and some of what begins before the balancers know.
    Crash(Crash),
    /// A balancer dies at that moment while slots change hands: connections may fail that began so shortly before that nobody
    /// else had been told of them.
    Untold { died: u64 },
}

impl Promise {
    fn excuses_failure(&self, r: &Record) -> bool {
        match self {
            Self::Nothing { .. } => false,
            Self::Crash(crash) => {
                let then = r.began <= crash.known && r.began + r.millis >= crash.killed;
                let there = if crash.web {
                    // Another web server's answer, or its connection, has nothing to do with it.
                    r.server.is_empty() || r.server == crash.server
                } else {
                    matches!(r.what.as_str(), "login" | "write" | "read")
                };
                then && there
            }
            Self::Untold { died } => untold(*died, r.connected),
        }
    }

    fn excuses_retry(&self, r: &Record) -> bool {
        match self {
            Self::Nothing { .. } => false,
            // The web servers live where somebody behind them dies, and keep their connections.
            Self::Crash(crash) => crash.web && r.given_up <= crash.known,
            Self::Untold { died } => untold(*died, r.given_up),
        }
    }

    /// In ms, beside what is usual.
    fn gap(&self) -> u64 {
        match self {
            Self::Nothing { gap } => *gap,
            Self::Crash(crash) => crash.detection + LATE_MS,
            Self::Untold { .. } => TAKEOVER_MS,
        }
    }
}

fn untold(died: u64, begun: u64) -> bool {
    (died.saturating_sub(TOLD_WITHIN_MS)..=died).contains(&begun)
}

/// How many failures a crash explains. In flight: one request for each browser. Of those that begin until it is known half
/// meet the dead server, which refuses at once; each is tried three times (by nginx, by the application; four times by
/// a browser, with the site's addresses), so an eighth finds it each time: twice that.
fn explained(crash: &Crash, records: &[&Record], browsers: usize) -> usize {
    let began = records.iter().filter(|r| (crash.killed..=crash.known).contains(&r.began)).count();
    browsers + began.div_ceil(4)
}

/// Whether it was so; all that was not.
pub fn judge(promise: &Promise, records: &[&Record], calm: Calm, browsers: usize) -> Result<(), String> {
    let mut broken = Vec::new();
    let (excused, failed): (Vec<&Record>, Vec<&Record>) =
        records.iter().copied().filter(|r| !r.error.is_empty()).partition(|r| promise.excuses_failure(r));
    if !failed.is_empty() {
        let when = match promise {
            Promise::Nothing { .. } => String::new(),
            Promise::Crash(crash) => {
                format!(" that were not with {}, or began after it was known to be dead", crash.server)
            }
            Promise::Untold { .. } => {
                format!(" on connections older than {TOLD_WITHIN_MS} ms or begun since")
            }
        };
        broken.push(format!("{} failed{when}: {}", failed.len(), errors(&failed)));
    }
    if let Promise::Crash(crash) = promise {
        let took = crash.known.saturating_sub(crash.killed);
        if took > crash.detection + LATE_MS {
            broken.push(format!(
                "{} was known to be dead after {took} ms only: the checks should take {} ms",
                crash.server, crash.detection
            ));
        }
        let most = explained(crash, records, browsers);
        if excused.len() > most {
            broken.push(format!(
                "{} failed, more than the {most} that can have been with {}: {}",
                excused.len(),
                crash.server,
                errors(&excused)
            ));
        }
    }
    let retried: Vec<&Record> =
        records.iter().copied().filter(|r| r.retried > 0 && !promise.excuses_retry(r)).collect();
    if !retried.is_empty() {
        broken.push(format!(
            "{} lost their connection and were begun again: {}",
            retried.len(),
            retries(&retried)
        ));
    }
    let reopened: u32 = records.iter().map(|r| r.reopened).sum();
    let ends = matches!(promise, Promise::Crash(crash) if crash.web);
    if reopened > calm.reopened && !ends {
        broken.push(format!("{reopened} kept connections were ended"));
    }
    let longest = records.iter().map(|r| r.millis).max().unwrap_or(0);
    if longest > promise.gap() + calm.longest {
        broken.push(format!(
            "a gap of {longest} ms: {} are allowed, and {} as while nothing was done",
            promise.gap(),
            calm.longest
        ));
    }
    if broken.is_empty() { Ok(()) } else { Err(broken.join("; ")) }
}

/// What failed or lost its connection during none of the events (their times in ms since 1970).
pub fn between(records: &[Record], events: &[(u64, u64)]) -> Result<(), String> {
    let outside: Vec<&Record> = records
        .iter()
        .filter(|r| !r.error.is_empty() || r.retried > 0)
        .filter(|r| !events.iter().any(|(from, to)| r.began + r.millis >= *from && r.began <= *to))
        .collect();
    if outside.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{} failed or lost their connection between the events: {} {}",
        outside.len(),
        errors(&outside),
        retries(&outside)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(began: u64, error: &str) -> Record {
        Record { began, millis: 10, what: "look".to_owned(), error: error.to_owned(), ..Record::default() }
    }

    fn crash(web: bool) -> Crash {
        Crash {
            server: if web { "web1" } else { "app1" },
            web,
            killed: 1_000,
            known: 2_000,
            detection: 1_400,
        }
    }

    fn verdict(promise: &Promise, records: &[&Record]) -> Result<(), String> {
        judge(promise, records, Calm { longest: 50, reopened: 0 }, 4)
    }

    #[test]
    fn a_crash_excuses_what_was_there_from_the_kill_until_it_was_known() {
        let promise = Promise::Crash(crash(true));
        let good = record(2_500, "");
        assert_eq!(verdict(&promise, &[&record(1_500, "lost"), &record(995, "lost"), &good]), Ok(()));
        assert!(verdict(&promise, &[&record(2_001, "lost")]).unwrap_err().contains("1 failed"));
        assert!(verdict(&promise, &[&record(900, "lost")]).is_err(), "it was over before the kill");
        let by = |server: &str| Record { server: server.to_owned(), ..record(1_500, "status 500") };
        assert_eq!(verdict(&promise, &[&by("web1")]), Ok(()));
        assert!(verdict(&promise, &[&by("web2")]).is_err(), "another server's");
        let behind = Promise::Crash(crash(false));
        let write = Record { what: "write".to_owned(), ..by("web2") };
        assert_eq!(verdict(&behind, &[&write]), Ok(()));
        assert!(verdict(&behind, &[&by("web2")]).is_err(), "this page needs no application");
    }

    #[test]
    fn a_crash_is_known_in_time_and_explains_so_many_failures() {
        let late = Crash { known: 1_000 + 1_400 + LATE_MS + 1, ..crash(true) };
        assert!(verdict(&Promise::Crash(late), &[]).unwrap_err().contains("after 2901 ms only"));
        let lost: Vec<Record> = (0..6).map(|at| record(1_100 + at, "lost")).collect();
        let lost: Vec<&Record> = lost.iter().collect();
        // Four browsers, and a quarter of six, rounded up.
        assert_eq!(explained(&crash(true), &lost, 4), 6);
        assert_eq!(verdict(&Promise::Crash(crash(true)), &lost), Ok(()));
        let more: Vec<Record> = (0..7).map(|at| record(990 + at, "lost")).collect();
        let more: Vec<&Record> = more.iter().collect();
        assert!(verdict(&Promise::Crash(crash(true)), &more).unwrap_err().contains("more than the 4"));
    }

    #[test]
    fn who_could_not_be_told_is_excused_and_nobody_else() {
        let on = |connected| Record { connected, ..record(1_050, "lost") };
        let promise = Promise::Untold { died: 1_000 };
        assert_eq!(verdict(&promise, &[&on(900), &on(1_000)]), Ok(()));
        assert!(verdict(&promise, &[&on(700)]).is_err(), "it was told long ago");
        assert!(verdict(&promise, &[&on(1_001)]).is_err(), "it began at the other balancer");
        assert!(verdict(&promise, &[&on(0)]).is_err(), "there was no connection at all");
        let again = |given_up| Record { retried: 1, given_up, ..record(1_050, "") };
        assert_eq!(verdict(&promise, &[&again(900)]), Ok(()));
        assert!(verdict(&promise, &[&again(700)]).is_err());
    }

    #[test]
    fn a_lost_connection_breaks_the_promise_although_the_request_was_served_in_the_end() {
        let nothing = Promise::Nothing { gap: TAKEOVER_MS };
        let again = Record { retried: 1, given_up: 1_500, ..record(1_600, "") };
        assert!(verdict(&nothing, &[&again]).unwrap_err().contains("begun again"));
        let reopened = Record { reopened: 1, ..record(1_600, "") };
        assert!(verdict(&nothing, &[&reopened]).unwrap_err().contains("1 kept"));
        let usual = Calm { longest: 0, reopened: 1 };
        assert_eq!(judge(&nothing, &[&reopened], usual, 4), Ok(()));
        assert_eq!(verdict(&Promise::Crash(crash(true)), &[&again, &reopened]), Ok(()));
        assert!(verdict(&Promise::Crash(crash(false)), &[&again]).is_err(), "no web server crashed");
        let late = Record { retried: 1, given_up: 2_001, ..record(2_100, "") };
        assert!(verdict(&Promise::Crash(crash(true)), &[&late]).is_err(), "it was known already");
        assert!(verdict(&nothing, &[&record(5, "lost")]).is_err());
        assert_eq!(verdict(&nothing, &[&record(5, "")]), Ok(()));
    }

    #[test]
    fn nobody_waits_longer_than_promised() {
        let slow = |millis| Record { millis, ..record(1_500, "") };
        let planned = Promise::Nothing { gap: PLANNED_MS };
        assert_eq!(verdict(&planned, &[&slow(1_050)]), Ok(()));
        assert!(verdict(&planned, &[&slow(1_051)]).unwrap_err().contains("a gap of 1051 ms"));
        assert!(verdict(&Promise::Crash(crash(true)), &[&slow(2_951)]).is_err());
        assert!(verdict(&Promise::Untold { died: 1 }, &[&slow(3_051)]).is_err());
    }

    #[test]
    fn what_fails_between_two_events_counts_too() {
        let events = [(100, 200), (300, 400)];
        assert_eq!(between(&[record(95, "lost"), record(250, ""), record(400, "lost")], &events), Ok(()));
        assert!(between(&[record(250, "lost")], &events).unwrap_err().contains("1 failed"));
        let again = Record { retried: 1, ..record(250, "") };
        assert!(between(&[again], &events).is_err());
    }
}
