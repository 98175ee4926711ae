"""The machine as the checks see it: control groups of version 2, and everything that sandboxes could leave behind."""

import os
import time
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
USER = 1000
# The emulated machine is 10 to 30 times slower than a real one, and shares its processors.
PATIENCE = 120


def eventually(check, what, seconds=PATIENCE):
    """Calls `check` until it returns something true, which is returned; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s (last: {found!r})"
        time.sleep(0.05)


class Place:
    """A control group to start the server in, as systemd would have made it.

    `delegated`: systemd has handed the subtree over (`Delegate=yes`), so the sandboxes' groups belong below it;
    otherwise they belong at the root of the hierarchy. `user`: it was handed to an ordinary user, who starts the server.
    """

    def __init__(self, name, group, delegated=False, user=False):
        self.name, self.path, self.delegated, self.user = name, CGROUPS / group, delegated, user
        self.sandboxes = (self.path if delegated else CGROUPS) / "firelet"

    def make(self):
        """Makes the group and hands controllers down to it; systemd gives cpu only where a unit asks for it."""
        controllers = "+cpu +memory +pids" if self.delegated else "+memory +pids"
        for above in reversed([path for path in self.path.parents if path == CGROUPS or CGROUPS in path.parents]):
            above.mkdir(exist_ok=True)
            (above / "cgroup.subtree_control").write_text(controllers)
        self.path.mkdir(exist_ok=True)
        if self.delegated:
            # Ordinary users' systemd may set the second only, systemd itself sets both.
            for attribute in ("user.delegate",) if self.user else ("trusted.delegate", "user.delegate"):
                os.setxattr(self.path, attribute, b"1")
        if self.user:
            # user@1000.service and what is below it are the user's.
            inside = self.path
            while inside.name.startswith(("firelet", "app.slice", "user@")):
                for file in ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
                    os.chown(inside / file, USER, USER)
                inside = inside.parent

    def remove(self):
        """Kills what is in the group and removes it, as systemd does when a unit has ended."""
        if self.path == CGROUPS or not self.path.exists():
            return
        (self.path / "cgroup.kill").write_text("1")
        eventually(lambda: not populated(self.path), f"the end of everything in {self.path}")
        for folder, _, _ in os.walk(self.path, topdown=False):
            os.rmdir(folder)

    def enter(self):
        """Moves the calling process there; for a child before it becomes the server."""
        (self.path / "cgroup.procs").write_text("0")
        if self.user:
            os.setgroups([])
            os.setresgid(USER, USER, USER)
            os.setresuid(USER, USER, USER)

    def groups(self):
        """The sandboxes' groups that have processes."""
        return {path for path in self.sandboxes.glob("*/sandbox-*") if populated(path)}


def populated(group):
    """Whether there are processes in a group or below it."""
    return keyed(group, "cgroup.events").get("populated") == 1


def content(group, name):
    """What a file of a group holds; nothing where the group is gone."""
    try:
        return (group / name).read_text()
    except OSError:
        return ""


def keyed(group, name):
    """A file of lines `key number`; empty where the group is gone."""
    return {key: int(value) for key, value in (line.split() for line in content(group, name).splitlines())}


def processes():
    """Every process that is none of the kernel's and no zombie: {pid: command line}."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            if command:
                found[int(entry.name)] = command
    return found


def traces():
    """What sandboxes are made of, as the whole machine shows it, but for processes."""
    found = set()
    for folder, below, _ in os.walk(CGROUPS):
        ours = [name for name in below if name.startswith("sandbox-") or folder.endswith("/firelet")]
        found |= {("cgroup", os.path.join(folder, name)) for name in ours}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        found.add(("mount", line.split()[4]))
    found |= {("interface", name) for name in os.listdir("/sys/class/net")}
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found.add(("loop", f"{backing.parts[3]} {backing.read_text().strip()}"))
        except OSError:
            continue
    return found
