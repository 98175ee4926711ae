"""A runtime that is started before it is known whose it will be: it waits here for its environment.

The platform starts it so in a machine that it then takes a snapshot of, and clones the snapshot for each environment. Or
it starts it as a zygote, of which a fork waits in each sandbox. All that the start has drawn from chance is therefore the
same in every clone, and must be drawn again.
"""

import _imp
import gc
import os
import sys
import time

import _socket

from firelet_json import loads

# The platform gives these descriptors at the start; whose environment it is comes later.
_KEPT = ("_LAMBDA_TELEMETRY_LOG_FD",)
# Of the longest message about descriptors: how many there are at most.
_DESCRIPTORS = 2

# Where this process is to leave an image of itself: a `firelet_image.Keeper`.
keeper = None


def fork_from_here(library):
    """Makes sandboxes, each with a fork of this process in it, until nobody wants any more. Returns in the forks only.

    The library is an extension module whose initialization does all that, and in a fork fails: so it leaves no module.
    """
    # What is there now is no garbage of any fork's: looking for some would write to all of it. Python 3.6 has no such thing.
    if hasattr(gc, "freeze"):
        gc.freeze()
    try:
        _imp.create_dynamic(type(sys.__spec__)("firelet_zygote", None, origin=library))
    except SystemError:
        pass
    ssl = sys.modules.get("_ssl")
    if ssl is not None:
        ssl.RAND_add(os.urandom(32), 32.0)


def is_awaited(fd):
    """Whether somebody waits for this process, which is to lose no time then: there is a byte in the socket already."""
    connection = _socket.socket(fileno=fd)
    try:
        return bool(connection.recv(1, _socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False
    finally:
        connection.detach()


def wait(fd):
    """Says that everything is ready, waits for the environment and takes it over. Or becomes a process that was kept."""
    global keeper
    os.write(fd, b"\n")
    data, descriptors = _receive(fd)
    if not data:
        # Nobody wanted this one.
        sys.exit(0)
    given = loads(data)
    if given.get("become"):
        from firelet_image import become

        become(fd, *descriptors)
    os.close(fd)
    if descriptors:
        from firelet_image import Keeper

        keeper = Keeper(*descriptors)
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    os.environ.clear()
    os.environ.update(kept)
    os.environ.update(given["env"])
    time.tzset()
    os.chdir(given["cwd"])
    random = sys.modules.get("random")
    if random is not None:
        random.seed()


def _receive(fd):
    """All bytes up to the end, and the descriptors that came with them."""
    connection = _socket.socket(fileno=fd)
    parts, descriptors = [], []
    while True:
        room = _socket.CMSG_SPACE(4 * _DESCRIPTORS)
        part, messages, _, _ = connection.recvmsg(65536, room, getattr(_socket, "MSG_CMSG_CLOEXEC", 0))
        for level, kind, content in messages:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                numbers = range(0, len(content) - len(content) % 4, 4)
                descriptors += [int.from_bytes(content[at : at + 4], sys.byteorder) for at in numbers]
        if not part:
            break
        parts.append(part)
    connection.detach()
    return b"".join(parts), descriptors
