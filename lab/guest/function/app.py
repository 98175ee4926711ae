"""The function that the checks deploy: does what its event names."""

import os
import threading
import time

clock = {"ticks": 0, "longest_gap": 0.0}


def tick():
    """Runs in the background for as long as the process may run, and notices when it may not."""
    last = time.monotonic()
    while True:
        time.sleep(0.01)
        now = time.monotonic()
        clock["longest_gap"] = max(clock["longest_gap"], now - last)
        clock["ticks"] += 1
        last = now


def threads(event):
    """Starts threads until the kernel refuses; answers how many there were."""
    end, started = threading.Event(), 0
    threading.stack_size(64 * 1024)
    try:
        while started < event["most"]:
            threading.Thread(target=end.wait).start()
            started += 1
    except RuntimeError:
        pass
    finally:
        end.set()
    return started


def handler(event, context):
    match event.get("do"):
        case "tick":
            if clock["ticks"] == 0:
                threading.Thread(target=tick, daemon=True).start()
            # After a pause the answer must not be faster than the one that notices the pause.
            seen = clock["ticks"]
            while clock["ticks"] == seen:
                time.sleep(0.01)
            return clock
        case "sleep":
            time.sleep(event["seconds"])
            return os.environ["AWS_LAMBDA_LOG_STREAM_NAME"]
        case "fill":
            return len(b"x" * (event["mib"] << 20))
        case "threads":
            return threads(event)
        case _:
            return {"hello": event.get("name"), "pid": os.getpid(), "uid": os.getuid()}
