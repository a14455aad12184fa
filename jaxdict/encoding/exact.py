"""`encode`: exact codes for a fixed dictionary, by the method that suits the shapes."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxdict.compiling import compiled_in_a_hurry
from jaxdict.encoding.engines import check_method, on_engine, on_numba
from jaxdict.encoding.implicit import implicit_codes
from jaxdict.encoding.lasso import Solved, Units, code_scales, codes_of, in_units, is_minute, lasso_of, plain_codes
from jaxdict.encoding.shards import by_shards, rows_of
from jaxdict.encoding.slots import Slots
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes
from jaxdict.validation import check_codes, check_data, check_dictionary, check_problem

METHODS = ("auto", "gradient", "working_set", "numba")
# Steps of the gradient, and rounds of the others (a look at all atoms each), unless max_steps says otherwise.
GRADIENT_STEPS, MAX_ROUNDS = 10_000, 200
# Where slots do not suffice they grow by this factor.
MORE_SLOTS = 4

SOLVED, STEP_LIMIT, TOO_FEW_SLOTS, NOT_FINITE, ROUNDING, BEST_FOUND, EXCHANGES_CUT = range(7)
MESSAGES = (
    "solved: every sample's duality gap is within tol of its objective",
    "step limit: some gaps are above tol; raise max_steps or loosen tol",
    "too few slots: some samples need more active atoms than there are slots; give more slots=",
    "non-finite values met: look for NaN or inf in the data, the dictionary or lam",
    "rounding: the gaps stopped shrinking above tol, which is below what this precision can show; loosen tol or use float64",
    "best found: no exchange of one active atom for another helps; the error is an upper bound on the least one of this size, "
    "which only a search of all supports would show",
    "step limit: exchanges were left to try; raise max_steps; the error is an upper bound on the least one of this size",
)


class Encoding(eqx.Module):
    """Codes for a fixed dictionary with the proof of how good they are.

    Of `best_subset` the gap is that of the values on the support that was found, and `message()` says what is known of the support.
    """

    codes: Codes
    gap: Float[Array, " samples"]  # T2: objective above the optimum, at most, sample by sample
    status: Int[Array, ""]
    steps: Int[Array, ""]

    def message(self) -> str:
        """The status as a sentence."""
        return MESSAGES[int(self.status)]


def encode(
    problem: Problem,
    dictionary: Dictionary,
    X: Float[Array, "samples d"],
    *,
    tol=1e-6,
    method: str = "auto",
    codes: Codes | None = None,
    sparse: bool = False,
    slots: int | None = None,
    max_steps: int | None = None,
) -> Encoding:
    """Exact codes for a fixed dictionary: `argmin_{z >= 0} 1/2 ||x - b - z D||_m^2 + lam sum_k ||d_k|| z_k`, sample by sample.

    Stops when each sample's duality gap (theory.md T2) is at most `tol` times its objective: a bound on the distance to the
    optimum that needs no trust in the solver. 1e-6 is real in float32, 1e-12 is reached in float64. The problem is solved in units of
    its own size, so data, atoms and lam of any size that the dtype holds are as good as any; a gap below what it holds is rounded up.

    **Arguments:**

    - `X`: (samples, d) data; `dictionary`: atoms (atoms, d) and offset (d,).
    - `method`: "gradient" (dense accelerated projected gradient), "working_set" (padded active sets, Cholesky), "numba" (the
      same on the CPU by numba kernels, several times faster; extra `jaxdict[fast]`), or "auto": "numba" on a CPU where numba
      is installed, else "working_set".
    - `tol`: a number, or an array of one (traced or not): another value compiles nothing anew.
    - `codes`: a warm start, dense or sparse.
    - `sparse`: return `SparseCodes(indices, values)` with `slots` columns: no (samples, atoms) array is formed.
    - `slots`: active atoms allowed a sample. By default 64, more until they suffice; under jit (where shapes cannot grow) a set
      that is too small gives the status "too few slots" at most, never a silent stall.
    - `max_steps`: steps of "gradient" (10,000 by default), or rounds, a look at all atoms each, of the others (200).

    Samples spread over devices are solved where they are, each device its own, where that is known: X with a NamedSharding outside
    jit, or on Explicit axes anywhere. Codes and gaps are spread as X is.

    **Returns** `Encoding(codes, gap, status, steps)`; `.message()` says how it ended. Codes have derivatives of any order with respect
    to lam, metric, atoms, offset and X (implicit function theorem on the support, see `encoding.implicit`; under jit on at most
    `slots`, by default 64, active atoms of dense codes); gap, status and steps have none.

    **Raises** ValueError for wrong shapes, NaN or inf, lam <= 0, an unknown method; ImportError for "numba" without numba. Works
    under jit and vmap (no checks of traced values, no growth). RuntimeError in a forked child, where jax hangs.
    "numba" is a custom call, known where jaxdict is: `jax.export` for a CPU elsewhere wants "working_set".

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> done = jd.encode(jd.Problem(lam=0.5), jd.Dictionary(jnp.eye(2)), jnp.array([[3.0, 0.25]]))
    >>> done.codes.tolist(), done.message()
    ([[2.5, 0.0]], "solved: every sample's duality gap is within tol of its objective")
    """
    check_method(method, METHODS)
    X = check_data(X, wide="allow")
    dictionary = check_dictionary(dictionary, X)
    check_problem(problem, X, zero_codes="allow")
    if codes is not None:
        codes = check_codes(codes, dictionary, X, signed=problem.signed)
    given = problem, dictionary, X
    # The solver is not differentiated, only the codes that it ends at.
    problem, dictionary, X, codes, tol = jax.lax.stop_gradient(_in_dtype(*given, codes, tol))
    plain_atoms = dictionary.atoms.shape[0] * (2 if problem.signed else 1)
    size = min(plain_atoms, 64 if slots is None else slots)
    rows, most = rows_of(X), GRADIENT_STEPS if method == "gradient" else MAX_ROUNDS
    options = {"method": method, "sparse": sparse, "max_steps": most if max_steps is None else max_steps, "rows": rows}
    done, overflow = _encode(problem, dictionary, X, codes, tol, slots=size, **options)
    fixed = slots is not None or any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((done, overflow)))
    while not fixed and bool(overflow) and size < plain_atoms:
        size = min(plain_atoms, MORE_SLOTS * size)
        # The kernels solved all and only cut what did not fit: what is left is a worse start than none.
        start = codes if on_numba(method) else done.codes
        done, overflow = _encode(problem, dictionary, X, start, tol, slots=size, **options)
    return eqx.tree_at(lambda e: e.codes, done, implicit_codes(*given, done.codes, slots=slots, rows=rows))


def _in_dtype(problem: Problem, dictionary: Dictionary, X: Float[Array, "samples d"], codes, tol):
    """What a program is compiled for: arrays in the data's dtype, no weights; so that other values of another kind are no other program."""
    if jnp.ndim(tol) != 0:
        raise ValueError(f"tol has shape {jnp.shape(tol)}; give a number")
    problem = eqx.tree_at(lambda p: p.weights, problem, None, is_leaf=lambda leaf: leaf is None)
    problem, dictionary, X, tol = jax.tree.map(lambda leaf: jnp.asarray(leaf, X.dtype), (problem, dictionary, X, tol))
    if isinstance(codes, SparseCodes):
        codes = codes._replace(indices=jnp.asarray(codes.indices, jnp.int32))
    return problem, dictionary, X, codes, tol


