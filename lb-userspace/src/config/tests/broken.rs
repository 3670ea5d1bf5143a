//! Broken configurations, each with the exact lines that are said of it.
