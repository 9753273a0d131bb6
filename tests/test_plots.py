"""Plots come from the metrics of run folders alone, as PNG and SVG."""

import json
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zotune.errors import InputError
from zotune.run.metrics import EvalEvent, StepEvent
from zotune.run.plots import moving_average, plot_runs

pytestmark = pytest.mark.slow


def write_run(folder: Path, num_steps: int = 40, accuracy: float | None = 0.6, reused: int = 300) -> Path:
    """A folder that holds metrics.jsonl and nothing else."""
    folder.mkdir(parents=True)
    events: list[StepEvent | EvalEvent] = [EvalEvent(0, "eval", accuracy, 0.7, 50, 0.1)]
    for step in range(1, num_steps + 1):
        events.append(StepEvent(step, 1 / step, 1e-3, (0.1, -0.2), 0.01 + step % 3 / 1000, 2, 100, reused))
        if step % 10 == 0:
            better = None if accuracy is None else min(1.0, accuracy + step / 200)
            events.append(EvalEvent(step, "eval", better, 0.7 - step / 100, 50, 0.1))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(asdict(event)) + "\n" for event in events))
    return folder


def texts_of(svg: Path) -> str:
    """The words in a drawing: matplotlib draws letters as paths and notes the words beside them."""
    text = svg.read_text()
    ElementTree.fromstring(text)
    return "\n".join(part.split("-->")[0].strip() for part in text.split("<!--")[1:])


def test_one_run_gives_a_png_and_an_svg_in_its_folder(tmp_path):
    run = write_run(tmp_path / "first")
    png, svg = plot_runs([run])
    assert [png, svg] == [run / "plots" / "training.png", run / "plots" / "training.svg"]
    height, width, _ = plt.imread(png).shape
    assert (width, height) == (1430, 975)
    words = texts_of(svg)
    for expected in ("first", "Training loss", "Evaluation", "accuracy, %", "loss (dashed)", "Step time", "served"):
        assert expected in words


def test_two_runs_are_drawn_over_each_other_and_named(tmp_path):
    runs = [write_run(tmp_path / "first"), write_run(tmp_path / "second", num_steps=15, reused=0)]
    png, svg = plot_runs(runs, tmp_path / "plots")
    assert [png, svg] == [tmp_path / "plots" / "comparison.png", tmp_path / "plots" / "comparison.svg"]
    assert {"first", "second"} <= set(texts_of(svg).split("\n"))
    pixels = (plt.imread(png)[..., :3] * 255).round().astype(int)
    for colour in ((31, 119, 180), (255, 127, 14)):  # the first and second of matplotlib's cycle
        assert (pixels == colour).all(axis=-1).any()


def test_runs_of_the_same_name_are_told_apart_by_their_paths(tmp_path):
    runs = [write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run")]
    _, svg = plot_runs(runs, tmp_path / "plots")
    assert {str(run) for run in runs} <= set(texts_of(svg).split("\n"))


@pytest.mark.parametrize("others", [[], [0.6]])
def test_without_accuracies_losses_are_drawn_on_one_axis(others, tmp_path):
    runs = [write_run(tmp_path / str(accuracy), accuracy=accuracy) for accuracy in (None, *others)]
    _, svg = plot_runs(runs, tmp_path / "plots")
    assert "accuracy" not in texts_of(svg)
    assert "dashed" not in texts_of(svg)


def test_a_run_before_its_first_step_can_be_plotted(tmp_path):
    run = write_run(tmp_path / "begun", num_steps=0)
    assert all(path.is_file() for path in plot_runs([run]))
    (run / "metrics.jsonl").write_text("")
    assert all(path.is_file() for path in plot_runs([run]))


def test_a_long_run_makes_a_small_drawing(tmp_path):
    _, svg = plot_runs([write_run(tmp_path / "long", num_steps=3_000)])
    assert svg.stat().st_size < 300_000


def test_no_figure_stays_open(tmp_path):
    before = plt.get_fignums()
    run = write_run(tmp_path / "run")
    plot_runs([run])
    with pytest.raises(InputError, match="--output-dir: cannot write plots"):
        plot_runs([run], run / "metrics.jsonl" / "plots")
    assert plt.get_fignums() == before


@given(
    values=st.lists(st.floats(-1e3, 1e3), max_size=80), share=st.integers(1, 20), least=st.integers(1, 12),
)  # fmt: skip
def test_the_moving_average_is_the_mean_of_the_last_values(values, share, least):
    window = max(least, len(values) // share)
    expected = [np.mean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]
    np.testing.assert_allclose(moving_average(np.array(values), share, least), expected, rtol=1e-9, atol=1e-9)
