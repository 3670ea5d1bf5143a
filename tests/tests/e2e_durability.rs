//! Runtime changes last: the daemon is killed at any moment of any change, and the disk is full or read-only.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use lb_tests::{
    balancer::{Balancer, Service, Settings, program, text},
    lab::{Result, Shape, Topology},
    require,
    skip::Need,
};
use lb_userspace::{
    control::{client::Client, request::NewBackend},
    model::{Admin, BackendName, ServiceName},
};

/// Changes in all, unless `LBD_DURABILITY_CHANGES` says otherwise.
const CHANGES: u64 = 1_000;
const KILLS: u64 = 25;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

/// What an operator would see of the service: weight and state by backend.
type State = BTreeMap<String, (u16, Admin)>;

/// One change, and the state after it.
#[derive(Debug, Clone)]
struct Step {
    what: What,
    after: State,
}

#[derive(Debug, Clone)]
enum What {
    Weight(String, u16),
    Admin(String, Admin),
    Add(String, u8),
    Remove(String),
}

fn step(dice: &mut Dice, now: &State) -> Step {
    let mut after = now.clone();
    let names: Vec<&String> = now.keys().collect();
    let name = names[dice.roll(names.len() as u64) as usize].clone();
    let extra = 10 + dice.roll(20) as u8;
    let what = match dice.roll(8) {
        0 if !now.contains_key(&format!("extra{extra}")) => What::Add(format!("extra{extra}"), extra),
        1 if name.starts_with("extra") => What::Remove(name),
        2 => {
            let states = [Admin::Enabled, Admin::Draining, Admin::Disabled];
            let others: Vec<_> = states.into_iter().filter(|state| *state != now[&name].1).collect();
            What::Admin(name, others[dice.roll(2) as usize])
        }
        _ => {
            let weight = now[&name].0;
            What::Weight(
                name,
                (weight + 1 + dice.roll(999) as u16) % 1_000 + 1_000 * u16::from(weight < 1_000),
            )
        }
    };
    match &what {
        What::Weight(name, weight) => after.get_mut(name).expect("there").0 = *weight,
        What::Admin(name, admin) => after.get_mut(name).expect("there").1 = *admin,
        What::Add(name, _) => drop(after.insert(name.clone(), (100, Admin::Enabled))),
        What::Remove(name) => drop(after.remove(name)),
    }
    Step { what, after }
}

/// The answered state with its revision, and what was asked and not answered.
#[derive(Debug, Default)]
struct Known {
    revision: u64,
    answered: State,
    asked: Option<Step>,
}

fn www() -> ServiceName {
    "www".parse().expect("a name")
}

async fn ask(
    client: &Client,
    what: &What,
) -> std::result::Result<u64, lb_userspace::control::client::ClientError> {
    let name = |name: &String| name.parse::<BackendName>().expect("a name");
    let view = match what {
        What::Weight(backend, weight) => client.backend_weight(&www(), &name(backend), *weight).await,
        What::Admin(backend, admin) => client.backend_admin(&www(), &name(backend), *admin).await,
        What::Add(backend, last) => {
            let address = [10, 66, 0, *last].into();
            let new = NewBackend { name: name(backend), address, port: None, weight: None, backup: false };
            client.backend_add(&www(), &new).await
        }
        What::Remove(backend) => client.backend_remove(&www(), &name(backend)).await,
    };
    view.map(|view| view.revision)
}

/// Changes one after the other until the daemon does not answer any more.
fn change_until_killed(socket: &Path, mut dice: Dice, known: &Mutex<Known>, done: &AtomicU64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let client = Client::new(socket);
    loop {
        let next = {
            let mut known = known.lock().expect("nobody panics with it");
            let next = step(&mut dice, &known.answered);
            known.asked = Some(next.clone());
            next
        };
        match runtime.block_on(ask(&client, &next.what)) {
            Ok(revision) => {
                let mut known = known.lock().expect("nobody panics with it");
                assert_eq!(revision, known.revision + 1, "{next:?}");
                *known = Known { revision, answered: next.after, asked: None };
                done.fetch_add(1, Ordering::SeqCst);
            }
            Err(lb_userspace::control::client::ClientError::Answer { view, .. }) => {
                panic!("{next:?} was refused: {}", view.error);
            }
            Err(_) => return,
        }
    }
}

fn present(balancer: &Balancer<'_>) -> (u64, State) {
    let service = balancer.service("www");
    let state = service.backends.into_iter().map(|b| (b.name, (b.weight, b.admin))).collect();
    (balancer.status().revision, state)
}

