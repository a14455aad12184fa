"""An SAE as it runs: its own codes of rows, what they are worth, and the cut that sets how many features are on."""

from dataclasses import replace
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdict.auditing.better_sae.rows import Seen
from jaxdict.numerics import matmul
from jaxdict.sae.models import SAE

# Entries of a chunk's (rows, features) array, and its fewest rows.
CHUNK_ENTRIES, LEAST_ROWS = 2**22, 16
# Kinds whose number of features a row is a matter of where they cut.
CUT_KINDS = ("relu", "jumprelu")


class Own(NamedTuple):
    """What an SAE's own codes are worth, by row."""

    values: Float[np.ndarray, " rows"]  # F where there is lam, else the squared error
    active: Int[np.ndarray, " rows"]  # features that are on
    negative: int  # rows with a negative code


def chunk_rows(n_rows: int, d_sae: int) -> int:
    """Rows that are taken at a time."""
    return max(1, min(n_rows, max(LEAST_ROWS, CHUNK_ENTRIES // d_sae)))


def own_values(sae: SAE, x: Float[Array, "rows d"], lam) -> tuple[Float[Array, " rows"], Float[Array, "rows d_sae"]]:
    """By row `1/2 ||x - b - f D||^2 + lam sum_k ||d_k|| |f_k|`, or `||x - b - f D||^2` where lam is None; and the codes f."""
    f = sae.encode(x)
    r = x - (matmul(f, sae.W_dec) + sae.b_dec)
    squares = jnp.sum(r * r, axis=1)
    return (squares if lam is None else 0.5 * squares + lam * matmul(jnp.abs(f), sae.norms)), f


@eqx.filter_jit
def _of_chunk(sae: SAE, x: Float[Array, "rows d"], lam):
    values, f = own_values(sae, x, lam)
    return values, jnp.sum(f != 0, axis=1), jnp.any(f < 0, axis=1)


def own_codes(sae: SAE, rows: Seen, lam: float | None) -> Own:
    """What an SAE's own codes of rows are worth, a chunk at a time."""
    weight = None if lam is None else jnp.asarray(lam, rows.dtype)
    parts = []
    for x, at in rows.chunks(chunk_rows(len(rows), sae.d_sae)):
        parts.append([np.asarray(part)[: at.stop - at.start] for part in _of_chunk(sae, x, weight)])
    values, active, negative = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Own(values.astype(float), active, int(negative.sum()))


def cut_to(sae: SAE, rows: Seen, wanted: float) -> SAE:
    """The SAE with its cut where as many features are on in the mean as wanted: thresholds, or a relu's biases, moved alike.

    In units of the data, since decoder rows have length one. Kinds that count their features are left as they are.

    >>> from jaxdict.sae.encoders import tied_sae
    >>> from jaxdict.problem import Dictionary
    >>> X = np.array([[3.0, 2.0], [4.0, 1.0]], np.float32)
    >>> sae = tied_sae(Dictionary(jnp.eye(2)), 0.5)
    >>> cut_to(sae, Seen(None, X, np.arange(2), X.dtype), 1.0).encode(X).tolist()
    [[1.0, 0.0], [2.0, 0.0]]
    """
    if sae.activation.kind not in CUT_KINDS:
        return sae
    size = chunk_rows(len(rows), sae.d_sae)
    cuts = [cut_of(np.asarray(_margins(sae, x))[: at.stop - at.start], wanted) for x, at in rows.chunks(size)]
    return shifted(sae, float(np.mean([cut for cut in cuts if np.isfinite(cut)] or [0.0])))


def cut_of(margins: Float[np.ndarray, "rows d_sae"], wanted: float) -> float:
    """The value that as many entries a row exceed in the mean as wanted, none of them more; -inf where so many are not there.

    >>> cut_of(np.array([[3.0, 2.0], [4.0, 1.0]]), 1.0)
    2.0
    """
    flat, count = margins.ravel(), int(wanted * len(margins))
    if count >= flat.size:
        return -np.inf
    return float(np.partition(flat, flat.size - count - 1)[flat.size - count - 1])


def shifted(sae: SAE, by: float) -> SAE:
    """The SAE with thresholds raised, or a relu's biases lowered."""
    if sae.activation.kind == "jumprelu":
        assert sae.threshold is not None
        return replace(sae, threshold=sae.threshold + jnp.asarray(by, sae.W_dec.dtype))
    return replace(sae, b_enc=sae.b_enc - jnp.asarray(by, sae.W_dec.dtype))


@eqx.filter_jit
def _margins(sae: SAE, x: Float[Array, "rows d"]) -> Float[Array, "rows d_sae"]:
    """How far each pre-activation is above the cut; -inf where a relu keeps it at zero whatever the threshold."""
    pre = matmul(x - sae.b_dec if sae.centred else x, sae.W_enc) + sae.b_enc
    if sae.activation.kind == "relu" or sae.threshold is None:
        return pre
    return jnp.where(pre > 0, pre - sae.threshold, -jnp.inf)


def margins(sae: SAE, x: Float[Array, "rows d"]) -> Float[np.ndarray, "rows d_sae"]:
    """How far each pre-activation is above the cut."""
    return np.asarray(_margins(sae, x))
