"""A function's process as an image, where the platform has no machine to take a snapshot of: this process writes itself out once it
is initialized, and others, which have waited for a function, become it.

Memory is carried over by the platform's library. What the kernel keeps for a process is written down and made again here: regular
files that are open, the working directory, `/tmp`. What cannot be made again (sockets, pipes, other processes, threads) is a reason to
have no image: the function is initialized at each start then, as without SnapStart.

An image begins with the length of a record in eight bytes and the record, in JSON; the contents of files in `/tmp` follow, and at the
next whole page the memory.
"""

import _imp
import os
import stat
import sys
import time

from firelet_json import dumps, loads

# Where the platform's library looks for what it needs. The function has no descriptor from `_LIBRARY` on.
_LIBRARY, _IMAGE, _SOCKET = 1020, 1021, 1022
_PAGE = 4096
_TMP = b"/tmp"
_BLOCK = 65536
# The standard streams, and the log if there is one: each process has its own.
_OWN = 4


class Unfit(Exception):
    """Why there is no image."""


class Keeper:
    """The way of a process that is to leave an image, from its start on."""

    def __init__(self, socket, library):
        self._socket = socket
        self._library = library
        self._own = {fd: _target(fd) for fd in range(_OWN) if _target(fd)}

    def leave(self, disconnect):
        """Waits until the image is wanted, and leaves it. Returns in the processes that go on from there, and nowhere else."""
        if not os.read(self._socket, 1):
            os._exit(0)
        disconnect()
        try:
            self._leave()
        except (Unfit, OSError, ValueError, ImportError) as problem:
            trailer = b"FIRETAIL\x01" + str(problem).encode("utf-8", "replace")[:500]
            _write(self._socket, trailer.ljust(512, b"\0"))
            os._exit(0)
        # The numbers of this process are others than those of the one that it was.
        threading = sys.modules.get("threading")
        if threading is not None and hasattr(threading.main_thread(), "_set_native_id"):
            threading.main_thread()._set_native_id()

    def _leave(self):
        _check_processes()
        mask = os.umask(0o022)
        os.umask(mask)
        entries, contents = _tree()
        record = {"cwd": _text(os.getcwdb()), "umask": mask, "open": self._open_files(), "tmp": entries}
        # In a copy, since libraries learn by that that their other threads are gone, where they know how to do without.
        if os.fork():
            # The connection ends with the copy.
            os.close(self._socket)
            os.wait()
            os._exit(0)
        _check_threads(os.getppid())
        text = dumps(record).encode("utf-8")
        head = len(text).to_bytes(8, "little") + text
        _write(self._socket, head)
        written = len(head)
        for path, size in contents:
            _write_file(self._socket, path, size)
            written += size
        _write(self._socket, bytes(-written % _PAGE))
        os.dup2(self._socket, _SOCKET)
        _call("firelet_leave", self._library)

    def _open_files(self):
        """All that it takes to open them again: number, path, flags, offset, whether programs inherit it."""
        found = []
        for fd in sorted(int(name) for name in os.listdir("/proc/self/fd")):
            target = _target(fd)
            # The directory that has just been listed is among them.
            if target is None or fd in (self._socket, self._library):
                continue
            if fd in self._own:
                if target != self._own[fd]:
                    raise Unfit("descriptor %d is not the platform's any more: %s" % (fd, target))
            elif fd >= _LIBRARY:
                raise Unfit("it has too many open files")
            else:
                found.append(_open_file(fd, target))
        return found


def become(socket, image, library):
    """Becomes the process of an image, and says so on the socket, or why not. Returns nowhere."""
    try:
        # Then all numbers are free that the function may have had.
        for fd, number in ((socket, _SOCKET), (image, _IMAGE), (library, _LIBRARY)):
            os.dup2(fd, number, False)
            os.close(fd)
        length = int.from_bytes(os.pread(_IMAGE, 8, 0), "little")
        record = loads(b"".join(_read(8, length)))
        at = _plant(record["tmp"], 8 + length)
        os.lseek(_IMAGE, at + -at % _PAGE, os.SEEK_SET)
        os.chdir(_path(record["cwd"]))
        os.umask(record["umask"])
        # In order of their numbers, so that the lowest free one is never beyond the one that is meant.
        for number, path, flags, offset, inherited in record["open"]:
            fd = os.open(_path(path), flags)
            if offset:
                os.lseek(fd, offset, os.SEEK_SET)
            if fd != number:
                os.dup2(fd, number, inherited)
                os.close(fd)
            else:
                os.set_inheritable(fd, inherited)
        _call("firelet_replace", _LIBRARY)
    except BaseException as problem:
        _write(_SOCKET, ("%s: %s" % (type(problem).__name__, problem)).encode("utf-8", "replace")[:400])
    os._exit(1)


