//! The kernel side: loading, attaching, pinning, reading the maps back, and the only writer of the maps.
