//! The fleet: configuration that all nodes take from etcd, and which of them has the word.

mod authority;

pub use authority::Authority;