#[test]
fn killed_at_any_moment_the_last_answered_change_is_there() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let from_env = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64);
    let seed = from_env("LBD_SEED").unwrap_or(clock);
    let changes = from_env("LBD_DURABILITY_CHANGES").unwrap_or(CHANGES);
    eprintln!("seed {seed}: LBD_SEED={seed} repeats it");
    let mut dice = Dice(seed);

    let topology = Topology::new(&Shape::default())?;
    let service = Service::www([topology.vip4(), topology.vip6()]).nodes(&topology.backends);
    let mut balancer = Balancer::prepare(&topology, Settings::of([service.extra("ring_size = 1009")]))?;
    // Nobody asks for the MAC addresses of the backends that come and go.
    balancer.node.ns.ip("route add unreachable 10.66.0.0/16\n")?;
    balancer.restart()?;
    let (revision, answered) = present(&balancer);
    let known = Arc::new(Mutex::new(Known { revision, answered, asked: None }));
    let done = Arc::new(AtomicU64::new(0));

    let (mut kills, mut of_asked, mut lost) = (0, 0, 0);
    let mut longest = Duration::ZERO;
    while done.load(Ordering::SeqCst) < changes {
        let begun = done.load(Ordering::SeqCst);
        let (socket, own) = (balancer.socket(), Dice(dice.roll(u64::MAX)));
        let (of_thread, count) = (Arc::clone(&known), Arc::clone(&done));
        let changing = std::thread::spawn(move || change_until_killed(&socket, own, &of_thread, &count));
        let target = begun + changes / KILLS / 2 + dice.roll(changes / KILLS);
        let waiting = Instant::now();
        while done.load(Ordering::SeqCst) < target && !changing.is_finished() {
            assert!(waiting.elapsed() < Duration::from_secs(120), "{} changes", done.load(Ordering::SeqCst));
            std::thread::sleep(Duration::from_micros(200));
        }
        // Any moment of a change, the length of which the last ones tell.
        let each = waiting.elapsed() / (target - begun).max(1) as u32;
        longest = longest.max(each);
        std::thread::sleep(each * dice.roll(1_000) as u32 / 1_000);
        balancer.kill();
        kills += 1;
        changing.join().expect("every change was answered with 200");

        let file = balancer.state_dir().join("runtime.json");
        let bytes = fs::read(&file).expect("the state file");
        serde_json::from_slice::<serde_json::Value>(&bytes).expect("the file is whole");
        balancer.restart()?;
        let (revision, state) = present(&balancer);
        let mut known = known.lock().expect("nobody panics with it");
        let as_answered = (revision, &state) == (known.revision, &known.answered);
        let asked = known.asked.take();
        let as_asked =
            asked.as_ref().is_some_and(|step| (revision, &state) == (known.revision + 1, &step.after));
        assert!(
            as_answered || as_asked,
            "seed {seed}, after kill {kills}: revision {revision} with {state:?}; answered was revision {} with {:?}, asked {asked:?}",
            known.revision,
            known.answered
        );
        of_asked += u64::from(as_asked);
        lost += u64::from(as_answered && asked.is_some());
        (known.revision, known.answered) = (revision, state);
        let aside: Vec<PathBuf> = fs::read_dir(balancer.state_dir())
            .expect("the state directory")
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.to_string_lossy().contains("corrupt"))
            .collect();
        assert_eq!(aside, Vec::<PathBuf>::new(), "seed {seed}");
    }
    eprintln!(
        "{} changes, {kills} kills: of those not answered {of_asked} were there after the start and {lost} were not; {longest:?} a change at most",
        done.load(Ordering::SeqCst)
    );
    Ok(())
}

/// A daemon whose state directory is a file system of its own, in a mount namespace of its own.
fn start_on_small_disk<'t>(topology: &'t Topology) -> Result<Balancer<'t>> {
    let service = Service::www([topology.vip4()]).nodes(&topology.backends).extra("ring_size = 1009");
    let mut balancer = Balancer::prepare(topology, Settings::of([service]))?;
    fs::create_dir_all(balancer.state_dir()).expect("a directory");
    let mut command = balancer.node.ns.command("unshare");
    let script = "mount --make-rprivate / && mount -t tmpfs -o size=64k,mode=755 none \"$0\" && exec \"$@\"";
    command.args(["--mount", "sh", "-c", script]).arg(balancer.state_dir()).arg(program("lbd"));
    command.arg("--config").arg(balancer.config_file()).env_remove("RUST_LOG");
    balancer.restart_with(command)?;
    Ok(balancer)
}

#[test]
fn on_a_full_or_read_only_disk_nothing_is_half_done() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("unshare"), Need::Tool("nsenter"));
    let topology = Topology::new(&Shape::default())?;
    let balancer = start_on_small_disk(&topology)?;
    let pid = balancer.process().pid();
    // Through the daemon's own root: only it sees that file system.
    let state = balancer.state_dir();
    let inside = PathBuf::from(format!("/proc/{pid}/root{}", state.display()));
    let remount = |how: &str| {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &pid.to_string(), "mount", "-o", &format!("remount,{how}")]);
        let output = command.arg(&state).output().expect("nsenter");
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    balancer.lbctl(&["backend", "weight", "www", "web1", "200"]);
    let before = (present(&balancer), fs::read(inside.join("runtime.json")).expect("the state file"));

    let refused = |why: &str| {
        for change in [
            &["backend", "weight", "www", "web2", "7"][..],
            &["backend", "drain", "www", "web3"],
            &["backend", "remove", "www", "web1"],
            &["deny", "add", "203.0.113.0/24"],
            &["reset"],
        ] {
            let output = balancer.lbctl_output(change);
            let error = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{change:?}: {error}");
            assert!(
                error.contains(why) && error.contains("the old file is unchanged"),
                "{change:?}: {error}"
            );
            let file = fs::read(inside.join("runtime.json")).expect("the state file");
            assert_eq!((present(&balancer), file), before, "{change:?}");
        }
        assert_eq!(balancer.lbctl(&["deny", "list"]).matches("203.0.113.0").count(), 0);
        assert!(!inside.join(".runtime.json.new").exists(), "what was begun is removed");
    };
    let fill = inside.join("fill");
    let blocks = (1..=64).rev().find(|kib| fs::write(&fill, vec![1; kib << 10]).is_ok());
    assert!(blocks.is_some(), "nothing could be written at all");
    while let Ok(mut file) = fs::OpenOptions::new().append(true).open(&fill) {
        if std::io::Write::write_all(&mut file, &[1; 512]).is_err() {
            break;
        }
    }
    refused("No space left on device");
    fs::remove_file(&fill).expect("made above");
    remount("ro");
    refused("Read-only file system");
    remount("rw");

    balancer.lbctl(&["backend", "weight", "www", "web2", "7"]);
    let (revision, now) = present(&balancer);
    assert_eq!((revision, now["web2"].0), (before.0.0 + 1, 7), "refused changes do not count");
    Ok(())
}
