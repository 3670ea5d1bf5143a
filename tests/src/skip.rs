//! A test that cannot run here says so on the terminal, never silently; with `LBD_NO_SKIP=1`
//! (continuous integration) it fails instead.

use std::{io::Write as _, path::PathBuf};

/// What a test may need from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Effective user 0 with the right to make network namespaces.
    Root,
    /// A program found in `PATH` or the usual sbin directories.
    Tool(&'static str),
    /// A kernel of at least this version.
    Kernel(u32, u32),
    /// A writable file or directory, for example `/sys/fs/bpf`.
    Path(&'static str),
}

/// The first need that is not met, as a sentence; `None` when the test can run.
pub fn first_missing(needs: &[Need]) -> Option<String> {
    needs.iter().find_map(|need| match need {
        Need::Root => (!nix::unistd::geteuid().is_root()).then(|| "it needs root".to_owned()),
        Need::Tool(tool) => {
            find_tool(tool).is_none().then(|| format!("the program `{tool}` is not installed"))
        }
        Need::Kernel(major, minor) => match kernel_version() {
            Some(have) if have >= (*major, *minor) => None,
            Some((a, b)) => Some(format!("it needs Linux {major}.{minor}, this is {a}.{b}")),
            None => Some("the kernel's version cannot be read".to_owned()),
        },
        Need::Path(path) => {
            (!std::path::Path::new(path).exists()).then(|| format!("`{path}` does not exist on this machine"))
        }
    })
}

/// Where a program is, looking also in the sbin directories that a user's `PATH` lacks on Debian.
pub fn find_tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok())
}

fn kernel_version() -> Option<(u32, u32)> {
    parse_release(&std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?)
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// What a skipped test returns, so that [`require!`](crate::require) serves tests that return `()` and `Result<()>`.
pub trait Skipped {
    fn skipped() -> Self;
}

impl Skipped for () {
    fn skipped() -> Self {}
}

impl<E> Skipped for Result<(), E> {
    fn skipped() -> Self {
        Ok(())
    }
}

/// Says that the running test is skipped and why.
///
/// # Panics
/// With `LBD_NO_SKIP=1` in the environment.
pub fn announce(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let strict = std::env::var_os("LBD_NO_SKIP").is_some_and(|v| !v.is_empty() && v != "0");
    assert!(!strict, "{test} cannot run here ({why}) and LBD_NO_SKIP forbids skipping");
    // Not eprintln!: the test harness swallows that for tests that pass.
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED: {test}: {why}");
}

/// `require!(Need::Root, Need::Tool("ip"));` as the first line of a test: it returns, loudly, when the machine
/// lacks one of them.
#[macro_export]
macro_rules! require {
    ($($need:expr),+ $(,)?) => {
        if let Some(why) = $crate::skip::first_missing(&[$($need),+]) {
            $crate::skip::announce(&why);
            return $crate::skip::Skipped::skipped();
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_whatever_follows_the_numbers() {
        assert_eq!(parse_release("6.1.0-42-amd64"), Some((6, 1)));
        assert_eq!(parse_release("6.18-rc1"), Some((6, 18)));
        assert_eq!(parse_release("x"), None);
    }

    #[test]
    fn a_missing_tool_is_named() {
        let why = first_missing(&[Need::Kernel(2, 6), Need::Tool("no-such-program")]);
        assert_eq!(why.as_deref(), Some("the program `no-such-program` is not installed"));
        assert_eq!(first_missing(&[Need::Tool("sh"), Need::Path("/proc")]), None);
    }
}
