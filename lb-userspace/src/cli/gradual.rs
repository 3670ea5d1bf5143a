//! Plans, `--force`, and drains that are waited for.

use super::{
    Failure,
    args::{BackendCommand, Cli, Command, Output},
    firewall::{LimitCommand, ListCommand},
    parse,
    table::{Align::Left, Align::Right, count, printable, table},
};
use crate::control::{
    api::{BackendView, ChangeView},
    client::{Client, ClientError},
    gradual::{ChangeOptions, DrainView, GradualView, PlanView, ServicePlan},
    request::SetAdmin,
};
use crate::{
    config::{format_duration, parse_duration},
    model::{Admin, BackendName, ServiceName},
};
use clap::ValueEnum;
use std::{
    fmt,
    io::{self, IsTerminal as _, Write},
    time::{Duration, Instant},
};

/// Between two looks at a drain.
const LOOK: Duration = Duration::from_secs(1);
/// A daemon that is restarted is back by then.
const ABSENCE: Duration = Duration::from_secs(30);

/// How a change is asked for.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Careful {
    /// Only say what would change: slots that would move, flows that would end
    #[arg(long)]
    pub plan: bool,
    /// Also if more of a service moves at once than its max_disruption
    #[arg(long, conflicts_with = "plan")]
    pub force: bool,
}

/// How the changes of a command are asked for.
pub fn options(command: &Command) -> ChangeOptions {
    let careful = match command {
        Command::Backend { command } => match command {
            BackendCommand::Add { careful, .. }
            | BackendCommand::Remove { careful, .. }
            | BackendCommand::Enable { careful, .. }
            | BackendCommand::Disable { careful, .. }
            | BackendCommand::Weight { careful, .. } => *careful,
            BackendCommand::Drain(options) => options.careful,
        },
        Command::Deny { command } | Command::Allow { command } => match command {
            ListCommand::Add { careful, .. } | ListCommand::Remove { careful, .. } => *careful,
            ListCommand::List => Careful::default(),
        },
        Command::Limit { command } => match command {
            LimitCommand::Set { careful, .. } | LimitCommand::Clear { careful, .. } => *careful,
            LimitCommand::Show { .. } => Careful::default(),
        },
        // Its body says whether it is only planned.
        Command::Reload { careful } => Careful { plan: false, ..*careful },
        Command::Reset(options) => options.careful,
        _ => Careful::default(),
    };
    ChangeOptions { plan: careful.plan, force: careful.force }
}

/// `backend drain`.
#[derive(Debug, clap::Args)]
pub struct DrainOptions {
    /// Name of the service, as in `lbctl service list`
    #[arg(value_name = "SERVICE", value_parser = parse::service)]
    pub service: ServiceName,
    /// Name of the backend, as in `lbctl service show`
    #[arg(value_name = "NAME", value_parser = parse::backend)]
    pub name: BackendName,
    /// Shows how many slots and flows are left, and ends when none is
    #[arg(long)]
    wait: bool,
    /// Waits at most so long, like 10m; the drain goes on, the exit status is 1
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = parse_time)]
    timeout: Option<Duration>,
    /// After so long, like 5m, the daemon ends what is left: it disables the backend
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    deadline: Option<Duration>,
    /// What to do once nothing is left
    #[arg(long, value_enum, value_name = "WHAT", requires = "wait")]
    then: Option<Then>,
    #[command(flatten)]
    careful: Careful,
}

/// What follows a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Then {
    /// It gets no packets at all
    Disable,
    /// It is removed from the service
    Remove,
}

/// A time of whole seconds.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text).filter(|time| time.subsec_millis() == 0 && !time.is_zero());
    time.ok_or_else(|| "expected a time of whole seconds like 90s, 10m or 1h30m".to_owned())
}

/// A drain that was waited for and is not over.
#[derive(Debug)]
pub struct Unfinished {
    why: String,
    /// What is left.
    left: String,
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.why, self.left)
    }
}

impl DrainOptions {
    /// True if it is waited for.
    pub fn waits(&self) -> bool {
        self.wait && !self.careful.plan
    }

    /// The drain itself.
    pub async fn begin(&self, client: &Client) -> Result<ChangeView, ClientError> {
        let end_after_seconds = self.deadline.map(|deadline| deadline.as_secs());
        let body = SetAdmin { admin: Admin::Draining, end_after_seconds };
        client.set_admin(&self.service, &self.name, &body).await
    }

