//! The picture. Pure: from the state to cells.

use super::{
    reading::Rate,
    state::{App, Item, View, is_usable},
};
use crate::{
    cli::table::{duration, printable},
    control::api::BackendView,
    model::{Admin, Health, ServiceState},
};
use ratatui::{
    Frame, Terminal,
    backend::TestBackend,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Cell, Clear, Paragraph, Row, Table, TableState, Wrap},
};
use std::time::{SystemTime, UNIX_EPOCH};

const GOOD: Style = Style::new().fg(Color::Green);
const WARN: Style = Style::new().fg(Color::Yellow);
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const STRONG: Style = Style::new().add_modifier(Modifier::BOLD);

/// Three digits and a letter: "0", "999", "1.23k", "45.6M".
pub(super) fn scaled(value: f64) -> String {
    let mut value = value.max(0.0);
    for letter in ["", "k", "M", "G", "T", "P"] {
        if value < 999.5 {
            let digits = match (letter.is_empty(), value) {
                (true, v) if v == 0.0 || v >= 9.95 => 0,
                (true, _) => 1,
                (false, v) if v < 9.995 => 2,
                (false, v) if v < 99.95 => 1,
                (false, _) => 0,
            };
            return format!("{value:.digits$}{letter}");
        }
        value /= 1000.0;
    }
    format!("{value:.0}E")
}

fn packets(rate: Option<Rate>) -> String {
    rate.map_or_else(|| "-".to_owned(), |rate| scaled(rate.packets))
}

fn bits(rate: Option<Rate>) -> String {
    rate.map_or_else(|| "-".to_owned(), |rate| scaled(rate.bits))
}

/// The whole picture as text, as high as it has to be.
pub(super) fn text(app: &mut App, width: u16) -> String {
    let rows = app.items().len() + app.reading.as_ref().map_or(0, |r| r.pair.len());
    let height = u16::try_from(rows + 8).unwrap_or(u16::MAX).min(10_000);
    // A backend that only keeps what is drawn; it cannot fail.
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width.clamp(40, 400), height));
    let Ok(_) = terminal.draw(|frame| page(frame, app, false));
    let mut text = lines(terminal.backend().buffer()).join("\n");
    text.truncate(text.trim_end().len());
    text + "\n"
}

/// The lines of a picture, without spaces at their ends.
pub(super) fn lines(buffer: &ratatui::buffer::Buffer) -> Vec<String> {
    let area = buffer.area;
    let line = |y| (0..area.width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..area.height).map(line).collect()
}

pub(super) fn draw(frame: &mut Frame<'_>, app: &mut App) {
    page(frame, app, true);
    if app.help {
        help(frame);
    }
}

