"""The documentation names tests, files and commands; those that it names exist."""

import re
import tomllib
from pathlib import Path

import pytest
from server import ROOT

HERE = Path(__file__).parent


def test_every_test_named_in_the_compatibility_table_exists():
    text = (ROOT / "docs/compatibility.md").read_text()
    named = set(re.findall(r"`(test_\w+)::(test_\w+)`", text))
    assert len(named) > 40
    missing = [
        f"{file}::{test}"
        for file, test in sorted(named)
        if f"def {test}(" not in (HERE / f"{file}.py").read_text()
    ]
    assert missing == []


def test_every_api_case_named_in_the_compatibility_table_exists():
    text = (ROOT / "docs/compatibility.md").read_text()
    named = set(re.findall(r"`api/(\w+): ([^`]+)`", text))
    cases = {(path.stem, case["name"]) for path in (ROOT / "tests/api").glob("*.toml") for case in tomllib.loads(path.read_text())["case"]}
    assert sorted(named - cases) == []


def test_every_check_of_the_lab_named_in_the_compatibility_table_exists():
    text = (ROOT / "docs/compatibility.md").read_text() + (ROOT / "docs/security.md").read_text()
    named = set(re.findall(r"`(\w+)::(check_\w+)`", text))
    assert len(named) > 8
    missing = [
        f"{file}::{check}"
        for file, check in sorted(named)
        if f"def {check}(" not in (ROOT / f"lab/guest/{file}.py").read_text()
    ]
    assert missing == []


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/compatibility.md"])
def test_links_between_documents_lead_somewhere(document):
    path = ROOT / document
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []
