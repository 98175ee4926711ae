# shellcheck shell=bash
# What the scripts share: messages, Debian packages, and caches under .cache/ whose names carry the hash of what they hold.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=$root/.cache
mkdir -p "$cache"

say() { printf '%s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif have sudo; then sudo "$@"; else return 1; fi
}

# apt_need COMMAND=PACKAGE...: installs the packages whose command is absent; an existing FILE may stand for a command.
apt_need() {
    local missing=() pair probe
    for pair in "$@"; do
        probe=${pair%%=*}
        have "$probe" || [ -e "$probe" ] || [ -e "/usr/sbin/$probe" ] || [ -e "/sbin/$probe" ] || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    have apt-get || fail "this machine lacks ${missing[*]} and has no apt-get: install them, then run this again"
    say "installing ${missing[*]}"
    local log=$cache/apt.log
    if ! as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null >"$log" 2>&1; then
        # A fresh machine has no package lists yet.
        as_root apt-get update -q </dev/null >>"$log" 2>&1 &&
            as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null >>"$log" 2>&1
    fi || { tail -n 20 "$log" >&2; fail "cannot install ${missing[*]}: run this as root, or install them by hand"; }
}

# A C compiler (SQLite is built from source) and a Rust toolchain of at least the workspace's rust-version.
need_toolchain() {
    apt_need cc=gcc /usr/include/stdlib.h=libc6-dev
    [ -d "$HOME/.cargo/bin" ] && PATH=$HOME/.cargo/bin:$PATH
    if ! have cargo; then
        as_root apt-get update -q </dev/null >/dev/null 2>&1 || true
        if has_package rustup; then
            # Debian 13 and later.
            apt_need rustup=rustup
            rustup default stable >&2
        elif has_package cargo-web; then
            # Debian 12 carries a current toolchain under this name, for building browsers.
            apt_need rustc=rustc-web cargo=cargo-web
        else
            fail "no Rust toolchain, and no package of this release brings one: install Rust $(wanted_rust) or later from https://rustup.rs, then run this again"
        fi
    fi
    local found
    found=$(rustc --version | awk '{print $2}') || fail "rustc does not run: try 'rustup default stable'"
    [ "$(printf '%s\n%s\n' "$(wanted_rust)" "$found" | sort -V | head -n 1)" = "$(wanted_rust)" ] ||
        fail "Rust $found is too old, $(wanted_rust) is needed: try 'rustup update stable'"
}

has_package() { [ -n "$(apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: \([^(]\)/\1/p')" ]; }

wanted_rust() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml"; }

# content_key FILE...: a short hash of the files' bytes.
content_key() { cat "$@" | sha256sum | cut -c1-16; }

# python_env NAME REQUIREMENTS...: prints a virtual environment that holds exactly these requirements, made once.
python_env() {
    local name=$1 key dir
    shift
    apt_need python3=python3
    python3 -c 'import ensurepip, venv' 2>/dev/null || apt_need /nonexistent=python3-venv
    key=$({ cat "$@"; python3 -c 'import sys; print(sys.executable, sys.version)'; } | sha256sum | cut -c1-16)
    dir=$cache/$name-$key
    if [ ! -e "$dir/.complete" ]; then
        say "preparing $name (Python packages of $(printf '%s ' "${@#"$root"/}"))"
        rm -rf "$dir"
        python3 -m venv "$dir" >&2 || fail "cannot make a virtual environment in $dir"
        local arguments=() file
        for file in "$@"; do arguments+=(-r "$file"); done
        "$dir/bin/pip" install -q --disable-pip-version-check --no-input "${arguments[@]}" >&2 ||
            fail "cannot install the Python packages of $*"
        touch "$dir/.complete"
    fi
    printf '%s\n' "$dir"
}
