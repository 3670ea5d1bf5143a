//! What operators changed at run time, kept under state_dir.
