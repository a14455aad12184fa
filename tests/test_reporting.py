"""Figures and tables show what they are given, odd values included."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from jaxdict import plots
from jaxdict.reporting import figures, tables


def certificate(codes=3e-13, atoms=7e-7, offset=0.0, curvature=None):
    return SimpleNamespace(
        stationarity=SimpleNamespace(codes=codes, atoms=atoms, offset=offset),
        directional_derivative=-1e-14,
        duality_gap=SimpleNamespace(mean=1e-16),
        objective=0.3,
        wide_bound=0.2,
        global_gap=0.1,
        birth=SimpleNamespace(gain=0.01),
        curvature=curvature,
        n_dead=2,
    )


def history(steps=20, padding=5):
    down = np.append(np.geomspace(1, 1e-7, steps), np.full(padding, np.nan))
    return {"objective": 0.3 + down, "stationarity": down}


def text_of(figure) -> str:
    texts = [text.get_text() for axes in figure.axes for text in [*axes.texts, axes.title, axes._left_title]]
    return " | ".join(texts)


def shown(table) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(table)
    return console.file.getvalue()


def test_whole_figure_says_its_numbers_and_drops_the_padding():
    figure = figures.fit_figure(history(), certificate(), np.array([0.5, 0.01, 0.0]), title="t")
    said = text_of(figure)
    for words in ("no dictionary of any width goes below 0.2", "7.0e-07", "tolerance 1e-06", "1 of 3 atoms unused"):
        assert words in said
    assert max(len(line.get_xdata()) for line in figure.axes[0].lines) == 20


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, 1e-30, 5.0])
def test_bars_take_any_value(value, tmp_path):
    axes = Figure().subplots()
    figures.draw_blocks(axes, certificate(codes=value), 1e-6)
    axes.figure.savefig(tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 0


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_short_histories_and_unused_atoms_draw(steps, tmp_path):
    plots.convergence(history(steps), bound=0.2, tol=1e-6)[0].figure.savefig(tmp_path / "a.png")
    figures.fit_figure(history(steps), certificate(), np.zeros(3)).savefig(tmp_path / "b.svg")


def test_certificate_table_gives_verdicts():
    text = shown(tables.certificate_table(certificate(atoms=0.2), 1e-6))
    assert text.count("holds") == 2
    assert text.count("fails") == 1
    assert "curvature" not in text
    assert "curvature" in shown(tables.certificate_table(certificate(curvature=SimpleNamespace(eigenvalue=0.1)), 1e-6))


def test_tokens_are_not_read_as_markup():
    text = shown(tables.atoms_table([tables.AtomExample(3, 0.25, 1.5, ["[bold]", "[/x]"])]))
    assert "[bold]" in text
    assert "[/x]" in text
    assert "25.0%" in text
