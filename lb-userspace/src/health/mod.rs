//! Health checks: a pure state machine and schedule, the probes, and the task that runs them.
