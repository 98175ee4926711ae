# The project's chores. `scripts/just` runs this file where `just` is not installed.

# lists the chores
default:
    @just --list

# everything that continuous integration runs
ci:
    .ci/run

# format, lints, crate edges, licences
check:
    scripts/check

# every test: Rust, bootstraps, whole system with the AWS CLI and boto3
test *only:
    scripts/test {{only}}

# formats all Rust code
fmt:
    cargo fmt --all

# the lints alone
lint:
    cargo clippy --workspace --all-targets -- -D warnings

# builds, installs what is missing and serves; arguments go to `firelet serve`
serve *arguments:
    scripts/serve {{arguments}}

# measures a release build beside its peers and prints the table
bench *arguments:
    scripts/bench {{arguments}}

# measures the machine monitor on KVM, here or in the lab: boot, snapshot, clones, memory
bench-vmm *arguments:
    scripts/bench-vmm {{arguments}}

# boots an emulated machine with control groups version 2 and KVM and tests Firelet there, see lab/README.md
lab *checks:
    scripts/lab {{checks}}

# regenerates the service model's tables from botocore's model
model *arguments:
    cargo run -q -p xtask -- model {{arguments}}

# rewrites the table of the API's operations in docs/compatibility.md
operations *arguments:
    cargo run -q -p xtask -- operations {{arguments}}

# prints what another botocore (default: the newest) would change of the service model
model-diff *version:
    scripts/model-diff {{version}}

# runs one fuzz target for a minute (needs cargo-fuzz and a nightly toolchain)
fuzz target seconds="60":
    cargo fuzz run --fuzz-dir fuzz {{target}} -- -max_total_time={{seconds}}
