//! The command line. The doc comments are its help.

use std::{ffi::OsString, path::Path};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use super::place::Place;

/// The usual name.
const NAME: &str = "playground";
/// More would only take long.
const MAX_BACKENDS: i64 = 64;

/// A client, a router, two load balancers and their web servers, in network namespaces of this machine
///
/// Runs until Ctrl-C, which removes every trace. Nothing outside the namespaces is changed, except for two
/// ports on the loopback (127.0.0.1:8080 is the site, 127.0.0.1:9750 the dashboard).
#[derive(Debug, Parser)]
#[command(
    name = "playground",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples, while one is running (in another terminal):
  playground status                          who forwards, who is down, where things are
  playground exec client curl -s http://192.0.2.10/
  playground exec lb1 ip address             any program inside a node
  playground fail web2                       kills its web server; `heal web2` starts it again
  playground fail lb1                        unplugs a balancer; `heal lb1` plugs it in
  playground fail lb1 --daemon               kills only its lbd: forwarding goes on
  playground down                            as Ctrl-C in its terminal"
)]
pub(super) struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub bring_up: BringUp,
    /// Its name, part of all it makes; several can run side by side under different names
    #[arg(long, global = true, default_value = NAME, value_parser = name)]
    pub name: String,
}

#[derive(Debug, ClapArgs)]
pub(super) struct BringUp {
    /// How packets reach the web servers: MAC rewrite, IP in IP, or Generic UDP Encapsulation
    #[arg(long, value_enum, default_value_t = Mode::Dsr)]
    pub forward: Mode,
    /// How many web servers
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = backends)]
    pub backends: usize,
    /// Bring everything up, check it with 100 requests each over IPv4 and IPv6, take it down; status 0 if all went well
    #[arg(long)]
    pub once: bool,
    /// Show every second what the web servers get
    #[arg(long, conflicts_with_all = ["once", "quiet"])]
    pub live: bool,
    /// No progress display; errors only
    #[arg(short, long)]
    pub quiet: bool,
    /// Port on 127.0.0.1 that leads to the site [default: 8080, or a free one]
    #[arg(long, value_name = "PORT")]
    pub http_port: Option<u16>,
    /// Port on 127.0.0.1 that leads to the dashboard of lb1 [default: 9750, or a free one]
    #[arg(long, value_name = "PORT")]
    pub dashboard_port: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
    Dsr,
    Ipip,
    Gue,
}

impl Mode {
    /// As in the daemon's configuration.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Dsr => "dsr",
            Self::Ipip => "ipip",
            Self::Gue => "gue",
        }
    }

    pub(super) fn is_tunnel(self) -> bool {
        match self {
            Self::Dsr => false,
            Self::Ipip | Self::Gue => true,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a program inside a node of the running playground
    Exec {
        /// client, router, switch, lb1, lb2, web1, web2, ...
        node: String,
        /// The program and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Show who forwards, who is down, and where things are
    Status,
    /// Kill a web server (webN), or unplug a balancer (lb1, lb2)
    Fail {
        /// lb1, lb2, web1, web2, ...
        node: String,
        /// Of a balancer, kill only the daemon; the kernel goes on forwarding
        #[arg(long)]
        daemon: bool,
    },
    /// Undo `fail`
    Heal {
        /// lb1, lb2, web1, web2, ...
        node: String,
    },
    /// End the running playground and wait until every trace of it is gone
    Down,
}

impl Args {
    /// A check of its own, that may run beside any playground.
    fn is_private(&self) -> bool {
        self.command.is_none() && self.bring_up.once && self.name == NAME
    }

    pub(super) fn place(&self) -> Place {
        if self.is_private() {
            Place::new(&format!("{NAME}-{}", std::process::id()))
        } else {
            Place::new(&self.name)
        }
    }
}

/// A name becomes part of paths of Unix sockets and of interface-like names: short and plain.
fn name(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let good = (1..=40).contains(&text.len())
        && text.bytes().all(plain)
        && !text.starts_with('-')
        && !text.ends_with('-')
        && Path::new(text).components().count() == 1;
    if good {
        Ok(text.to_owned())
    } else {
        Err("use 1 to 40 small letters, digits and '-', neither first nor last a '-'".to_owned())
    }
}

fn backends(text: &str) -> Result<usize, String> {
    match text.parse::<i64>() {
        Ok(n @ 1..=MAX_BACKENDS) => Ok(n as usize),
        _ => Err(format!("expected a number from 1 to {MAX_BACKENDS}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_command_keeps_its_options_for_itself() {
        let args = Args::try_parse_from(["p", "exec", "client", "curl", "-s", "--name", "x"]).unwrap();
        assert_eq!(args.name, NAME);
        assert!(matches!(args.command, Some(Command::Exec { command, .. }) if command.len() == 4));
        let args = Args::try_parse_from(["p", "status", "--name", "other"]).unwrap();
        assert_eq!(args.place().name(), "other");
    }

    #[test]
    fn impossible_values_are_refused() {
        for bad in [
            &["p", "--backends", "0"][..],
            &["p", "--backends", "1000"],
            &["p", "--forward", "nat"],
            &["p", "--name", "../x"],
            &["p", "--name", "a-"],
            &["p", "exec", "client"],
        ] {
            assert!(Args::try_parse_from(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_self_check_has_a_name_of_its_own_unless_it_is_given_one() {
        let named = |words: &[&str]| Args::try_parse_from(words).unwrap().place().name().to_owned();
        assert_eq!(named(&["p"]), "playground");
        assert_ne!(named(&["p", "--once"]), "playground");
        assert_eq!(named(&["p", "--once", "--name", "t"]), "t");
    }
}
