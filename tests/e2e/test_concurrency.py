"""Many invocations at once: an environment each, warm ones reused last-used-first, nobody left without an answer."""

import socket

import pytest
from server import eventually

SLOW = (
    "import os, time\n"
    "count = 0\n"
    "def handler(event, context):\n"
    "    global count\n"
    "    count += 1\n"
    "    time.sleep(event.get('seconds', 0))\n"
    "    return [os.environ['AWS_LAMBDA_LOG_STREAM_NAME'], count]\n"
)


def test_one_invocation_at_a_time_in_an_environment(firelet):
    function = firelet.deploy(SLOW)
    found = [answer.ok() for answer in function.parallel(6, {"seconds": 2})]
    assert len({stream for stream, _ in found}) == 6
    assert {count for _, count in found} == {1}


def test_serial_invocations_reuse_the_last_used_environment(firelet):
    function = firelet.deploy(SLOW)
    function.parallel(3, {"seconds": 1})
    streams = {function()[0] for _ in range(5)}
    assert len(streams) == 1


@pytest.mark.timeout(300)
def test_a_hundred_cold_starts_at_once_all_answer(firelet, root):
    function = firelet.deploy(SLOW, MemorySize=128, Timeout=120)
    answers = function.parallel(100, {"seconds": 3})
    assert len(answers) == 100
    found = [answer.ok() for answer in answers]
    assert len({stream for stream, _ in found}) >= 50
    again = [answer.ok() for answer in function.parallel(100)]
    assert {count for _, count in again} >= {2}


def test_parallel_invocations_of_a_failing_function_all_answer(firelet):
    function = firelet.deploy("import os\ndef handler(event, context): os._exit(1)\n")
    assert {answer.error for answer in function.parallel(8)} == {"Unhandled"}


def test_a_callers_disconnect_does_not_break_the_environment(firelet):
    function = firelet.deploy(SLOW)
    stream = function()[0]
    host, port = firelet.url.removeprefix("http://").split(":")
    body = b'{"seconds": 0.5}'
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"POST /2015-03-31/functions/{function.name}/invocations HTTP/1.1\r\nHost: {host}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode() + body
        )
        logged(function, "START ", 2)
    # The abandoned invocation runs to its end in the same environment, which serves the next one.
    logged(function, "REPORT ", 2)
    assert function() == [stream, 3]


def logged(function, beginning, times):
    """Waits until so many lines of the function's log begin so."""
    count = lambda: sum(message.startswith(beginning) for message in function.log_messages())  # noqa: E731
    assert eventually(lambda: count() >= times, what=f"{times} lines of {beginning!r}")
