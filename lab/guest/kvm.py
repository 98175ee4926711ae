"""Runs the Rust tests below /lab/tests one after the other, those whose names hold the first argument if one is given.

Prints what they print, and at the end `N passed, N failed, N skipped`. A test that prints a line `SKIPPED: reason` and returns
counts as skipped, a program that ends without a result as one failed test. What failed runs once more, alone; where it passes then,
a line `FLAKY: name` says so.
"""

import re
import subprocess
import sys
from pathlib import Path

RESULT = re.compile(r"^test result: .* (\d+) passed; (\d+) failed; (\d+) ignored;")
STARTED = re.compile(r"^test (\S+) \.\.\. ")
SKIPPED = re.compile(r"^(?:test \S+ \.\.\. )?\s*SKIPPED: ")
# In the list at the end, of which there are two: the names, and before them what was printed.
FAILED = re.compile(r"^    (\S+)$")


def run(program, *arguments):
    """How many tests of one program passed, failed and were skipped, and which failed."""
    command = [program, "--test-threads=1", "--nocapture", *arguments]
    result, current, skipped, listed, failures = None, None, set(), False, []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/var/tmp") as process:
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip("\n")
            print(line, flush=True)
            if started := STARTED.match(line):
                current = started[1]
            if SKIPPED.match(line):
                skipped.add(current)
            listed = line == "failures:" or (listed and bool(not line or FAILED.match(line)))
            if listed and (name := FAILED.match(line)):
                failures.append(name[1])
            if found := RESULT.match(line):
                result = tuple(map(int, found.groups()))
    if result is None or (process.returncode != 0 and result[1] == 0):
        print(f"lab: {program} ended with status {process.returncode} in {current}", flush=True)
        passed, failed, ignored = result or (0, 0, 0)
        return (passed, failed + 1, ignored), []
    passed, failed, ignored = result
    return (passed - len(skipped), failed, ignored + len(skipped)), failures


def run_twice(program, name_filter):
    """The same, where what fails only once has not failed."""
    (passed, failed, skipped), failures = run(program, *([name_filter] if name_filter else []))
    for name in failures:
        print(f"lab: {name} failed and runs once more", flush=True)
        (passes, _, _), _ = run(program, "--exact", name)
        if passes == 1:
            print(f"FLAKY: {name}", flush=True)
            passed, failed = passed + 1, failed - 1
    return passed, failed, skipped


def main():
    results = [(0, 0, 0)]
    for program in sorted(Path("/lab/tests").iterdir()):
        print(f"lab: {program.name}", flush=True)
        results.append(run_twice(program, sys.argv[1]))
    passed, failed, skipped = (sum(column) for column in zip(*results))
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)


main()
