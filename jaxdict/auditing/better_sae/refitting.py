"""An encoder for a dictionary that changed: Adam over the rows of a stream on what the SAE as it runs is judged by."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxdict.auditing.better_sae.rows import Seen
from jaxdict.auditing.better_sae.running import CUT_KINDS, cut_of, cut_to, margins, own_codes, own_values, shifted
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul
from jaxdict.problem import Dictionary
from jaxdict.sae.models import SAE
from jaxdict.streaming.sources import open_source

# The first step of Adam, over the root of d; it falls to zero in a straight line.
RATE = 0.01
# Passes over the rows, unless these are few; looks at the rows kept aside, and how many may find nothing better before the end.
PASSES, LEAST_STEPS, LOOKS, PATIENCE = 4, 400, 10, 5
# Rows of a step: entries (rows, features), and bounds.
ENTRIES, LEAST_ROWS, MOST_ROWS = 2**21, 32, 1024
# Steps between two looks at where features are cut, and the share of the way that each goes.
STEPS_A_CUT, SHARE_OF_A_CUT = 5, 0.5
# An atom that turned further than this has another's encoder column no longer.
LOST = 0.5


class Aim(NamedTuple):
    """What an SAE's own codes are to lower: F where there is lam, else the squared error at `wanted` features a row in the mean."""

    lam: float | None
    wanted: float

    def cuts(self, sae: SAE) -> bool:
        """Whether the cut is to be set so that no more features are on than are wanted."""
        return self.lam is None and sae.activation.kind in CUT_KINDS


class Rows(NamedTuple):
    """Rows to fit to and rows kept aside."""

    train: Seen
    aside: Seen


class Tried(NamedTuple):
    """An SAE and what its own codes are worth on the rows kept aside."""

    sae: SAE
    values: Float[np.ndarray, " aside"]

    @property
    def mean(self) -> float:
        """The mean over the rows kept aside."""
        return float(np.mean(self.values))


def on_dictionary(sae: SAE, dictionary: Dictionary, lam: float | None, *, tied: bool = False) -> SAE:
    """A (canonical) SAE on another dictionary: each encoder column takes its atom's turn, pre-activations stand as the offset moves.

    An atom that turned far (or every one, if `tied`) gets one proximal step, `w_k = d_k`, bias `-lam`, instead: `<d_k, x - b> - lam`.

    >>> from jaxdict.sae.encoders import tied_sae
    >>> sae = tied_sae(Dictionary(jnp.eye(2)), 0.5)
    >>> on_dictionary(sae, Dictionary(jnp.eye(2)[::-1], jnp.ones(2)), 0.5).encode(jnp.array([3.0, 1.0]))
    Array([0. , 1.5], dtype=float32)
    """
    atoms, offset = dictionary.atoms, jnp.zeros_like(sae.b_dec) if dictionary.offset is None else dictionary.offset
    W = sae.W_enc + (atoms - sae.W_dec).T
    b = sae.b_enc + (matmul(offset - sae.b_dec, W) if sae.centred else 0)
    fresh = -jnp.asarray(lam or 0.0, atoms.dtype) - (0 if sae.centred else matmul(atoms, offset))
    lost = (jnp.sum(atoms * sae.W_dec, axis=1) < LOST) | tied
    W, b = jnp.where(lost, atoms.T, W), jnp.where(lost, fresh, b)
    return replace(sae, W_enc=W, b_enc=b, W_dec=atoms, b_dec=offset)


def tried(sae: SAE, rows: Rows, aim: Aim) -> Tried:
    """An SAE with its cut where the aim wants it, looked at on the rows kept aside."""
    sae = cut_to(sae, rows.aside, aim.wanted) if aim.cuts(sae) else sae
    return Tried(sae, own_codes(sae, rows.aside, aim.lam).values)


