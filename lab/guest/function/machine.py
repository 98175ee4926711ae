"""The function that the checks of microVMs deploy: does what its event names, and says what it sees of its machine."""

import errno
import os
import random
import secrets
import signal
import socket
import sys
import time
import uuid

STARTED = time.time()


def draw():
    """Everything that must differ between two clones of one snapshot."""
    return {
        "random": random.getrandbits(64),
        "secret": secrets.token_hex(16),
        "uuid": str(uuid.uuid4()),
        "boot_noise": open("/proc/sys/kernel/random/uuid").read().strip(),
        "hash": hash(str(os.getpid()) + os.environ["AWS_LAMBDA_LOG_STREAM_NAME"]),
    }


DRAWN = draw()


def fill_tmp(event):
    """Takes room in /tmp until it is full; how much there was, and whether there is room again afterwards."""
    written, path = 0, "/tmp/filling"
    try:
        with open(path, "wb", buffering=0) as file:
            while written < event["most"]:
                # Not written: that takes minutes in the lab.
                os.posix_fallocate(file.fileno(), written, 1 << 20)
                written += 1 << 20
            file.write(b"x" * (1 << 20))
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
    os.remove(path)
    with open("/tmp/after", "w") as file:
        file.write("there is room again")
    return written


def reach(event):
    """Talks to a server of the host's at the gateway."""
    for line in open("/proc/net/route").read().splitlines()[1:]:
        fields = line.split()
        if fields[1] == "00000000":
            gateway = socket.inet_ntoa(bytes.fromhex(fields[2])[::-1])
            with socket.create_connection((gateway, event["port"]), timeout=event["seconds"]) as connection:
                return connection.recv(100).decode()
    return "no default route"


def spin(event):
    """Tries what only a kernel may do, and says how that was refused."""
    refused = {}
    for path in ("/dev/kmsg", "/proc/sysrq-trigger", "/dev/mem", "/dev/vda", "/sys/kernel/debug"):
        try:
            with open(path, "wb") as file:
                file.write(b"b")
            refused[path] = "written"
        except OSError as error:
            refused[path] = errno.errorcode[error.errno]
    return refused


def bomb(event):
    """Forks until the kernel refuses."""
    started = []
    try:
        for _ in range(event["most"]):
            child = os.fork()
            if child == 0:
                signal.pause()
            started.append(child)
    except OSError as error:
        return {"started": len(started), "errno": errno.errorcode[error.errno]}
    finally:
        for child in started:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return {"started": len(started), "errno": None}


def hoard(event):
    """Takes memory that nobody else has then, page by page."""
    hoarded = bytearray(event["most"])
    for page in range(0, len(hoarded), 4096):
        hoarded[page] = 1
    return len(hoarded)


def meet(event):
    """Waits until as many invocations are in here as the event says; none of them is over before."""
    mine = f"/tmp/{event['place']}-{os.getpid()}"
    open(mine, "w").close()
    deadline = time.monotonic() + event["seconds"]
    while len([name for name in os.listdir("/tmp") if name.startswith(event["place"] + "-")]) < event["count"]:
        if time.monotonic() > deadline:
            return None
        time.sleep(0.05)
    return [os.environ["AWS_LAMBDA_LOG_STREAM_NAME"], os.getpid()]


def handler(event, context):
    match event.get("do"):
        case "machine":
            return {
                "kernel": os.uname().release,
                "host": os.uname().nodename,
                "uid": os.getuid(),
                "processors": os.cpu_count(),
                "memory_kib": int(open("/proc/meminfo").readline().split()[1]),
                "cwd": os.getcwd(),
                "stream": os.environ["AWS_LAMBDA_LOG_STREAM_NAME"],
                "name": context.function_name,
                "epoch": time.time(),
                "started": STARTED,
                "prestart": "FIRELET_PRESTART_FD" in os.environ,
                "task": sorted(os.listdir("/var/task")),
                "root": sorted(os.listdir("/")),
            }
        case "draw":
            time.sleep(event.get("seconds", 0))
            return {"stream": os.environ["AWS_LAMBDA_LOG_STREAM_NAME"], "early": DRAWN, "late": draw()}
        case "say":
            for number in range(event["lines"]):
                print(f"line {number}")
            print("to stderr", file=sys.stderr)
            return event["lines"]
        case "echo":
            return event["value"]
        case "fill_tmp":
            return fill_tmp(event)
        case "reach":
            return reach(event)
        case "meet":
            return meet(event)
        case "forbidden":
            return spin(event)
        case "bomb":
            return bomb(event)
        case "hoard":
            return hoard(event)
        case "exit":
            os._exit(event["code"])
        case "sleep":
            time.sleep(event["seconds"])
            return os.environ["AWS_LAMBDA_LOG_STREAM_NAME"]