/// `live`: with a selected row and a line about the keys.
fn page(frame: &mut Frame<'_>, app: &mut App, live: bool) {
    let head = head(app);
    let height = |lines: &[Line<'_>]| u16::try_from(lines.len()).unwrap_or(u16::MAX);
    let mut details = if app.details { details(app) } else { Vec::new() };
    // Where there is little room, the table and the keys come first.
    let mut head = head;
    let room = usize::from(frame.area().height).saturating_sub(3 + usize::from(live));
    head.truncate(room);
    details.truncate(room - head.len());
    let [top, middle, bottom, keys] = Layout::vertical([
        Constraint::Length(height(&head)),
        Constraint::Min(3),
        Constraint::Length(height(&details)),
        Constraint::Length(u16::from(live)),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(head), top);
    app.page = usize::from(middle.height.saturating_sub(1));
    rows(frame, middle, app, live);
    frame.render_widget(Paragraph::new(details), bottom);
    if live {
        frame.render_widget(Paragraph::new(key_line(app)), keys);
    }
}

fn key_line(app: &App) -> Line<'_> {
    if app.typing {
        return Line::from(vec![
            Span::styled("filter: ", STRONG),
            Span::raw(printable(&app.filter)),
            Span::raw("_"),
        ]);
    }
    let mut parts = vec![Span::styled("q quit  ? help  Enter open  b backends  / filter  s sort: ", DIM)];
    parts.push(Span::raw(app.sort.name()));
    if app.reversed {
        parts.push(Span::raw(" reversed"));
    }
    if !app.filter.is_empty() {
        parts.push(Span::raw(format!("  filter: {}", printable(&app.filter))));
    }
    if app.held {
        parts.push(Span::styled("  HELD (p)", WARN));
    }
    Line::from(parts)
}

fn head(app: &App) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if let Some(trouble) = &app.trouble {
        lines.push(Line::styled(format!("! old picture: {}", printable(trouble)), BAD));
    }
    let Some(reading) = &app.reading else { return lines };
    let status = &reading.status;
    lines.push(Line::from(vec![
        Span::styled(printable(&status.node), STRONG),
        Span::raw(format!("  up {}  lbd {}", duration(status.uptime_seconds), printable(&status.version))),
        Span::raw(format!("   {} pkt/s  {} bit/s", packets(app.rates.sum), bits(app.rates.sum))),
    ]));
    let mut parts = Vec::new();
    for nic in &status.interfaces {
        let (style, sign) = match nic.mode.as_str() {
            "native" => (GOOD, ""),
            "generic" => (WARN, ""),
            _ => (BAD, "! "),
        };
        parts.push(Span::styled(format!("{sign}{} {}  ", printable(&nic.name), printable(&nic.mode)), style));
    }
    parts.push(Span::raw(format!("flows {}", status.tracked_flows)));
    if let Some(fullest) = status.tables.iter().max_by_key(|t| 1000 * t.entries / t.capacity.max(1)) {
        let percent = 100 * fullest.entries / fullest.capacity.max(1);
        let style = if percent >= 80 { WARN } else { Style::new() };
        parts.push(Span::styled(format!("  fullest table {percent}%"), style));
    }
    parts.push(Span::raw(format!("  maps {} MiB", status.map_bytes >> 20)));
    lines.push(Line::from(parts));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |now| now.as_secs_f64());
    for router in &reading.pair {
        let style = match router.state.as_str() {
            "master" | "backup" => GOOD,
            "fault" => BAD,
            _ => WARN,
        };
        let mut parts = vec![
            Span::raw(format!("pair {}: ", printable(&router.name))),
            Span::styled(printable(&router.state), style),
            Span::raw(format!(
                ", priority {}, for {}",
                router.effective_priority,
                duration((now - router.since).max(0.0))
            )),
        ];
        if router.held {
            parts.push(Span::styled(", held", WARN));
        }
        if !router.faults.is_empty() {
            parts.push(Span::styled(format!(" ! {}", printable(&router.faults.join("; "))), BAD));
        }
        lines.push(Line::from(parts));
    }
    lines.push(drops(app));
    for warning in &status.warnings {
        lines.push(Line::styled(format!("! {}", printable(warning)), WARN));
    }
    lines.push(Line::default());
    lines
}

/// What is being dropped most, or was.
fn drops(app: &App) -> Line<'static> {
    let all = app.reading.iter().flat_map(|reading| &reading.drops).filter(|drop| drop.packets > 0);
    let mut drops: Vec<_> = all.map(|drop| (app.rates.dropped(&drop.reason).unwrap_or(0.0), drop)).collect();
    if drops.is_empty() {
        return Line::raw("drops none");
    }
    drops.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.packets.cmp(&a.1.packets)));
    let mut parts = vec![Span::raw("drops ")];
    for (rate, drop) in drops.iter().take(3) {
        let style = if *rate > 0.0 { WARN } else { Style::new() };
        let now = if *rate > 0.0 { format!(" (+{}/s)", scaled(*rate)) } else { String::new() };
        parts.push(Span::styled(format!(" {} {}{now} ", printable(&drop.reason), drop.packets), style));
    }
    if drops.len() > 3 {
        parts.push(Span::raw(format!(" and {} more reasons", drops.len() - 3)));
    }
    Line::from(parts)
}

