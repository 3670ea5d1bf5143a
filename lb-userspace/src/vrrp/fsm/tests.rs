use super::*;
use crate::{
    config::parse_duration,
    model::VrrpVersion::{V2, V3},
};
use proptest::prelude::*;
use std::{fmt::Write as _, path::PathBuf};

const SECOND: Duration = Duration::from_secs(1);

fn params() -> Params {
    Params {
        version: V3,
        priority: 100,
        interval: SECOND,
        preempt: true,
        preempt_delay: Duration::ZERO,
        startup_delay: Duration::ZERO,
        down_adverts: 3,
        grouped: false,
    }
}

fn heard(priority: u8, order: Ordering) -> Heard {
    Heard { priority, interval: SECOND, source: [10, 0, 0, 2].into(), order }
}

fn step(machine: &mut Machine, event: Event, now: Moment) -> Vec<Action> {
    let mut out = Vec::new();
    machine.step(event, now, &mut out);
    out
}

fn at(ms: u64) -> Moment {
    Moment(ms * 1_000_000)
}

// ---- input and output files -------------------------------------------------------------------------------

/// One line of a machine's parameters: `version 3 priority 100 interval 1s ...`.
fn configured(words: &[&str]) -> Params {
    let mut params = params();
    let duration = |text: &str| parse_duration(text).unwrap_or_else(|| panic!("{text} is no duration"));
    for pair in words.chunks(2) {
        let [key, value] = pair else { panic!("{words:?}: a key without a value") };
        match *key {
            "version" => params.version = if *value == "2" { V2 } else { V3 },
            "priority" => params.priority = value.parse().unwrap(),
            "interval" => params.interval = duration(value),
            "preempt" => params.preempt = *value == "yes",
            "preempt_delay" => params.preempt_delay = duration(value),
            "startup_delay" => params.startup_delay = duration(value),
            "grouped" => params.grouped = *value == "yes",
            "down_adverts" => params.down_adverts = value.parse().unwrap(),
            other => panic!("{other} is no parameter"),
        }
    }
    params
}

fn event(words: &[&str]) -> Event {
    match words {
        ["start"] => Event::Start,
        ["stop"] => Event::Stop,
        ["timer"] => Event::Timer,
        ["fail"] => Event::Fail,
        ["recover"] => Event::Recover,
        ["weight", weight] => Event::Weight(weight.parse().unwrap()),
        ["hold"] => Event::Hold,
        ["release"] => Event::Release,
        ["hand-over"] => Event::HandOver { agreed: false },
        ["hand-over", "agreed"] => Event::HandOver { agreed: true },
        ["handover-requested"] => Event::HandoverRequested,
        ["handover-granted"] => Event::HandoverGranted,
        ["group-master"] => Event::GroupMaster,
        ["group-ask"] => Event::GroupAsk,
        ["group-backup"] => Event::GroupBackup { handed_over: false, yields: false },
        ["group-backup", "handed-over"] => Event::GroupBackup { handed_over: true, yields: false },
        ["group-backup", "yields"] => Event::GroupBackup { handed_over: true, yields: true },
        ["master-lost"] => Event::MasterLost,
        ["make-way"] => Event::MakeWay,
        ["acquired"] => Event::Acquired,
        ["peer-silent", interval] => Event::PeerSilent(parse_duration(interval).unwrap()),
        ["advert", priority, rest @ ..] => {
            let mut heard = heard(priority.parse().unwrap(), Ordering::Less);
            for word in rest {
                match *word {
                    "from-higher" => heard.order = Ordering::Greater,
                    "from-lower" => heard.order = Ordering::Less,
                    "other-family" => heard.order = Ordering::Equal,
                    interval => heard.interval = parse_duration(interval).unwrap(),
                }
            }
            Event::Advert(heard)
        }
        other => panic!("{other:?} is no event"),
    }
}

fn told(action: &Action) -> String {
    match action {
        Action::Send(priority) => format!("send priority {priority}"),
        Action::Acquire => "acquire".to_owned(),
        Action::Release => "release".to_owned(),
        Action::Announce => "announce".to_owned(),
        Action::AskPeer => "ask the peer".to_owned(),
        Action::AskMaster => "ask the master".to_owned(),
        Action::Grant => "tell the old master".to_owned(),
        Action::Entered(phase, cause) => format!("now {}: {}", phase.name(), cause.describe()),
    }
}

fn line(machine: &Machine, actions: &[Action]) -> String {
    let actions: Vec<String> = actions.iter().map(told).collect();
    let deadline = machine.deadline().map_or("no timer".to_owned(), |at| {
        format!("timer at {}.{:06}s", at.0 / 1_000_000_000, at.0 / 1000 % 1_000_000)
    });
    let actions = if actions.is_empty() { "nothing".to_owned() } else { actions.join(", ") };
    format!("> {actions}; {deadline}")
}

