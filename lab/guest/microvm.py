"""Checks of microVMs: functions behind the Lambda API, each in a machine of its own, on a host whose KVM works.

Prints a line for each check, what the server logged where one failed, and at the end `N passed, N failed`.
"""

import base64
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from checks import run_all
from machine import Place, eventually, processes, traces
from server import Server, firelet, fresh_data_dir

RUNTIME = f"python3.{sys.version_info.minor}"
PLACE = Place("service", "system.slice/firelet.service")
CODE = Path(__file__).parent / "function/machine.py"
PORT = 8099

# A custom runtime in a language that every Debian has: its client is busybox.
BOOTSTRAP = """#!/bin/sh
api="http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation"
while true; do
    id=$(busybox wget -S -O /tmp/event "$api/next" 2>&1 | sed -n 's/^ *Lambda-Runtime-Aws-Request-Id: *//Ip' | tr -d '\\r')
    echo "serving $id"
    busybox wget -q -O /dev/null --post-data "{\\"echo\\":$(cat /tmp/event),\\"kernel\\":\\"$(uname -r)\\"}" "$api/$id/response"
done
"""

# An external extension, likewise.
EXTENSION = """#!/bin/sh
api="http://$AWS_LAMBDA_RUNTIME_API/2020-01-01/extension"
id=$(busybox wget -S -O /dev/null --header "Lambda-Extension-Name: watcher" --post-data '{"events":["INVOKE"]}' "$api/register" 2>&1 \\
    | sed -n 's/^ *Lambda-Extension-Identifier: *//Ip' | tr -d '\\r')
while busybox wget -q -O /tmp/told --header "Lambda-Extension-Identifier: $id" "$api/event/next"; do
    echo "the watcher was told"
done
"""


def machines(server):
    """Process numbers of the VMM processes below the server: `firelet` of another user than root."""
    found = set()
    for pid in server.descendants():
        try:
            if os.stat(f"/proc/{pid}").st_uid != 0 and "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text():
                found.add(pid)
        except OSError:
            continue
    return found


