"""How `xent bench` shows what it found: on a result made by hand, so that every figure is known."""

import dataclasses
import io
import math
import re
import sys
from html.parser import HTMLParser

import pytest
from rich.console import Console
from xent.benchmarks import details, machine, plot, report, rows, speed, targets
from xent.benchmarks.readme import PERFORMANCE, README, marked
from xent.benchmarks.result import Case, Result, Series
from xent.benchmarks.show import show
from xent.benchmarks.sweeps import Line, slope, sweeps

MEGA = 1_000_000
LONG = "tf.nn.sparse_softmax_cross_entropy_with_logits"
MACHINE = {
    "cpu": "A Processor <fast>",
    "cores": 2,
    "caches": {"L1d": "48K", "L2": "2048K"},
    "memory": 25 * 10**9,
    "gpus": [],
    "system": "Linux",
    "python": "3.11",
    "xent": "0.1.0",
    "kernels": "avx512",
    "commit": "abc1234+",
    "versions": {"torch": "2.13.0", "tensorflow": "2.21.0"},
}


def series(name, backend="torch", mode="eager", which="both", seconds=(1e-3, 1e-3, 1e-3, 1e-3), **kw):
    errors = {"value_error": 1e-7, "gradient_error": 2e-7 if which == "both" else math.nan}
    return Series(name, backend, mode, name == "xent", which, tuple(seconds), **(errors | {"memory": 8 * MEGA} | kw))


def case(found, workload="image", value=None, shape=(1000, 1000), dtype="float32", read=4 * MEGA, write=4 * MEGA):
    """Reads 16 GB/s, writes 8 GB/s: the floor is 0.25 ms forward, 0.75 ms with the gradient."""
    memory = {"read": (1e-3,) * 4, "write": (2e-3,) * 4, "copy": (4e-3,) * 4}
    return Case(workload, "a use", "sparse_ce", shape, -1, dtype, 3, read, write, 16 * MEGA, memory, found, value)


def head(found, value=None, n=2000):
    """The logits of 2000 rows are 8 MB, the gradients 1.2 MB; 400 million operations forward."""
    gradients = 4 * (n + 1000) * 100
    shown = case(found, "linear" if value is None else f"linear {n}x100x1000", value, (n, 100, 1000))
    return dataclasses.replace(shown, loss="linear_ce", read=gradients, write=gradients)


def result(*cases, sweep=None, **kw):
    return Result(MACHINE, {"threads": 2, "rounds": 4, "device": "cpu", "sweep": sweep}, list(cases), **kw)


@pytest.fixture
def one():
    """On torch xent wins against one rival, loses to one, is level with one; one is wrong and one failed."""
    return result(
        case(
            [
                series("xent"),
                series("wins", seconds=(3e-3, 3.2e-3, 3.2e-3, 3.4e-3)),
                series("loses", seconds=(5e-4, 5e-4, 5e-4, 5e-4)),
                series("level", seconds=(5e-4, 5e-4, 2e-3, 2e-3)),
                series("<wrong>", gradient_error=0.25),
                series("fails", seconds=(), problem="no kernel & no hope"),
                series("xent", "tensorflow", "graph"),
                series(LONG, "tensorflow", "graph", seconds=(2e-3,) * 4),
                series("xent", which="forward", memory=0),
                series("wins", which="forward", seconds=(2e-3,) * 4),
            ]
        ),
        absent=["jax: not installed (pip install jax)"],
    )


@pytest.fixture
def swept():
    """Time in proportion to the classes from 64 on; xent's grows with the root."""
    found = []
    for classes in (16, 64, 256, 1024):
        ours = series("xent", seconds=(1e-4 * classes**0.5,) * 4)
        theirs = series("rival", seconds=(1e-3 if classes == 16 else 1e-5 * classes,) * 4)
        found.append(case([ours, theirs], f"lm 256x{classes}", classes, (256, classes)))
    return result(*found, sweep="classes")


def printed(shown, width=100):
    out = io.StringIO()
    show(shown, Console(file=out, width=width))
    return out.getvalue()


def line_of(text, name):
    return next(line for line in text.splitlines() if f" {name} " in line)


# ---- figures


