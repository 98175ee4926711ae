"""Processes killed with -9 at random points under load: everything goes on, and nothing is left behind."""

import os
import random
import signal
import threading
import time

import botocore.exceptions
from server import eventually
from traces import alive, settled_traces, traces

SECONDS = 6
"""How long there is load. The seed is printed, so that a failure can be brought about again."""

FAST = "def handler(event, context): return event\n"
SLOW = "import time\ndef handler(event, context):\n    time.sleep(0.05)\n    return event\n"


class Load:
    """Clients that invoke functions over and over, each waiting for its answer, until told to stop."""

    def __init__(self, functions, clients):
        self.stopping, self.answers, self.failures, self.broken = threading.Event(), 0, 0, []
        self.threads = [
            threading.Thread(target=self.invoke, args=(functions[number % len(functions)], number))
            for number in range(clients)
        ]
        for thread in self.threads:
            thread.start()

    def invoke(self, function, number):
        while not self.stopping.is_set():
            try:
                answer = function.server.lambda_.invoke(FunctionName=function.name, Payload=str(number).encode())
                payload = answer["Payload"].read()
                if "FunctionError" in answer:
                    self.failures += 1
                elif payload != str(number).encode():
                    self.broken.append(payload)
                else:
                    self.answers += 1
            except botocore.exceptions.ClientError as error:
                # A sandbox that was killed is the platform's failure, and said to be.
                if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500:
                    self.broken.append(error)
                self.failures += 1
            except botocore.exceptions.BotoCoreError:
                # The server itself is gone.
                self.failures += 1
                time.sleep(0.05)

    def stop(self):
        """Ends it; every invocation has to come to its end."""
        self.stopping.set()
        for thread in self.threads:
            thread.join(timeout=60)
            assert not thread.is_alive(), "an invocation has no end"
        assert not self.broken, self.broken[:3]


def answers(function):
    """Whether it does; what was killed last may not have been noticed yet."""
    try:
        return function.call(7).payload == 7
    except botocore.exceptions.ClientError:
        return False


def chance():
    """A source of random numbers whose seed is known."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


def test_killed_sandboxes_and_supervisors_cost_only_their_own_invocations(start_firelet, tmp_path, root):
    before = settled_traces(tmp_path)
    server, draw = start_firelet(), chance()
    functions = [server.deploy(source) for source in (FAST, SLOW, FAST)]
    load = Load(functions, clients=6)
    try:
        until, kills = time.monotonic() + SECONDS, 0
        while time.monotonic() < until:
            time.sleep(draw.uniform(0.05, 0.4))
            # Supervisors, inits, runtimes, what waits in pools: whatever there is.
            if below := server.descendants():
                try:
                    os.kill(draw.choice(below), signal.SIGKILL)
                    kills += 1
                except ProcessLookupError:
                    pass
    finally:
        load.stop()
    assert kills > 5 and load.answers > 0, (kills, load.answers, load.failures)
    for function in functions:
        eventually(lambda: answers(function), what=f"an answer of {function.name}")
    assert server.process.poll() is None
    below = server.descendants()
    assert server.stop() == 0
    eventually(lambda: not alive(below), what=f"the end of {below}")
    eventually(lambda: not traces(tmp_path) - before, what=f"the end of {traces(tmp_path) - before}")


def test_a_server_that_is_killed_under_load_comes_back_clean(start_firelet, tmp_path, root):
    before = settled_traces(tmp_path)
    server, draw = start_firelet(), chance()
    functions = [server.deploy(source) for source in (FAST, SLOW)]
    for _ in range(3):
        load = Load(functions, clients=6)
        try:
            time.sleep(draw.uniform(0.1, 1.5))
            below = server.descendants()
            server.stop(signal.SIGKILL)
        finally:
            load.stop()
        eventually(lambda: not alive(below), what=f"the end of {below}")
        server = start_firelet()
        for function in functions:
            function.server = server
            assert function(5) == 5
    assert server.stop() == 0
    eventually(lambda: not traces(tmp_path) - before, what=f"the end of {traces(tmp_path) - before}")
