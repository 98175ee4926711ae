//! `cargo xtask model`: writes `crates/aws-model/src/generated` from botocore's description of Lambda.
//!
//! The description (`botocore/data/lambda/2015-03-31/service-2.json.gz`) comes with every botocore; its facts (names,
//! members, constraints, statuses) are taken over, its documentation is not. `--check` compares instead of writing, `--diff` prints
//! what would change, item by item.

mod diff;
mod emit;
mod names;
mod service;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use service::Service;

/// Runs the chore with the arguments that follow `model`.
pub fn run(arguments: &[String]) -> anyhow::Result<()> {
    let mut from = None;
    let (mut check, mut diff) = (false, false);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--from" => from = rest.next().map(PathBuf::from),
            "--check" => check = true,
            "--diff" => diff = true,
            other => {
                bail!("unknown argument {other}: use --from <service-2.json[.gz]> and optionally --check or --diff")
            }
        }
    }
    let from = from.context("name the service description with --from <service-2.json[.gz]>")?;
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/aws-model/src/generated");
    let files = generate(&from)?;
    if diff {
        let mut lines = String::new();
        for (name, text) in &files {
            let committed = std::fs::read_to_string(out.join(name)).with_context(|| format!("reading {name}"))?;
            lines.extend(diff::changes(name, &committed, text).into_iter().map(|line| line + "\n"));
        }
        // Whoever reads may have seen enough.
        return Ok(std::io::Write::write_all(&mut std::io::stdout(), lines.as_bytes())?);
    }
    if check {
        for (name, text) in &files {
            let committed = std::fs::read_to_string(out.join(name)).with_context(|| format!("reading {name}"))?;
            if committed != *text {
                bail!("{name} differs from what {} gives: run cargo xtask model again", from.display());
            }
        }
        return Ok(());
    }
    std::fs::create_dir_all(&out)?;
    for (name, text) in &files {
        std::fs::write(out.join(name), text).with_context(|| format!("writing {name}"))?;
    }
    Ok(())
}

/// The generated files by name, formatted.
fn generate(from: &Path) -> anyhow::Result<Vec<(&'static str, String)>> {
    let service = Service::parse(&read(from)?)?;
    emit::files(&service).into_iter().map(|(name, text)| Ok((name, rustfmt(&text)?))).collect()
}

fn read(from: &Path) -> anyhow::Result<Vec<u8>> {
    if from.extension().is_some_and(|extension| extension == "gz") {
        let output = Command::new("gunzip").arg("-c").arg(from).output().context("running gunzip")?;
        if !output.status.success() {
            bail!("gunzip -c {}: {}", from.display(), String::from_utf8_lossy(&output.stderr));
        }
        return Ok(output.stdout);
    }
    std::fs::read(from).with_context(|| format!("reading {}", from.display()))
}

fn rustfmt(text: &str) -> anyhow::Result<String> {
    let configuration = Path::new(env!("CARGO_MANIFEST_DIR")).join("../rustfmt.toml");
    let mut child = Command::new("rustfmt")
        .args(["--edition", "2024", "--emit", "stdout", "--config-path"])
        .arg(configuration)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting rustfmt (rustup component add rustfmt)")?;
    let mut stdin = child.stdin.take().context("rustfmt has no standard input")?;
    let text = text.to_owned();
    // rustfmt answers only after it has read everything, but a thread keeps the two pipes from waiting on each other.
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, text.as_bytes()));
    let output = child.wait_with_output()?;
    writer.join().map_err(|_| anyhow::anyhow!("the thread that feeds rustfmt panicked"))??;
    if !output.status.success() {
        bail!("rustfmt refused the generated text");
    }
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests;
