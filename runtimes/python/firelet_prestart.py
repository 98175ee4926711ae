"""A runtime that is started before it is known whose it will be: it waits here for its environment.

The platform starts it so in a machine that it then takes a snapshot of, and clones the snapshot for each environment.
All that the start has drawn from chance is therefore the same in every clone, and must be drawn again.
"""

import os
import sys
import time

from firelet_json import loads

# The platform gives these descriptors at the start; whose environment it is comes later.
_KEPT = ("_LAMBDA_TELEMETRY_LOG_FD",)


def wait(fd):
    """Says that everything is ready, waits for the environment and takes it over."""
    os.write(fd, b"\n")
    parts = []
    while True:
        part = os.read(fd, 65536)
        if not part:
            break
        parts.append(part)
    os.close(fd)
    if not parts:
        # Nobody wanted this one.
        sys.exit(0)
    given = loads(b"".join(parts))
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    os.environ.clear()
    os.environ.update(kept)
    os.environ.update(given["env"])
    time.tzset()
    os.chdir(given["cwd"])
    random = sys.modules.get("random")
    if random is not None:
        random.seed()