fn moment(text: &str) -> Moment {
    // Microseconds too, which durations of the configuration do not have.
    match text.strip_suffix("us") {
        Some(micros) => Moment(micros.parse::<u64>().unwrap() * 1000),
        None => Moment(0) + parse_duration(text).unwrap_or_else(|| panic!("{text} is no moment")),
    }
}

/// Input lines with the output they lead to; everything else as it stands.
fn replay(text: &str) -> String {
    let mut machine = Machine::new(params());
    let mut said = String::new();
    for input in text.lines().filter(|line| !line.starts_with("> ")) {
        let _ = writeln!(said, "{input}");
        let words: Vec<&str> = input.split_whitespace().collect();
        match words.as_slice() {
            [] | ["#", ..] => {}
            ["with", words @ ..] => machine = Machine::new(configured(words)),
            ["linked"] => machine.linked = true,
            ["gated", switch] => machine.gated = *switch == "on",
            ["at", when, "reload", words @ ..] => {
                let mut actions = Vec::new();
                machine.configure(configured(words), moment(when), &mut actions);
                let _ = writeln!(said, "{}", line(&machine, &actions));
            }
            ["at", when, words @ ..] => {
                let actions = step(&mut machine, event(words), moment(when));
                let _ = writeln!(said, "{}", line(&machine, &actions));
            }
            other => panic!("{other:?} is neither a comment, nor 'with', nor 'at'"),
        }
    }
    said
}

/// Each file begins with what it shows, in words. After a change of behaviour run with `LBD_BLESS=1` and read the
/// difference.
#[test]
fn the_conformance_files_hold() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/vrrp/fsm/conformance");
    let mut files = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# "), "{}: a file begins with what it shows", path.display());
        let said = replay(&text);
        if std::env::var_os("LBD_BLESS").is_some() {
            std::fs::write(&path, said).unwrap();
        } else {
            assert_eq!(said, text, "{}", path.display());
        }
        files += 1;
    }
    assert!(files >= 8, "{files} files");
}

// ---- the cross product ------------------------------------------------------------------------------------

/// Every state, with every flag that changes what it does.
fn states() -> Vec<(&'static str, Machine)> {
    let fresh = || Machine::new(params());
    let after = |events: &[Event]| {
        let mut machine = fresh();
        for event in events {
            step(&mut machine, *event, at(0));
        }
        machine
    };
    let backup = [Event::Start, Event::Advert(heard(150, Ordering::Less))];
    let master = [Event::Start, Event::HandoverRequested, Event::Acquired];
    let linked = || {
        let mut machine = fresh();
        machine.linked = true;
        step(&mut machine, Event::Start, at(0));
        step(&mut machine, Event::Advert(heard(50, Ordering::Less)), at(0));
        machine
    };
    let ready = || {
        let mut machine = after(&backup);
        machine.params.grouped = true;
        step(&mut machine, Event::Timer, at(5_000));
        machine
    };
    vec![
        ("init", fresh()),
        ("init, failed", after(&[Event::Fail])),
        ("backup, unsure", after(&[Event::Start])),
        ("backup", after(&backup)),
        ("backup, held", after(&[&backup[..], &[Event::Hold]].concat())),
        ("backup, gated", Machine { gated: true, ..after(&backup) }),
        ("backup, better than the master, linked", linked()),
        ("backup, yielded", after(&[&master[..], &[Event::HandOver { agreed: false }]].concat())),
        ("backup, grouped and ready", ready()),
        ("backup, grouped and ready, gated", Machine { gated: true, ..ready() }),
        ("backup, better than the master, gated since", Machine { gated: true, ..linked() }),
        ("backup, grouped, has asked", {
            let mut machine = linked();
            machine.params.grouped = true;
            step(&mut machine, Event::GroupAsk, at(0));
            machine
        }),
        ("backup, owner, gated at its start", {
            let mut machine = Machine { gated: true, ..Machine::new(Params { priority: 255, ..params() }) };
            step(&mut machine, Event::Start, at(0));
            machine
        }),
        ("backup, owner, yielded", {
            let mut machine = Machine::new(Params { priority: 255, ..params() });
            step(&mut machine, Event::Start, at(0));
            step(&mut machine, Event::HandOver { agreed: false }, at(0));
            machine
        }),
        ("master, taking over", after(&master[..2])),
        ("master", after(&master)),
        ("master, making way", after(&[&master[..], &[Event::MakeWay]].concat())),
        ("master, handing over", after(&[&master[..], &[Event::HandOver { agreed: true }]].concat())),
        ("master, handing over, of a group that has", {
            let left = Event::GroupBackup { handed_over: true, yields: false };
            after(&[&master[..], &[Event::MakeWay, left]].concat())
        }),
        ("fault", after(&[Event::Start, Event::Fail])),
    ]
}

