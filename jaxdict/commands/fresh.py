"""What rows that a dictionary was not fitted to say of it, for `jaxdict certify --fresh`."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdict.commands.console import read_npy
from jaxdict.commands.streaming import opened
from jaxdict.population import defects, refute
from jaxdict.problem import Dictionary, Problem
from jaxdict.storage import shown_path

# Rows that a refutation takes at most, evenly spread: it holds them in memory.
MOST_ROWS = 2**16


def fresh_facts(
    path: Path, problem: Problem, dictionary: Dictionary, *, data_key, dtype, documents: Path | None
) -> dict[str, Any]:
    """T17 over all fresh rows, T18 on as many as fit in memory."""
    rows = opened(path, data_key, dtype, dictionary.atoms.shape[1])
    if rows.shape[1] != dictionary.atoms.shape[1]:
        raise ValueError(f"{path}: {rows.shape[1]} features where the result has {dictionary.atoms.shape[1]}")
    plain = Problem(problem.lam, problem.offset, problem.signed, problem.gauge, problem.metric)
    names = None if documents is None else _documents(documents, rows.shape[0])
    picked = np.unique(np.linspace(0, rows.shape[0] - 1, min(MOST_ROWS, rows.shape[0])).round().astype(int))
    try:
        found = defects(plain, dictionary, rows)
        groups = None if names is None else names[picked]
        step = refute(plain, dictionary, rows[picked], key=jax.random.key(0), groups=groups)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    compared = step.comparison
    return {
        "acts": shown_path(path),
        "rows": rows.shape[0],
        "population": {"rms": found.rms, "offset_squared": found.offset_squared, "message": found.message()},
        "refutation": {**compared._asdict(), "z": compared.z, "message": step.message()},
        "rows_are": "independent, as treated" if names is None else f"of {len(np.unique(names))} documents",
    }


def fresh_words(facts: dict[str, Any]) -> str:
    """What is shown of rows like the fresh ones, in sentences."""
    shown = f"{facts['population']['message']}. The dictionary is {facts['refutation']['message']}"
    return f"Shown of rows like the {facts['rows']} of {facts['acts']} ({facts['rows_are']}): {shown}."


def _documents(path: Path, n: int) -> np.ndarray:
    names = read_npy(path, "numbers or names")
    if np.shape(names) != (n,):
        raise ValueError(f"{path}: shape {np.shape(names)} but there are {n} fresh rows; give the document of each")
    return names
