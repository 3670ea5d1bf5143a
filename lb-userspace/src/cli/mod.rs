//! The body of `lbctl`: arguments, the call to the daemon, and what is printed.
//!
//! Exit status: 0 done, 1 not carried out, 2 the command line, the request or the configuration is wrong.

pub mod args;
pub mod bgp;
pub mod changes;
pub mod connect;
pub mod decap;
pub mod firewall;
pub mod fleet;
pub mod gradual;
pub mod import;
mod import_files;
mod link;
mod observe;
pub mod pair;
pub mod parse;
mod render;
pub mod save;
mod table;
pub mod top;
pub mod watch;

use crate::control::api::ChangeView;
use crate::control::client::{Client, ClientError};
use crate::control::observe::{AskFlows, AskTrace};
use crate::control::request::{NewBackend, SetWeight, same_family};
use crate::control::way::ServerError;
use crate::model::{Admin, ServiceName, Verdict};
use args::{BackendCommand, Cli, Command, ConfigCommand, Output, ServiceCommand};
use clap::{CommandFactory, Parser};
use decap::Decap;
use firewall::{LimitCommand, ListCommand};
use parse::Target;
use serde::Serialize;
use std::ffi::OsString;
use std::io::{self, Write};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The command line, found wrong after parsing.
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Prefixes(#[from] firewall::FileError),
    #[error(transparent)]
    Document(#[from] fleet::FileError),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Import(#[from] import::ImportError),
    #[error("no service '{0}'; see `lbctl service list`")]
    NoService(ServiceName),
    #[error("{0}")]
    Drain(gradual::Unfinished),
    #[error("{0:#}")]
    Decap(anyhow::Error),
    #[error("cannot start: {0}")]
    Runtime(io::Error),
    #[error("the answer cannot be printed as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl Failure {
    fn exit_status(&self) -> u8 {
        let usage = match self {
            Self::Client(e) => e.is_usage(),
            Self::Usage(_) | Self::Prefixes(_) | Self::Document(_) | Self::Server(_) | Self::Import(_) => {
                true
            }
            Self::NoService(_) | Self::Drain(_) | Self::Decap(_) | Self::Runtime(_) | Self::Json(_) => false,
        };
        if usage { 2 } else { 1 }
    }
}

/// Runs one command line (its first word is the program's name) and gives back the exit status.
pub fn run(
    args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    decap: &dyn Decap,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            let status = u8::try_from(e.exit_code()).unwrap_or(2);
            // Knows by itself which stream it goes to and whether that has colours.
            let _ = e.print();
            return status;
        }
    };
    let executed = match &cli.command {
        Command::Trace(options) => trace(&cli, options, out).map(|()| String::new()),
        Command::Backend { command: BackendCommand::Drain(options) } if options.waits() => {
            gradual::drain(&cli, options, out).map(|()| String::new())
        }
        Command::Watch(options) => watch::run(&cli, options, out).map(|()| String::new()),
        Command::Import(options) => import::run(options, err).map_err(Failure::from),
        _ => execute(&cli, decap),
    };
    let (status, trouble) = match executed {
        Ok(text) => match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => (0, None),
            // The reader has seen enough, as in `lbctl service list | head -1`.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => (0, None),
            Err(e) => (1, Some(format!("cannot write the answer: {e}"))),
        },
        Err(e) => (e.exit_status(), Some(e.to_string())),
    };
    if let Some(trouble) = trouble {
        let _ = writeln!(err, "lbctl: {}", table::printable_lines(&trouble));
    }
    status
}

/// The daemon that the command line names.
fn client(cli: &Cli) -> Result<Client, Failure> {
    let unconditional = matches!(
        cli.command,
        Command::Decap { .. }
            | Command::Completions { .. }
            | Command::Detach { .. }
            | Command::Trace(_)
            | Command::Watch(_)
    );
    if cli.if_revision.is_some() && unconditional {
        return Err(Failure::Usage("--if-revision has no meaning for this command; leave it out".to_owned()));
    }
    let client = match cli.remote.server()? {
        Some(server) => Client::of_server(server),
        None => Client::new(cli.socket()),
    };
    Ok(client.if_revision(cli.if_revision))
}