class Checks:
    """In the order in which they are written; later ones use the server of earlier ones."""

    def __init__(self):
        self.data_dir = fresh_data_dir("microvm")
        self.server = None
        self.before = traces()

    def start(self, isolation="microvm"):
        config = self.data_dir.with_suffix(".toml")
        config.write_text(f"[nat]\nhost_ports = [{PORT}]\n")
        self.server = Server(PLACE, self.data_dir, "--isolation", isolation, "--config", str(config))

    def machine(self, name="probe"):
        return self.server.invoke(name, do="machine").ok()

    def check_doctor_finds_kvm_usable(self):
        PLACE.make()
        report = json.loads(firelet("doctor", "--json", place=PLACE))
        finding = next(finding for finding in report["findings"] if finding["subject"] == "KVM")
        assert finding["ok"], finding

    def check_auto_takes_microvms(self):
        self.start("auto")
        said = self.server.log.read_text()
        assert "isolation  microvm (auto: " in said, said

    def check_a_function_runs_in_a_machine_of_its_own(self):
        self.server.deploy("probe", RUNTIME, 256, code=CODE)
        seen = self.machine()
        assert seen["kernel"] != os.uname().release, seen
        assert seen["uid"] != 0 and seen["cwd"] == "/var/task" and seen["task"] == ["app.py"], seen
        assert seen["name"] == "probe" and seen["processors"] == 1 and not seen["prestart"], seen
        assert 256 << 10 <= seen["memory_kib"] <= 340 << 10, seen
        assert abs(seen["epoch"] - time.time()) < 60, seen
        assert "lab" not in seen["root"], seen
        assert len(machines(self.server)) >= 1

    def check_a_warm_invocation_finds_the_same_machine(self):
        first, second = self.machine(), self.machine()
        assert first["stream"] == second["stream"] and first["started"] == second["started"], (first, second)

    def check_payloads_of_every_size_come_and_go_unchanged(self):
        for size in (0, 1, 4_095, 65_536, 1 << 20):
            value = ("0123456789abcdef" * (size // 16 + 1))[:size]
            assert self.server.invoke("probe", do="echo", value=value).ok() == value, size

    def check_what_it_says_is_logged_in_order_and_in_time(self):
        self.server.deploy("talker", RUNTIME, 256, code=CODE)
        for lines in (3, 300):
            answer = self.server.invoke("talker", do="say", lines=lines, tail=True)
            assert answer.ok() == lines
            assert f"line {lines - 1}\n" in answer.tail and "to stderr" in answer.tail, answer.tail
            assert "REPORT RequestId" in answer.tail and "Max Memory Used" in answer.tail, answer.tail
        said = [event["message"].strip() for event in self.server.events("/aws/lambda/talker")]
        numbers = [int(line.split()[1]) for line in said if line.startswith("line ")]
        assert numbers == [*range(3), *range(300)], numbers[:20]

    def check_a_custom_runtime_runs(self):
        self.server.deploy("custom", "provided.al2023", 128, files={"bootstrap": (BOOTSTRAP, 0o755)})
        answer = self.server.invoke("custom", hello="lab").ok()
        assert answer["echo"] == {"hello": "lab"} and answer["kernel"] != os.uname().release, answer
        assert self.server.invoke("custom", hello="again").ok()["echo"] == {"hello": "again"}

    def check_layers_are_laid_over_each_other_and_their_extensions_run(self):
        lower = self.server.publish_layer("lower", {"bootstrap": ("no program", 0o644), "extensions/watcher": (EXTENSION, 0o755)})
        upper = self.server.publish_layer("upper", {"bootstrap": (BOOTSTRAP, 0o755)})
        self.server.deploy("layered", "provided.al2023", 128, files={"data": ("x", 0o644)}, layers=[lower, upper])
        assert self.server.invoke("layered", hello="lab").ok()["echo"] == {"hello": "lab"}
        self.server.invoke("layered", hello="again").ok()
        told = lambda: [event for event in self.server.events("/aws/lambda/layered") if "watcher was told" in event["message"]]  # noqa: E731
        eventually(lambda: len(told()) >= 1, "the extension's word in the log")

    def check_ten_clones_at_once_share_no_secret(self):
        answers = [answer.ok() for answer in self.server.parallel(10, "probe", do="draw", seconds=40)]
        assert len({answer["stream"] for answer in answers}) == 10, answers
        for when in ("early", "late"):
            for what in answers[0][when]:
                drawn = {answer[when][what] for answer in answers}
                assert len(drawn) == 10, f"{when} {what}: {len(drawn)} different ones in ten clones"

    def check_nothing_runs_between_invocations(self):
        pids = machines(self.server)
        assert pids

        def used():
            total = 0
            for pid in pids:
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                total += int(fields[11]) + int(fields[12])
            return total

        def is_still():
            before = used()
            time.sleep(3)
            return used() == before

        eventually(is_still, "three seconds in which no machine uses processor time")

    def check_a_fork_bomb_stays_inside(self):
        # That memory is limited is tested below the API: to fill a function's takes minutes in the lab.
        self.server.deploy("bomber", RUNTIME, 1_769, code=CODE)
        bomb = self.server.invoke("bomber", do="bomb", most=1_100).ok()
        assert bomb["errno"] == "EAGAIN" and 900 < bomb["started"] < 1_024, bomb
        assert self.machine("bomber")["name"] == "bomber"

    def check_a_full_tmp_is_its_own_affair(self):
        self.server.deploy("writer", RUNTIME, 256, code=CODE)
        written = self.server.invoke("writer", do="fill_tmp", most=600 << 20).ok()
        assert 480 << 20 <= written <= 530 << 20, written
        assert self.server.invoke("writer", do="fill_tmp", most=8 << 20).ok() == 8 << 20

    def check_the_kernel_is_out_of_its_reach(self):
        refused = self.server.invoke("probe", do="forbidden").ok()
        assert "written" not in refused.values(), refused

    def check_a_timeout_and_a_crash_are_answered_and_survived(self):
        # With much of a processor: after both, the interpreter starts anew, within the time of the next invocation.
        self.server.deploy("slow", RUNTIME, 1_769, timeout=15, code=CODE)
        answer = self.server.invoke("slow", do="exit", code=3)
        assert answer.error == "Unhandled" and "exit status 3" in answer.payload["errorMessage"], answer.payload
        answer = self.server.invoke("slow", do="sleep", seconds=60)
        assert answer.error == "Unhandled" and answer.payload["errorType"] == "Sandbox.Timedout", answer.payload
        assert self.machine("slow")["name"] == "slow"

    def check_several_invocations_at_once_share_a_machine(self):
        provider = "arn:aws:lambda:us-east-1:000000000000:capacity-provider:firelet"
        config = {"CapacityProviderArn": provider, "PerExecutionEnvironmentMaxConcurrency": 3}
        capacity = {"LambdaManagedInstancesCapacityProviderConfig": config}
        self.server.deploy("several", RUNTIME, 1_769, timeout=20, code=CODE, CapacityProviderConfig=capacity)
        stream = self.server.invoke("several", do="sleep", seconds=0).ok()
        met = [answer.ok() for answer in self.server.parallel(3, "several", do="meet", place="hall", count=3, seconds=15)]
        assert None not in met, "they were not in there at once"
        assert {where for where, _ in met} == {stream} and len({pid for _, pid in met}) == 3, met
        # One that leaves and one that runs out of time fail alone.
        left = self.server.invoke("several", do="exit", code=3)
        assert left.error == "Unhandled" and left.payload["errorType"] == "Runtime.ExitError", left.payload
        late = self.server.invoke("several", do="sleep", seconds=60)
        assert late.error == "Unhandled" and late.payload["errorType"] == "Sandbox.Timedout", late.payload
        assert self.server.invoke("several", do="sleep", seconds=0).ok() == stream

    def check_it_reaches_the_host_only_where_it_may(self):
        listener = socket.create_server(("0.0.0.0", PORT))
        closed = socket.create_server(("0.0.0.0", PORT + 1))

        def greet():
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                client.sendall(b"hello from the host")
                client.close()

        threading.Thread(target=greet, daemon=True).start()
        assert self.server.invoke("probe", do="reach", port=PORT, seconds=30).ok() == "hello from the host"
        answer = self.server.invoke("probe", do="reach", port=PORT + 1, seconds=3)
        assert answer.error == "Unhandled", answer.payload
        listener.close()
        closed.close()

    def check_a_killed_machine_is_replaced(self):
        stream = self.machine()["stream"]
        for pid in machines(self.server):
            os.kill(pid, signal.SIGKILL)

        def is_replaced():
            try:
                return self.machine()["stream"] != stream
            except AssertionError as error:
                # The invocation that was given to a machine just as it died.
                assert any(said in str(error) for said in ("has ended", "environment", "signal: killed")), error
                return False

        eventually(is_replaced, "a new machine")
        assert self.server.process.poll() is None

    def check_a_killed_server_takes_its_machines_with_it(self):
        below = self.server.descendants()
        assert machines(self.server)
        self.server.stop(signal.SIGKILL)
        eventually(lambda: not below & set(processes()), "the end of all processes below the killed server")

    def check_the_next_server_clones_what_the_last_one_made(self):
        self.start()
        assert self.machine()["name"] == "probe"
        said = self.server.log.read_text()
        assert "base snapshot loaded" in said.split("isolation  microvm (")[-1], said[-3000:]

    def check_a_damaged_snapshot_is_made_again(self):
        assert self.server.stop() == 0
        files = [path for path in (self.data_dir / "snapshots").rglob("base-*") if path.stat().st_size > 1 << 20]
        assert files, "no base snapshot was kept"
        for number, path in enumerate(files):
            with open(path, "r+b") as file:
                if number % 2:
                    file.truncate(path.stat().st_size // 2)
                else:
                    file.seek(path.stat().st_size // 2)
                    byte = file.read(1)[0]
                    file.seek(-1, os.SEEK_CUR)
                    file.write(bytes([byte ^ 1]))
        self.start()
        assert self.machine()["name"] == "probe"
        said = self.server.log.read_text().split("isolation  microvm (")[-1]
        assert "is of no use and is made again" in said and "base snapshot made" in said, said[-3000:]

    def check_an_orderly_stop_leaves_nothing(self):
        below = self.server.descendants()
        assert self.server.stop() == 0
        eventually(lambda: not below & set(processes()), "the end of all processes below the server")
        PLACE.remove()
        eventually(lambda: not traces() - self.before, "an end without traces")


run_all(lambda: [Checks()])
