"""What a function cannot do: see the host, outgrow its limits, harm another function."""

import errno
import subprocess
import threading

import pytest

from server import eventually

PROBE = """
import json, os, socket
def handler(event, context):
    return eval(event['code'], globals())
"""


def probe(firelet, code, **settings):
    """Evaluates an expression inside a sandbox."""
    return firelet.deploy(PROBE, **settings)({"code": code})


def write_error(path):
    return f"(lambda: open({path!r}, 'w'))()"


def test_host_files_are_invisible(firelet, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("host")
    secret.chmod(0o644)
    function = firelet.deploy(
        "import os, sys\n"
        "def files(path):\n"
        "    if os.path.isfile(path): yield path\n"
        "    for folder, _, names in os.walk(path):\n"
        "        yield from (os.path.join(folder, name) for name in names)\n"
        "def handler(event, context):\n"
        "    # An interpreter below somebody's home keeps its path, and nothing else of that home is there.\n"
        "    own = (os.path.realpath(sys.base_prefix) + '/', sys.base_prefix + '/')\n"
        "    return [file for path in event for file in files(path) if not file.startswith(own)]\n"
    )
    paths = [str(secret), str(firelet.data_dir), "/root", "/home", "/etc/shadow", "/var/log", "/var/lib", "/sys"]
    assert function(paths) == []


def test_only_tmp_can_be_written(firelet):
    function = firelet.deploy(
        "import os\n"
        "def attempt(path):\n"
        "    try:\n"
        "        open(path + '/probe', 'w').close()\n"
        "        return 0\n"
        "    except OSError as error:\n"
        "        return error.errno\n"
        "def handler(event, context):\n"
        "    return {path: attempt(path) for path in event['paths']}\n"
    )
    paths = ["/", "/var/task", "/opt", "/var/runtime", "/etc", "/usr", "/usr/lib", "/dev", "/proc/sys/kernel"]
    found = function({"paths": [*paths, "/tmp"]})
    assert found.pop("/tmp") == 0
    assert set(found.values()) <= {errno.EROFS, errno.EACCES, errno.ENOENT, errno.EPERM}, found


def test_the_task_folder_is_read_only_even_to_its_files(firelet):
    payload = firelet.deploy("def handler(event, context): open('/var/task/app.py', 'a')\n").call().payload
    assert payload["errorType"] in ("OSError", "PermissionError")
    assert payload["errorMessage"] in (
        "[Errno 30] Read-only file system: '/var/task/app.py'",
        "[Errno 13] Permission denied: '/var/task/app.py'",
    )


def test_the_process_has_no_privileges(firelet):
    status = probe(firelet, "open('/proc/self/status').read()")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[name], 16) == 0, f"{name} is {fields[name]}"
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


def test_only_its_own_processes_are_visible(firelet):
    pids = probe(firelet, "[int(name) for name in os.listdir('/proc') if name.isdigit()]")
    assert len(pids) <= 3 and max(pids) < 100


def test_the_first_process_is_out_of_reach(firelet):
    function = firelet.deploy(
        "import os\n"
        "def attempt(action):\n"
        "    try:\n"
        "        return repr(action())\n"
        "    except OSError as error:\n"
        "        return type(error).__name__\n"
        "def handler(event, context):\n"
        "    return [attempt(lambda: os.kill(1, 9)), attempt(lambda: os.listdir('/proc/1/root')),\n"
        "            attempt(lambda: open('/proc/1/mem', 'rb').read(1)), attempt(lambda: open('/proc/1/environ').read())]\n"
    )
    assert set(function()) <= {"PermissionError", "FileNotFoundError"}


def test_open_files_and_cores_are_limited(firelet):
    files, core = probe(firelet, "[__import__('resource').getrlimit(which) for which in (7, 4)]")
    assert files == [1024, 1024]
    # One byte, not none: only that keeps the kernel from starting the host's core dump handler.
    assert core == [1, 1]


def test_tmp_has_the_size_that_was_asked_for(firelet, root):
    function = firelet.deploy(
        "import os\n"
        "def handler(event, context):\n"
        "    written = 0\n"
        "    try:\n"
        "        with open('/tmp/fill', 'wb') as file:\n"
        "            while written < event['megabytes'] * 1_000_000:\n"
        "                written += file.write(bytes(1_000_000))\n"
        "                file.flush()\n"
        "    except OSError as error:\n"
        "        return [error.errno, written]\n"
        "    finally:\n"
        "        os.unlink('/tmp/fill')\n"
        "    return [0, written]\n",
        MemorySize=1024,
    )
    number, written = function({"megabytes": 600})
    assert number == errno.ENOSPC
    assert 480_000_000 < written < 560_000_000
    assert function({"megabytes": 100}) == [0, 100_000_000]


