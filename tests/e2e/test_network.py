"""The functions' network: outbound through address translation by default, none at all when switched off, nothing inbound."""

import re
import socket
import subprocess
import threading

import pytest
from conftest import need

CONNECT = (
    "import socket\n"
    "def handler(event, context):\n"
    "    try:\n"
    "        with socket.create_connection((event['host'], event['port']), timeout=2) as connection:\n"
    "            return connection.recv(100).decode()\n"
    "    except OSError as error:\n"
    "        return type(error).__name__\n"
)


@pytest.fixture
def outside(root):
    """(host, port) of a greeting server on a network of its own: a namespace behind a veth pair, as another machine is."""
    need("ip")
    name, host, guest = "fl-e2e-out", "198.18.77.1", "198.18.77.2"

    def ip(*arguments, check=True):
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
        if check and done.returncode != 0:
            pytest.skip(f"cannot build a network for the test: ip {' '.join(arguments)}: {done.stderr.strip()}")

    ip("netns", "del", name, check=False)
    ip("netns", "add", name)
    try:
        ip("link", "add", "fl-e2e-a", "type", "veth", "peer", "name", "fl-e2e-b", "netns", name)
        ip("addr", "add", f"{host}/30", "dev", "fl-e2e-a")
        ip("link", "set", "fl-e2e-a", "up")
        ip("-n", name, "addr", "add", f"{guest}/30", "dev", "fl-e2e-b")
        ip("-n", name, "link", "set", "fl-e2e-b", "up")
        code = (
            "import socket\n"
            f"server = socket.create_server(('{guest}', 0))\n"
            "print(server.getsockname()[1], flush=True)\n"
            "while True:\n"
            "    connection, peer = server.accept()\n"
            "    connection.sendall(b'from ' + peer[0].encode())\n"
            "    connection.close()\n"
        )
        server = subprocess.Popen(
            ["ip", "netns", "exec", name, "python3", "-c", code], stdout=subprocess.PIPE, text=True
        )
        try:
            yield guest, int(server.stdout.readline()), host
        finally:
            server.kill()
            server.wait()
    finally:
        ip("netns", "del", name, check=False)
        ip("link", "del", "fl-e2e-a", check=False)


def test_outbound_connections_are_translated(firelet, outside):
    guest, port, host = outside
    # The other machine knows no route to the sandbox; it answers because it sees the host's address.
    assert firelet.deploy(CONNECT)({"host": guest, "port": port}) == f"from {host}"


def test_nothing_gets_out_when_the_network_is_off(start_firelet, outside):
    guest, port, _ = outside
    server = start_firelet("--network", "off")
    assert server.deploy(CONNECT)({"host": guest, "port": port}) in ("OSError", "TimeoutError", "ConnectionRefusedError")


def test_the_host_network_is_a_choice(start_firelet):
    server = start_firelet("--network", "host")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet():
            connection, _ = listener.accept()
            connection.sendall(b"hello")
            connection.close()

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        assert server.deploy(CONNECT)({"host": "127.0.0.1", "port": listener.getsockname()[1]}) == "hello"


def test_sandboxes_do_not_reach_each_other(firelet, root):
    listening = firelet.deploy(
        "import socket, subprocess, time\n"
        "def address():\n"
        "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:\n"
        "        probe.connect(('198.18.0.1', 9))\n"
        "        return probe.getsockname()[0]\n"
        "def handler(event, context):\n"
        "    server = socket.create_server(('0.0.0.0', 4711))\n"
        "    print('address', address(), flush=True)\n"
        "    server.settimeout(4)\n"
        "    try:\n"
        "        server.accept()\n"
        "        return 'reached'\n"
        "    except TimeoutError:\n"
        "        return 'alone'\n"
        "    finally:\n"
        "        server.close()\n"
    )
    other = firelet.deploy(CONNECT)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(listening()))
    thread.start()
    found = listening.wait_for_log(r"address (\S+)")
    assert re.fullmatch(r"\d+\.\d+\.\d+\.\d+", found[1])
    assert other({"host": found[1], "port": 4711}) in ("TimeoutError", "ConnectionRefusedError", "OSError")
    thread.join()
    assert answers == ["alone"]
