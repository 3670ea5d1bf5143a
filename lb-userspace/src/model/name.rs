//! Names of services and backends.

use serde::{Deserialize, Serialize};
use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

/// Why a string is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{found}' is not a name: {why}; use 1 to 63 letters, digits, '-', '_' or '.', the first a letter or digit"
)]
pub struct NameError {
    /// What was given, cut to a printable length.
    pub found: String,
    /// The rule it breaks.
    pub why: &'static str,
}

fn check(name: &str) -> Result<(), NameError> {
    let why = if name.is_empty() {
        "it is empty"
    } else if name.len() >= lb_common::abi::NAME_LEN {
        "it is too long"
    } else if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        "its first character is neither a letter nor a digit"
    } else if !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        "it contains a character that is not allowed"
    } else {
        return Ok(());
    };
    Err(NameError { found: name.chars().take(80).collect(), why })
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        ///
        /// Cloning shares the text.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schemars(extend("pattern" = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"))]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $type {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                check(name).map(|()| Self(name.into()))
            }
        }
        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                check(&name).map(|()| Self(name.into()))
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.as_str().to_owned()
            }
        }
        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name_type! {
    /// Name of a service, unique in a configuration.
    ServiceName
}
name_type! {
    /// Name of a backend, unique in its service.
    BackendName
}
name_type! {
    /// Name of a virtual router, unique in a configuration.
    VrrpName
}