def test_memory_is_limited_to_the_setting(firelet, root):
    code = "def handler(event, context): return len(bytearray(event['megabytes'] * 1_000_000))\n"
    function = firelet.deploy(code, MemorySize=256)
    assert function({"megabytes": 150}) == 150_000_000
    assert function.call({"megabytes": 400}).error == "Unhandled"
    assert function({"megabytes": 150}) == 150_000_000


def test_a_fork_bomb_stays_inside(firelet, root):
    neighbour = firelet.deploy("def handler(event, context): return 'well'\n")
    assert neighbour() == "well"
    before = len(firelet.descendants())
    bomb = firelet.deploy(
        "import os, time\n"
        "def handler(event, context):\n"
        "    while True:\n"
        "        try:\n"
        "            os.fork()\n"
        "        except OSError:\n"
        "            time.sleep(0.05)\n",
        Timeout=3,
        MemorySize=512,
    )
    thread = threading.Thread(target=bomb.call)
    thread.start()
    try:
        while thread.is_alive():
            assert neighbour() == "well"
    finally:
        thread.join()
    # What the bomb started is gone, not only its first process.
    eventually(lambda: len(firelet.descendants()) < before + 50, what="the end of the bomb's processes")


def test_a_neighbour_is_unharmed_while_one_misbehaves(firelet, root):
    neighbour = firelet.deploy("count = 0\ndef handler(event, context):\n    global count; count += 1; return count\n")
    assert neighbour() == 1
    hog = firelet.deploy("def handler(event, context):\n    hog = []\n    while True: hog.append(b'x' * 10_000_000)\n")
    crash = firelet.deploy("import os\ndef handler(event, context): os._exit(9)\n")
    for expected in range(2, 5):
        assert hog.call().error == crash.call().error == "Unhandled"
        assert neighbour() == expected


def test_the_hosts_loopback_is_not_the_functions(firelet, root):
    port = int(firelet.url.rsplit(":", 1)[1])
    assert probe(firelet, f"socket.socket().connect_ex(('127.0.0.1', {port}))") == errno.ECONNREFUSED


def test_environments_of_one_function_do_not_share_tmp(firelet):
    function = firelet.deploy(
        "import os, time\n"
        "def handler(event, context):\n"
        "    open('/tmp/' + context.aws_request_id, 'w').close()\n"
        "    time.sleep(1)\n"
        "    return [os.environ['AWS_LAMBDA_LOG_STREAM_NAME'], len(os.listdir('/tmp'))]\n"
    )
    found = [answer.ok() for answer in function.parallel(4)]
    assert len({stream for stream, _ in found}) == 4
    assert [count for _, count in found] == [1, 1, 1, 1]


def test_mounting_and_new_namespaces_are_refused(firelet):
    function = firelet.deploy(
        "import ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def call(*arguments):\n"
        "    ctypes.set_errno(0)\n"
        "    return [libc.syscall(*arguments), ctypes.get_errno()]\n"
        "def handler(event, context):\n"
        "    return {'mount': call(165, b'none', b'/tmp', b'tmpfs', 0, None), 'unshare': call(272, 0x10000000),\n"
        "            'ptrace': call(101, 16, 1, 0, 0), 'bpf': call(321, 0, None, 0), 'keyctl': call(250, 0, 0, 0)}\n"
    )
    if subprocess.run(["uname", "-m"], capture_output=True, text=True).stdout.strip() != "x86_64":
        import pytest

        pytest.skip("the system call numbers are x86-64's")
    for name, (result, number) in function().items():
        assert result == -1 and number in (errno.EPERM, errno.ENOSYS), f"{name}: {result} {number}"


@pytest.mark.parametrize("prestart, forked", [("zygote", True), ("exec", False), ("off", False)])
def test_python_waits_as_a_fork_or_is_started_on_its_own(start_firelet, root, prestart, forked):
    server = start_firelet("--isolation", "namespace", "--prestart", prestart)
    # What comes from the interpreter that was forked is left alone by collections of garbage, which would copy all of it.
    look = (
        "import gc\n"
        "def handler(event, context): return ['FIRELET_ZYGOTE' in open('/proc/self/environ').read(), gc.get_freeze_count() > 1000]\n"
    )
    for _ in range(3):
        # The first may come before anything is prepared.
        eventually(lambda: server.deploy(look)() == [forked, forked], what=f"a function that {'is' if forked else 'is not'} a fork")
    settled = [server.deploy(look)() for _ in range(3)]
    assert settled == [[forked, forked]] * 3


def test_an_unknown_way_to_start_runtimes_is_refused(firelet):
    done = firelet.firelet("serve", "--prestart", "fork")
    assert done.returncode == 2 and "possible values: zygote, exec, off" in done.stderr