fn rows(frame: &mut Frame<'_>, area: Rect, app: &App, live: bool) {
    let items = app.items();
    if items.is_empty() {
        let text =
            if app.filter.is_empty() { "nothing to show" } else { "nothing fits the filter; Esc ends it" };
        frame.render_widget(Paragraph::new(text), area);
        return;
    }
    let right = |text: String| Cell::from(Line::from(text).right_aligned());
    let title = |text: &'static str| Cell::from(text);
    let right_title = |text: &'static str| Cell::from(Line::from(text).right_aligned());
    let (header, widths, rows): (Vec<Cell<'static>>, Vec<Constraint>, Vec<Vec<Cell<'static>>>) =
        match &app.view {
            View::Services => (
                vec![
                    title("SERVICE"),
                    title("ADDRESS"),
                    title("PROTO"),
                    title("FORWARD"),
                    title("STATE"),
                    right_title("BACKENDS"),
                    right_title("PKT/S"),
                    right_title("BIT/S"),
                    right_title("PACKETS"),
                ],
                [Constraint::Fill(2), Constraint::Fill(3)]
                    .into_iter()
                    .chain([9, 7, 15, 9, 7, 7, 8].map(Constraint::Length))
                    .collect(),
                items.iter().map(|item| service_row(item, &right)).collect(),
            ),
            View::Backends(only) => (
                vec![
                    title(if only.is_some() { "ADDRESS" } else { "SERVICE" }),
                    title("BACKEND"),
                    title("ADMIN"),
                    title("HEALTH"),
                    right_title("WEIGHT"),
                    right_title("SHARE"),
                    right_title("PKT/S"),
                    right_title("BIT/S"),
                ],
                [Constraint::Fill(1), Constraint::Fill(1)]
                    .into_iter()
                    .chain([8, 8, 6, 6, 7, 7].map(Constraint::Length))
                    .collect(),
                items.iter().map(|item| backend_row(item, only.is_some(), &right)).collect(),
            ),
        };
    // A narrow terminal has room for who, how, and how much.
    let narrow = area.width < 60;
    let kept: &[usize] = match (narrow, &app.view) {
        (false, View::Services) if area.width < 100 => &[0, 1, 2, 4, 5, 6, 7],
        (false, View::Services) => &[0, 1, 2, 3, 4, 5, 6, 7, 8],
        (false, View::Backends(_)) => &[0, 1, 2, 3, 4, 5, 6, 7],
        (true, View::Services) => &[0, 4, 5],
        (true, View::Backends(_)) => &[1, 3, 6],
    };
    let keep = |cells: Vec<Cell<'static>>| {
        Row::new(cells.into_iter().enumerate().filter(|(at, _)| kept.contains(at)).map(|(_, cell)| cell))
    };
    let widths = kept.iter().map(|at| widths[*at]);
    let table = Table::new(rows.into_iter().map(keep), widths)
        .header(keep(header).style(STRONG))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::default();
    if live {
        state.select(Some(app.selected));
    }
    frame.render_stateful_widget(table, area, &mut state);
}

fn service_row(item: &Item<'_>, right: &impl Fn(String) -> Cell<'static>) -> Vec<Cell<'static>> {
    let service = item.service;
    let (usable, all) = (service.backends.iter().filter(|b| is_usable(b)).count(), service.backends.len());
    let (style, sign) = match usable {
        0 => (BAD, "! "),
        some if some < all => (WARN, "- "),
        _ => (GOOD, ""),
    };
    let addresses: Vec<String> = service.addresses.iter().map(ToString::to_string).collect();
    let port = if service.port == "0" { "any".to_owned() } else { service.port.clone() };
    vec![
        Cell::from(printable(&service.name)),
        Cell::from(addresses.join(" ")),
        Cell::from(printable(&format!("{} {port}", service.protocol))),
        Cell::from(service.forward.to_string()),
        state(service.pool.state),
        right(format!("{sign}{usable}/{all}")).style(style),
        right(packets(item.rate)),
        right(bits(item.rate)),
        right(scaled(service.packets as f64)),
    ]
}