def _call(name, library):
    """Has the library do something. It is an extension module whose initialization does it and fails, so that no module is left."""
    try:
        _imp.create_dynamic(type(sys.__spec__)(name, None, origin="/proc/self/fd/%d" % library))
    except SystemError:
        pass


def _target(fd):
    try:
        return os.readlink("/proc/self/fd/%d" % fd)
    except OSError:
        return None


def _open_file(fd, target):
    reason = "it has something open that cannot be opened again: %s (descriptor %d)" % (target, fd)
    try:
        here, there = os.fstat(fd), os.stat(target)
    except OSError:
        raise Unfit(reason)
    kinds = (stat.S_ISREG, stat.S_ISDIR, stat.S_ISCHR)
    same = (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
    if not same or target.startswith("/proc/") or not any(kind(here.st_mode) for kind in kinds):
        raise Unfit(reason)
    with open("/proc/self/fdinfo/%d" % fd) as file:
        told = dict(line.split(None, 1) for line in file if len(line.split(None, 1)) == 2)
    flags = int(told["flags:"], 8) & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW)
    offset = int(told["pos:"]) if stat.S_ISREG(here.st_mode) else 0
    return [fd, _text(os.fsencode(target)), flags, offset, os.get_inheritable(fd)]


def _check_processes():
    others = {name for name in os.listdir("/proc") if name.isdigit()} - {"1", str(os.getpid())}
    if others:
        raise Unfit("it has started other processes, which still run")


def _check_threads(pid):
    """Fails if the process that this one is a copy of has other threads, which the copy lacks."""
    for _ in range(200):
        count = len(os.listdir("/proc/%d/task" % pid))
        if count == 1:
            return
        # One that has been waited for may take a moment to be gone.
        time.sleep(0.001)
    raise Unfit("it has %d threads, of which only one can be kept" % count)


# ---------------------------------------------------------------------------------------------------------------------
# /tmp


def _tree():
    """What is in `/tmp`: path, kind, mode, time of change, size or target; and the paths and sizes of the files, in their order."""
    entries, contents = [], []
    waiting = [_TMP]
    while waiting:
        folder = waiting.pop()
        for name in sorted(os.listdir(folder)):
            path = folder + b"/" + name
            found = os.lstat(path)
            entry = [_text(path), "", stat.S_IMODE(found.st_mode), found.st_mtime_ns, 0]
            if stat.S_ISDIR(found.st_mode):
                entry[1] = "directory"
                waiting.append(path)
            elif stat.S_ISLNK(found.st_mode):
                entry[1], entry[4] = "link", _text(os.readlink(path))
            elif stat.S_ISREG(found.st_mode):
                entry[1], entry[4] = "file", found.st_size
                contents.append((path, found.st_size))
            else:
                raise Unfit("%s is neither a file nor a directory" % os.fsdecode(path))
            entries.append(entry)
    return entries, contents


def _plant(entries, at):
    """Makes it again; returns where the contents end."""
    for path, kind, mode, _, rest in entries:
        path = _path(path)
        if kind == "directory":
            os.mkdir(path)
        elif kind == "link":
            os.symlink(_path(rest), path)
        else:
            with open(path, "xb", buffering=0) as file:
                for block in _read(at, rest):
                    if block.strip(b"\0"):
                        _write(file.fileno(), block)
                    else:
                        file.seek(len(block), os.SEEK_CUR)
                file.truncate(rest)
            at += rest
    # What is in a directory changes it, and may not be allowed by its mode.
    for path, kind, mode, time_of_change, _ in reversed(entries):
        path = _path(path)
        if kind != "link":
            os.chmod(path, mode)
        os.utime(path, ns=(time_of_change, time_of_change), follow_symlinks=False)
    return at


def _write_file(fd, path, size):
    with open(path, "rb", buffering=0) as file:
        while size:
            block = file.read(min(size, _BLOCK))
            if not block:
                raise Unfit("%s changes" % os.fsdecode(path))
            _write(fd, block)
            size -= len(block)


def _read(at, length):
    """Bytes of the image, in blocks."""
    while length:
        block = os.pread(_IMAGE, min(length, _BLOCK), at)
        if not block:
            raise ValueError("the image is too short")
        at, length = at + len(block), length - len(block)
        yield block


def _write(fd, data):
    while data:
        data = data[os.write(fd, data) :]


# Paths are bytes, and JSON has none.
def _text(path):
    return path.decode("latin-1")


def _path(text):
    return text.encode("latin-1")
