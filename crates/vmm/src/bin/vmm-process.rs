//! The VMM process as a program of its own, for the tests of this crate: a test program cannot start itself again.

fn main() {
    vmm::run_if_vmm();
    eprintln!("this program is started by the VMM's launcher only");
    std::process::exit(2)
}
