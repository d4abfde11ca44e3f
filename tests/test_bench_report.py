"""How `xent bench` shows what it found: on a result made by hand, so that every figure is known."""

import dataclasses
import io
import math
import re
import sys

import pytest
from rich.console import Console
from xent.benchmarks import diff, plot, readme, tables
from xent.benchmarks.result import Case, Result, Series, Spread
from xent.benchmarks.show import page, show
from xent.benchmarks.workloads import Workload

MEGA = 1_000_000
LONG = "tf.nn.sparse_softmax_cross_entropy_with_logits"
MACHINE = {
    "cpu": "A Processor <fast> [bold]",
    "cores": 2,
    "memory": 25 * 10**9,
    "memory settings": "huge pages: madvise",
    "gpus": "",
    "system": "Linux",
    "python": "3.11",
    "date": "2026-01-01",
    "xent": "0.1.0, commit abc1234",
    "kernels": "avx512",
    "versions": {"torch": "2.13.0"},
}
LEVEL = Spread(1.1, 0.9, 1.3, 9)


def sharp(x, rounds=9):
    return Spread(x, 0.99 * x, 1.01 * x, rounds)


def series(name, ratio=None, backend="torch", mode="eager", time=1e-3, **kw):
    known = {"first": 1.0, "memory": 8 * MEGA, "value_error": 1e-7, "gradient_error": 2e-7, "floor": sharp(0.75)}
    if ratio:
        known |= {"ratio": ratio, "best": ratio}
    known |= {"time": time and sharp(time)} | kw
    return Series(name, backend, mode, name == "xent", "both", **known)


def case(found, name="image", shape=(1000, 1000), loss="sparse_ce", value=None):
    """Reads 16 GB/s, writes 8 GB/s: the floor is 0.25 ms and 0.5 ms."""
    work = Workload(name, "a use", loss, shape)
    return Case(work, "float32", 2, value, {} if work.linear else {"torch": (16e9, 8e9)}, list(found))


def result(*cases, sweep=None, **kw):
    return Result(MACHINE, {"threads": 2, "device": "cpu", "sweep": sweep}, list(cases), **kw)


@pytest.fixture
def one():
    """On torch xent wins against one rival, loses to one, is level with one; one is wrong and one failed."""
    return result(
        case(
            [
                series("xent"),
                series("wins", sharp(3.2), time=3.2e-3),
                series("loses", sharp(0.5), time=5e-4),
                series("level", LEVEL),
                series("<wrong>", time=None, problem="wrong: gradient off by 2e-01"),
                series("fails", time=None, problem="failed: no kernel & no [hope]"),
                series("xent", backend="tensorflow", mode="graph"),
                series(LONG, sharp(2), "tensorflow", "graph", 2e-3),
            ]
        ),
        absent=["keras: not installed (pip install keras)"],
    )


def printed(shown, width=100):
    out = io.StringIO()
    show(shown, Console(file=out, width=width, emoji=False))
    return out.getvalue()


def line_of(text, name):
    return next(line for line in text.splitlines() if f" {name} " in line)


def test_cells(one):
    """Losses are shown as wins are."""
    (table,) = tables.tables(one)
    rows = {row.cells[2]: row for row in table.groups["torch"]}
    assert rows["wins"].cells == ("3.20x", "3.17-3.23", "wins", "eager", "3.20 ms", "1.0 s", "75%", "2.00x", "2e-07")
    kinds = {"xent": "ours", "wins": "win", "loses": "loss", "level": "level", "<wrong>": "bad", "fails": "bad"}
    assert {name: row.kind for name, row in rows.items()} == kinds
    assert table.note == "forward and backward; floor 750 µs for 8.00 MB at the measured bandwidth"
    assert tables.summary(one) == [
        "forward and backward: of 4 comparisons with a rival xent is faster in 2, slower in 1, level in 1; "
        "2 wrong, failed or without xent, left out"
    ]


def test_failures_are_xents(one):
    one.cases[0].series.append(series("xent", mode="compiled", time=None, problem="wrong: loss not finite"))
    assert one.failures == ["image  1000x1000  float32: xent, torch compiled: wrong: loss not finite"]
    assert "failed: image" in printed(one)


def test_quartiles():
    assert Spread.of([4.0, 1.0, 2.0, 3.0, 5.0]) == (3, 2, 4, 5)
    assert Spread.ratio([2.0, 6.0, 12.0], [1.0, 2.0, 3.0]) == (3, 2.5, 3.5, 3)
    assert series("few", sharp(3, rounds=4)).verdict == "level"  # too few rounds to say


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.5, "1.50 s"), (9.996e-4, "1.00 ms"), (3.38e-8, "33.8 ns"), (math.nan, "-")]
)
def test_duration(seconds, text):
    assert tables.duration(seconds) == text


@pytest.mark.parametrize(("x", "text"), [(0.0232, "0.023x"), (0.5, "0.50x"), (3.178, "3.18x"), (123.4, "123x")])
def test_times(x, text):
    assert tables.times(x) == text


