"""Fixtures of the whole-system tests: one Firelet for the session, further ones where a test needs its own."""

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from elsewhere import Elsewhere  # noqa: E402
from server import Server, binary  # noqa: E402


def pytest_configure(config):
    # A test that hangs names itself instead of holding up the run.
    if not config.getoption("timeout", None):
        config.option.timeout = 180


def pytest_sessionstart(session):
    if not Path(binary()).exists():
        pytest.exit(f"no binary at {binary()}: run `cargo build -p firelet`, or set FIRELET_BIN", returncode=3)


@pytest.fixture(scope="session")
def firelet():
    """The Firelet that most tests share."""
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def elsewhere():
    """The services that tests point Firelet at: S3, IAM, STS, Logs, queues and streams."""
    server = Elsewhere()
    yield server
    server.close()


@pytest.fixture
def start_firelet(tmp_path):
    """Starts Firelets of the test's own, in `tmp_path/data` unless told otherwise: `start_firelet(*arguments)`."""
    servers = []

    def start(*arguments, data_dir=None, **options):
        servers.append(Server(*arguments, data_dir=data_dir or tmp_path / "data", **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def root():
    """Skips where the test needs root, as kernel limits do."""
    if os.geteuid() != 0:
        pytest.skip("needs root: memory, process and network limits are lost without it")


def tool(program):
    """A deployment tool of tests/requirements-tools.txt; skips the test where they are not installed."""
    folder = os.environ.get("FIRELET_TEST_TOOLS")
    path = Path(folder or "", program)
    return path if folder and path.exists() else pytest.skip(f"{program} is not installed: scripts/test installs it")


def need(program):
    """Skips the test where a program is absent, else returns its path."""
    return shutil.which(program) or pytest.skip(f"{program} is not installed")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failure carries the end of the server's log."""
    report = (yield).get_result()
    server = item.funcargs.get("firelet") if hasattr(item, "funcargs") else None
    if report.failed and isinstance(server, Server):
        report.sections.append(("firelet's log (its end)", server.log()[-4000:]))