fn events() -> Vec<(&'static str, Event)> {
    vec![
        ("start", Event::Start),
        ("stop", Event::Stop),
        ("advert, priority 0", Event::Advert(heard(0, Ordering::Greater))),
        ("advert, lower priority", Event::Advert(heard(99, Ordering::Greater))),
        ("advert, equal, lower address", Event::Advert(heard(100, Ordering::Less))),
        ("advert, equal, other family", Event::Advert(heard(100, Ordering::Equal))),
        ("advert, equal, higher address", Event::Advert(heard(100, Ordering::Greater))),
        ("advert, higher priority", Event::Advert(heard(101, Ordering::Less))),
        ("timer, too early", Event::Timer),
        ("timer", Event::Timer),
        ("fail", Event::Fail),
        ("recover", Event::Recover),
        ("weight -60", Event::Weight(-60)),
        ("hold", Event::Hold),
        ("release", Event::Release),
        ("hand over", Event::HandOver { agreed: false }),
        ("hand over, agreed", Event::HandOver { agreed: true }),
        ("handover requested", Event::HandoverRequested),
        ("handover granted", Event::HandoverGranted),
        ("group master", Event::GroupMaster),
        ("group ask", Event::GroupAsk),
        ("group backup", Event::GroupBackup { handed_over: false, yields: false }),
        ("group backup, handed over", Event::GroupBackup { handed_over: true, yields: false }),
        ("group backup, yields", Event::GroupBackup { handed_over: true, yields: true }),
        ("master lost", Event::MasterLost),
        ("make way", Event::MakeWay),
        ("acquired", Event::Acquired),
        ("peer silent", Event::PeerSilent(Duration::from_millis(10))),
    ]
}

