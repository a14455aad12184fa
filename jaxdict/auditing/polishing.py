"""`polish`: from an SAE's dictionary down to a local optimum, what changed on the way, and a better SAE."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdict.auditing.gaps import CODE_TOL, descend
from jaxdict.auditing.kinds import has_l1_penalty
from jaxdict.auditing.measuring import in_precision
from jaxdict.encoding.exact import encode
from jaxdict.fitting import Solution
from jaxdict.numerics import matmul, unit_rows
from jaxdict.objectives import objective
from jaxdict.problem import Dictionary, Problem, dense_codes
from jaxdict.sae.encoders import fitted_sae, tied_sae
from jaxdict.sae.models import SAE, check_activations
from jaxdict.sae.saving import save
from jaxdict.sae.transcoders import Transcoder
from jaxdict.validation import check_data

ENCODERS = ("fitted", "tied")
# A feature whose atom turned further than this cosine has changed.
CHANGED = 0.95


class Change(NamedTuple):
    """A feature whose atom turned: plain numbers."""

    feature: int
    cosine: float  # between its atom before and after
    nearest_before: int  # the atom before that is nearest to it now
    nearest_cosine: float
    frequency_before: float
    frequency_after: float


class Polished(eqx.Module):
    """A dictionary at the end of the descent from another, and the SAE made of it."""

    solution: Solution
    sae: SAE
    lam: float = eqx.field(static=True)
    before: Float[Array, ""]  # F of the dictionary that it began with, exact codes
    after: Float[Array, ""]  # F now, exact codes
    sae_before: Float[Array, ""] | None  # F of the SAE that it began with, its own codes
    sae_after: Float[Array, ""]  # F of the new SAE, its own codes
    cosine: Float[Array, " atoms"]  # of each atom with itself before
    nearest: Int[Array, " atoms"]  # the atom before that each is nearest to now
    nearest_cosine: Float[Array, " atoms"]
    frequency_before: Float[Array, " atoms"]  # share of rows on which it is on, exact codes
    frequency_after: Float[Array, " atoms"]

    def changes(self, top: int | None = 20, least: float = CHANGED) -> list[Change]:
        """The features whose atoms turned most (cosine below `least`), most turned first. Host side."""
        cosine = np.asarray(self.cosine)
        order = [int(k) for k in np.argsort(cosine, kind="stable") if cosine[k] < least][:top]
        columns = (self.cosine, self.nearest, self.nearest_cosine, self.frequency_before, self.frequency_after)
        values = [np.asarray(column) for column in columns]
        return [
            Change(k, float(values[0][k]), int(values[1][k]), *(float(column[k]) for column in values[2:]))
            for k in order
        ]

    def message(self) -> str:
        """What the descent did, in sentences."""
        gained = float(self.before - self.after)
        turned = int(np.sum(np.asarray(self.cosine) < CHANGED))
        text = (
            f"{self.solution.message()}. With exact codes the loss fell from {float(self.before):.6g} to "
            f"{float(self.after):.6g} ({gained / float(self.before):.2%}); {turned} of {len(self.cosine)} features turned by "
            f"more than a cosine of {CHANGED}."
        )
        if self.sae_before is not None:
            text += (
                f" The SAE's own loss goes from {float(self.sae_before):.6g} to {float(self.sae_after):.6g} with the new "
                "encoder."
            )
        return text

    def save(self, path) -> Path:
        """Write the new SAE as a SAELens folder."""
        return save(self.sae, path)


def polish(
    sae_or_dictionary,
    X: Float[Array, "samples d_in"],
    lam: float | None = None,
    *,
    encoder: str = "fitted",
    tol: float = 1e-4,
    max_steps: int = 300,
    callback=None,
) -> Polished:
    """Follow the certified descent from an L1 SAE's dictionary, or any dictionary, to a local optimum of problem P on X.

    Codes are exact throughout, so what changes is the dictionary: `F(D, Z*(D), b)` only falls, and the point reached is
    certified. The new SAE has the dictionary reached and an encoder: "fitted" to the exact codes (least squares where a code
    is positive) or "tied" (one proximal step, `b_enc = -lam`).

    **Arguments:**

    - `X`: (samples, d_in) activations, in memory. The SAE's normalisation is applied; an SAE that normalises comes back as
      a dictionary for normalised inputs, in `solution`, and an SAE for the same.
    - `lam`: sparsity weight; None: that of the SAE's metadata.
    - `tol`, `max_steps`, `callback`: as for `fit`.

    **Returns** `Polished`: `.sae`, `.solution` with its certificate, `.changes()`, `.message()`, `.save(path)`.

    **Raises** ValueError where lam is not known (an SAE without an L1 penalty has none), features are negative, shapes do not fit,
    or data are bad (see `fit`). Ctrl-C, or what the callback raised, goes on to the caller with what was reached as its attribute
    `polished`.

    >>> import jax, jaxdict as jd
    >>> X = jax.random.normal(jax.random.key(0), (60, 3))
    >>> done = polish(jd.Dictionary(jnp.eye(3)), X, 0.4, tol=1e-3, encoder="tied")
    >>> bool(done.after <= done.before)
    True
    """
    if encoder not in ENCODERS:
        raise ValueError(f"encoder={encoder!r} is unknown; use one of {ENCODERS}")
    X = check_data(X, wide="allow")
    sae, start, lam = _start(sae_or_dictionary, lam, X)
    own = None
    if sae is not None:
        own, X = sae.encode(X), sae.normalise(X)
        _refuse_signed(own)
    problem = Problem(lam=lam).astype(X.dtype)
    before = dense_codes(encode(problem, start, X, tol=CODE_TOL[str(X.dtype)]).codes, start.atoms.shape[0])
    conclude = partial(_polished, problem, X, sae, start, before, own, lam=float(lam), encoder=encoder)
    try:
        return conclude(descend(problem, start, X, steps=max_steps, tol=tol, callback=callback))
    except BaseException as stopped:  # Ctrl-C, or what a callback raised: with what was reached, where that is known
        solution = getattr(stopped, "solution", None)
        if solution is not None:
            stopped.polished = conclude(solution)  # type: ignore[attr-defined]
        raise


def _start(sae_or_dictionary, lam: float | None, X) -> tuple[SAE | None, Dictionary, float]:
    """The SAE in the data's precision, unit rows, where one is given; the dictionary to start from; lam."""
    if not isinstance(sae_or_dictionary, SAE | Dictionary):
        raise ValueError(f"{type(sae_or_dictionary).__name__} cannot be polished; give an SAE or a Dictionary")
    sae = sae_or_dictionary if isinstance(sae_or_dictionary, SAE) else None
    lam = lam if lam is not None or sae is None else sae.lam
    if isinstance(sae, Transcoder):
        raise ValueError(
            "a transcoder cannot be polished: its codes are for what it predicts, and P's are of its own input"
        )
    if lam is None and sae is not None and not has_l1_penalty(sae):
        raise ValueError(
            f"this SAE ({sae.metadata.architecture}) has no L1 penalty, and polish descends on problem P, which is made of one: give lam "
            "to descend on it all the same. What a better dictionary gains at this SAE's own sparsity is the audit's part 'dictionary'"
        )
    if lam is None:
        raise ValueError("lam is not given and the SAE does not say: give lam, half the package's l1 coefficient")
    if sae is not None:
        check_activations(sae, X)
        sae = in_precision(sae, X.dtype).canonical()
        return sae, sae.dictionary, lam
    atoms, offset = sae_or_dictionary
    return None, Dictionary(unit_rows(jnp.asarray(atoms, X.dtype)), offset), lam