    async fn finish(&self, client: &Client) -> Result<Option<ChangeView>, ClientError> {
        Ok(match self.then {
            None => None,
            Some(Then::Disable) => {
                Some(client.backend_admin(&self.service, &self.name, Admin::Disabled).await?)
            }
            Some(Then::Remove) => Some(client.backend_remove(&self.service, &self.name).await?),
        })
    }
}

/// Drains and waits, telling how it goes: on a terminal one line that changes, else a line when something has; as JSON a
/// line for each look.
pub(super) fn drain(cli: &Cli, options: &DrainOptions, out: &mut dyn Write) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Failure::Runtime)?.block_on(wait_for(cli, options, out))
}

async fn wait_for(cli: &Cli, options: &DrainOptions, out: &mut dyn Write) -> Result<(), Failure> {
    let client = super::client(cli)?.asking(self::options(&cli.command));
    let live = cli.output == Output::Table && io::stdout().is_terminal();
    let began = Instant::now();
    let change = options.begin(&client).await?;
    let mut said = String::new();
    if cli.output == Output::Table {
        tell(out, &super::render::change(&change));
    }
    let mut answered = Instant::now();
    loop {
        let view = match client.drain(&options.service, &options.name).await {
            Ok(view) => view,
            // The daemon may be on its way back; the drain is written down.
            Err(
                error @ (ClientError::Missing { .. }
                | ClientError::Refused { .. }
                | ClientError::Broken { .. }
                | ClientError::Timeout { .. }),
            ) => {
                if answered.elapsed() > ABSENCE {
                    return Err(error.into());
                }
                tokio::time::sleep(LOOK).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        answered = Instant::now();
        let text = line(&view);
        match cli.output {
            Output::Json => tell(out, &(serde_json::to_string(&view)? + "\n")),
            Output::Table if live => tell(out, &format!("\r\x1b[2K{text}")),
            Output::Table if text != said => tell(out, &format!("{text}\n")),
            Output::Table => {}
        }
        said = text;
        if view.done {
            if live {
                tell(out, "\n");
            }
            // The revision asked for was that before the drain.
            let after = options.finish(&client.clone().if_revision(None)).await?;
            if let (Some(after), Output::Table) = (&after, cli.output) {
                tell(out, &super::render::change(after));
            }
            return Ok(());
        }
        let interrupted = if view.admin == Admin::Enabled {
            Some("somebody ended the drain".to_owned())
        } else {
            let over = options.timeout.filter(|timeout| began.elapsed() + LOOK / 2 >= *timeout);
            over.map(|timeout| format!("not over after {}; it goes on", format_duration(timeout)))
        };
        if let Some(why) = interrupted {
            if live {
                tell(out, "\n");
            }
            return Err(Failure::Drain(Unfinished { why, left: line(&view) }));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Who reads it may have gone; the drain goes on.
fn tell(out: &mut dyn Write, text: &str) {
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// How a drain goes.
fn line(view: &DrainView) -> String {
    let slots = u64::from(view.owned_slots + view.moving_slots);
    let mut parts = Vec::new();
    if slots > 0 {
        let settled = view.settled_in_seconds.map_or_else(String::new, |s| format!(" ({s} s to go)"));
        parts.push(format!("{} to settle{settled}", count(slots as usize, "slot")));
    }
    for (number, what) in [
        (view.tracked_flows, "flow"),
        (view.closing_flows, "closing flow"),
        (view.half_open_flows, "handshake"),
        (view.sessions, "session"),
    ] {
        if number > 0 {
            parts.push(count(number as usize, what));
        }
    }
    let left = if parts.is_empty() { "nothing left".to_owned() } else { parts.join(", ") };
    let mut text = format!("{} of {}, {}: {left}", view.backend, view.service, view.admin);
    if let Some(ends) = view.ends_in_seconds {
        text += &format!("; ends what is left in {}", format_duration(Duration::from_secs(ends)));
    }
    if let Some(note) = &view.note {
        text += &format!("; {note}");
    }
    printable(&text)
}

/// The weight of a backend, and what it is at present where that differs.
pub fn weight(backend: &BackendView) -> String {
    match &backend.gradual.ramp {
        Some(_) => format!("{} -> {}", backend.gradual.effective_weight, backend.weight),
        None => backend.weight.to_string(),
    }
}

/// What is worth a note of a backend that is changing.
pub fn notes(view: &GradualView) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(ramp) = &view.ramp {
        let what = if ramp.cause == "weight" { "weight changes" } else { "slow start" };
        notes.push(format!("{what}: {} %, {} s left", ramp.percent, ramp.seconds_left));
    }
    if view.moving_slots > 0 {
        notes.push(format!("{} settling", count(view.moving_slots as usize, "slot")));
    }
    if let Some(seconds) = view.drain_ends_in_seconds {
        notes.push(format!("drain ends in {}", format_duration(Duration::from_secs(seconds))));
    }
    notes
}

/// What a change would do.
pub fn plan(view: &PlanView) -> String {
    if view.services.is_empty() {
        return "no slot would move and no flow would end\n".to_owned();
    }
    let mut text = String::from("\n");
    text += &table(
        [
            ("SERVICE", Left),
            ("", Left),
            ("SLOTS", Right),
            ("MOVE", Right),
            ("LATER", Right),
            ("END", Right),
            ("SHARE", Right),
            ("FLOWS ENDED", Left),
            ("BUDGET", Left),
        ],
        view.services.iter().map(|s| {
            let budget = match s.max_disruption {
                Some(most) if s.over_budget => format!("over {most} %: needs --force"),
                Some(most) => format!("within {most} %"),
                None => "-".to_owned(),
            };
            [
                s.service.clone(),
                s.what.clone(),
                s.slots_total.to_string(),
                s.slots_moved.to_string(),
                s.slots_moved_later.to_string(),
                s.slots_ended.to_string(),
                format!("{} %", s.disruption_percent),
                flows_ended(s),
                budget,
            ]
        }),
    );
    let rows: Vec<_> = view
        .services
        .iter()
        .flat_map(|s| s.backends.iter().map(move |b| (s, b)))
        .filter(|(_, b)| b.slots_before != b.slots_after || b.slots_after != b.slots_later)
        .collect();
    if !rows.is_empty() {
        text.push('\n');
        text += &table(
            [("SERVICE", Left), ("BACKEND", Left), ("SLOTS", Right), ("THEN", Right), ("LATER", Right)],
            rows.into_iter().map(|(s, b)| {
                [
                    s.service.clone(),
                    b.name.clone(),
                    b.slots_before.to_string(),
                    b.slots_after.to_string(),
                    b.slots_later.to_string(),
                ]
            }),
        );
    }
    text.push('\n');
    text
}

fn flows_ended(plan: &ServicePlan) -> String {
    if plan.slots_ended == 0 && plan.tracked_flows_ended + plan.sessions_ended == 0 {
        return "none".to_owned();
    }
    let mut parts = vec![format!("{} recorded", plan.tracked_flows_ended + plan.sessions_ended)];
    match plan.other_flows_ended_estimate {
        Some(0) => {}
        Some(number) => parts.push(format!("about {number} others (estimate)")),
        None => parts.push(format!("{} % of the others (not counted)", plan.other_flows_ended_percent)),
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Health;

    fn view() -> DrainView {
        DrainView {
            service: "www".to_owned(),
            backend: "web1".to_owned(),
            admin: Admin::Draining,
            health: Health::Up,
            owned_slots: 0,
            moving_slots: 12,
            settled_in_seconds: Some(45),
            tracked_flows: 873,
            closing_flows: 1,
            half_open_flows: 0,
            sessions: 2,
            ends_in_seconds: Some(240),
            note: None,
            done: false,
        }
    }

    #[test]
    fn how_a_drain_is_told() {
        assert_eq!(
            line(&view()),
            "web1 of www, draining: 12 slots to settle (45 s to go), 873 flows, 1 closing flow, 2 sessions; ends what is \
             left in 4m"
        );
        let over = DrainView {
            moving_slots: 0,
            settled_in_seconds: None,
            tracked_flows: 0,
            closing_flows: 0,
            sessions: 0,
            ends_in_seconds: None,
            done: true,
            ..view()
        };
        assert_eq!(line(&over), "web1 of www, draining: nothing left");
    }

    #[test]
    fn times_have_whole_seconds() {
        assert_eq!(parse_time("1h30m"), Ok(Duration::from_secs(5400)));
        for wrong in ["", "0s", "500ms", "10", "-1s"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_a_plan_says() {
        let service = ServicePlan {
            service: "www".to_owned(),
            what: "changed".to_owned(),
            slots_total: 1009,
            slots_moved: 337,
            slots_ended: 337,
            tracked_flows_ended: 4,
            other_flows_ended_percent: 34,
            disruption_percent: 34,
            max_disruption: Some(10),
            over_budget: true,
            ..ServicePlan::default()
        };
        let text = plan(&PlanView { services: vec![service], map_changes: 3 });
        for part in
            ["337", "34 %", "4 recorded, 34 % of the others (not counted)", "over 10 %: needs --force"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(plan(&PlanView::default()).contains("no slot"));
    }
}
