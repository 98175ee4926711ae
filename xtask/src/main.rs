//! Project chores, run as `cargo run -p xtask -- NAME`: one module per chore, none of it shipped.

mod edges;
mod model;
mod operations;

use std::path::Path;

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has left the workspace")?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("edges") => edges::check(root),
        Some("model") => model::run(&arguments[1..]),
        Some("operations") => operations::run(root, &arguments[1..]),
        other => bail!("unknown chore {:?}; the chores are: edges, model, operations", other.unwrap_or("")),
    }
}
