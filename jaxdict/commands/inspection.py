"""`jaxdict info`: what is in a file of activations, in a trained SAE, or in a result's folder."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from jaxdict.auditing.kinds import has_l1_penalty, has_power_penalty, has_prefixes
from jaxdict.commands.console import emit_json, one_line_errors, set_precision, stdout
from jaxdict.commands.solving import AsJson, DataKey, DIn
from jaxdict.commands.subjects import Format, K, Scale, Threshold
from jaxdict.files import Shards, open_activations, positions, token_ids
from jaxdict.problem import SparseCodes
from jaxdict.reporting.tables import facts_table, number
from jaxdict.results import ARRAYS_NAME, load_solution
from jaxdict.sae.formats import holds_sae, load
from jaxdict.sae.hub import is_address
from jaxdict.sae.models import SAE
from jaxdict.sae.transcoders import Transcoder
from jaxdict.storage import shown_path
from jaxdict.validation import distinct_rows

# The rank is looked for on at most this many rows, and in at most this many dimensions.
RANK_ROWS, RANK_FEATURES = 20_000, 8192
ROWS_PER_BLOCK = 16_384


@one_line_errors
def info_command(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Activations, a trained SAE, or a folder that `jaxdict fit` wrote.")
    ],
    data_key: DataKey = None,
    d_in: DIn = None,
    format: Format = None,
    k: K = None,
    threshold: Threshold = None,
    scale: Scale = None,
    as_json: AsJson = False,
) -> None:
    """Say what a file of activations, a trained SAE or a result's folder holds."""
    set_precision(True)
    if (Path(file) / ARRAYS_NAME).is_file():
        kind, document = "result", result_facts(Path(file))
    elif is_address(file) or format is not None or holds_sae(Path(file)):
        kind, document = "sae", sae_facts(load(file, format, k=k, threshold=threshold, scale=scale, zero_rows="keep"))
    else:
        stored = open_activations(file, data_key, width=d_in)
        kind, document = "activations", place_facts(stored) | activation_facts(stored)
    if as_json:
        emit_json({"command": "info", "file": shown_path(file), "kind": kind, **document})
    else:
        shown = {name.replace("_", " "): _written(value) for name, value in document.items()}
        stdout().print(facts_table(shown, shown_path(file)))


def sae_facts(sae: SAE) -> dict[str, Any]:
    """What a trained SAE is, and what its files do not say."""
    about, kind = sae.metadata, sae.activation
    norms = np.asarray(sae.norms)
    facts = {
        "architecture": about.architecture,
        "format": about.format,
        "reads": sae.d_in,
        "features": sae.d_sae,
        "predicts": sae.d_out if isinstance(sae, Transcoder) else "its own input",
        "activation": kind.kind if kind.k is None else f"{kind.kind}, k = {kind.k}",
        "offset_subtracted_from_the_input": sae.centred,
        "normalisation_of_the_input": sae.normalisation,
        "model": about.model,
        "hook": about.hook,
        "lam": about.lam,
        "decoder_norms": {
            "least": float(norms.min()),
            "median": float(np.median(norms)),
            "largest": float(norms.max()),
        },
        "zero_decoder_rows": int((norms == 0).sum()),
    }
    penalised = has_l1_penalty(sae)
    unknown = [name for name in ("model", "hook", "lam") if facts[name] is None and (penalised or name != "lam")]
    facts["lam"] = about.lam if penalised else "none: no L1 penalty had a part in its training"
    training = {"trained_as": about.trained_as, "prefixes": list(about.prefixes) or None}
    training |= {"penalty": about.penalty, "power": about.power}
    facts |= {name: value for name, value in training.items() if value is not None}
    unknown += ["prefixes"] if has_prefixes(sae) and not about.prefixes else []
    unknown += ["power"] if has_power_penalty(sae) and about.power is None else []
    return facts | {"not_known": unknown, "notes": list(about.notes)}


def place_facts(stored: np.ndarray | Shards) -> dict[str, Any]:
    """Where rows come from: shards in order, those left out, documents and their positions, whether tokens are there."""
    facts: dict[str, Any] = {}
    if getattr(stored, "names", ()):
        facts["shards_in_order"] = list(stored.names)  # type: ignore[union-attr]
    if getattr(stored, "left_out", ()):
        facts["left_out"] = list(stored.left_out)  # type: ignore[union-attr]
    where = positions(stored)
    if where is not None:
        documents = int(where.documents[-1]) + 1
        facts |= {"documents": documents, "positions_a_document": len(where.documents) / documents}
    return facts | ({"tokens": "in the same files"} if token_ids(stored) is not None else {})


