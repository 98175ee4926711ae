"""The API to the letter: each case of `tests/api/*.toml` is a row of raw HTTP requests and of what must come back.

A file's cases share a server. The format, with its wildcards, is described in `tests/api/README.md`.
"""

import base64
import hashlib
import http.client
import json
import re
import tomllib
import urllib.parse
from pathlib import Path

import pytest
from server import ROLE, Server, eventually, zipped

CASES = Path(__file__).parents[1] / "api"
ACCOUNT, REGION = "000000000000", "us-east-1"
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
STRINGS = {
    "<uuid>": UUID,
    "<time>": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+0000",
    "<iso>": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z",
    "<sha256>": r"[A-Za-z0-9+/]{43}=",
    "<string>": r"[\s\S]*",
}
MEMBERS = {"case": {"name", "step"}, "step": {"request", "headers", "body", "status", "response-headers", "expect", "text", "contains", "until"}}


def files():
    return sorted(path.stem for path in CASES.glob("*.toml"))


def load(group):
    """The cases of a file, checked for typing errors: a member that nobody reads would test nothing."""
    cases = tomllib.loads((CASES / f"{group}.toml").read_text())["case"]
    names = [case["name"] for case in cases]
    assert len(names) == len(set(names)), f"{group}: two cases have one name"
    for case in cases:
        assert set(case) <= MEMBERS["case"], f"{group}: {case['name']}: unknown member in {set(case)}"
        assert case["step"], f"{group}: {case['name']}: no steps"
        for step in case["step"]:
            assert set(step) <= MEMBERS["step"], f"{group}: {case['name']}: unknown member in {set(step)}"
            assert "status" in step and "request" in step, f"{group}: {case['name']}: a step needs request and status"
            assert len({"expect", "text", "contains"} & set(step)) <= 1, f"{group}: {case['name']}: two expectations of one body"
    return cases


def pytest_generate_tests(metafunc):
    if "case" not in metafunc.fixturenames:
        return
    pairs = [(group, case) for group in files() for case in load(group)]
    metafunc.parametrize(("group", "case"), pairs, ids=[f"{group}: {case['name']}" for group, case in pairs])


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """One server and one set of captures for each file."""
    servers, captures = {}, {}

    def of(group):
        if group not in servers:
            servers[group] = Server("--network", "off", data_dir=tmp_path_factory.mktemp(group) / "data")
            captures[group] = {"account": ACCOUNT, "region": REGION, "role": ROLE, "url": servers[group].url}
        return servers[group], captures[group]

    yield of
    for server in servers.values():
        server.close()


def test_the_api_answers_to_the_letter(api, group, case):
    server, captures = api(group)
    for number, step in enumerate(case["step"], 1):
        where = f"step {number}, {step['request']}"
        if step.get("until"):
            eventually(lambda: attempt(server, step, captures) is None, what=where)
        else:
            problem = attempt(server, step, captures)
            assert not problem, f"{where}: {problem}"


def attempt(server, step, captures):
    """Sends a step's request; the first difference from what is expected, or None."""
    method, path = fill(step["request"], captures).split(" ", 1)
    body = fill(step.get("body", ""), captures)
    headers = {name: fill(value, captures) for name, value in step.get("headers", {}).items()}
    if body and not any(name.lower() == "content-type" for name in headers):
        headers["Content-Type"] = "application/json"
    address = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    try:
        connection.request(method, path, body=body.encode(), headers=headers)
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    if response.status != step["status"]:
        return f"status {response.status} instead of {step['status']}: {text[:2000]}"
    found = {}
    for name, wanted in step.get("response-headers", {}).items():
        value = response.getheader(name)
        if problem := differs(json_filled(wanted, captures), value, f"header {name}", found):
            return problem
    if "text" in step and text != fill(step["text"], captures):
        return f"body {text!r}"
    if "expect" in step or "contains" in step:
        try:
            value = json.loads(text)
        except ValueError:
            return f"no JSON: {text[:500]!r}"
        if "expect" in step:
            problem = differs(json.loads(fill(step["expect"], captures)), value, "$", found)
        else:
            problem = differs({**json_filled(step["contains"], captures), "...": "<any>"}, value, "$", found)
        if problem:
            return f"{problem} in {text[:3000]}"
    captures.update(found)
    return None


def fill(text, captures):
    """`${zip}`, `${zip:TEXT}`, `${sha256:TEXT}` (of that zip) and captured values in their places."""

    def value(match):
        name = match[1]
        kind, _, content = name.partition(":")
        if kind == "zip":
            return base64.b64encode(package(content)).decode()
        if kind == "sha256":
            return base64.b64encode(hashlib.sha256(package(content)).digest()).decode()
        assert name in captures, f"nothing was captured as {name}"
        return str(captures[name])

    return re.sub(r"\$\{([^}]+)\}", value, text)


def json_filled(value, captures):
    if isinstance(value, str):
        return fill(value, captures)
    if isinstance(value, list):
        return [json_filled(item, captures) for item in value]
    if isinstance(value, dict):
        return {name: json_filled(item, captures) for name, item in value.items()}
    return value


@pytest.mark.parametrize(
    ("wanted", "value"),
    [
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 1, "b": "<any>"}, {"a": 1}),
        ({"a": "<uuid>"}, {"a": "no"}),
        ({"a": 1}, {"a": True}),
        ({"a": "1"}, {"a": 1}),
        ([1], [1, 2]),
        ({"a": ["<number>"]}, {"a": ["1"]}),
        ("<name=...>", None),
    ],
)
def test_differences_are_seen(wanted, value):
    assert differs(wanted, value, "$", {})


def package(text):
    return zipped({"bootstrap": "#!/bin/sh\n" + text})


def differs(wanted, value, path, found):
    """Where `value` is not as wanted, or None. Captures go into `found`."""
    if isinstance(wanted, str) and (capture := re.fullmatch(r"<(\w+)=\.\.\.>", wanted)):
        found[capture[1]] = value
        return None if value is not None else f"{path} is absent"
    if wanted == "<any>":
        return None
    if isinstance(wanted, str) and wanted in STRINGS:
        good = isinstance(value, str) and re.fullmatch(STRINGS[wanted], value)
        return None if good else f"{path} is {value!r}, not a {wanted}"
    if wanted in ("<number>", "<epoch>"):
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and (wanted == "<number>" or value > 1.7e9)
        return None if good else f"{path} is {value!r}, not a {wanted}"
    if isinstance(wanted, dict) and isinstance(value, dict):
        more = "..." in wanted
        for name, item in wanted.items():
            if name == "...":
                continue
            if name not in value:
                return f"{path}.{name} is absent"
            if problem := differs(item, value[name], f"{path}.{name}", found):
                return problem
        extra = set(value) - set(wanted)
        return None if more or not extra else f"{path} has {sorted(extra)} besides"
    if isinstance(wanted, list) and isinstance(value, list):
        if len(wanted) != len(value):
            return f"{path} has {len(value)} elements, not {len(wanted)}: {value!r}"
        pairs = enumerate(zip(wanted, value))
        return next(filter(None, (differs(a, b, f"{path}[{n}]", found) for n, (a, b) in pairs)), None)
    kinds = {bool if isinstance(item, bool) else float if isinstance(item, (int, float)) else type(item) for item in (wanted, value)}
    if len(kinds) > 1:
        return f"{path} is {value!r}, not {wanted!r}"
    return None if wanted == value else f"{path} is {value!r}, not {wanted!r}"