def test_every_cell(one):
    found = {row.series.name: row for row in rows.rows(one.cases[0], "both")}
    assert found["wins"].cells == ("3.20x", "3.15-3.25", "wins", "eager", "3.20 ms", "2.5", "23%", "2.00x", "2e-07")
    assert found["xent"].cells[:5] == ("1x", "", "xent", "eager", "1.00 ms")
    assert {name: row.verdict for name, row in found.items()} == {
        "xent": "",
        "wins": "win",
        "loses": "loss",
        "level": "level",
        "<wrong>": "",
        "fails": "",
        LONG: "win",
    }
    forward = rows.rows(one.cases[0], "forward")
    assert forward[0].cells[4:] == ("1.00 ms", "4.0", "25%", "0.00x", "1e-07")


def test_floor_and_bandwidth(one):
    assert rows.floor(one.cases[0], "forward") == pytest.approx(0.25e-3)
    assert rows.floor(one.cases[0], "both") == pytest.approx(0.75e-3)
    assert rows.bandwidth(one) == "read 16, write 8.0, copy 8.0 GB/s"
    assert "floor 750 µs for 8.00 MB" in printed(one)


def test_nothing_is_compared_with_a_wrong_xent(one):
    ours = dataclasses.replace(one.cases[0].series[0], gradient_error=0.5)
    row = next(r for r in rows.rows(case([ours, series("rival")]), "both") if r.series.name == "rival")
    assert (row.cells[0], row.verdict) == ("-", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.5, "1.50 s"), (9.996e-4, "1.00 ms"), (99.96e-3, "100 ms"), (3.38e-8, "33.8 ns"), (math.nan, "-")],
)
def test_duration(seconds, text):
    assert rows.duration(seconds) == text


@pytest.mark.parametrize(("x", "text"), [(0.0232, "0.023x"), (0.5, "0.50x"), (3.178, "3.18x"), (123.4, "123x")])
def test_times(x, text):
    assert rows.times(x) == text


def test_slope_is_of_the_upper_half():
    assert slope([1, 4, 16, 64], [9, 9, 2, 8]) == pytest.approx(1)
    assert slope([1, 2, 4], [8, 4, 2]) == pytest.approx(-1)
    assert slope([2, 8], [1, 2]) == pytest.approx(0.5)
    assert math.isnan(slope([1, 2, 4], [1, 1, math.nan]))
    assert math.isnan(slope([4], [1]))


@pytest.mark.parametrize(
    ("k", "text"), [(0.00081, "0.00"), (-0.001, "0.00"), (0.846, "0.85"), (-1, "-1.00"), (math.nan, "-")]
)
def test_slopes_are_short(k, text):
    assert Line(series("xent"), (), (), k, str).exponent == text


def test_cells_of_a_head():
    """GFLOP/s, no floor, and memory beyond the gradients; forward, where there are none, all of it."""
    shown = head([series("xent", memory=2 * MEGA), series("xent", which="forward", memory=2 * MEGA)])
    (both,), (forward,) = rows.rows(shown, "both"), rows.rows(shown, "forward")
    assert both.cells[4:] == ("1.00 ms", "1200", "-", "0.10x", "2e-07")
    assert forward.cells[4:] == ("1.00 ms", "400", "-", "0.25x", "1e-07")
    assert "2.00 MB of extra memory at the peak, 800 kB beyond the gradients;" in rows.hover(shown, both)
    assert "2.00 MB of extra memory at the peak;" in rows.hover(shown, forward)
    text = printed(result(shown))
    assert "forward and backward; 1.20 GFLOP; memory: beyond the gradients" in text
    assert "GFLOP/s    linear_ce:" in text
    assert "the fewest bytes" not in text
    assert "GFLOP/s</th>" in report.page(result(shown))
    assert " floor " not in plot.svg(result(shown))


@pytest.mark.parametrize(
    ("ours", "dtype", "errors", "wrong"),
    [
        (True, "float32", {"gradient_error": 9e-7, "value_error": 9e-7}, ""),
        (True, "float32", {"gradient_error": 2e-6}, "gradient wrong: 2e-06"),
        (True, "float32", {"value_error": 2e-6}, "loss wrong: 2e-06"),
        (False, "float32", {"gradient_error": 5e-4, "value_error": 5e-4}, ""),  # TensorFloat-32
        (False, "float32", {"gradient_error": 2e-3}, "gradient wrong: 2e-03"),
        (True, "bfloat16", {"gradient_error": 7e-3, "value_error": 9e-6}, ""),  # the loss is in float32
        (True, "bfloat16", {"gradient_error": 7e-3, "value_error": 2e-5}, "loss wrong: 2e-05"),
        (True, "bfloat16", {"gradient_error": 9e-3}, "gradient wrong: 9e-03"),
    ],
)
def test_what_is_wrong_of_a_head(ours, dtype, errors, wrong):
    one = series("xent" if ours else "rival", returns="float32", **errors)
    assert dataclasses.replace(head([one]), dtype=dtype).wrong(one) == wrong