@partial(compiled_in_a_hurry, static_argnames=("method", "sparse", "slots", "max_steps", "rows"))
def _encode(problem, dictionary, X: Float[Array, "samples d"], codes, tol, *, method, sparse, slots, max_steps, rows):
    """The encoding, and whether some sample needs more slots."""
    options = {"n_slots": slots, "dense": not sparse, "max_rounds": max_steps}

    def encode_rows(shared, by_sample):
        problem, dictionary, tol = shared
        X, codes = by_sample
        lasso, units = in_units(lasso_of(problem, dictionary, X))
        start = None if codes is None else _plain_start(problem, dictionary, codes, units)
        solve = lambda engine, *args: engine.solve(*args, None, **options)  # noqa: E731
        found, Z, done = on_engine(method, solve, lasso, start, tol)
        if sparse:
            found = found._replace(values=units.of_codes(found.values))
        out = problem_slots(problem, dictionary, found) if sparse else codes_of(problem, dictionary, units.of_codes(Z))
        gap = units.of_gap(done.gap, is_minute(done.primal) & jnp.any(lasso.targets != 0, axis=1))
        return out, done._replace(gap=gap, steps=jnp.broadcast_to(done.steps, gap.shape))

    out, done = by_shards(rows, encode_rows, (problem, dictionary, tol), (X, codes))
    return Encoding(out, done.gap, _status(done), jnp.max(done.steps)), jnp.any(done.overflow)


def _plain_start(problem, dictionary, codes, units: Units):
    """A warm start in the plain form and its units: slots or dense codes."""
    if not isinstance(codes, SparseCodes):
        return units.to_codes(plain_codes(problem, dictionary, codes))
    values = units.to_codes(codes.values * code_scales(problem, dictionary)[codes.indices])
    if not problem.signed:
        return Slots(codes.indices, jnp.maximum(values, 0))
    return Slots(jnp.where(values < 0, codes.indices + dictionary.atoms.shape[0], codes.indices), jnp.abs(values))


def problem_slots(problem: Problem, dictionary: Dictionary, slots: Slots) -> SparseCodes:
    """Sparse codes of the problem from the slots of its plain form."""
    n_atoms, used = dictionary.atoms.shape[0], slots.values > 0
    indices, values = jnp.where(used, slots.indices, 0), jnp.where(used, slots.values, 0)
    if problem.signed:
        indices, values = indices % n_atoms, jnp.where(indices >= n_atoms, -values, values)
    return SparseCodes(indices, values / code_scales(problem, dictionary)[indices])


def _status(done: Solved) -> Int[Array, ""]:
    reasons = (jnp.all(done.solved), SOLVED), (jnp.any(jnp.isnan(done.gap)), NOT_FINITE)
    reasons += (jnp.any(done.overflow), TOO_FEW_SLOTS), (jnp.any(done.limited), STEP_LIMIT)
    conditions, codes = zip(*reasons, strict=True)
    return jnp.select(conditions, [jnp.int32(code) for code in codes], jnp.int32(ROUNDING))