/// The service as a whole, in the words of `service list`.
fn state(state: ServiceState) -> Cell<'static> {
    let (style, sign) = match state {
        ServiceState::Up => (GOOD, ""),
        ServiceState::UpPanic | ServiceState::DownBackup => (WARN, "- "),
        ServiceState::Down | ServiceState::DownPanic | ServiceState::DownDegraded => (BAD, "! "),
    };
    Cell::from(Span::styled(format!("{sign}{state}"), style))
}

/// The checks' word, or that packets cannot get there.
fn health(backend: &BackendView) -> (&'static str, Style) {
    match (backend.reachable, backend.health) {
        (false, _) => ("! no hop", BAD),
        (true, Health::Down) => ("! down", BAD),
        (true, Health::Up) => ("up", GOOD),
        (true, Health::Unknown) => ("unknown", Style::new()),
    }
}

fn share(item: &Item<'_>, backend: &BackendView) -> String {
    format!("{:.1}%", 100.0 * f64::from(backend.slots) / f64::from(item.service.slots.total.max(1)))
}

fn backend_row(
    item: &Item<'_>,
    of_one: bool,
    right: &impl Fn(String) -> Cell<'static>,
) -> Vec<Cell<'static>> {
    let Some(backend) = item.backend else { return Vec::new() };
    let first = if of_one { backend.address.to_string() } else { printable(&item.service.name) };
    let (word, style) = health(backend);
    let admin = if backend.admin == Admin::Enabled { Style::new() } else { WARN };
    vec![
        Cell::from(first),
        Cell::from(printable(&backend.name)),
        Cell::from(Span::styled(backend.admin.to_string(), admin)),
        Cell::from(Span::styled(word, style)),
        right(backend.weight.to_string()),
        right(share(item, backend)),
        right(packets(item.rate)),
        right(bits(item.rate)),
    ]
}

fn details(app: &App) -> Vec<Line<'static>> {
    let items = app.items();
    let Some((item, backend)) = items.get(app.selected).and_then(|item| Some((item, item.backend?))) else {
        return Vec::new();
    };
    let port = backend.port.map_or(String::new(), |port| format!(" port {port}"));
    let set = if backend.origin == "runtime" { ", set at run time" } else { "" };
    let reason = backend.health_reason.as_deref().unwrap_or("no reason given");
    vec![
        Line::styled(format!("{} of {}", printable(&backend.name), printable(&item.service.name)), STRONG),
        Line::raw(format!("  {}{port}, weight {}{set}", backend.address, backend.weight)),
        Line::raw(format!("  {}, {}: {}", backend.admin, backend.health, printable(reason))),
        Line::raw(format!(
            "  {} of {} slots, {} packets, {} bytes",
            backend.slots, item.service.slots.total, backend.packets, backend.bytes
        )),
    ]
}

fn help(frame: &mut Frame<'_>) {
    let keys = super::TOP_EXAMPLES.split_once("Keys:").map_or("", |(_, keys)| keys.trim_start_matches('\n'));
    let lines: Vec<Line<'_>> = keys.lines().map(Line::raw).collect();
    let area = frame.area();
    let (width, height) = (area.width.min(78), area.height.min(lines.len() as u16 + 2));
    let place = Rect { x: (area.width - width) / 2, y: (area.height - height) / 2, width, height };
    frame.render_widget(Clear, place);
    let block = Block::bordered().title(" keys; any key goes back ");
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }).block(block), place);
}
