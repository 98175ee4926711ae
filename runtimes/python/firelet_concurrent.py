"""Several invocations at once: a process for each, as Lambda's runtime has it.

The first process of the runtime only keeps the others, each of which initializes the function and asks for invocations on
its own. When one ends in the middle of an invocation, that invocation alone has failed, and another takes its place. One
that ends before it has asked for work has failed to initialize, and takes all down.
"""

import fcntl
import mmap
import os
import sys

import _signal
import _thread

from firelet_api import RuntimeApi

# What the processes share: for each, whether it has asked for work, the length of the id of its invocation, the id.
_ENTRY = 64


def fork_workers(count, address):
    """Starts `count` processes. Returns in each of them, never in the one that called; that ends with the last."""
    board = mmap.mmap(-1, count * _ENTRY)
    lock = os.memfd_create("log")
    keeper = _Keeper(board, address)
    for index in range(count):
        if keeper.fork(index):
            return Worker(board, index, lock)
    keeper.stop_with_us()
    while keeper.workers:
        index = keeper.wait()
        if index is not None and keeper.fork(index):
            return Worker(board, index, lock)
    sys.exit(0)


class Worker:
    """One of the processes, as it sees itself."""

    def __init__(self, board, index, lock):
        self._board = board
        self._at = index * _ENTRY
        self._lock = lock
        self._thread_lock = _thread.allocate_lock()

    def share_log(self, sink):
        """The log descriptor is everybody's, and what is longer than a pipe takes at once must stay in one piece."""
        write = sink.write

        def write_alone(data):
            with self._thread_lock:
                fcntl.lockf(self._lock, fcntl.LOCK_EX)
                try:
                    write(data)
                finally:
                    fcntl.lockf(self._lock, fcntl.LOCK_UN)

        sink.write = write_alone

    def initialized(self):
        self._board[self._at] = 1

    def begins(self, request_id):
        name = request_id.encode("ascii", "replace")[: _ENTRY - 2]
        self._board[self._at + 2 : self._at + 2 + len(name)] = name
        self._board[self._at + 1] = len(name)

    def ends(self):
        self._board[self._at + 1] = 0


class _Keeper:
    """The process that keeps the others."""

    def __init__(self, board, address):
        self._board = board
        self._address = address
        self._stopping = False
        self.workers = {}

    def fork(self, index):
        """True in the new process."""
        self._board[index * _ENTRY : (index + 1) * _ENTRY] = bytes(_ENTRY)
        pid = os.fork()
        if pid:
            self.workers[pid] = index
            return False
        _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
        return True

    def stop_with_us(self):
        def stop(*_):
            self._stopping = True
            self._signal_all(_signal.SIGTERM)

        _signal.signal(_signal.SIGTERM, stop)

    def wait(self):
        """Waits until one ends; its place, if another one is to take it."""
        pid, status = os.wait()
        index = self.workers.pop(pid, None)
        if index is None or self._stopping:
            return None
        at = index * _ENTRY
        if not self._board[at]:
            self._signal_all(_signal.SIGKILL)
            sys.exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
        length = self._board[at + 1]
        if length:
            request_id = self._board[at + 2 : at + 2 + length].decode("ascii")
            message = "RequestId: %s Error: %s" % (request_id, _reason(status))
            error = {"errorMessage": message, "errorType": "Runtime.ExitError"}
            RuntimeApi(self._address).fail(request_id, error, "")
        return index

    def _signal_all(self, number):
        for pid in self.workers:
            os.kill(pid, number)


def _reason(status):
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return "Runtime exited with error: signal: %s" % ("killed" if number == _signal.SIGKILL else number)
    code = os.WEXITSTATUS(status)
    return "Runtime exited with error: exit status %d" % code if code else "Runtime exited without providing a reason"
