//! The log: one line per event on stderr, `TIME LEVEL target: message key=value ...`.
//!
//! Where stderr is the journal, the line begins with the priority instead of time and level
//! (sd-daemon(3)): the journal has its own time. Events of the `log` crate (aya-log uses it) are included.

use std::{
    fmt::{self, Write as _},
    io::{self, IsTerminal},
    os::fd::AsFd,
};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{
    EnvFilter,
    filter::Directive,
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
    util::{SubscriberInitExt, TryInitError},
};

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(
        "--log: '{found}' is no level; expected error, warn, info, debug, trace or off, or such levels by \
         target, e.g. info,lb_userspace::health=debug"
    )]
    Level { found: String },
    #[error("the log is set up already: {0}")]
    Again(#[from] TryInitError),
}

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// With time and level, coloured on a terminal.
    Plain { colour: bool },
    /// With the priority for the journal.
    Journal,
}

/// Logs from now on. `level` is the value of `--log`; without it `RUST_LOG` counts, and without that
/// `info`. A wrong `--log` is an error, a wrong `RUST_LOG` (it may be meant for another program) a warning.
pub fn init(level: Option<&str>) -> Result<(), LogError> {
    let environment = std::env::var("RUST_LOG").ok().filter(|value| !value.trim().is_empty());
    let (filter, refused) = match (level, environment.as_deref()) {
        (Some(level), _) => (filter(level)?, None),
        (None, Some(value)) => match EnvFilter::builder().parse(value) {
            Ok(filter) => (filter, None),
            Err(error) => (default_filter(), Some(format!("RUST_LOG={value}: {error}"))),
        },
        (None, None) => (default_filter(), None),
    };
    subscriber(filter, style(), io::stderr).try_init()?;
    if let Some(reason) = refused {
        tracing::warn!(reason, "RUST_LOG is not understood and ignored; the level is info");
    }
    Ok(())
}

fn default_filter() -> EnvFilter {
    EnvFilter::default().add_directive(LevelFilter::INFO.into())
}

/// Stricter than `EnvFilter`, which takes a misspelt level for a target and silences all others.
fn filter(levels: &str) -> Result<EnvFilter, LogError> {
    let mut filter = EnvFilter::default();
    for part in levels.split(',').map(str::trim) {
        let error = || LogError::Level { found: part.chars().take(80).collect() };
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
        level.parse::<LevelFilter>().map_err(|_| error())?;
        if level.is_empty() || level.bytes().all(|b| b.is_ascii_digit()) {
            return Err(error());
        }
        filter = filter.add_directive(part.parse::<Directive>().map_err(|_| error())?);
    }
    Ok(filter)
}

fn style() -> Style {
    let stderr = io::stderr();
    if is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref(), stderr.as_fd()) {
        Style::Journal
    } else {
        let colour =
            stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Style::Plain { colour }
    }
}

/// systemd.exec(5): `JOURNAL_STREAM` is the device and inode of the journal's socket. It is inherited by
/// children whose stderr may be something else, hence the comparison.
fn is_journal(stream: Option<&str>, stderr: impl AsFd) -> bool {
    let Some((device, inode)) = stream.and_then(|stream| stream.split_once(':')) else { return false };
    let Ok(stat) = nix::sys::stat::fstat(stderr) else { return false };
    device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino)
}

fn subscriber<W>(filter: EnvFilter, style: Style, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .event_format(Line(style))
        .with_writer(writer)
        .finish()
}

/// The format of a line.
struct Line(Style);

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        let mut fields = Fields::default();
        event.record(&mut fields);
        match self.0 {
            Style::Plain { colour } => {
                SystemTime.format_time(&mut writer)?;
                if colour {
                    write!(writer, " \x1b[{}m{level:5}\x1b[0m ", colour_of(level))?;
                } else {
                    write!(writer, " {level:5} ")?;
                }
            }
            Style::Journal => write!(writer, "<{}>", priority(level))?,
        }
        let target = fields.log_target.as_deref().unwrap_or(event.metadata().target());
        let target = target.strip_prefix("lb_userspace::").unwrap_or(target);
        let mut line = String::new();
        write!(line, "{target}: {}", fields.message)?;
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(of_span) = span.extensions().get::<FormattedFields<N>>().filter(|f| !f.is_empty()) {
                write!(line, " {of_span}")?;
            }
        }
        line.push_str(&fields.pairs);
        one_line(&mut writer, &line)?;
        writer.write_char('\n')
    }
}

/// Priorities of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

fn colour_of(level: Level) -> u8 {
    match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG => 34,
        Level::TRACE => 35,
    }
}

/// The fields of one event.
#[derive(Default)]
struct Fields {
    message: String,
    /// ` key=value` of each field but the message.
    pairs: String,
    /// Target of an event that came from the `log` crate.
    log_target: Option<String>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            "log.target" => self.log_target = Some(value),
            "log.module_path" | "log.file" | "log.line" => {}
            name => {
                self.pairs.extend([" ", name, "="]);
                quote(&mut self.pairs, &value);
            }
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_owned());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            text.extend([": ", &error.to_string()]);
            cause = error.source();
        }
        self.add(field, text);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}"));
    }
}

/// Bare if it is one word, else in quotes; text that `Debug` quoted already stays as it is.
fn quote(to: &mut String, value: &str) {
    let word = !value.is_empty()
        && value.chars().all(|c| !c.is_whitespace() && !c.is_control() && !"\"=".contains(c));
    if word || is_quoted(value) {
        to.push_str(value);
        return;
    }
    to.push('"');
    for c in value.chars() {
        if matches!(c, '"' | '\\') {
            to.push('\\');
        }
        to.push(c);
    }
    to.push('"');
}

