//! The kernel side: loading, attaching, pinning, reading the maps back, and the only writer of the maps.
//!
//! Everything lies under the pin directory, so that forwarding outlives the daemon:
//!
//! ```text
//! PIN_DIR/abi-0123456789abcdef/NAME   the maps of one layout
//! PIN_DIR/links/native-3              the link of the interface with index 3
//! PIN_DIR/decap/...                   the decapsulator of a backend
//! ```

mod addresses;
mod attach;
mod batch;
pub mod decap;
mod elf;
mod error;
mod flow_tables;
mod fresh;
mod held;
mod kernel;
mod large;
mod listing;
mod lists;
mod mapping;
mod maps;
mod mirror;
mod nat;
mod observe;
mod signals;
mod window;

pub use addresses::{Addresses, LeaseWord};
pub use attach::{Attached, Mode};
pub use elf::{BENCH, DECAP, LB};
pub use error::DataplaneError;
pub(crate) use flow_tables::monotonic_ns;
pub use held::Held;
pub(crate) use held::{packet_socket, send_frame};
pub use kernel::{Capacities, Kernel, abi_name};
pub use listing::tracked_flows;
pub use maps::Maps;
pub use mirror::FlowMaps;
pub use nat::{NatMaps, Sessions};
pub use observe::{LONGEST_FRAME, Observed, Ran};
