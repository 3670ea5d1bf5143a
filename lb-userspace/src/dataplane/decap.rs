//! The decapsulator.
