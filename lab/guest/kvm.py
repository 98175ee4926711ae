"""Runs the Rust tests below /lab/tests one after the other, those whose names hold the first argument if one is given.

Prints what they print, and at the end `N passed, N failed, N skipped`. A test that prints a line `SKIPPED: reason` and returns
counts as skipped, a program that ends without a result as one failed test.
"""

import re
import subprocess
import sys
from pathlib import Path

RESULT = re.compile(r"^test result: .* (\d+) passed; (\d+) failed; (\d+) ignored;")
STARTED = re.compile(r"^test (\S+) \.\.\. ")
SKIPPED = re.compile(r"^(?:test \S+ \.\.\. )?\s*SKIPPED: ")


def run(program, name_filter):
    """How many tests of one program passed, failed and were skipped."""
    command = [program, "--test-threads=1", "--nocapture", *([name_filter] if name_filter else [])]
    result, current, skipped = None, None, set()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/var/tmp") as process:
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip("\n")
            print(line, flush=True)
            if started := STARTED.match(line):
                current = started[1]
            if SKIPPED.match(line):
                skipped.add(current)
            if found := RESULT.match(line):
                result = tuple(map(int, found.groups()))
    if result is None or (process.returncode != 0 and result[1] == 0):
        print(f"lab: {program} ended with status {process.returncode} in {current}", flush=True)
        passed, failed, ignored = result or (0, 0, 0)
        return passed, failed + 1, ignored
    passed, failed, ignored = result
    return passed - len(skipped), failed, ignored + len(skipped)


def main():
    results = [(0, 0, 0)]
    for program in sorted(Path("/lab/tests").iterdir()):
        print(f"lab: {program.name}", flush=True)
        results.append(run(program, sys.argv[1]))
    passed, failed, skipped = (sum(column) for column in zip(*results))
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)


main()
