"""Checks of SnapStart: versions that are initialized when they are published, kept, and restored in microVMs."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from checks import run_all
from machine import Place, eventually, processes, traces
from server import Server, fresh_data_dir

# The oldest that SnapStart takes; an older interpreter serves it where there is no other.
RUNTIME = "python3.12"
PLACE = Place("service", "system.slice/firelet.service")
CODE = Path(__file__).parent / "function/snap.py"
SNAP_START = {"ApplyOn": "PublishedVersions"}
CLONES = 50
AT_ONCE = 3


class SnapStart:
    """In the order in which they are written; later ones use the server of earlier ones."""

    def __init__(self):
        self.data_dir = fresh_data_dir("snapstart")
        self.server = None
        self.before = traces()

    def start(self):
        PLACE.make()
        self.server = Server(PLACE, self.data_dir, "--isolation", "microvm")

    def invoke(self, name, **event):
        """Invokes version 1. Hooks have 10 s, which a clone in a busy lab may not make: then another is tried."""
        while True:
            try:
                return self.server.invoke(name, qualifier=1, **event)
            except AssertionError as error:
                if "HTTP Error 408" not in str(error):
                    raise

    def check_a_version_is_kept_when_it_is_published_and_restored_when_it_is_invoked(self):
        self.start()
        self.server.deploy("snap", RUNTIME, 256, code=CODE, SnapStart=SNAP_START)
        version = self.server.publish("snap")
        assert version["State"] == "Active" and version["SnapStart"]["OptimizationStatus"] == "On", version
        seen = self.invoke("snap").ok()
        assert seen["order"] == ["initialized", "put away", "fetched again"], seen
        assert (seen["kind"], seen["keys"], seen["tmp"]) == ("snap-start", False, []), seen
        again = self.invoke("snap", tail=True)
        assert again.ok()["tmp"] == ["mine"] and again.payload["host"] == seen["host"], again.payload
        assert "Restore Duration" not in again.tail, again.tail
        said = "".join(event["message"] for event in self.server.events("/aws/lambda/snap"))
        assert said.count("Phase: snap-start") == 1, said
        # There may be a second clone: that the first would soon be free again was not known.
        for line in ("RESTORE_START Runtime Version", "RESTORE_REPORT Restore Duration", "\tBilled Restore Duration: "):
            assert line in said, (line, said)

    def check_fifty_clones_of_a_version_share_nothing_that_they_draw(self):
        group = "/aws/lambda/snap"
        seen = lambda: [event for event in self.server.events(group) if event["message"].startswith("SEEN ")]  # noqa: E731
        # Whoever gets the clone of the check before ends it, too.
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for answer in pool.map(lambda _: self.invoke("snap", do="die"), range(CLONES)):
                assert answer.error == "Unhandled" and "exit status 7" in answer.payload["errorMessage"], answer.payload
        events = eventually(lambda: len(seen()) >= CLONES and seen(), "what the last clone has said")
        clones = [json.loads(event["message"].removeprefix("SEEN ")) for event in events]
        assert len({event["logStreamName"] for event in events}) == len(events)
        for what in clones[0]["drawn"]:
            drawn = {clone["drawn"][what] for clone in clones}
            assert len(drawn) == len(clones), f"{what}: {len(drawn)} different ones in {len(clones)} clones"
        # Drawn before the snapshot, and so the same in all; the clock is not what it was then.
        assert len({clone["early"] for clone in clones}) == 1 and len({clone["begun"] for clone in clones}) == 1
        for clone, event in zip(clones, events):
            assert abs(clone["epoch"] - event["timestamp"] / 1000) < 60, (clone, event)
        # Two bytes of chance each.
        assert len({clone["host"] for clone in clones}) >= len(clones) - 2, [clone["host"] for clone in clones]

    def check_hooks_that_fail_are_told(self):
        self.server.deploy("unkept", RUNTIME, 256, code=CODE, SnapStart=SNAP_START, Environment={"Variables": {"BREAK": "before"}})
        version = self.server.publish("unkept")
        assert version["State"] == "Failed" and "cannot be put away" in version["StateReason"], version
        self.server.deploy("unfetched", RUNTIME, 256, code=CODE, SnapStart=SNAP_START, Environment={"Variables": {"BREAK": "after"}})
        assert self.server.publish("unfetched")["State"] == "Active"
        try:
            self.invoke("unfetched")
            raise RuntimeError("it was invoked")
        except AssertionError as error:
            assert "400" in str(error) and "nothing to fetch" in str(error), error

    def check_what_was_published_outlives_its_server(self):
        assert self.server.stop() == 0
        self.start()
        seen = self.invoke("snap").ok()
        assert seen["order"] == ["initialized", "put away", "fetched again"], seen
        said = "".join(event["message"] for event in self.server.events("/aws/lambda/snap"))
        assert said.count("Phase: snap-start") == 1, "it was initialized again"

    def check_a_damaged_version_is_initialized_again(self):
        assert self.server.stop() == 0
        files = list((self.data_dir / "snapshots").rglob("function-*"))
        assert len([path for path in files if path.suffix == ".key"]) == 4, files
        path = max((path for path in files if path.suffix == ".snapshot"), key=lambda path: path.stat().st_size)
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size // 2)
        self.start()

        def is_served():
            names = ("snap", "unfetched")
            try:
                return [self.invoke(name) for name in names]
            except AssertionError as error:
                if "nothing to fetch" in str(error):
                    return True
                assert "SnapStartNotReadyException" in str(error) or "409" in str(error), error
                return False

        eventually(is_served, "versions that are served", 600)
        said = self.server.log.read_text().split("isolation  microvm (")[-1]
        assert "a snapshot is of no use and is made again" in said, said[-3000:]

    def check_a_deleted_version_leaves_no_snapshot(self):
        kept = lambda: sorted(path.name for path in (self.data_dir / "snapshots").rglob("function-*"))  # noqa: E731
        assert kept()
        for name in ("snap", "unfetched"):
            self.server.request("DELETE", f"/2015-03-31/functions/{name}")
        eventually(lambda: not kept(), f"the end of {kept()}")

    def check_nothing_of_it_is_left(self):
        below = self.server.descendants()
        assert self.server.stop() == 0
        eventually(lambda: not below & set(processes()), "the end of all processes below the server")
        PLACE.remove()
        eventually(lambda: not traces() - self.before, "an end without traces")


run_all(lambda: [SnapStart()])
