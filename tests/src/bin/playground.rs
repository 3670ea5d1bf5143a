//! The load balancer at work on one machine: `playground --help` tells what can be done.

fn main() -> std::process::ExitCode {
    lb_tests::playground::main()
}