def _refuse_signed(codes) -> None:
    """A signed SAE would come back non-negative: another model."""
    rows = int(jnp.sum(jnp.any(codes < 0, axis=1)))
    if rows:
        raise ValueError(
            f"this SAE's features are negative in {rows} of {codes.shape[0]} rows, and polish makes codes and an encoder that are "
            "not: for signed codes use jd.fit(jd.Problem(lam=..., signed=True), X, start=sae.dictionary)"
        )


def _polished(problem, X, sae, start, before, own, solution: Solution, *, lam: float, encoder: str) -> Polished:
    """What the descent changed, and the new SAE."""
    reached = solution.dictionary
    after = dense_codes(solution.codes, start.atoms.shape[0])
    new = fitted_sae(reached, lam, X, after) if encoder == "fitted" else tied_sae(reached, lam)
    if sae is not None:
        new = _described(new, sae)
    cosines = matmul(unit_rows(reached.atoms), unit_rows(start.atoms).T)
    return Polished(
        solution=solution,
        sae=new,
        lam=lam,
        before=objective(problem, start, before, X),
        after=solution.objective,
        sae_before=None if own is None else objective(problem, start, own, X),
        sae_after=objective(problem, reached, _without_normalisation(new).encode(X), X),
        cosine=jnp.diagonal(cosines),
        nearest=jnp.argmax(cosines, axis=1),
        nearest_cosine=jnp.max(cosines, axis=1),
        frequency_before=jnp.mean(before > 0, axis=0),
        frequency_after=solution.usage,
    )


def _described(new: SAE, old: SAE) -> SAE:
    """The new SAE with the old one's normalisation, model and hook."""
    metadata = replace(new.metadata, model=old.metadata.model, hook=old.metadata.hook)
    return replace(new, normalisation=old.normalisation, metadata=metadata)


def _without_normalisation(sae: SAE) -> SAE:
    """The SAE for inputs that are normalised already."""
    return SAE(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
