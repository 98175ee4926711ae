"""What sandboxes leave on a host, and which processes are whose: for tests of what remains."""

import os
import re
import time
from pathlib import Path

from server import eventually


def traces(data_dir):
    """What sandboxes leave on a host: control groups, mounts, network devices, loop devices."""
    found = set()
    for folder, below, _ in os.walk("/sys/fs/cgroup"):
        found |= {("cgroup", os.path.join(folder, name)) for name in below if "firelet" in os.path.join(folder, name)}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if str(data_dir) in line or "firelet" in line:
            found.add(("mount", line.split()[4]))
    found |= {("device", name) for name in os.listdir("/sys/class/net")}
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if "firelet" in (path := backing.read_text()) or str(data_dir) in path:
                found.add(("loop", path.strip()))
        except OSError:
            continue
    return found


def settled_traces(data_dir):
    """`traces` once they stand still: the other Firelet of the session may be refilling its pools."""
    seen = []

    def still():
        seen.append(traces(data_dir))
        time.sleep(0.3)
        return seen[-1] == traces(data_dir)

    eventually(still, what="the end of changes to the host")
    return seen[-1]


def alive(pids):
    """The processes among `pids` that are still there and no zombies."""
    left = []
    for pid in pids:
        try:
            if not re.search(r"\) [ZX] ", Path(f"/proc/{pid}/stat").read_text()):
                left.append(pid)
        except OSError:
            continue
    return left


def runtimes(server):
    """The runtime processes below a server: they run a bootstrap of /var/runtime."""
    found = []
    for pid in server.descendants():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"/var/runtime/" in command:
            found.append(pid)
    return found
