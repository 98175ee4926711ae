"""The end of an initialization that is kept as a snapshot: the function's hooks, and what every clone must draw anew.

Only imported where AWS_LAMBDA_INITIALIZATION_TYPE is `snap-start`. The process stands in `restore/next` while the
snapshot is taken; each clone returns from there on its own. Where the process itself has to leave its image, it has said `restore/next`
before, and clones say it again.
"""

import os
import sys

import firelet_runtime as runtime


def complete_init(api, sink):
    """Runs the hooks before the snapshot, waits for the restore, runs those after it. Failed hooks end the process."""
    try:
        _run_before_snapshot()
        sink.flush()
        keeper = getattr(sys.modules.get("firelet_prestart"), "keeper", None)
        if keeper is not None:
            # There is no machine here that would be stopped in the middle of it.
            api.restore_announced()
            keeper.leave(api.disconnect)
        api.restore_next()
    except BaseException as problem:
        error = _logged(problem, sink)
        api.fail_init(error, "Runtime.BeforeSnapshotError")
        sys.exit(64)
    try:
        _draw_anew()
        _run_after_restore()
    except BaseException as problem:
        error = _logged(problem, sink)
        api.fail_restore(error, "Runtime.AfterRestoreError")
        sys.exit(65)
    sink.flush()


def _hooks():
    # A function that has not imported it has registered nothing.
    return sys.modules.get("snapshot_restore_py")


def _run_before_snapshot():
    hooks = _hooks()
    registered = hooks.get_before_snapshot() if hooks else []
    while registered:
        # Also those that a hook registers.
        func, args, kwargs = registered.pop()
        func(*args, **kwargs)


def _run_after_restore():
    hooks = _hooks()
    for func, args, kwargs in hooks.get_after_restore() if hooks else []:
        func(*args, **kwargs)


def _draw_anew():
    """Seeds the generators of this process again, which otherwise would go on alike in all clones.

    What draws from the kernel (`os.urandom`, `secrets`, `uuid.uuid4`) needs nothing of this. Generators that the function
    has made itself are its own to seed, in a hook.
    """
    _call("random", "seed")
    _call("numpy.random", "seed")
    # OpenSSL's generators see that the one they are fed from has changed.
    _call("ssl", "RAND_add", os.urandom(64), 64.0)


def _call(module, name, *args):
    # A function may have a module of its own by this name.
    function = getattr(sys.modules.get(module), name, None)
    if callable(function):
        function(*args)


def _logged(problem, sink):
    stack = runtime._formatted(runtime._frames(problem.__traceback__))
    error = runtime._error(str(problem), type(problem).__name__, stack)
    sink.flush()
    runtime._log_error(error, sink)
    sink.flush()
    return error
