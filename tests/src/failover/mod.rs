//! What a takeover costs, and what it breaks: the pair under faults, seen from outside.
//!
//! - [`prober`]: one probe a millisecond through the virtual address, and the longest time without an answer;
//! - [`watch`]: who answers for an address;
//! - [`nodes`]: both nodes of a pair, by lbd or by Debian's keepalived, and what can befall them;
//! - [`bench`]: outages of both, one fault after the other by turns, as a table;
//! - [`load`]: thousands of TCP connections with data in both directions, every byte checked at both ends;
//! - [`chaos`]: a random fault every few seconds under load, and whether the rules hold all the time.

pub mod bench;
pub mod chaos;
pub mod load;
pub mod nodes;
pub mod prober;
mod report;
pub mod watch;

pub use report::{Bars, Row};
