//! The Maglev ring: consistent hashing with weights. Pure.
