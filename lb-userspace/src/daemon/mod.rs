//! The tasks of the daemon and how they are wired.
