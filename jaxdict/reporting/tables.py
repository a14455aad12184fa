"""Tables for people, made of numbers computed elsewhere. Nothing is computed here but how a number is written."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text


class AtomExample(NamedTuple):
    """One atom and what activates it most."""

    index: int
    usage: float  # share of samples on which it is active
    strength: float  # its mean code there
    tokens: Sequence[str]


def certificate_table(certificate, tol: float) -> Table:
    """Each measure of a certificate with what it must be and whether it is."""
    table = _table("Certificate", "condition", "measured", "needed", "")
    blocks = certificate.stationarity
    for name, value in (
        ("codes stationary", blocks.codes),
        ("atoms stationary", blocks.atoms),
        ("offset stationary", blocks.offset),
    ):
        table.add_row(name, number(value), f"<= {tol:g}", _verdict(float(value) <= tol))
    table.add_section()
    table.add_row("slope along the steepest feasible direction", number(certificate.directional_derivative), "0", "")
    table.add_row("duality gap of the codes, mean", number(certificate.duality_gap.mean), "0", "")
    if certificate.curvature is not None:
        eigenvalue = float(certificate.curvature.eigenvalue)
        table.add_row("smallest curvature", number(eigenvalue), ">= 0", "")
    table.add_section()
    table.add_row("objective", number(certificate.objective, 8), "", "")
    table.add_row("no dictionary of any width goes below", number(certificate.wide_bound, 8), "", "")
    table.add_row("objective above that", number(certificate.global_gap), "", "")
    table.add_row("gain of one more atom, at least", number(certificate.birth.gain), "", "")
    table.add_row("unused atoms", str(int(certificate.n_dead)), "", "")
    return table


def atoms_table(examples: Sequence[AtomExample], title: str = "Atoms") -> Table:
    """Atoms with their use and the tokens that activate them most."""
    table = _table(title, "atom", "active on", "mean code", "tokens that activate it most")
    table.columns[0].justify = "right"
    for example in examples:
        words = Text("  ").join(Text(token, style="bold" if i == 0 else "") for i, token in enumerate(example.tokens))
        table.add_row(str(example.index), f"{100 * example.usage:.1f}%", number(example.strength, 3), words)
    return table


def facts_table(facts: Mapping[str, object], title: str = "") -> Table:
    """Names and values, one a line."""
    table = Table(
        title=title or None, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in facts.items():
        table.add_row(name, Text(number(value) if isinstance(value, float) else str(value)))
    return table


def number(value, digits: int = 4) -> str:
    """A number in as few characters as its size allows.

    >>> number(0.5), number(3.2e-9), number(float("nan")), number(1234567.0)
    ('0.5', '3.2e-09', 'not a number', '1.235e+06')
    """
    value = float(value)
    return "not a number" if math.isnan(value) else f"{value:.{digits}g}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i in (1, 2) else "left", overflow="fold")
    return table


def _verdict(holds: bool) -> Text:
    return Text("holds", style="green") if holds else Text("fails", style="bold red")