/// The text for stdout.
fn execute(cli: &Cli, decap: &dyn Decap) -> Result<String, Failure> {
    let client = client(cli)?.asking(gradual::options(&cli.command));
    let output = cli.output;
    match &cli.command {
        Command::Fleet { command } => fleet(&client, output, command.as_ref()),
        Command::Bgp => print(output, &wait(client.bgp())?, bgp::render),
        Command::Status => print(output, &wait(client.status())?, render::status),
        Command::Service { command: ServiceCommand::List } => {
            print(output, &wait(client.services())?, |services| render::services(services))
        }
        Command::Service { command: ServiceCommand::Show { name } } => {
            print(output, &wait(client.service(name))?, render::service)
        }
        Command::Backend { command } => print(output, &wait(backend(&client, command))?, render::change),
        Command::Top(options) => top::run(&client, *options, output),
        Command::Trace(_) | Command::Watch(_) | Command::Import(_) => unreachable!("they print as they go"),
        Command::Flows { service, backend, limit } => {
            let name = |name: &dyn ToString| name.to_string();
            let ask = AskFlows {
                service: service.as_ref().map(|s| name(s)),
                backend: backend.as_ref().map(|b| name(b)),
                limit: *limit,
            };
            print(output, &wait(client.flows(&ask))?, observe::flows)
        }
        Command::Explain { protocol, source, destination, flags, length } => {
            same_family(*source, *destination).map_err(|e| Failure::Usage(e.to_string()))?;
            let answer = wait(client.explain(*protocol, *source, *destination, flags.as_deref(), *length))?;
            print(output, &answer, |view| render::explain(*protocol, *source, *destination, view))
        }
        Command::Drops { all } => print(output, &wait(client.drops())?, |drops| render::drops(drops, *all)),
        Command::Deny { command } => list(&client, output, Verdict::Deny, command),
        Command::Allow { command } => list(&client, output, Verdict::Allow, command),
        Command::Limit { command: LimitCommand::Show { service } } => {
            let mut limits = wait(client.limits())?;
            if let Some(service) = service {
                limits.retain(|view| view.service == service.as_str());
                if limits.is_empty() {
                    return Err(Failure::NoService(service.clone()));
                }
            }
            print(output, &limits, |limits| firewall::render_limits(limits))
        }
        Command::Limit { command } => {
            print(output, &wait(firewall::change_limits(&client, command))?, render::change)
        }
        Command::Pair { command: None } => {
            let link = wait(client.link())?;
            print(output, &wait(client.pair())?, |views| {
                pair::render(views) + &link.as_ref().map_or_else(String::new, link::render)
            })
        }
        Command::Pair { command: Some(command) } => {
            print(output, &wait(pair::change(&client, command))?, render::change)
        }
        Command::Reload { careful } => print(output, &wait(client.reload(careful.plan))?, render::change),
        Command::Config { command: ConfigCommand::Show } => {
            print(output, &wait(client.config())?, render::config)
        }
        Command::Changes => print(output, &wait(client.changes())?, changes::render),
        Command::Save(options) if options.file.is_some() => {
            Ok(save::write(options, &wait(client.save(true))?)?)
        }
        Command::Save(options) => print(output, &wait(client.save(options.print))?, save::render),
        Command::Reset(options) => print(output, &wait(client.reset(&options.request()))?, render::change),
        Command::Detach { yes: true } => print(output, &wait(client.detach())?, render::change),
        Command::Detach { yes: false } => Err(Failure::Usage(
            "detach removes the load balancer's programs and maps from the kernel and ends lbd: forwarding \
             stops at once. Say so with: lbctl detach --yes"
                .to_owned(),
        )),
        Command::Decap { command } => decap::execute(command, output, decap),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "lbctl", &mut script);
            Ok(String::from_utf8_lossy(&script).into_owned())
        }
    }
}

