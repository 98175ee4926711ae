"""Checks of microVMs on a host that runs out of something."""

import subprocess
import sys
from pathlib import Path

from checks import run_all
from machine import Place, eventually, traces
from server import Server, fresh_data_dir

RUNTIME = f"python3.{sys.version_info.minor}"
PLACE = Place("service", "system.slice/firelet.service")
CODE = Path(__file__).parent / "function/machine.py"
# With a whole processor, so that it is soon at the end of what there is. One size, so that there is one base snapshot.
MEMORY = 1_769
# What is left of the machine's memory where it is made scarce, in bytes.
SPARE = 64 << 20


class Shortages:
    """In the order in which they are written; the second uses the server of the first."""

    def __init__(self):
        self.data_dir = fresh_data_dir("shortages")
        self.snapshots = self.data_dir / "snapshots"
        self.server = None
        self.before = traces()

    def check_a_full_disk_costs_the_snapshot_and_nothing_else(self):
        # Snapshots are on a disk of their own that has no room for one.
        self.snapshots.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", self.snapshots], check=True)
        PLACE.make()
        self.server = Server(PLACE, self.data_dir, "--isolation", "microvm")
        self.server.deploy("modest", RUNTIME, MEMORY, code=CODE)
        assert self.server.invoke("modest", do="machine").ok()["name"] == "modest"
        eventually(lambda: "a base snapshot is not kept" in self.server.log.read_text(), "word of the full disk")
        assert "No space left" in self.server.log.read_text()
        left = [path for path in self.snapshots.rglob("*") if path.is_file() and path.stat().st_size > 4096]
        assert not left, f"half of a snapshot is left: {left}"

    def check_a_host_without_memory_loses_a_machine_and_not_the_server(self):
        self.server.deploy("greedy", RUNTIME, MEMORY, code=CODE)
        assert self.server.invoke("greedy", do="machine").ok()["name"] == "greedy"
        # Huge pages are taken from the machine without being touched, which would take minutes here.
        vm = Path("/proc/sys/vm")
        pool = vm / "nr_hugepages"

        def is_scarce():
            # What is in pieces is put together, so that there are huge pages to be had.
            (vm / "drop_caches").write_text("3")
            (vm / "compact_memory").write_text("1")
            pool.write_text(str(int(pool.read_text()) + (max(available() - SPARE, 0) >> 21)))
            return available() < 3 * SPARE

        try:
            eventually(is_scarce, "a machine whose memory is taken")
            said = self.server.invoke("greedy", do="hoard", most=6 * SPARE).payload
        except AssertionError as error:
            said = error
        finally:
            pool.write_text("0")
        assert "the sandbox has ended" in str(said), said
        assert self.server.process.poll() is None, "the server was killed and not the machine"
        for name in ("modest", "greedy"):
            assert self.server.invoke(name, do="machine").ok()["name"] == name

    def check_both_leave_nothing(self):
        assert self.server.stop() == 0
        subprocess.run(["umount", self.snapshots], check=True)
        PLACE.remove()
        eventually(lambda: not traces() - self.before, "an end without traces")


def available():
    """Bytes of memory that the machine can still give."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) << 10


run_all(lambda: [Shortages()])
