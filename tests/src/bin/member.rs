//! A member of a fleet as a process of its own, so that it can be killed and measured: `member runner SETTINGS` or
//! `member balancer SETTINGS` (see `stoker_tests::member`). It says where it serves on STDOUT, and stops when its STDIN
//! closes. It is the spawner of its sandboxes as well, and of those of runners inside tests.

fn main() {
    stoker_sandbox::spawner::run_if_asked();
    stoker_tests::member::main();
}