/// True for one string in quotes without a bare quote inside.
fn is_quoted(value: &str) -> bool {
    let Some(inner) = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else { return false };
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return false,
            '\\' if chars.next().is_none() => return false,
            _ => {}
        }
    }
    true
}

/// What a server answered or a file contained must neither break the line nor steer the terminal.
fn one_line(to: &mut impl fmt::Write, line: &str) -> fmt::Result {
    for c in line.chars() {
        // U+2028 and U+2029 are line ends, too; the others are control characters.
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            write!(to, "{}", c.escape_default())?;
        } else {
            to.write_char(c)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{
        os::fd::AsRawFd,
        sync::{Arc, Mutex},
    };

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `act` logs.
    fn logged(levels: &str, style: Style, act: impl FnOnce()) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = subscriber(filter(levels).unwrap(), style, move || writer.clone());
        tracing::subscriber::with_default(subscriber, act);
        String::from_utf8(captured.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn an_event_is_one_line_of_pairs() {
        let text = logged("info", Style::Journal, || {
            tracing::warn!(service = "www", reason = "connection refused", count = 3, "backend is down");
            tracing::error!(answer = "a\n<0>forged\x1b[2J", "two\nlines");
            tracing::debug!("not at this level");
        });
        assert_eq!(
            text,
            "<4>telemetry::log::tests: backend is down service=www reason=\"connection refused\" count=3\n\
             <3>telemetry::log::tests: two\\nlines answer=\"a\\n<0>forged\\u{1b}[2J\"\n"
        );
    }

    #[test]
    fn elsewhere_a_line_begins_with_time_and_level() {
        let text = logged("info", Style::Plain { colour: false }, || tracing::info!("hello"));
        let (time, rest) = text.split_once(' ').unwrap();
        assert_eq!(rest, "INFO  telemetry::log::tests: hello\n".trim_start());
        // RFC 3339, section 5.6: date "T" time, in UTC.
        let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(shape, "0000-00-00T00:00:00.000000Z");
    }

    #[test]
    fn events_of_the_log_crate_are_bridged() {
        let captured = Captured::default();
        let writer = captured.clone();
        let guard = subscriber(filter("info").unwrap(), Style::Journal, move || writer.clone()).set_default();
        ::log::warn!(target: "aya::maps", "from the kernel");
        ::log::debug!(target: "aya::maps", "not at this level");
        drop(guard);
        let text = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "<4>aya::maps: from the kernel\n");
    }

    #[test]
    fn spans_add_their_fields() {
        let text = logged("info", Style::Journal, || {
            tracing::info_span!("check", backend = "web1").in_scope(|| tracing::info!(ok = true, "done"));
        });
        assert_eq!(text, "<6>telemetry::log::tests: done backend=\"web1\" ok=true\n");
    }

    #[test]
    fn targets_have_their_own_level() {
        let text = logged("warn,lb_userspace::telemetry=debug", Style::Journal, || {
            tracing::debug!("this");
            tracing::info!(target: "other", "not this");
        });
        assert_eq!(text, "<7>telemetry::log::tests: this\n");
    }

    #[test]
    fn a_misspelt_level_is_refused() {
        for good in [
            "error",
            "WARN",
            "info",
            "debug",
            "trace",
            "off",
            "info, aya=debug",
            "lb_userspace::health=trace",
        ] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "verbose", "inf", "info,", "aya=loud", "=", "3", "lb_userspace", "[=info"] {
            let error = filter(bad).map(|_| ()).expect_err(bad).to_string();
            assert!(error.starts_with("--log: '"), "{error}");
        }
    }

    #[test]
    fn the_journal_is_recognised_by_its_socket() {
        let file = tempfile::tempfile().unwrap();
        let stat = nix::sys::stat::fstat(file.as_fd()).unwrap();
        assert!(file.as_raw_fd() > 2);
        assert!(is_journal(Some(&format!("{}:{}", stat.st_dev, stat.st_ino)), file.as_fd()));
        assert!(!is_journal(Some(&format!("{}:{}", stat.st_dev, stat.st_ino + 1)), file.as_fd()));
        for other in [None, Some(""), Some("8"), Some("8:"), Some("a:b")] {
            assert!(!is_journal(other, file.as_fd()), "{other:?}");
        }
    }

    #[test]
    fn values_are_quoted_once() {
        let quoted = |value: &str| {
            let mut to = String::new();
            quote(&mut to, value);
            to
        };
        assert_eq!(quoted("www"), "www");
        assert_eq!(quoted("[2001:db8::1]:80"), "[2001:db8::1]:80");
        assert_eq!(quoted(""), "\"\"");
        assert_eq!(quoted("a b"), "\"a b\"");
        assert_eq!(quoted("a=b"), "\"a=b\"");
        assert_eq!(quoted(&format!("{:?}", "a \"b\"")), r#""a \"b\"""#);
        assert_eq!(quoted(r#""a" b="c""#), r#""\"a\" b=\"c\"""#, "no forged pair");
        assert_eq!(quoted("\""), r#""\"""#);
    }

    proptest! {
        #[test]
        fn whatever_is_logged_is_one_line(message: String, value: String) {
            let text = logged("info", Style::Journal, || tracing::info!(value, "{message}"));
            prop_assert_eq!(text.matches('\n').count(), 1);
            prop_assert!(text.ends_with('\n'));
            prop_assert!(!text[..text.len() - 1].chars().any(char::is_control));
        }

        #[test]
        fn no_level_panics(levels: String) {
            let _ = filter(&levels);
        }
    }
}
