"""What `/metrics` shows, read with the parser that Prometheus' own Python client brings."""

import socket
import urllib.error
import urllib.request

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from server import eventually

HANDLER = """
def handler(event, context):
    if event == "fail":
        raise ValueError("asked to")
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
