//! Layers over each other.

use std::os::unix::fs::symlink;

use super::*;

/// A layer whose directory is named like a digest. `spec`: path and content; `path -> target` is a link, `path/` a
/// directory.
fn layer(dir: &Path, seed: &str, spec: &[(&str, &str)]) -> PathBuf {
    let root = dir.join(Digest::of(seed.as_bytes()).to_string());
    fs::create_dir_all(&root).unwrap();
    for (path, content) in spec {
        if let Some((link, target)) = path.split_once(" -> ") {
            symlink(target, root.join(link)).unwrap();
        } else if path.ends_with('/') {
            fs::create_dir_all(root.join(path)).unwrap();
        } else {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), content).unwrap();
        }
    }
    root
}

#[test]
fn later_layers_win_and_directories_unite() {
    let dir = tempfile::tempdir().unwrap();
    let one = layer(
        dir.path(),
        "1",
        &[("bin/a", "1"), ("bin/b", "1"), ("was_dir/x", "1"), ("was_file", "1"), ("l -> bin", "")],
    );
    let two = layer(dir.path(), "2", &[("bin/b", "2"), ("was_dir", "2"), ("was_file/y", "2"), ("l/z", "2")]);
    let merged = merge_layers(&[one.clone(), two.clone()], dir.path()).unwrap();
    let read = |path: &str| fs::read_to_string(merged.join(path)).unwrap();
    assert_eq!((read("bin/a"), read("bin/b"), read("was_dir")), ("1".into(), "2".into(), "2".into()));
    assert_eq!((read("was_file/y"), read("l/z")), ("2".into(), "2".into()));
    assert!(!merged.join("bin/z").exists(), "a directory replaces the link, nothing goes through it");
    assert_eq!(
        fs::metadata(merged.join("bin/a")).unwrap().ino(),
        fs::metadata(one.join("bin/a")).unwrap().ino(),
        "files are shared"
    );
    assert_eq!(merge_layers(&[one.clone(), two.clone()], dir.path()).unwrap(), merged);
    assert_ne!(merge_layers(&[two, one], dir.path()).unwrap(), merged, "the order counts");
}

#[test]
fn one_layer_is_itself_and_none_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let one = layer(dir.path(), "1", &[("a", "1")]);
    assert_eq!(merge_layers(std::slice::from_ref(&one), dir.path()).unwrap(), one);
    assert!(matches!(merge_layers(&[], dir.path()), Err(MergeError::NoLayers)));
    let unnamed = merge_layers(&[one, dir.path().join("x")], dir.path());
    assert!(matches!(unnamed, Err(MergeError::NotAddressed(_))), "{unnamed:?}");
}

#[test]
fn links_that_escape_together_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let one = layer(dir.path(), "1", &[("l -> x/y/../..", "")]);
    let two = layer(dir.path(), "2", &[("x/", ""), ("x/y -> ..", "")]);
    let before = fs::read_dir(dir.path()).unwrap().count();
    let result = merge_layers(&[one, two], dir.path());
    assert!(matches!(&result, Err(MergeError::LinkOutside { name }) if name == "l"), "{result:?}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before);
}
