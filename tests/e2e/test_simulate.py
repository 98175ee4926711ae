"""`firelet simulate`: a trace replayed in virtual time, without a server."""

import json
import subprocess
import xml.etree.ElementTree

import pytest
from server import ROOT, binary

SMALL = ROOT / "crates/simulator/traces/small.csv"


def simulate(*arguments):
    return subprocess.run([binary(), "simulate", *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_policies_stand_side_by_side_and_are_drawn(tmp_path):
    plot = tmp_path / "out.svg"
    done = simulate("--trace", f"azure2021:{SMALL}", "--policy", "fixed:10m", "--policy", "histogram", "--plot", plot)
    assert done.returncode == 0, done.stderr
    heading, *rows = done.stdout.splitlines()
    assert heading.split() == ["fixed:10m", "histogram"]
    cells = {row[:22].strip(): row[22:].split() for row in rows}
    assert cells["invocations"] == ["1,279", "1,279"]
    fixed, histogram = (int(cell.replace(",", "")) for cell in cells["cold starts"])
    assert 0 < histogram < fixed < 1279
    root = xml.etree.ElementTree.parse(plot).getroot()
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "fixed:10m" in texts and "histogram" in texts
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 6


def test_json_has_everything_and_is_the_same_for_the_same_seed():
    arguments = ["--functions", "60", "--hours", "6", "--max-rate", "0.02", "--workers", "2", "--worker-memory", "2048", "--json"]
    first, again, other = (simulate(*arguments, "--seed", seed) for seed in (5, 5, 6))
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout != other.stdout
    outcomes = json.loads(first.stdout)
    assert [outcome["policy"] for outcome in outcomes] == ["fixed:10m", "histogram"]
    for outcome in outcomes:
        ended = outcome["served"] + sum(outcome["throttles"].values()) + outcome["failures"] + outcome["unfinished"]
        assert ended == outcome["invocations"] > 1000
        assert outcome["left_over"] == 0
        assert 0 < outcome["peak_mib"] <= 2 * 2048


def test_a_saved_trace_is_replayed_alike(tmp_path):
    saved = tmp_path / "trace.csv"
    assert simulate("--functions", "10", "--hours", "1", "--max-rate", "0.01", "--save", saved).returncode == 0
    lines = saved.read_text().splitlines()
    assert lines[0] == "app,func,end_timestamp,duration"
    replayed = json.loads(simulate("--trace", f"azure2021:{saved}", "--policy", "fixed:1m", "--json").stdout)
    assert [outcome["invocations"] for outcome in replayed] == [len(lines) - 1]


@pytest.mark.parametrize(
    "arguments, code, text",
    [
        (["--policy", "lru"], 2, '"lru" is no policy; say fixed:10m (or 30s, 2h), histogram, or histogram:10m'),
        (["--trace", "azure2020:x"], 2, "say generated, azure2019:DIR or azure2021:FILE"),
        (["--trace", "azure2021:/nowhere/x.csv"], 1, "cannot read /nowhere/x.csv: No such file or directory"),
        (["--trace", "azure2019:/"], 1, "unpack the whole Azure Functions data set of 2019 there"),
        (["--max-rate", "0"], 2, "say a number above 0"),
    ],
)
def test_mistakes_are_told(arguments, code, text):
    done = simulate(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert text in done.stderr
