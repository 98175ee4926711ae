//! Whatever machine this runs on: what the probe says holds together.

use std::error::Error;

use super::*;

#[test]
fn the_verdict_holds_together() {
    match probe() {
        Ok(usable) => {
            assert_eq!(usable.api_version, 12);
            assert!(["fxsave", "xsave", "xsaves"].contains(&usable.extended_state));
            assert!(usable.loop_ns_per_iteration > 0.0 && usable.host_ns_per_iteration > 0.0);
            assert!(usable.loop_ns_per_iteration <= SLOWEST * usable.host_ns_per_iteration);
        }
        Err(unusable) => {
            eprintln!("this host: {unusable}");
            match &unusable {
                Unusable::Stops { at, .. } | Unusable::Hangs { at } => {
                    assert!(code::INSTRUCTIONS.contains(at));
                    assert!(unusable.to_string().contains(at));
                }
                Unusable::TooSlow { times, guest_ns, host_ns } => {
                    assert!(*times > SLOWEST && (guest_ns / host_ns - times).abs() < 1e-6);
                }
                Unusable::Setup { .. } | Unusable::Open { .. } => assert!(unusable.source().is_some()),
                Unusable::Missing(_) | Unusable::Permission(_) | Unusable::Version(_) | Unusable::Lacks(_) => {}
            }
        }
    }
}

#[test]
fn a_guest_that_does_not_end_is_given_up() {
    let Ok(kvm) = Kvm::new() else {
        eprintln!("SKIPPED: /dev/kvm cannot be opened");
        return;
    };
    let begun = Instant::now();
    let unusable = vm::run(kvm, u64::MAX, Duration::from_millis(300)).unwrap_err();
    // On a host that interprets guest code it may not even come to the loop.
    match unusable {
        Unusable::Hangs { at } => {
            assert!(code::INSTRUCTIONS.contains(&at) && begun.elapsed() >= Duration::from_millis(300))
        }
        Unusable::Stops { .. } | Unusable::Setup { .. } => {}
        other => panic!("{other}"),
    }
}

#[test]
fn what_is_not_kvm_is_told_apart() {
    let missing = probe_at(c"/nonexistent/kvm").unwrap_err();
    assert!(matches!(missing, Unusable::Missing(_)));
    assert_eq!(
        missing.to_string(),
        "there is no /nonexistent/kvm: load kvm-intel or kvm-amd, switch on virtualization in the firmware, or on a virtual \
         machine ask for nested virtualization"
    );
    assert!(matches!(probe_at(c"/dev/null"), Err(Unusable::Version(-1))));
}

#[test]
fn an_interpreter_is_told_by_its_pace() {
    assert_eq!(judge(40.0, 2.0, || None).unwrap(), 40.0);
    let slow = judge(246.0, 2.0, || Some(250.0)).unwrap_err();
    assert_eq!(
        slow.to_string(),
        "guest code runs 123 times slower than the host's own (246.0 ns against 2.0 ns for a turn of a loop): this host \
         interprets it; use a host with hardware virtualization"
    );
}

#[test]
fn a_guest_that_was_held_up_is_measured_again() {
    let left = std::cell::RefCell::new(vec![1.5, 60.0, 80.0]);
    assert_eq!(judge(90.0, 2.0, || left.borrow_mut().pop()).unwrap(), 1.5);
    assert!(left.borrow().is_empty());
    assert!(matches!(judge(90.0, 2.0, || None), Err(Unusable::TooSlow { times, .. }) if times == 45.0));
}

#[test]
fn the_code_fits_its_place_and_the_host_runs_its_loop() {
    let (code, int3) = code::guest();
    assert!(code.len() > 200 && code.len() < 4096 && int3 > 0 && (int3 as usize) < code.len());
    // The handler ends it all: mov dword ptr [rdi + 8], 3; iretq.
    assert_eq!(code[int3 as usize..], [0xc7, 0x47, 8, 3, 0, 0, 0, 0x48, 0xcf]);
    assert!(code::native_ns(10_000) > 0.0);
}