/// All pairs, in a file that is read like the table of RFC 9568 section 6.4.
#[test]
fn the_full_cross_product() {
    let mut said = "# Every state with every event: what is done, and the timer after it.\n\
                    # Priority 100, interval 1 s, version 3; the event comes at 0.1 s, the timer at 10 s.\n"
        .to_owned();
    for (state, machine) in states() {
        let _ = writeln!(said, "\n{state}");
        for (name, event) in events() {
            let now = if name == "timer" { at(10_000) } else { at(100) };
            let mut machine = machine.clone();
            let actions = step(&mut machine, event, now);
            let _ = writeln!(said, "  {name:30}{} -> {}", line(&machine, &actions), machine.phase().name());
        }
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/vrrp/fsm/cross_product.txt");
    if std::env::var_os("LBD_BLESS").is_some() {
        std::fs::write(path, said).unwrap();
    } else {
        assert_eq!(said, std::fs::read_to_string(path).unwrap());
    }
}

/// By RFC 9568 section 7.1 an owner listens to nobody; but here one can have given its addresses away.
#[test]
fn an_owner_hears_its_successor() {
    let mut owner = Machine::new(Params { priority: OWNER_PRIORITY, ..params() });
    assert!(!owner.owns());
    step(&mut owner, Event::Start, at(0));
    assert!(owner.owns());
    step(&mut owner, Event::HandOver { agreed: true }, at(100));
    assert!(!owner.owns(), "the successor's advertisement tells that it is master");
    step(&mut owner, Event::HandoverGranted, at(200));
    assert!(!owner.owns(), "unheard, the successor would be thrown out after three intervals");
    assert_eq!(Machine::new(params()).priority(), 100);
    let mut other = Machine::new(params());
    step(&mut other, Event::Start, at(0));
    step(&mut other, Event::Timer, at(4000));
    assert!(other.phase() == Phase::Master && !other.owns());
}

// ---- what holds whatever comes ----------------------------------------------------------------------------

fn any_event() -> impl Strategy<Value = Event> {
    let orders = prop_oneof![Just(Ordering::Less), Just(Ordering::Equal), Just(Ordering::Greater)];
    let advert = (prop_oneof![Just(0u8), Just(99), Just(100), Just(101), any::<u8>()], orders, 1u64..500)
        .prop_map(|(priority, order, ms)| {
            Event::Advert(Heard { interval: Duration::from_millis(ms * 10), ..heard(priority, order) })
        });
    prop_oneof![
        6 => advert,
        8 => Just(Event::Timer),
        1 => Just(Event::Start),
        1 => Just(Event::Stop),
        1 => Just(Event::Fail),
        1 => Just(Event::Recover),
        1 => (-300i16..300).prop_map(Event::Weight),
        1 => Just(Event::Hold),
        1 => Just(Event::Release),
        1 => any::<bool>().prop_map(|agreed| Event::HandOver { agreed }),
        1 => Just(Event::HandoverRequested),
        1 => Just(Event::HandoverGranted),
        1 => Just(Event::GroupMaster),
        1 => Just(Event::GroupAsk),
        1 => (any::<bool>(), any::<bool>())
            .prop_map(|(handed_over, yields)| Event::GroupBackup { handed_over, yields }),
        1 => Just(Event::MasterLost),
        1 => Just(Event::MakeWay),
        1 => Just(Event::Acquired),
        1 => Just(Event::PeerSilent(Duration::from_millis(10))),
    ]
}

proptest! {
    /// The addresses are on the interface exactly while the node is master; it leaves with a good-bye or because
    /// somebody else is master; a held or failed node never becomes master; timers lie ahead.
    #[test]
    fn what_always_holds(
        priority in 1u8..=255,
        preempt: bool,
        grouped: bool,
        delay in 0u64..5000,
        linked: bool,
        gated: bool,
        events in proptest::collection::vec((any_event(), 0u64..2000), 1..60),
    ) {
        let delay = Duration::from_millis(delay);
        let mut machine = Machine::new(Params { priority, preempt, grouped, preempt_delay: delay, ..params() });
        (machine.linked, machine.gated) = (linked, gated);
        let (mut now, mut has, mut master_told) = (at(0), false, false);
        for (event, pause) in events {
            now = now + Duration::from_millis(pause);
            let before = machine.clone();
            let actions = step(&mut machine, event, now);
            for action in &actions {
                match action {
                    Action::Acquire => {
                        prop_assert!(!has);
                        has = true;
                    }
                    Action::Release => has = false,
                    Action::Send(0) => prop_assert_eq!(before.phase(), Phase::Master),
                    Action::Send(sent) => prop_assert_eq!(*sent, machine.priority()),
                    Action::Entered(phase, _) => {
                        prop_assert_eq!(*phase, machine.phase());
                        master_told = *phase == Phase::Master;
                    }
                    Action::Announce => prop_assert!(has),
                    Action::AskPeer | Action::Grant => prop_assert_eq!(machine.phase(), Phase::Master),
                    Action::AskMaster => {
                        prop_assert!(machine.phase() == Phase::Backup && !machine.held);
                        prop_assert!(linked || event == Event::GroupAsk, "the group knows whether it can ask");
                    }
                }
            }
            let master = machine.phase() == Phase::Master;
            prop_assert_eq!(has, master);
            prop_assert_eq!(master_told, master, "every change is told");
            if master {
                prop_assert!(!machine.failed && !machine.held);
            }
            if before.phase() == Phase::Master && !master {
                let superior = matches!(event, Event::Advert(_) | Event::HandoverGranted);
                prop_assert!(superior || actions[0] == Action::Send(0));
            }
            if !master && before.phase() == Phase::Init && event != Event::Start {
                prop_assert_eq!(machine.phase(), Phase::Init);
            }
            if event == Event::Timer {
                prop_assert!(machine.deadline().is_none_or(|at| at > now));
            }
        }
    }

    /// Two machines that hear each other end with one master, the one of higher priority or address, if they
    /// preempt; with any master if not.
    #[test]
    fn two_nodes_have_one_master(
        a in 1u8..=254,
        b in 1u8..=254,
        preempt: bool,
        late in 0u64..8000,
        split in 0u64..5000,
    ) {
        let machine = |priority| Machine::new(Params { priority, preempt, ..params() });
        let mut nodes = [machine(a), machine(b)];
        let mut now = at(0);
        let deliver = |nodes: &mut [Machine; 2], from: usize, out: Vec<Action>, now: Moment, cut: bool| {
            let mut queue = vec![(from, out)];
            while let Some((from, actions)) = queue.pop() {
                for action in actions {
                    if let (Action::Send(priority), false) = (action, cut) {
                        let order = if from == 1 { Ordering::Greater } else { Ordering::Less };
                        let event = Event::Advert(heard(priority, order));
                        queue.push((1 - from, step(&mut nodes[1 - from], event, now)));
                    }
                }
            }
        };
        let first = step(&mut nodes[0], Event::Start, now);
        deliver(&mut nodes, 0, first, now, false);
        let mut started = false;
        while now < at(40_000) {
            // They do not hear each other for a while.
            let cut = (at(15_000)..at(15_000 + split)).contains(&now);
            for node in 0..2 {
                if node == 1 && !started && now >= at(late) {
                    started = true;
                    let out = step(&mut nodes[1], Event::Start, now);
                    deliver(&mut nodes, 1, out, now, cut);
                }
                let out = step(&mut nodes[node], Event::Timer, now);
                deliver(&mut nodes, node, out, now, cut);
            }
            now = now + Duration::from_millis(1);
        }
        let masters: Vec<usize> = (0..2).filter(|i| nodes[*i].phase() == Phase::Master).collect();
        prop_assert_eq!(masters.len(), 1, "{:?}", nodes);
        if preempt && a != b {
            prop_assert_eq!(masters[0], usize::from(b > a));
        }
    }
}
