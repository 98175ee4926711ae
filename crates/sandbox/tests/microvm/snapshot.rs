//! A sandbox that is kept while a program runs in it, and ten that go on from there.

use std::collections::BTreeSet;

use sandbox::Exit;
use tokio::task::JoinSet;

use crate::support::{Talk, rig, says, script, soon};

/// How many go on.
const CLONES: usize = 10;
/// Counts in its memory, once for each file that appears and is taken away again.
const COUNTER: &str = "n=1; echo begun $n; \
     while :; do while [ ! -e /tmp/go ]; do sleep 0.05; done; rm /tmp/go; n=$((n+1)); echo counted $n; \
     [ $n -lt 3 ] || exit 5; done";

#[tokio::test(flavor = "multi_thread")]
async fn ten_go_on_from_one_snapshot() {
    let Some(rig) = rig(3) else { return };
    let sandbox = rig.sandbox("model").await;
    let mut talk = Talk::with(sandbox.spawn(script(COUNTER)).await.unwrap());
    assert_eq!(talk.line().await, "begun 1");
    says(&*sandbox, "echo kept > /tmp/file; echo 1 > /tmp/go; while [ -e /tmp/go ]; do sleep 0.05; done").await;
    assert_eq!(talk.line().await, "counted 2");
    sandbox.freeze().unwrap();

    let snapshot = soon("a snapshot is taken", sandbox.snapshot()).await.unwrap();
    assert!(snapshot.memory_bytes() > 0);
    assert_eq!(soon("the sandbox ends", talk.exit).await.unwrap(), Exit::Signal(9));
    assert_eq!(rig.left(), Vec::<String>::new(), "the machine itself is gone");

    let mut clones = JoinSet::new();
    for number in 0..CLONES {
        let (snapshot, spec) = (snapshot.clone(), rig.spec(&format!("clone-{number}")));
        clones.spawn(async move {
            let restored = soon("a clone goes on", snapshot.restore(spec)).await.unwrap();
            let sandbox = restored.sandbox;
            let [process] = <[_; 1]>::try_from(restored.processes).expect("one process ran");
            let mut talk = Talk::with(process);
            let chance = says(&*sandbox, "cat /proc/sys/kernel/random/uuid").await;
            let name = says(&*sandbox, "cat /proc/sys/kernel/hostname").await;
            assert_eq!(says(&*sandbox, "cat /tmp/file").await, "kept");
            says(&*sandbox, &format!("echo {number} > /tmp/file; sync; echo 1 > /tmp/go")).await;
            assert_eq!(talk.line().await, "counted 3");
            assert_eq!(soon("it ends", talk.exit).await.unwrap(), Exit::Code(5));
            assert_eq!(says(&*sandbox, "cat /tmp/file").await, number.to_string());
            (sandbox, chance, name)
        });
    }
    let clones = soon("all clones go on", clones.join_all()).await;
    let chances: BTreeSet<_> = clones.iter().map(|(_, chance, _)| chance.clone()).collect();
    assert_eq!(chances.len(), CLONES, "clones draw the same numbers: {chances:?}");
    // Two bytes of chance each: two of ten may agree once in a thousand times, three never.
    let names: BTreeSet<_> = clones.iter().map(|(_, _, name)| name.clone()).collect();
    assert!(names.len() >= CLONES - 1, "clones have the same name: {names:?}");

    // A snapshot that nobody holds is not needed by those who came from it; nor is another clone.
    drop(snapshot);
    let mut clones = clones.into_iter();
    let (last, ..) = clones.next().unwrap();
    for (sandbox, ..) in clones {
        soon("it is destroyed", sandbox.destroy()).await;
    }
    assert_eq!(says(&*last, "cat /tmp/file; cat /bin/busybox >/dev/null").await.lines().count(), 1);

    // And what went on can be kept again.
    let again = soon("a second snapshot is taken", last.snapshot()).await.unwrap();
    let mut other = rig.spec("other");
    other.memory_bytes = 1 << 30;
    assert!(again.restore(other).await.is_err(), "another size fits");
    let restored = soon("it goes on", again.restore(rig.spec("again"))).await.unwrap();
    assert!(restored.processes.is_empty());
    assert_eq!(says(&*restored.sandbox, "echo $((6 * 7))").await, "42");
    soon("it is destroyed", restored.sandbox.destroy()).await;
    rig.end().await;
}
