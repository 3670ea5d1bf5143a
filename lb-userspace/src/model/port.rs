//! The ports of a service.

use std::{fmt, str::FromStr};

/// Ports a service listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortSpec {
    /// One port, not 0.
    Exact(u16),
    /// `lo..=hi`, `0 < lo < hi`.
    Range(u16, u16),
    /// Every port that no other service of the same address and protocol claims.
    Any,
}

/// Why a text or number is no port specification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{found}' is not a port: {why}; expected a port from 1 to 65535, a range like \"8000-8099\", or 0 for every port"
)]
pub struct PortError {
    pub found: String,
    pub why: &'static str,
}

impl PortSpec {
    /// The lowest and the highest port; (0, 65535) for every port.
    pub fn bounds(self) -> (u16, u16) {
        match self {
            Self::Exact(port) => (port, port),
            Self::Range(lo, hi) => (lo, hi),
            Self::Any => (0, u16::MAX),
        }
    }

    /// True if two services of one address and protocol would claim the same port. "Every port" is
    /// what is left over, so it overlaps with nothing but another "every port".
    pub fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::Any, Self::Any) => true,
            (Self::Any, _) | (_, Self::Any) => false,
            _ => {
                let ((a, b), (c, d)) = (self.bounds(), other.bounds());
                a <= d && c <= b
            }
        }
    }

    /// The single port, if it is one.
    pub fn single(self) -> Option<u16> {
        match self {
            Self::Exact(port) => Some(port),
            Self::Range(..) | Self::Any => None,
        }
    }
}

impl TryFrom<i64> for PortSpec {
    type Error = PortError;
    fn try_from(port: i64) -> Result<Self, PortError> {
        match u16::try_from(port) {
            Ok(0) => Ok(Self::Any),
            Ok(port) => Ok(Self::Exact(port)),
            Err(_) => Err(PortError { found: port.to_string(), why: "it is out of range" }),
        }
    }
}

impl FromStr for PortSpec {
    type Err = PortError;
    fn from_str(text: &str) -> Result<Self, PortError> {
        let error = |why| PortError { found: text.chars().take(80).collect(), why };
        let number = |part: &str| match part.trim() {
            "" => Err(error("a number is missing")),
            digits if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse::<u16>().map_err(|_| error("it is out of range"))
            }
            _ => Err(error("it is not a number")),
        };
        match text.split_once('-') {
            None => number(text).map(|port| if port == 0 { Self::Any } else { Self::Exact(port) }),
            Some((lo, hi)) => match (number(lo)?, number(hi)?) {
                (0, _) => Err(error("a range starts at 1 or above")),
                (lo, hi) if lo > hi => Err(error("the first port is larger than the last")),
                (lo, hi) if lo == hi => Ok(Self::Exact(lo)),
                (lo, hi) => Ok(Self::Range(lo, hi)),
            },
        }
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(port) => write!(f, "{port}"),
            Self::Range(lo, hi) => write!(f, "{lo}-{hi}"),
            Self::Any => f.write_str("0"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_shown_parses_back(lo in 0..=u16::MAX, hi in 0..=u16::MAX) {
            let spec = match (lo.min(hi), lo.max(hi)) {
                (0, _) => PortSpec::Any,
                (lo, hi) if lo == hi => PortSpec::Exact(lo),
                (lo, hi) => PortSpec::Range(lo, hi),
            };
            prop_assert_eq!(spec.to_string().parse::<PortSpec>().unwrap(), spec);
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<PortSpec>();
        }
    }

    #[test]
    fn overlap_is_about_claimed_ports() {
        let p = |s: &str| s.parse::<PortSpec>().unwrap();
        assert!(p("80").overlaps(p("80")));
        assert!(p("8000-8099").overlaps(p("8080")));
        assert!(p("8000-8099").overlaps(p("8099-8100")));
        assert!(!p("8000-8099").overlaps(p("8100-8200")));
        assert!(!p("0").overlaps(p("80")));
        assert!(p("0").overlaps(p("0")));
    }
}
