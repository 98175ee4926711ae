"""How a series of checks is run and told of."""

import signal
import time
import traceback


def run_series(checks, label=""):
    """Runs every method `check_*` of an object in the order in which they are written; how many passed and failed.

    Its `server`, if there is one at the end, is killed, and its log shown where a check failed.
    """
    passed = failed = 0
    for name, check in [(n, c) for n, c in vars(type(checks)).items() if n.startswith("check_")]:
        title = label + name.removeprefix("check_").replace("_", " ")
        began = time.monotonic()
        try:
            check(checks)
        except Exception:  # noqa: BLE001 - whatever went wrong is what is reported
            failed += 1
            print(f"FAIL {title}\n{traceback.format_exc()}", flush=True)
        else:
            passed += 1
            print(f"ok   {title} ({time.monotonic() - began:.1f} s)", flush=True)
    if checks.server:
        checks.server.stop(signal.SIGKILL)
        log = checks.server.log.read_text().splitlines()
        if failed:
            print("the log of the server:", flush=True)
            print("".join(f"  | {line}\n" for line in log[-150:]), flush=True)
        # A fault that the server made good must not go unseen.
        for line in log:
            if "the agent of a new machine was lost" in line:
                print(f"NOTE: {line}", flush=True)
    return passed, failed


def run_all(series):
    """Runs several series, each an object or an object and its label, and prints the sum."""
    results = [run_series(*(one if isinstance(one, tuple) else (one,))) for one in series()]
    passed, failed = (sum(column) for column in zip(*results))
    print(f"{passed} passed, {failed} failed", flush=True)
