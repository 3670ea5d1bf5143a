//! The playground: the product at work on one machine, for people to try.
//!
//! ```text
//! host: curl http://127.0.0.1:8080/ --+            +-- browser http://127.0.0.1:9750/
//!                                     | relay      | relay
//!                                   client       lb1, lb2 (each a real lbd)
//!                                     |            |
//!                                   router --- [switch] --- web1 web2 web3
//! ```
//!
//! - [`args`]: the command line; [`messages`]: what is printed;
//! - [`place`]: names and paths of a playground, and removing what a killed one left behind;
//! - [`world`]: the network, the web servers and the daemons, made and taken away;
//! - [`failover`]: when the router changes the balancer (pure); [`probe`]: what it asks them;
//! - [`relay`]: TCP from the host's loopback into a namespace;
//! - [`control`]: a running playground told by a second process what to do;
//! - [`run`]: one loop that owns all of it.

mod args;
mod control;
mod failover;
mod messages;
mod place;
mod probe;
mod progress;
pub(crate) use progress::Progress;
mod relay;
mod run;
mod signals;
mod world;

use std::process::ExitCode;

use clap::Parser as _;

pub use place::inside;

/// The whole program.
pub fn main() -> ExitCode {
    let args = args::Args::parse();
    let outcome = match &args.command {
        None => run::run(&args),
        Some(command) => control::execute(&args.place(), command),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("playground: {error:#}");
        ExitCode::FAILURE
    })
}
