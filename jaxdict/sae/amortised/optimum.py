"""The other end: exact codes of an SAE's dictionary, started from the SAE's own, and what codes lose against them."""

from functools import partial

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxdict.arrays import data_array
from jaxdict.encoding.exact import Encoding, encode
from jaxdict.meshes import on_any_mesh
from jaxdict.objectives import sample_objectives
from jaxdict.points import check_point
from jaxdict.problem import Codes, Dictionary, Problem
from jaxdict.sae.amortised.beginnings import cast, check_rectified, unweighted
from jaxdict.sae.models import SAE


def exact_codes(
    sae: SAE,
    X: Float[Array, "samples d"],
    lam=None,
    *,
    tol=1e-6,
    method: str = "auto",
    sparse: bool = False,
    slots: int | None = None,
    max_steps: int | None = None,
) -> Encoding:
    """Exact codes of an SAE's own dictionary at `lam` (by default the SAE's), started from the SAE's codes.

    `jaxdict.encode(Problem(lam), sae.dictionary, X, codes=sae.canonical().encode(X))` with its options, so codes are for unit decoder
    rows; gap and status are as from a cold start. It is no cheaper as a rule: on a CPU, with 512 atoms of 384 dimensions, by 44% dearer
    (benchmarks/encoders.md), as an SAE holds features that exact codes do not; a cold start is `encode` without `codes`.

    **Raises** ValueError as `encode` does, where no lam is known, and for an SAE that normalises its input, whose codes may be
    negative, or that predicts other activations.

    >>> import jax.numpy as jnp
    >>> sae = SAE(jnp.eye(2), jnp.zeros(2), 2 * jnp.eye(2), jnp.zeros(2))
    >>> done = exact_codes(sae, jnp.array([[3.0, 0.25]]), lam=0.5)
    >>> done.codes.tolist(), done.message()
    ([[2.5, 0.0]], "solved: every sample's duality gap is within tol of its objective")
    """
    check_rectified(sae, "sae")
    lam = sae.lam if lam is None else lam
    if lam is None:
        raise ValueError("lam is not given and the SAE does not say its own; give lam, half of an l1_coefficient")
    X = data_array(X)
    sae = cast(sae, X.dtype)
    options = {"tol": tol, "method": method, "sparse": sparse, "slots": slots, "max_steps": max_steps}
    return encode(Problem(lam=lam), _dictionary_of(sae), X, codes=_own_codes(sae, X), **options)


def amortisation_gap(
    problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"], *, tol=1e-6
) -> Float[Array, " samples"]:
    """By how much F of each row at given codes is above that at its exact codes: what inference loses (theory.md section 5).

    Never below `-tol` times the row's F, as exact codes are proved to that. The mean is `F(codes) - F(exact)`, in squared units of X.
    **Raises** ValueError as `jaxdict.encode` does, and for codes of other shapes.

    >>> import jax.numpy as jnp
    >>> codes = jnp.array([[3.0, 0.0]])
    >>> amortisation_gap(Problem(lam=0.5), Dictionary(jnp.eye(2)), codes, jnp.array([[3.0, 0.25]])).tolist()
    [0.125]
    """
    problem, dictionary, codes, X = check_point(problem, dictionary, codes, X)
    exact = encode(problem, dictionary, X, tol=tol).codes
    return _excess(unweighted(problem), dictionary, codes, exact, X)


_dictionary_of = on_any_mesh(jax.jit(lambda sae: sae.dictionary))
_own_codes = on_any_mesh(jax.jit(lambda sae, X: sae.canonical().encode(X)), lambda rows: P(rows))


@partial(on_any_mesh, out=lambda rows: P(rows))
@jax.jit
def _excess(problem: Problem, dictionary: Dictionary, codes: Codes, exact, X: Float[Array, "samples d"]):
    values = (sample_objectives(problem, dictionary, one, X) for one in (codes, exact))
    own, least = values
    return own - least