# ---- the terminal


@pytest.mark.parametrize("width", [100, 80])
def test_text_fits(one, swept, width):
    for shown in (one, swept):
        text = printed(shown, width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text


def test_text_says_everything(one):
    text = printed(one)
    for needed in (
        "A Processor <fast>",
        "2, 2 threads used",
        "L1d 48K, L2 2 MB",
        "torch 2.13.0",
        "0.1.0, commit abc1234 with changes",
        "absent: jax: not installed (pip install jax)",
        f"sparse_softmax_cross_entropy: {LONG}",
    ):
        assert needed in text
    assert line_of(text, "loses").split()[:2] == ["0.50x", "0.50-0.50"]


def test_colours(one):
    out = io.StringIO()
    show(one, Console(file=out, width=100, force_terminal=True, color_system="standard"))
    lines = out.getvalue().splitlines()
    green, red = "\x1b[32m", "\x1b[31m"
    colour = {
        name: [c for c in (green, red) if c in next(line for line in lines if f"  {name}" in line)]
        for name in ("wins", "loses", "level", "<wrong>", "fails")
    }
    assert colour == {"wins": [green], "loses": [red], "level": [], "<wrong>": [red], "fails": [red]}


def test_wrong_and_failed_are_marked(one):
    text = printed(one)
    assert line_of(text, "<wrong>").split()[0] == "wrong"
    assert line_of(text, "fails").split()[0] == "failed"
    assert "wrong: <wrong>, torch eager: gradient wrong: 2e-01" in text
    assert "failed: fails, torch eager: no kernel & no hope" in text


def test_summary_counts_losses_as_wins(one):
    assert rows.summary(one) == [
        "forward: xent is faster in 1 of 1 comparisons with a rival, slower in 0, level in 0",
        "forward and backward: xent is faster in 2 of 4 comparisons with a rival, slower in 1, level in 1; "
        "2 wrong or failed, left out",
    ]


def test_interruption_is_told(one):
    one.interrupted = True
    assert "interrupted" in printed(one)
    assert "Interrupted" in report.page(one)


def test_little_or_nothing_was_measured():
    """One pass alone; no sample of anything; no case at all."""
    forward = case([series("xent", which="forward"), series("rival", which="forward", seconds=(None,) * 4)])
    assert "forward and backward" not in printed(result(forward))
    silent = dataclasses.replace(forward, memory=dict.fromkeys(("read", "write", "copy"), (None,) * 4))
    for shown in (result(forward), result(silent), result()):
        assert "A Processor <fast>" in printed(shown)
        assert "svg" in report.page(shown)
        assert "A Processor <fast>" in speed.table(shown)


# ---- sweeps


def test_sweep(swept):
    (found,) = sweeps(swept)
    assert (found.varied, found.values) == ("classes", [16, 64, 256, 1024])
    assert {line.name: round(line.slope, 6) for line in found.lines} == {"xent": 0.5, "rival": 1}
    text = printed(swept)
    assert "lm  256 rows  float32  forward and backward: time by classes" in text
    assert line_of(text, "rival eager").split()[2:] == ["1.0ms", "640µs", "2.6ms", "10ms", "1.00"]


def test_sweep_of_a_head():
    """Time and memory, each with its slope: xent's memory stays what it is."""
    of = []
    for n in (256, 1024, 4096):
        gradients, logits = 4 * (n + 1000) * 100, 4 * n * 1000
        ours = series("xent", seconds=(1e-6 * n,) * 4, memory=gradients + MEGA)
        of.append(head([ours, series("rival", seconds=(2e-6 * n,) * 4, memory=gradients + 2 * logits)], n, n))
    swept = result(*of, sweep="rows")
    slopes = {(s.measure, line.name): round(line.slope, 6) for s in sweeps(swept) for line in s.lines}
    assert slopes == {("time", "xent"): 1, ("time", "rival"): 1, ("memory", "xent"): 0, ("memory", "rival"): 1}
    text = printed(swept)
    assert "linear  1000 classes, 100 features  float32  forward and backward: time by rows" in text
    assert "forward and backward: memory by rows\na use; memory beyond the gradients\n" in text
    assert [line.split()[2:] for line in text.splitlines() if "xent eager" in line] == [
        ["260µs", "1.0ms", "4.1ms", "1.00"],
        ["1.0MB", "1.0MB", "1.0MB", "0.00"],
    ]
    assert "floor" not in text
    assert "memory beyond the gradients" in report.page(swept)
    drawn = plot.svg(swept)
    assert "xent, torch eager: 0.00" in drawn
    assert "memory by rows" in drawn


def test_sweep_of_threads():
    of = [case([series("xent", seconds=(1e-3 / n,) * 4)], "segmentation", n, (8, 21, 64, 64)) for n in (4, 1, 2)]
    (found,) = sweeps(result(*of, sweep="threads"))
    assert "8x21x64x64" in found.title
    assert (found.varied, found.values) == ("threads", [1, 2, 4])
    assert found.lines[0].slope == pytest.approx(-1)


def test_sweep_marks_what_is_wrong_or_missing(swept):
    swept.cases[1].series[1] = dataclasses.replace(swept.cases[1].series[1], value_error=1.0)
    swept.cases[2].series[1] = series("rival", seconds=(), problem="out of memory")
    text = printed(swept)
    assert line_of(text, "rival eager").split()[2:] == ["1.0ms", "640µs!", "-", "10ms", "-"]
    assert "failed: rival, torch eager: out of memory" in text
    assert "wrong: rival, torch eager: loss wrong: 1e+00" in text


def test_a_narrow_window_loses_the_smallest_values():
    of = [case([series(LONG, "tensorflow")], f"lm 256x{4**n}", 4**n, (256, 4**n)) for n in range(2, 12)]
    text = printed(result(*of, sweep="classes"), 80)
    assert str(4**11) in text
    assert re.search(r"classes below \d+ left out", text)


# ---- the page and the pictures


class _Names(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.hovers, self.classes = set(), "", [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.hovers += [value for name, value in attrs if name == "title"]
        self.classes += [value for name, value in attrs if name == "class"]

    def handle_data(self, data):
        self.text += data


def test_page(one):
    made = report.page(one)
    assert "http" not in made  # nothing from elsewhere
    read = _Names()
    read.feed(made)
    assert not read.tags & {"script", "link", "img", "wrong", "fast"}
    assert "svg" in read.tags
    for needed in ("A Processor <fast>", "0.50x", "no kernel & no hope", "<wrong>", *rows.summary(one)):
        assert needed in read.text
    assert any(hover.startswith(f"{LONG}, tensorflow graph: 2.00 ms") for hover in read.hovers)
    assert [read.classes.count(kind) for kind in ("win", "loss", "level", "wrong")] == [3, 1, 1, 2]


def test_page_of_a_sweep(swept):
    read = _Names()
    read.feed(report.page(swept))
    assert "lm  256 rows  float32  forward and backward: time by classes" in read.text
    assert "2.6ms" in read.text


def test_plot(one, swept, tmp_path):
    for shown in (one, swept):
        plot.png(shown, tmp_path / "a.png")
        made = (tmp_path / "a.png").read_bytes()
        assert made.startswith(b"\x89PNG\r\n\x1a\n")
        assert made.endswith(b"IEND\xaeB`\x82")
    text = plot.svg(one)
    assert text.startswith("<svg")
    for needed in ("&lt;wrong&gt;", "failed", "floor 750 µs", "image  1000x1000  float32"):
        assert needed in text
    assert "rival, torch eager: 1.00" in plot.svg(swept)


def test_without_matplotlib(one, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"png: plots need matplotlib \(pip install matplotlib\)"):
        plot.png(one, tmp_path / "a.png")
    assert "plots need matplotlib" in report.page(one)


# ---- README


def test_readme_says_what_was_measured():
    """Made by `python benchmarks/speed.py`, `targets.py` and `details.py` from the committed results."""
    found, performance = Result.load(speed.MEASURED), PERFORMANCE.read_text(encoding="utf-8")
    assert not found.interrupted
    assert marked("speed", speed.table(found)) in README.read_text(encoding="utf-8")
    assert marked("targets", targets.of_whole_run()) in performance
    assert marked("fresh", targets.of_fresh_memory(), "targets") in performance
    assert all(marked(name, details.every(found, name), "details") in performance for name in details.MODES)
    assert marked("head", details.head(found), "details") in performance
    assert marked("apart", details.apart(found, Result.load(details.AGAIN)), "details") in performance


def test_targets_of_a_head():
    found = Result.load(speed.MEASURED)
    found.cases = [case for case in found.cases if case.loss != "linear_ce"]
    ours = series("xent", "jax", "compiled", memory=2 * MEGA + 50_000)
    found.cases.append(head([ours, series(targets.OPTAX, "jax", "compiled", seconds=(1.1e-3,) * 4)]))
    text = targets.table(found)
    name = "| linear float32, with gradient | jax compiled"
    assert f"{name} | `{targets.OPTAX}` compiled | at least 1.18x | 1.10x (1.10x to 1.10x) | **missed** |" in text
    assert f"{name} | extra memory | at most 10% | 10.6% | **missed** |" in text
    assert "| linear float32, with gradient | numpy eager | eager | at least 1.18x | | not measured |" in text


def test_pages_and_freed_memory_are_told(monkeypatch):
    """And what becomes of freed memory: much of what some rivals take depends on it."""
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1")
    assert machine.machine()["pages"].endswith("glibc.malloc.hugetlb=1")
    monkeypatch.delenv("GLIBC_TUNABLES")
    assert "glibc" not in machine.machine()["pages"]
    shown = result(case([series("xent")]))
    shown.machine = MACHINE | {"pages": "madvise", "heap": "kept"}
    assert rows.facts(shown)["huge pages"] == "madvise"
    assert "huge pages: madvise; freed memory: kept" in rows.origin(shown)
    monkeypatch.setattr(machine.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    assert machine._heap() == "kept"
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "65536")
    assert machine._heap() == "given back"
    monkeypatch.setattr(machine.platform, "libc_ver", lambda: ("", ""))
    assert machine._heap() == ""


def test_speed_table(one):
    one.cases.append(case([series("xent"), series("rival")], dtype="float16"))
    text = speed.table(one)
    head, _, row, *rest = text.splitlines()
    assert head == "| forward and backward | torch | tensorflow |"
    assert row == "| image 1000x1000 float32 | 0.50x a | 2.00x b |"  # a loss; and not the wrong one
    assert f"a `loses` eager, b `{LONG}` graph" in text
    assert "A Processor <fast>, 2 threads; read 16, write 8.0, copy 8.0 GB/s" in text
    assert "float16" not in text
    assert len(rest) <= 6


def test_speed_is_between_the_best_modes():
    fast = [series("xent", mode="compiled", seconds=(1e-4,) * 4), series("rival", mode="compiled", seconds=(2e-4,) * 4)]
    shown = result(case([series("xent"), series("rival", seconds=(9e-3,) * 4), *fast], dtype="bfloat16"))
    assert "| image 1000x1000 bfloat16 | 2.00x a |" in speed.table(shown)
    assert "a `rival` compiled" in speed.table(shown)


def test_every_workload():
    slow = {"seconds": (4e-3,) * 4}
    found = [series("xent"), series("F.cross_entropy", **slow), series("keras.losses", seconds=(1e-4,) * 4)]
    found += [series("xent", which="forward"), series("F.cross_entropy", which="forward", gradient_error=0, **slow)]
    found += [series("xent", mode="compiled"), series("F.cross_entropy", mode="compiled", gradient_error=0.5)]
    *_, row = details.every(result(case(found)), "torch").splitlines()
    assert row == "| image float32 | 4.00x | 4.00x | - | 1.00x (wrong) |"


def test_head_of_a_language_model():
    found = [series("xent", memory=2 * MEGA + 50_000), series("F.cross_entropy", seconds=(2e-3,) * 4)]
    found += [series("xent", "jax"), series("xent", "jax", "compiled", problem="no memory")]
    assert details.head(result(head(found))).splitlines()[2:] == [
        "| torch eager | 1.00 ms | 1200 | 600; 0.50 of its time | 10.6% | 1e-07, 2e-07 |",
        "| jax eager | 1.00 ms | 1200 | | 85.0% | 1e-07, 2e-07 |",
    ]