fn fleet(client: &Client, output: Output, command: Option<&fleet::FleetCommand>) -> Result<String, Failure> {
    match command {
        None | Some(fleet::FleetCommand::Status) => print(output, &wait(client.fleet())?, fleet::render),
        Some(fleet::FleetCommand::Get) => {
            print(output, &wait(client.fleet_document())?, fleet::render_document)
        }
        Some(fleet::FleetCommand::Put { file, if_generation, force }) => {
            let put = fleet::read(file, *if_generation, *force)?;
            print(output, &wait(fleet::put(client, put))?, fleet::render_put)
        }
    }
}

fn list(client: &Client, output: Output, list: Verdict, command: &ListCommand) -> Result<String, Failure> {
    let (add, prefixes) = match command {
        ListCommand::List => {
            let views = wait(client.prefixes(list))?;
            return print(output, &views, |views| firewall::render_prefixes(list, views));
        }
        ListCommand::Add { prefixes, .. } => (true, prefixes.read()?),
        ListCommand::Remove { prefixes, .. } => (false, prefixes.read()?),
    };
    print(output, &wait(client.change_prefixes(list, add, prefixes))?, render::change)
}

/// Prints every line as it comes.
fn trace(cli: &Cli, options: &args::TraceOptions, out: &mut dyn Write) -> Result<(), Failure> {
    let ask = AskTrace {
        service: options.service.as_ref().map(ToString::to_string),
        source: options.source,
        dest: options.dest,
        verdict: options.verdict.map(|v| v.name().to_owned()),
        sample: options.sample,
    };
    let (mut left, mut trouble) = (options.count.unwrap_or(u64::MAX), None);
    wait(client(cli)?.trace(&ask, |line| {
        let text = match cli.output {
            Output::Table => Ok(observe::trace(&line)),
            Output::Json => serde_json::to_string(&line).map(|text| text + "\n"),
        };
        if matches!(line, crate::control::observe::TraceLine::Packet(_)) {
            left -= 1;
        }
        let written =
            text.map_err(Failure::from).map(|text| out.write_all(text.as_bytes()).and_then(|()| out.flush()));
        match written {
            Ok(Ok(())) if left > 0 => std::ops::ControlFlow::Continue(()),
            // The reader has seen enough.
            Ok(_) => std::ops::ControlFlow::Break(()),
            Err(error) => {
                trouble = Some(error);
                std::ops::ControlFlow::Break(())
            }
        }
    }))?;
    trouble.map_or(Ok(()), Err)
}

fn wait<T>(answer: impl Future<Output = Result<T, ClientError>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.map_err(Failure::Runtime)?.block_on(answer)?)
}

async fn backend(client: &Client, command: &BackendCommand) -> Result<ChangeView, ClientError> {
    match command {
        BackendCommand::Add { service, name, target, weight, backup, .. } => {
            let Target { address, port } = *target;
            let new = NewBackend { name: name.clone(), address, port, weight: *weight, backup: *backup };
            client.backend_add(service, &new).await
        }
        BackendCommand::Remove { service, name, .. } => client.backend_remove(service, name).await,
        BackendCommand::Drain(options) => options.begin(client).await,
        BackendCommand::Enable { service, name, .. } => {
            client.backend_admin(service, name, Admin::Enabled).await
        }
        BackendCommand::Disable { service, name, .. } => {
            client.backend_admin(service, name, Admin::Disabled).await
        }
        BackendCommand::Weight { service, name, weight, over, .. } => {
            let over_seconds = over.map(|over| over.as_secs());
            client.set_weight(service, name, &SetWeight { weight: *weight, over_seconds }).await
        }
    }
}

fn print<T: Serialize>(
    output: Output,
    view: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<String, Failure> {
    match output {
        Output::Table => Ok(table(view)),
        Output::Json => Ok(serde_json::to_string_pretty(view)? + "\n"),
    }
}
