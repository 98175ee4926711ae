//! Where guests can run, the probe says so.

use vmm::probe::{SLOWEST, Unusable, probe};

/// Set by the lab, whose KVM is complete.
const IN_THE_LAB: &str = "FIRELET_LAB";

#[test]
fn a_complete_kvm_is_found_usable() {
    match probe() {
        Ok(usable) => {
            eprintln!("{usable:?}");
            assert!(["GenuineIntel", "AuthenticAMD", "HygonGenuine"].contains(&&*usable.vendor));
            assert!(usable.loop_ns_per_iteration < SLOWEST * usable.host_ns_per_iteration);
        }
        Err(unusable) => {
            assert!(std::env::var_os(IN_THE_LAB).is_none(), "{unusable}");
            // On any other machine the probe may be right.
            if let Unusable::Setup { doing, .. } = &unusable {
                assert!(!doing.is_empty());
            }
            eprintln!("SKIPPED: {unusable}");
        }
    }
}
