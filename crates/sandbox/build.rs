//! Says where cargo puts the `supervisor` crate's shared library, which this crate embeds.
//!
//! As a dependency, `supervisor` is built in both of its forms before this crate is, and the library lies among the dependencies
//! of the build, under its own name. `cargo check` builds neither, and targets without shared libraries only one: for them there is an empty
//! file, and a program without the library, which says so when it starts.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"));
    // target/PROFILE/build/sandbox-HASH/out
    let profile = out.ancestors().nth(3).expect("cargo's directories are that deep");
    let library = profile.join("deps").join("libsupervisor.so");
    // Never over what is there: the library may be written just now.
    let _ = std::fs::File::create_new(&library);
    println!("cargo::rustc-env=SUPERVISOR_LIBRARY={}", library.display());
}