def test_cells_of_a_head():
    """GFLOP/s, no floor, and memory beyond the gradients."""
    head = case([series("xent", memory=2 * MEGA, floor=None)], "linear", (2000, 100, 1000), "linear_ce")
    (table,) = tables.tables(result(head))
    assert table.groups["torch"][0].cells[4:] == ("1.00 ms", "1.0 s", "1200", "0.10x", "2e-07")
    assert "GFLOP/s" in [column.heading for column in table.columns]


@pytest.mark.parametrize("width", [100, 80])
def test_text(one, width):
    """It fits, says everything, and takes no text for markup."""
    text = printed(one, width)
    assert max(map(len, text.splitlines())) <= width
    for needed in ("A Processor <fast> [bold]", "madvise", "torch 2.13.0", "absent: keras", "no kernel & no [hope]"):
        assert needed in text
    assert line_of(text, "loses").split()[0] == "0.50x"
    one.interrupted = True
    assert "interrupted" in printed(one)


def test_page(one):
    """It says what the terminal says, in its colours, and shows the picture."""
    made = page(one)
    for needed in ("A Processor &lt;fast&gt; [bold]", "no kernel &amp; no [hope]", "&lt;wrong&gt;", "data:image/png"):
        assert needed in made
    assert "http" not in made  # nothing from elsewhere
    assert re.search(r'<span style="color: #008000[^>]*> *3.20x</span>', made)  # green
    assert re.search(r'<span style="color: #800000[^>]*> *0.50x</span>', made)  # red


def test_without_matplotlib(one, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"png: plots need matplotlib \(pip install matplotlib\)"):
        plot.png(one)
    assert "plots need matplotlib" in page(one)


# ---- sweeps


def test_slope_is_of_the_upper_half():
    assert tables.slope([1, 4, 16, 64], [9, 9, 2, 8]) == pytest.approx(1)
    assert tables.slope([1, 2, 4], [8, 4, 2]) == pytest.approx(-1)
    assert math.isnan(tables.slope([1, 2, 4], [1, 1, math.nan]))


def test_a_sweep_of_a_head():
    """Time and memory, each with its slope: xent's memory stays what it is."""
    swept = []
    for n in (256, 1024, 4096):
        gradients, logits = 4 * (n + 1000) * 100, 4 * n * 1000
        ours = series("xent", time=1e-6 * n, memory=gradients + MEGA)
        rival = series("rival", sharp(2), time=2e-6 * n, memory=gradients + 2 * logits)
        swept.append(case([ours, rival], "linear", (n, 100, 1000), "linear_ce", n))
    shown = result(*swept, sweep="rows")
    text = printed(shown)
    assert "linear  float32  forward and backward: memory by rows" in text
    assert [line.split()[-1] for line in text.splitlines() if " eager " in line] == ["1.00", "1.00", "0.00", "1.00"]
    assert "memory by rows" in page(shown)


# ---- two runs beside each other


@pytest.mark.parametrize(
    ("ratio", "floor", "word"), [(3, 0.75, "same"), (3.1, 0.8, "same"), (6, 1.5, "faster"), (1.5, 0.4, "slower")]
)
def test_diff(ratio, floor, word):
    old = result(case([series("xent"), series("rival", sharp(3))]))
    new = result(case([series("xent", floor=sharp(floor)), series("rival", sharp(ratio))]))
    (verdict,) = diff.diff(old, new)
    assert verdict.word == word
    assert len(verdict.changes) == 2  # against the rival, and the memory
    assert diff.table([verdict]).groups[""][0].cells[0] == word


def test_a_rival_that_got_faster_is_no_loss():
    old, new = (result(case([series("xent"), series("rival", sharp(x))])) for x in (3, 1))
    assert diff.diff(old, new)[0].word == "same"


def test_diff_of_different_machines():
    old, new = result(case([series("xent")])), result(case([series("xent")]))
    new.settings = new.settings | {"device": "cuda"}
    with pytest.raises(ValueError, match="diff: expected runs with the same device, got cpu and cuda"):
        diff.diff(old, new)
    with pytest.raises(ValueError, match="nothing that is in both"):
        diff.diff(old, result(case([series("xent")], "other")))


# ---- what is written down


def test_documents_say_what_was_measured():
    """Made by `python -m xent.benchmarks.readme` from the committed result, which is small."""
    found = Result.load(readme.MEASURED)
    assert readme.marked("speed", readme.speed(found)) in (readme.ROOT / "README.md").read_text(encoding="utf-8")
    performance = (readme.ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert readme.marked("modes", readme.every_mode(found)) in performance
    for file in readme.MEASURED.parent.iterdir():
        assert file.stat().st_size < {".json": 60_000, ".png": 250_000}[file.suffix]


def test_readme_tables(one):
    one.cases[0] = dataclasses.replace(one.cases[0], workload=dataclasses.replace(one.cases[0].workload, name="lm"))
    assert "| a use: 1000x1000 float32 | - | 0.50x | 2.00x | - |" in readme.speed(one)  # a loss; and not the wrong one
    assert re.search(r"\| - \| - \| - \| - \| - \| - \|", readme.every_mode(one))
