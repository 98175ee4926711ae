"""What `/metrics` shows, read with the parser that Prometheus' own Python client brings."""

import socket
import threading
import urllib.error
import urllib.request

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from server import Function, eventually

HANDLER = """
import time
def handler(event, context):
    if event == "fail":
        raise ValueError("asked to")
    if event == "wait":
        time.sleep(5)
    return event
"""


def read(url):
    """The samples by name and labels."""
    with urllib.request.urlopen(f"{url}/metrics") as reply:
        assert reply.headers["Content-Type"].startswith("application/openmetrics-text")
        families = text_string_to_metric_families(reply.read().decode())
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }


def test_invocations_errors_and_cold_starts_are_counted(firelet):
    function = firelet.deploy(HANDLER)
    of = (("function", function.name),)
    for event in ("x", "y", "fail"):
        function.call(event)
    # The answer goes out before the count.
    eventually(lambda: read(firelet.url).get(("firelet_invocations_total", of)) == 3, what="three invocations")
    figures = read(firelet.url)
    assert figures["firelet_errors_total", of] == 1
    assert figures["firelet_duration_seconds_count", of] == 3
    assert figures["firelet_cold_starts_total", (*of, ("kind", "on-demand"))] == 1
    assert figures["firelet_cold_start_phase_seconds_count", (("phase", "init"),)] >= 1
    assert figures["firelet_functions", ()] >= 1
    kinds = {dict(labels)["kind"] for name, labels in figures if name == "firelet_ready"}
    assert kinds in ({"namespaces", "prepared-sandboxes", "networks"}, {"machines"}), kinds

    firelet.lambda_.delete_function(FunctionName=function.name)
    counted = ("firelet_invocations_total", "firelet_errors_total", "firelet_duration_seconds_count", "firelet_cold_starts_total")
    assert not [name for name, labels in read(firelet.url) if name in counted and of[0] in labels]


def test_only_figures_are_to_be_had_at_their_own_address(start_firelet):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    firelet = start_firelet("--auth", "sigv4", "--metrics-listen", f"127.0.0.1:{port}")
    own = f"http://127.0.0.1:{port}"
    assert ("firelet_functions", ()) in read(own)
    for path in ("/", "/_firelet/health", "/2015-03-31/functions"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(own + path)
        assert refused.value.code == 404
    for url in (f"{own}/metrics", f"{firelet.url}/_firelet/health"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(url, method="POST"))
        assert refused.value.code == 405
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{firelet.url}/metrics")
    assert refused.value.code == 403


def test_environments_and_throttles_show(firelet):
    function = firelet.deploy(HANDLER)
    function("x")
    of = ("function", function.name)
    idle = ("firelet_environments", (of, ("state", "idle")))
    eventually(lambda: read(firelet.url)[idle] == 1, what="an idle environment")
    firelet.lambda_.put_function_concurrency(FunctionName=function.name, ReservedConcurrentExecutions=0)
    with pytest.raises(firelet.lambda_.exceptions.TooManyRequestsException):
        function("y")
    figures = read(firelet.url)
    assert figures["firelet_throttles_total", (of, ("limit", "reserved-concurrency"))] == 1
    assert figures["firelet_throttles_total", (of, ("limit", "account-concurrency"))] == 0
    assert figures["firelet_environments_started_total", (of, ("purpose", "on-demand"))] == 1
    assert figures["firelet_function_concurrent_executions", (of,)] == 0


def test_provisioned_concurrency_and_what_spills_over_show_while_they_are_used(start_firelet):
    firelet = start_firelet()
    function = firelet.deploy(HANDLER, Publish=True)
    of, version = ("function", function.name), ("version", "1")
    firelet.lambda_.put_provisioned_concurrency_config(
        FunctionName=function.name, Qualifier="1", ProvisionedConcurrentExecutions=1
    )

    def now(name, *labels):
        return read(firelet.url).get((f"firelet_{name}", labels))

    def shown(name, value, *labels):
        eventually(lambda: now(name, *labels) == value, what=f"{name} {labels} to be {value}")

    shown("provisioned_concurrency_allocated", 1, of, version)
    assert now("provisioned_concurrency_requested", of, version) == 1
    assert now("provisioned_concurrency_utilization", of, version) == 0
    assert now("concurrent_executions") == 0
    places = now("places_taken")
    published = Function(firelet, f"{function.name}:1")
    both = threading.Thread(target=published.parallel, args=(2, "wait"))
    both.start()
    shown("concurrent_executions", 2)
    assert now("function_concurrent_executions", of) == 2
    assert now("provisioned_concurrency_utilization", of, version) == 1
    assert now("places_taken") == places + 1
    shown("environments", 2, of, ("state", "busy"))
    both.join()
    shown("concurrent_executions", 0)
    shown("provisioned_concurrency_utilization", 0, of, version)
    assert now("provisioned_concurrency_spillover_invocations_total", of) == 1
    for kind in ("provisioned-concurrency", "on-demand"):
        assert now("cold_starts_total", of, ("kind", kind)) == 1
        assert now("environments_started_total", of, ("purpose", kind)) == 1
    for phase in ("code", "sandbox", "init"):
        assert now("cold_start_phase_seconds_count", ("phase", phase)) == 2
        assert now("cold_start_phase_seconds_sum", ("phase", phase)) > 0
