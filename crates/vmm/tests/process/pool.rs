//! Shells that are kept ready.

use vmm::host::{Extras, LaunchError, Launcher};

use crate::support::{lives, options, processes, soon, wait_for};

#[tokio::test]
async fn a_pool_fills_is_taken_from_and_fills_again() {
    let Some(mut options) = options() else { return };
    options.pool = [(1, 3), (2, 1)].into();
    let launcher = Launcher::new(options).unwrap();
    wait_for("the pool to fill", || launcher.pool().ready == 4).await;
    let shell = launcher.shell(2, Extras::default()).await.unwrap();
    assert_eq!((shell.vcpus(), launcher.pool().hits), (2, 1));
    wait_for("the pool to fill again", || launcher.pool().ready == 4).await;
    let fresh = launcher.shell(3, Extras::default()).await.unwrap();
    assert_eq!((fresh.vcpus(), launcher.pool().misses), (3, 1));
    assert_eq!(launcher.pool().ready, 4);
}

#[tokio::test]
async fn a_shell_that_died_in_the_pool_is_replaced() {
    let Some(mut options) = options() else { return };
    options.pool = [(1, 1)].into();
    let launcher = Launcher::new(options.clone()).unwrap();
    wait_for("the pool to fill", || launcher.pool().ready == 1).await;
    let first = launcher.shell(1, Extras::default()).await.unwrap();
    wait_for("the pool to fill again", || launcher.pool().ready == 1).await;
    let second = processes(&options).into_iter().find(|pid| *pid != first.pid()).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(second).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    // A process is a zombie before its last thread has ended, and only then can be noticed.
    wait_for("the kill", || !std::path::Path::new(&format!("/proc/{second}")).exists()).await;
    let third = soon(launcher.shell(1, Extras::default())).await.unwrap();
    assert_ne!(third.pid(), second);
    assert!(lives(third.pid()));
}

#[tokio::test]
async fn what_waits_in_a_pool_ends_with_its_launcher() {
    let Some(mut options) = options() else { return };
    options.pool = [(1, 2)].into();
    let launcher = Launcher::new(options.clone()).unwrap();
    wait_for("the pool to fill", || launcher.pool().ready == 2).await;
    let shell = launcher.shell(1, Extras::default()).await.unwrap();
    drop(launcher);
    assert!(lives(shell.pid()));
    wait_for("the pool's shells to go", || processes(&options) == [shell.pid()]).await;
}

#[tokio::test]
async fn impossible_shells_are_refused() {
    let Some(mut options) = options() else { return };
    let launcher = Launcher::new(options.clone()).unwrap();
    for vcpus in [0, 7] {
        assert!(matches!(launcher.shell(vcpus, Extras::default()).await, Err(LaunchError::Vcpus(_))));
    }
    options.pool = [(9, 1)].into();
    assert!(matches!(Launcher::new(options.clone()), Err(LaunchError::Vcpus(9))));
    options.pool.clear();
    options.kvm = "/no/such/device".into();
    assert!(matches!(Launcher::new(options.clone()), Err(LaunchError::Kvm { .. })));
    options.kvm = "/dev/null".into();
    let error = Launcher::new(options.clone()).unwrap().shell(1, Extras::default()).await.unwrap_err();
    assert!(matches!(&error, LaunchError::Failed(reason) if reason.contains("virtual machine")), "{error}");
    options.kvm = "/dev/kvm".into();
    options.program.path = "/no/such/program".into();
    let error = Launcher::new(options).unwrap().shell(1, Extras::default()).await.unwrap_err();
    assert!(matches!(&error, LaunchError::Spawn(error) if error.kind() == std::io::ErrorKind::NotFound), "{error}");
}

#[tokio::test]
async fn users_come_back_when_processes_are_gone() {
    let Some(mut options) = options() else { return };
    let vmm::host::UserRange::Range(range) = options.jail.users.clone() else { unreachable!() };
    options.jail = vmm::host::Jail::with_users(range.start..range.start + 1);
    let launcher = Launcher::new(options).unwrap();
    let shell = launcher.shell(1, Extras::default()).await.unwrap();
    assert!(matches!(launcher.shell(1, Extras::default()).await, Err(LaunchError::Users)));
    let pid = shell.pid();
    shell.kill();
    wait_for("its end", || !lives(pid)).await;
    let begun = std::time::Instant::now();
    while let Err(error) = launcher.shell(1, Extras::default()).await {
        assert!(matches!(error, LaunchError::Users) && begun.elapsed() < crate::support::DEADLINE, "{error}");
        tokio::task::yield_now().await;
    }
}
