# shellcheck shell=bash
# What the lab machine is made of, each part cached under .cache/lab by what it holds. Sourced by scripts/lab, which
# provides `say`, `fail`, `root` and `lab_cache`. What makes parts of the cache is called with its lock held.

# Programs of the root file system: what Firelet calls, and what the checks need beside busybox.
lab_programs=(/usr/bin/python3 /usr/sbin/nft /usr/sbin/mkfs.ext4 /usr/bin/kmod)
# Libraries that every Rust program asks for.
lab_libraries=(libc.so.6 libm.so.6 libgcc_s.so.1)
# What the initramfs needs to reach the disks; ext4 is built into Debian's cloud kernel.
lab_boot_modules=(virtio_pci virtio_blk)

# Debian's cloud kernel, unpacked and not installed; sets lab_kernel (the directory) and lab_release.
lab_get_kernel() {
    local package deb
    package=$(lab_kernel_package)
    if [ -z "$package" ]; then
        # A fresh machine has no package lists yet.
        apt-get update -q </dev/null >/dev/null 2>&1 || true
        package=$(lab_kernel_package)
    fi
    [ -n "$package" ] || return 1
    lab_release=${package#linux-image-}
    lab_kernel=$lab_cache/$package-$(apt-cache show "$package" | sed -n 's/^Version: //p' | head -n 1)
    [ -e "$lab_kernel/.complete" ] && return 0
    say "lab: fetching $package"
    rm -rf "$lab_cache"/linux-image-*
    mkdir -p "$lab_kernel/download"
    (cd "$lab_kernel/download" && apt-get download "$package" >/dev/null 2>&1) || return 1
    deb=$(find "$lab_kernel/download" -name '*.deb')
    dpkg -x "$deb" "$lab_kernel/tree"
    rm -r "$lab_kernel/download"
    # As on a Debian with merged directories; the package's own script would do this after installation.
    mkdir -p "$lab_kernel/tree/usr/lib"
    mv "$lab_kernel/tree/lib/modules" "$lab_kernel/tree/usr/lib/modules"
    rmdir "$lab_kernel/tree/lib"
    ln -s usr/lib "$lab_kernel/tree/lib"
    depmod -b "$lab_kernel/tree" "$lab_release"
    touch "$lab_kernel/.complete"
}

# The emulator; sets lab_qemu (the command) and lab_qemu_version. Older ones than version 10 lose the guest of the guest now and
# then, whose machine stands still from there on: Debian 12, which has 7.2, gets the one of its backports, unpacked and not
# installed. The libraries that it asks for are those of the installed one.
lab_get_qemu() {
    local tree release options
    lab_qemu=(qemu-system-x86_64)
    lab_qemu_version=$(qemu-system-x86_64 --version | sed -n 's/^QEMU emulator version \([0-9.]*\).*/\1/p')
    [ "${lab_qemu_version%%.*}" -lt 10 ] || return 0
    release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    tree=$lab_cache/qemu-$release-backports
    if [ ! -e "$tree/.complete" ]; then
        say "lab: fetching a later QEMU than $lab_qemu_version"
        rm -rf "$tree"
        mkdir -p "$tree"/{lists,archives}/partial "$tree/download"
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $release-backports main" \
            >"$tree/sources.list"
        # Lists of its own: what this machine takes its packages from stays as it is.
        options=(-o "Dir::Etc::sourcelist=$tree/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$tree/lists"
            -o "Dir::Cache=$tree/archives" -o APT::Sandbox::User=root)
        apt-get "${options[@]}" update -q </dev/null >"$tree/log" 2>&1 || return 1
        (cd "$tree/download" && apt-get "${options[@]}" -t "$release-backports" download \
            qemu-system-x86 qemu-system-common qemu-system-data seabios </dev/null >>"$tree/log" 2>&1) || return 1
        find "$tree/download" -name '*.deb' -exec dpkg -x {} "$tree" ';'
        rm -r "$tree"/{lists,archives,download}
        touch "$tree/.complete"
    fi
    lab_qemu=(env "QEMU_MODULE_DIR=$tree/usr/lib/x86_64-linux-gnu/qemu" "$tree/usr/bin/qemu-system-x86_64" -L "$tree/usr/share/qemu" -L "$tree/usr/share/seabios")
    lab_qemu_version=$("${lab_qemu[@]}" --version | sed -n 's/^QEMU emulator version \([0-9.]*\).*/\1/p')
    [ "${lab_qemu_version%%.*}" -ge 10 ]
}

# Prints the name of the package that `linux-image-cloud-amd64` stands for; nothing where it is unknown.
lab_kernel_package() {
    apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1
}

# The initramfs; sets lab_initramfs.
lab_make_initramfs() {
    local busybox stage module path
    busybox=$(command -v busybox)
    lab_initramfs=$lab_cache/initramfs-$({ echo "$lab_kernel"; cat "$root/lab/image.sh" "$root/lab/guest/init" "$busybox"; } | sha256sum | cut -c1-16).gz
    [ -e "$lab_initramfs" ] && return 0
    say "lab: making the initramfs"
    lab_forget 'initramfs-*'
    stage=$lab_cache/stage.$$
    mkdir -p "$stage"/{bin,lib,proc,sys,dev,root}
    cp "$busybox" "$stage/bin/busybox"
    for path in sh mount umount insmod sleep poweroff switch_root; do ln -s busybox "$stage/bin/$path"; done
    cp "$root/lab/guest/init" "$stage/init"
    for module in "${lab_boot_modules[@]}"; do
        modprobe -d "$lab_kernel/tree" -S "$lab_release" --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
    done | awk '!seen[$0]++' | while read -r path; do
        cp "$path" "$stage/lib/"
        basename "$path" >>"$stage/modules"
    done
    (cd "$stage" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$lab_initramfs.new"
    mv "$lab_initramfs.new" "$lab_initramfs"
    rm -r "$stage"
}

# Drops what the cache holds of a kind and no run used for a day; trees of other branches may share the cache.
lab_forget() { find "$lab_cache" -maxdepth 1 -name "$1" -mtime +0 -delete; }

# Prints every file of the root file system that comes from this machine: programs, libraries, Python.
lab_host_files() {
    local program python library
    # The interpreter's own directory, without what only its developers need.
    python=$(realpath /usr/bin/python3)
    library=/usr/lib/$(basename "$python")
    find "$library" \( -name test -o -name ensurepip -o -name idlelib -o -name lib2to3 -o -name tkinter -o -name 'config-*' \) -prune \
        -o -type f -print
    for program in "${lab_programs[@]}" "$python"; do realpath "$program"; done
    {
        printf '%s\n' "${lab_programs[@]}"
        find "$library/lib-dynload" -name '*.so'
    } | lab_needed
    for library in "${lab_libraries[@]}"; do ldconfig -p | sed -n "s/^\t$library (libc6,x86-64) => //p" | head -n 1; done
}

# Prints the libraries that the programs named on standard input ask for.
lab_needed() {
    # It complains of scripts and of static programs.
    { xargs -r ldd 2>/dev/null || true; } | sed -n 's/.*=> \(\/[^ ]*\) (.*/\1/p; s/^\t\(\/[^ ]*\) (.*/\1/p' | sort -u
}

# The root file system, an ext4 image with room to write; sets lab_root.
lab_make_root() {
    local files stage file name
    files=$(lab_host_files | sort -u)
    lab_root=$lab_cache/root-$({ echo "$lab_kernel"; cat "$root/lab/image.sh"; xargs stat -L -c '%n %s %Y' <<<"$files"; } | sha256sum | cut -c1-16).img
    [ -e "$lab_root" ] && touch "$lab_root" "$lab_root.files" && return 0
    say "lab: making the root file system"
    lab_forget 'root-*'
    stage=$lab_cache/stage.$$
    mkdir -p "$stage"/{dev,proc,sys,run,tmp,root,lab,mnt,etc,var/{lib,tmp},home/user} "$stage"/usr/{bin,sbin,lib,lib64}
    for name in bin sbin lib lib64; do ln -s "usr/$name" "$stage/$name"; done
    while read -r file; do
        # Libraries keep the name by which they are asked for; directories are those of a merged Debian.
        name=$(realpath "$(dirname "$file")")/$(basename "$file")
        mkdir -p "$stage$(dirname "$name")"
        cp -L --preserve=mode,timestamps "$file" "$stage$name"
    done <<<"$files"
    cp -a "$lab_kernel/tree/usr/lib/modules" "$stage/usr/lib/modules"
    ln -s "$(basename "$(realpath /usr/bin/python3)")" "$stage/usr/bin/python3"
    # The kernel asks for /sbin/modprobe when a feature is used whose module is not loaded yet.
    ln -sf ../bin/kmod "$stage/usr/sbin/modprobe"
    file=$(realpath /usr/sbin/mkfs.ext4)
    [ -e "$stage/usr/sbin/mkfs.ext4" ] || ln -s "$(basename "$file")" "$stage/usr/sbin/mkfs.ext4"
    cp "$(command -v busybox)" "$stage/usr/bin/busybox"
    busybox --list | while read -r name; do
        [ -e "$stage/usr/bin/$name" ] || [ -e "$stage/usr/sbin/$name" ] || ln -s busybox "$stage/usr/bin/$name"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n' >"$stage/etc/passwd"
    printf 'root:x:0:\nuser:x:1000:\n' >"$stage/etc/group"
    printf 'nameserver 192.0.2.53\n' >"$stage/etc/resolv.conf"
    printf '127.0.0.1 localhost\n' >"$stage/etc/hosts"
    cp /etc/mke2fs.conf "$stage/etc/" 2>/dev/null || true
    lab_image "$stage" "$lab_root.new" 3072
    printf '%s\n' "$files" >"$lab_root.files"
    mv "$lab_root.new" "$lab_root"
    rm -r "$stage"
}

# lab_make_payload FILE COMMAND...: the second disk, made anew for each run: /lab, with what is tried and how it is called.
lab_make_payload() {
    local disk=$1 stage=$run/payload pair name part
    shift
    mkdir -p "$stage"/{guest,files,tests,programs,lib}
    cp "$root"/lab/guest/*.py "$root/lab/guest/start" "$stage/guest/"
    cp -r "$root/lab/guest/function" "$stage/guest/"
    [ -z "$lab_firelet" ] || lab_copy_program "$lab_firelet" "$stage/firelet"
    for pair in ${lab_tests[@]+"${lab_tests[@]}"}; do lab_copy_program "${pair#*=}" "$stage/tests/${pair%%=*}"; done
    [ ${#files[@]} = 0 ] || cp -rL --sparse=always -t "$stage/files" "${files[@]}"
    [ ${#files[@]} = 0 ] || chmod +x "$stage/files/$(basename "${files[0]}")"
    {
        for pair in ${lab_parts[@]+"${lab_parts[@]}"}; do
            part=${pair#*=} name=$(basename "${pair#*=}")
            cp -rL --sparse=always "$part" "$stage/$name"
            echo "export ${pair%%=*}=/lab/$name"
        done
        [ -z "$lab_firelet" ] || echo "export FIRELET_BIN=/lab/firelet"
        # What may be skipped elsewhere must run here.
        echo 'export FIRELET_LAB=1'
        for name in RUST_LOG RUST_BACKTRACE; do
            [ -z "${!name:-}" ] || echo "export $name=$(lab_quoted "${!name}")"
        done
        # A test knows its programs by the paths that they have here.
        for part in ${lab_helpers[@]+"${lab_helpers[@]}"}; do
            lab_copy_program "$part" "$stage/programs/$(basename "$part")"
            echo "mkdir -p $(lab_quoted "$(dirname "$part")") && ln -sf /lab/programs/$(lab_quoted "$(basename "$part")") $(lab_quoted "$part")"
        done
        # Libraries that the root file system lacks.
        find "$stage" -type f -perm -u+x | lab_needed | while read -r part; do
            [ -e "$stage/lib/$(basename "$part")" ] || grep -qF "/$(basename "$part")" "$run/root.files" || {
                cp -L "$part" "$stage/lib/"
                # shellcheck disable=SC2016 # expanded in the machine
                echo 'export LD_LIBRARY_PATH=/lab/lib'
            }
        done
        [ ${#files[@]} = 0 ] || echo "cd /lab/files"
        printf 'exec'
        for part in "$@"; do printf ' %s' "$(lab_quoted "$part")"; done
        echo
    } >"$stage/run"
    chmod -R go+rX "$stage"
    lab_image "$stage" "$disk" $(($(du -sm "$stage" | cut -f1) * 9 / 8 + 64))
    rm -r "$stage"
}

# Copies a program; debug information is most of the file, and nobody looks at it in there.
lab_copy_program() { strip --strip-debug -o "$2" "$1" 2>/dev/null || cp -L "$1" "$2"; }

# A word as a shell reads it back.
lab_quoted() { printf "'%s'" "${1//\'/\'\\\'\'}"; }

# The parts that a microVM is made of; fills lab_parts with `VARIABLE=FILE`. They come from the variables of the same names.
# The tests get a kernel in any case, built if need be; what `run` runs gets one that is there.
lab_guest_parts() {
    local kernel=${FIRELET_GUEST_KERNEL:-} agent=${FIRELET_GUEST_AGENT:-} built
    lab_parts=()
    if [ "$mode" != run ]; then
        [ -n "$kernel" ] || kernel=$("$root/scripts/guest-kernel" | tail -n 1)
        [ -n "$agent" ] || agent=$("$root/scripts/guest" | tail -n 1)
    elif [ -z "$kernel" ]; then
        for built in "$cache"/guest-kernel/*/.complete; do
            [ ! -e "$built" ] || [ "$built" -ot "$kernel" ] || kernel=${built%/.complete}/vmlinux
        done
    fi
    [ -z "$kernel" ] || lab_parts+=("FIRELET_GUEST_KERNEL=$kernel")
    [ -z "$agent" ] || lab_parts+=("FIRELET_GUEST_AGENT=$agent")
    [ -z "${FIRELET_GUEST_IMAGES:-}" ] || lab_parts+=("FIRELET_GUEST_IMAGES=$FIRELET_GUEST_IMAGES")
}

# lab_built TEST: the program that `cargo test --message-format=json` on standard input built for a test target, and on further
# lines the programs that it built for the test to start.
lab_built() {
    python3 -c '
import json, sys
built = [m for m in map(json.loads, sys.stdin) if m["reason"] == "compiler-artifact" and m["executable"]]
tests = [m["executable"] for m in built if m["target"]["kind"] == ["test"] and m["target"]["name"] == sys.argv[1]]
sys.exit("cargo built no test named " + sys.argv[1]) if len(tests) != 1 else print(*tests, sep="\n")
print(*(m["executable"] for m in built if m["target"]["kind"] == ["bin"]), sep="\n")' "$1"
}

# lab_image DIRECTORY FILE MIB: an ext4 file system with the content of DIRECTORY, all of it root's.
lab_image() {
    rm -f "$2"
    truncate -s "$3M" "$2"
    mke2fs -q -F -t ext4 -O ^has_journal -E root_owner=0:0,lazy_itable_init=1 -d "$1" "$2"
}
