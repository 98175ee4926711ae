//! The supervisor as a program of its own, for the tests of this crate: a test program cannot start itself again.

fn main() {
    sandbox::run_if_helper();
    eprintln!("this program is started by the namespace backend only");
    std::process::exit(2)
}
