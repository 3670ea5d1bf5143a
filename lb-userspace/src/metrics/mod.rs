//! Prometheus metrics, each name, help and label once, and the HTTP listener that serves them.
