"""Checks of Firelet on a machine with control groups version 2 only, started from four places in the hierarchy.

Prints a line for each check, what the server logged where one failed, and at the end `N passed, N failed`.
"""

import json
import os
import signal
import sys
import time

from checks import run_all
from machine import Place, content, eventually, keyed, processes, traces
from server import Server, firelet, fresh_data_dir

RUNTIME = f"python3.{sys.version_info.minor}"
PLACES = [
    Place("service", "system.slice/firelet.service"),
    Place("root group", ""),
    Place("delegated service", "system.slice/firelet.service", delegated=True),
    Place(
        "delegated to a user",
        "user.slice/user-1000.slice/user@1000.service/app.slice/firelet.scope",
        delegated=True,
        user=True,
    ),
]
# Nothing else has this much: what is kept ready for any function has 512.
MEMORY_MB = 600
IDLE_SECONDS = 3


class Checks:
    """The checks of one place, in the order in which they are written; later ones use the server of earlier ones."""

    def __init__(self, place):
        self.place = place
        self.data_dir = fresh_data_dir(place.name.replace(" ", "-"))
        self.server = None
        self.before = traces()
        self.group = None

    def frozen(self, group):
        """Waits until a group is frozen."""
        eventually(lambda: keyed(group, "cgroup.events").get("frozen") == 1, f"{group} frozen")
        assert (group / "cgroup.freeze").read_text().strip() == "1"

    def environments(self):
        """The groups of this check's functions, as against those of sandboxes that wait for one."""
        return {group for group in self.place.groups() if content(group, "memory.max").strip() == str(MEMORY_MB << 20)}

    def check_doctor_says_version_2(self):
        self.place.make()
        report = json.loads(firelet("doctor", "--json", place=self.place))
        text = next(finding["text"] for finding in report["findings"] if finding["subject"] == "cgroups")
        assert text.startswith("version 2, writable, with "), text
        assert {"cpu", "memory", "pids"} <= set(text.removeprefix("version 2, writable, with ").split(", ")), text

    def check_it_starts_and_lacks_nothing_that_groups_give(self):
        self.server = Server(self.place, self.data_dir)
        lost = self.server.announced_losses()
        words = ("memory limits", "CPU shares", "process limits", "freezing")
        if not self.place.user:
            words += ("network", "disks for /tmp")
        assert not [line for line in lost if any(word in line for word in words)], lost

    def check_a_function_is_created_and_invoked(self):
        self.server.deploy("probe", RUNTIME, MEMORY_MB)
        event = json.dumps({"name": "lab"})
        answer = json.loads(firelet("invoke", "probe", event, "--json", endpoint=self.server.url))
        assert answer["function_error"] is None and answer["payload"]["hello"] == "lab", answer
        found = self.environments()
        assert len(found) == 1, f"one group of {MEMORY_MB} MiB below {self.place.sandboxes} is expected, not {found}"
        self.group = found.pop()

    def check_limits_are_those_of_the_function(self):
        read = lambda name: (self.group / name).read_text().strip()  # noqa: E731
        assert read("memory.oom.group") == "1"
        assert read("pids.max") == "1024", read("pids.max")
        quota, period = map(int, read("cpu.max").split())
        assert abs(quota / period - MEMORY_MB / 1769) < 0.002, (quota, period)
        assert int(read("cpu.max.burst")) == quota
        if (self.group / "memory.swap.max").exists():
            assert read("memory.swap.max") == "0"

    def check_only_the_function_is_in_its_group(self):
        commands = processes()
        inside = [commands.get(int(pid), "") for pid in (self.group / "cgroup.procs").read_text().split()]
        assert len(inside) == 1 and "python3" in inside[0], inside
        own = "/" + str(self.place.path.relative_to("/sys/fs/cgroup")).strip(".")
        found = open(f"/proc/{self.server.process.pid}/cgroup").read().strip().removeprefix("0::")
        expected = own + "/firelet-server" if self.place.delegated else own
        assert found == expected, f"the server is in {found}, not in {expected}"

    def check_nothing_runs_between_invocations(self):
        self.server.invoke("probe", do="tick").ok()
        self.frozen(self.group)
        used = keyed(self.group, "cpu.stat")["usage_usec"]
        time.sleep(IDLE_SECONDS)
        assert keyed(self.group, "cpu.stat")["usage_usec"] == used, "the function has used processor time while idle"
        assert (self.group / "cgroup.freeze").read_text().strip() == "1"
        clock = self.server.invoke("probe", do="tick").ok()
        assert clock["longest_gap"] >= IDLE_SECONDS, clock
        self.frozen(self.group)

    def check_the_processor_is_shared_out(self):
        assert keyed(self.group, "cpu.stat")["nr_periods"] > 0

    def check_a_timeout_is_answered_and_survived(self):
        self.server.deploy("slow", RUNTIME, MEMORY_MB, timeout=8)
        answer = self.server.invoke("slow", do="sleep", seconds=60)
        assert answer.error == "Unhandled" and answer.payload["errorType"] == "Sandbox.Timedout", answer.payload
        assert "Task timed out after 8.00 seconds" in answer.payload["errorMessage"], answer.payload
        assert self.server.invoke("slow").ok()["hello"] is None

    def check_too_much_memory_is_answered_and_survived(self):
        self.server.deploy("large", RUNTIME, 256)
        assert self.server.invoke("large", do="fill", mib=40).ok() == 40 << 20
        answer = self.server.invoke("large", do="fill", mib=300)
        assert answer.error == "Unhandled" and answer.payload["errorType"] == "Runtime.ExitError", answer.payload
        assert "signal: killed" in answer.payload["errorMessage"], answer.payload
        assert self.server.invoke("large", do="fill", mib=40).ok() == 40 << 20

    def check_processes_are_limited(self):
        started = self.server.invoke("probe", do="threads", most=1500).ok()
        assert 900 < started < 1024, started
        if not self.place.user:
            # Without root the limit per user may come first.
            assert keyed(self.group, "pids.events")["max"] > 0
        assert self.server.invoke("probe", name="after").ok()["hello"] == "after"

    def check_ten_at_once(self):
        answers = self.server.parallel(10, "probe", do="sleep", seconds=20)
        streams = {answer.ok() for answer in answers}
        assert len(streams) == 10, f"{len(streams)} environments served 10 invocations at once"
        found = self.environments()
        assert len(found) >= 10, found
        log = self.server.log.read_text()
        assert self.place.user or "interpreter started to fork from" in log
        assert "cannot fork an interpreter" not in log, "what is kept ready cannot be forked"
        for group in found:
            self.frozen(group)

    def check_a_killed_server_leaves_nothing_once_it_is_back(self):
        below = self.server.descendants()
        left_by = {found for found in traces() if found not in self.before}
        kinds = {"cgroup"} if self.place.user else {"cgroup", "interface", "loop"}
        assert kinds <= {kind for kind, _ in left_by}, f"{kinds} are expected while the server runs, not {left_by}"
        assert len(below) > 10, below
        self.server.stop(signal.SIGKILL)
        eventually(lambda: not below & set(processes()), "the end of all processes below the killed server")
        if self.place.delegated:
            # A unit's next start begins with a new group.
            self.place.remove()
        self.server = Server(self.place, self.data_dir)
        assert self.server.invoke("probe", name="again").ok()["hello"] == "again"
        mine = f"/{self.server.process.pid}-"
        stale = {path for kind, path in left_by if kind == "cgroup" and "/firelet/" in path and mine not in path}
        assert not {path for path in stale if os.path.exists(path)}, "groups of the killed server are still there"

    def check_an_orderly_stop_leaves_nothing(self):
        below = self.server.descendants()
        assert self.server.stop() == 0
        eventually(lambda: not below & set(processes()), "the end of all processes below the server")
        if self.place.delegated:
            self.place.remove()
        eventually(lambda: not traces() - self.before, "an end without traces")
        tables = os.popen("nft list tables").read()
        assert "firelet" not in tables, tables


def series():
    for place in PLACES:
        checks = Checks(place)
        yield checks, f"{place.name}: "
        place.remove()


run_all(series)