def result_facts(directory: Path) -> dict[str, Any]:
    """The facts of a saved result."""
    saved = load_solution(directory)
    n_atoms, d = saved.dictionary.atoms.shape
    stationarity = (saved.meta.get("certificate") or {}).get("stationarity") or {}
    return {
        "atoms": n_atoms,
        "features": d,
        "samples": saved.meta.get("samples") if saved.codes is None else saved.codes.values.shape[0],
        "lam": float(saved.problem.lam),
        "offset": saved.problem.offset,
        "signed": saved.problem.signed,
        "gauge": saved.problem.gauge,
        "dtype": str(saved.dictionary.atoms.dtype),
        "objective": saved.meta.get("objective"),
        "worst_stationarity": stationarity.get("worst"),
        "stationary": saved.meta.get("stationary"),
        "tol": saved.meta.get("tol"),
        "ended": saved.meta.get("message"),
        "active_atoms_a_sample": None if saved.codes is None else _l0(saved.codes),
        "fitted_to": saved.meta.get("acts"),
        "shards_in_order": saved.meta.get("shards"),
        "versions": saved.meta.get("versions"),
    }


def _l0(codes: SparseCodes) -> float:
    return float(np.mean(np.sum(np.asarray(codes.values) != 0, axis=1)))


def activation_facts(stored: np.ndarray | Shards) -> dict[str, Any]:
    """Shape, type, norms, oddities, rank and `lam_max` of activations, in float64, block by block (files are huge)."""
    facts: dict[str, Any] = {"samples": stored.shape[0], "features": stored.shape[1], "dtype": str(stored.dtype)}
    finite = np.concatenate([np.isfinite(block).all(axis=1) for block in _blocks(stored)])
    if not finite.all():
        bad = np.flatnonzero(~finite)
        facts |= {"rows_with_nan_or_infinity": int(bad.size), "first_such_row": int(bad[0])}
    if stored.shape[0] < stored.shape[1]:
        facts["hint"] = "fewer samples than features: jaxdict wants (samples, features), was it transposed?"
    if not finite.any():
        return facts
    mean = sum(block[keep].sum(axis=0) for block, keep in _with(stored, finite)) / finite.sum()
    norms = np.concatenate([np.linalg.norm(block[keep], axis=1) for block, keep in _with(stored, finite)])
    heights = [np.linalg.norm(block[keep] - mean, axis=1).max(initial=0) for block, keep in _with(stored, finite)]
    first = np.asarray(stored[np.argmax(finite)]).astype(np.float64)
    constant = np.all([(block[keep] == first).all(axis=0) for block, keep in _with(stored, finite)], axis=0)
    facts["norms"] = {"least": norms.min(), "median": np.median(norms), "mean": norms.mean(), "largest": norms.max()}
    facts["zero_rows"] = int((norms == 0).sum())
    facts["distinct_rows"] = distinct_rows(stored[:])  # type: ignore
    facts["constant_columns"] = int(constant.sum())
    facts |= rank_facts(stored[finite] if not finite.all() else stored)
    # jaxdict.lam_max, without holding all samples at once.
    facts["lam_max"] = {"with_offset": max(heights), "without_offset": norms.max()}
    return facts


def rank_facts(X: np.ndarray | Shards) -> dict[str, Any]:
    """Numerical rank of the centred data, the first component's share of the variance, and how many make 90%.

    The rank counts components above 1e-4 of the largest in standard deviation: float16 rounding fills the others.
    """
    if X.shape[1] > RANK_FEATURES:
        return {}
    picked = np.asarray(X[:: -(-len(X) // RANK_ROWS)]).astype(np.float64)
    variances = np.linalg.eigvalsh(np.cov(picked.T, ddof=0).reshape(X.shape[1], X.shape[1]))[::-1].clip(0)
    total = variances.sum()
    if not total > 0:
        return {"rank": 0}
    shares = variances / total
    return {
        "rank": int((variances > 1e-8 * variances[0]).sum()),
        "first_component": shares[0],
        "components_for_90_percent": int(np.searchsorted(np.cumsum(shares), 0.9) + 1),
    }


def _blocks(stored):
    for start in range(0, len(stored), ROWS_PER_BLOCK):
        yield np.asarray(stored[start : start + ROWS_PER_BLOCK]).astype(np.float64)


def _with(stored, keep):
    """Blocks of rows, each with its part of `keep`."""
    starts = range(0, len(stored), ROWS_PER_BLOCK)
    return ((block, keep[start : start + ROWS_PER_BLOCK]) for start, block in zip(starts, _blocks(stored), strict=True))


def _written(value) -> str:
    if isinstance(value, list):
        return ", ".join(map(_written, value)) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_written(part)}" for name, part in value.items())
    return number(value) if isinstance(value, float) else "-" if value is None else str(value)
