//! A running playground, told what to do by a second process over a Unix socket: one line asks, `ok` or `error`
//! and a text answer. And the commands of that second process.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
        process::CommandExt as _,
    },
    process::{Command as Program, ExitCode},
    str::FromStr,
    sync::mpsc::{Sender, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};

use super::{args::Command, place::Place, run::Event};
use crate::skip::find_tool;

/// Longest line.
const MAX_LINE: u64 = 256;
const ANSWER_TIME: Duration = Duration::from_secs(30);
const DOWN_TIME: Duration = Duration::from_secs(60);

/// What a running playground can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Order {
    Status,
    Fail { node: String, daemon: bool },
    Heal { node: String },
    Down,
}

impl std::fmt::Display for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status => f.write_str("status"),
            Self::Fail { node, daemon: false } => write!(f, "fail {node}"),
            Self::Fail { node, daemon: true } => write!(f, "fail {node} daemon"),
            Self::Heal { node } => write!(f, "heal {node}"),
            Self::Down => f.write_str("down"),
        }
    }
}

impl FromStr for Order {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["status"] => Ok(Self::Status),
            ["fail", node] => Ok(Self::Fail { node: node.to_owned(), daemon: false }),
            ["fail", node, "daemon"] => Ok(Self::Fail { node: node.to_owned(), daemon: true }),
            ["heal", node] => Ok(Self::Heal { node: node.to_owned() }),
            ["down"] => Ok(Self::Down),
            _ => Err(format!("'{}' is no order to a playground", line.escape_default())),
        }
    }
}

/// An order and where the answer goes.
#[derive(Debug)]
pub(super) struct Request {
    pub order: Order,
    pub reply: Sender<Result<String, String>>,
}

/// Takes orders from now on, each on a thread of its own, until the process ends.
pub(super) fn listen(place: &Place, events: Sender<Event>) -> Result<()> {
    let path = place.control_socket();
    let at = || format!("cannot listen on {}", path.display());
    let listener = UnixListener::bind(&path).with_context(at)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).with_context(at)?;
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                thread::sleep(Duration::from_millis(5));
                continue;
            };
            let events = events.clone();
            // Whoever asked may have gone.
            thread::spawn(move || drop(answer(stream, &events)));
        }
    });
    Ok(())
}

fn answer(mut stream: UnixStream, events: &Sender<Event>) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut line = String::new();
    BufReader::new((&stream).take(MAX_LINE)).read_line(&mut line)?;
    let result = line.trim_end_matches('\n').parse().and_then(|order| {
        let (reply, answer) = channel();
        let ending = || "the playground is ending".to_owned();
        events.send(Event::Request(Request { order, reply })).map_err(|_| ending())?;
        answer.recv().map_err(|_| ending())?
    });
    match result {
        Ok(text) => write!(stream, "ok\n{text}"),
        Err(text) => write!(stream, "error\n{text}"),
    }
}

/// Sends an order to a running playground and returns what it says.
fn ask(place: &Place, order: &Order) -> Result<String> {
    let missing = || {
        format!(
            "no playground named {} answers; `cargo xtask run` brings one up (--name names another)",
            place.name()
        )
    };
    let mut stream = UnixStream::connect(place.control_socket()).with_context(missing)?;
    stream.set_read_timeout(Some(ANSWER_TIME))?;
    writeln!(stream, "{order}")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("the playground did not answer")?;
    match text.split_once('\n') {
        Some(("ok", text)) => Ok(text.to_owned()),
        Some(("error", text)) => bail!("{text}"),
        _ => bail!("the playground ended before it answered"),
    }
}

/// Carries out a command about a running playground.
pub(super) fn execute(place: &Place, command: &Command) -> Result<ExitCode> {
    let order = match command {
        Command::Exec { node, command } => return exec(place, node, command),
        Command::Status => Order::Status,
        Command::Fail { node, daemon } => Order::Fail { node: node.clone(), daemon: *daemon },
        Command::Heal { node } => Order::Heal { node: node.clone() },
        Command::Down => Order::Down,
    };
    let text = ask(place, &order)?;
    if order == Order::Down {
        let deadline = Instant::now() + DOWN_TIME;
        while place.run_dir().exists() {
            if Instant::now() >= deadline {
                bail!("the playground has been told to end and is still there after {DOWN_TIME:?}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
    writeln!(io::stdout().lock(), "{}", text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// Becomes the program, inside the node's namespace; mounts stay, so that bpffs is visible.
fn exec(place: &Place, node: &str, command: &[OsString]) -> Result<ExitCode> {
    if !place.is_up() {
        bail!("no playground named {} is running; `cargo xtask run` brings one up", place.name());
    }
    let file = File::open(place.namespace(node)).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            anyhow::anyhow!("there is no node '{node}'; there are {}", place.nodes().join(", "))
        }
        _ => anyhow::Error::new(error).context(format!("cannot open the namespace of {node}")),
    })?;
    setns(file, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("cannot enter {node} (that needs root)"))?;
    let (program, arguments) = command.split_first().context("which program?")?;
    let found = program.to_str().filter(|name| !name.contains('/')).and_then(find_tool);
    let error = Program::new(found.unwrap_or_else(|| program.into())).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order() -> impl Strategy<Value = Order> {
        prop_oneof![
            Just(Order::Status),
            Just(Order::Down),
            ("[a-z0-9]{1,9}", any::<bool>()).prop_map(|(node, daemon)| Order::Fail { node, daemon }),
            "[a-z0-9]{1,9}".prop_map(|node| Order::Heal { node }),
        ]
    }

    proptest! {
        #[test]
        fn an_order_is_read_as_it_was_written(order in order()) {
            prop_assert_eq!(order.to_string().parse(), Ok(order));
        }

        #[test]
        fn no_line_panics(line in "(fail|heal|down|status)? ?.{0,40}") {
            let _ = line.parse::<Order>();
        }
    }
}