def refitted(
    sae: SAE,
    rows: Rows,
    aim: Aim,
    *,
    hurry: bool = False,
    until: float = math.inf,
    tell: Callable[[int, int, int, Tried], Any] = lambda *_: None,
) -> Tried:
    """The SAE with the encoder that was best on the rows kept aside; its dictionary is held.

    Adam on `E[own_values]` over shuffled batches, its steps falling to zero over some passes, or one in a `hurry`, or by the moment
    `until`; until the rows kept aside have found nothing better for some looks. Where the number of features is a matter of
    thresholds, they follow so that the mean number stays. Matching pursuit has no encoder but its atoms.
    """
    best = tried(sae, rows, aim)
    if sae.activation.kind == "matching_pursuit":
        return best
    size = min(len(rows.train), MOST_ROWS, max(LEAST_ROWS, ENTRIES // sae.d_sae))
    epoch = len(rows.train) // size
    steps = epoch if hurry else max(PASSES * epoch, LEAST_STEPS)
    every, since, begun = max(1, steps // LOOKS), 0, time.perf_counter()
    at, state, unit = best.sae, None, _unit(sae, rows)
    for k, x in enumerate(_batches(rows.train, size, steps)):
        gone = max(k / steps, (time.perf_counter() - begun) / (until - begun) if until > begun else 1.0)
        if gone >= 1 or since == PATIENCE:
            break
        if aim.cuts(at) and k % STEPS_A_CUT == 0:
            at = _recut(at, x, aim)
        rate = jnp.asarray(RATE / np.sqrt(x.shape[1]) * (1 - gone), x.dtype)
        at, state = _step(at, state, x, _number(aim.lam, x), rate, unit)
        if (k + 1) % every == 0:
            now = tried(at, rows, aim)
            best, since = (now, 0) if now.mean < best.mean else (best, since + 1)
            tell(k + 1, steps, (k + 1) * size, best)
    return best


def _recut(sae: SAE, x: Float[Array, "rows d"], aim: Aim) -> SAE:
    """A share of the way to the cut that a batch wants."""
    cut = cut_of(margins(sae, x), aim.wanted)
    return shifted(sae, SHARE_OF_A_CUT * cut if np.isfinite(cut) else 0.0)


def _batches(rows: Seen, size: int, steps: int):
    """So many batches of rows, blocks of neighbours in another order each time round."""
    source, epoch, done = open_source(rows, None, 0, jax.random.key(0)), 0, 0
    while done < steps:
        for piece in source.batches(jax.random.fold_in(jax.random.key(1), epoch), 0, size):
            yield jnp.asarray(piece.rows)
            done += 1
            if done == steps:
                return
        epoch += 1


def _number(lam: float | None, x: Float[Array, "rows d"]):
    return None if lam is None else jnp.asarray(lam, x.dtype)


def _unit(sae: SAE, rows: Rows) -> Float[Array, ""]:
    """The size of what the encoder reads, by which steps of biases are scaled: pre-activations have the units of the data."""
    x = rows.aside[: min(len(rows.aside), 256)]
    heights = np.linalg.norm(x - np.asarray(sae.b_dec) if sae.centred else x, axis=1)
    return jnp.asarray(np.sqrt(np.mean(heights**2)), x.dtype)


@on_any_mesh
@eqx.filter_jit
def _step(sae: SAE, state, x: Float[Array, "rows d"], lam, rate, unit):
    """One step of Adam on the mean of the rows' own values, in the encoder alone; the dictionary is held."""
    moving = {"W_enc": sae.W_enc, "b_enc": sae.b_enc}

    def mean_value(moving) -> Float[Array, ""]:
        return jnp.mean(own_values(replace(sae, **moving), x, lam)[0])

    adam = optax.scale_by_adam()
    state = adam.init(moving) if state is None else state
    slopes: Any = jax.grad(mean_value)(moving)
    directions, state = adam.update(slopes, state)
    towards: Any = directions
    W, b = sae.W_enc - rate * towards["W_enc"], sae.b_enc - rate * unit * towards["b_enc"]
    return replace(sae, W_enc=W, b_enc=b), state
