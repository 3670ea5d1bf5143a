//! Whole sites built on the load balancer: `scenario --help` tells what can be done.

fn main() -> std::process::ExitCode {
    lb_tests::foobar::main()
}
