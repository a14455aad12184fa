"""`encode`: exact codes for a fixed dictionary, by the method that suits the shapes."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxdict.encoding.engines import NUMBA_ENGINE, on_engine, on_numba
from jaxdict.encoding.implicit import implicit_codes
from jaxdict.encoding.jax_engine import calls
from jaxdict.encoding.lasso import Lasso, Solved, code_scales, codes_of, lasso_of, plain_codes
from jaxdict.encoding.numba_engine.calls import require_kernels
from jaxdict.encoding.slots import Slots, slots_from_codes
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes
from jaxdict.validation import check_codes, check_data, check_dictionary, check_problem

MAX_ROUNDS = 200
METHODS = ("auto", "gradient", "working_set", "numba")
# Where slots do not suffice they grow by this factor.
MORE_SLOTS = 4

SOLVED, STEP_LIMIT, TOO_FEW_SLOTS, NOT_FINITE, ROUNDING = range(5)
MESSAGES = (
    "solved: every sample's duality gap is within tol of its objective",
    "step limit: some gaps are above tol; raise max_steps or loosen tol",
    "too few slots: some samples need more active atoms than there are slots; give slots=",
    "non-finite values met: look for NaN or inf in the data, the dictionary or lam",
    "rounding: the gaps stopped shrinking above tol, which is below what this precision can show; loosen tol or use float64",
)


class Encoding(eqx.Module):
    """Codes for a fixed dictionary with the proof of how good they are."""

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
    X,
    *,
    tol: float = 1e-6,
    method: str = "auto",
    codes: Codes | None = None,
    sparse: bool = False,
    slots: int | None = None,
    max_steps: int = 10_000,
) -> Encoding:
    """Exact codes for a fixed dictionary: `argmin_{z >= 0} 1/2 ||x - b - z D||_m^2 + lam sum_k ||d_k|| z_k`, sample by sample.

    Stops when each sample's duality gap (theory.md T2) is at most `tol` times its objective: a bound on the distance to the
    optimum that needs no trust in the solver. 1e-6 is real in float32, 1e-12 is reached in float64.

    **Arguments:**

    - `X`: (samples, d) data; `dictionary`: atoms (atoms, d) and offset (d,).
    - `method`: "gradient" (dense accelerated projected gradient), "working_set" (padded active sets, Cholesky), "numba" (the
      same on the CPU by numba kernels, several times faster; extra `jaxdict[fast]`), or "auto": "numba" on a CPU where numba
      is installed; else a gradient start followed by working sets up to 2,048 atoms, working sets from a cold start above.
    - `codes`: a warm start, dense or sparse.
    - `sparse`: return `SparseCodes(indices, values)` with `slots` columns: no (samples, atoms) array is formed.
    - `slots`: active atoms allowed a sample. By default 64, more until they suffice; under jit (where shapes cannot grow) a set
      that is too small gives the status "too few slots" at most, never a silent stall.

    **Returns** `Encoding(codes, gap, status, steps)`; `.message()` says how it ended. Codes have derivatives of any order with respect
    to lam, metric, atoms, offset and X (implicit function theorem on the support, see `encoding.implicit`; under jit on at most
    `slots`, by default 64, active atoms of dense codes); gap, status and steps have none.

    **Raises** ValueError for wrong shapes, NaN or inf, lam <= 0, an unknown method; ImportError for "numba" without numba. Works
    under jit and vmap (no checks, no growth). "numba" calls back to the host: `jax.export` for a CPU wants "working_set".

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> done = jd.encode(jd.Problem(lam=0.5), jd.Dictionary(jnp.eye(2)), jnp.array([[3.0, 0.25]]))
    >>> done.codes.tolist(), done.message()
    ([[2.5, 0.0]], "solved: every sample's duality gap is within tol of its objective")
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; use one of {METHODS}")
    if method == "numba":
        require_kernels()
    X = check_data(X, wide="allow")
    dictionary = check_dictionary(dictionary, X)
    check_problem(problem, X, zero_codes="allow")
    if codes is not None:
        codes = check_codes(codes, dictionary, X, signed=problem.signed)
    given = problem, dictionary, X
    # The solver is not differentiated, only the codes that it ends at.
    problem, dictionary, X, codes = jax.lax.stop_gradient((*given, codes))
    plain_atoms = dictionary.atoms.shape[0] * (2 if problem.signed else 1)
    size = min(plain_atoms, 64 if slots is None else slots)
    run = partial(_encode, tol=tol, method=method, sparse=sparse, max_steps=max_steps)
    done, overflow = run(problem, dictionary, X, codes, slots=size)
    fixed = slots is not None or any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((done, overflow)))
    while not fixed and bool(overflow) and size < plain_atoms:
        size = min(plain_atoms, MORE_SLOTS * size)
        # The kernels solved all and only cut what did not fit: what is left is a worse start than none.
        done, overflow = run(problem, dictionary, X, codes if on_numba(method) else done.codes, slots=size)
    return eqx.tree_at(lambda e: e.codes, done, implicit_codes(*given, done.codes, slots=slots))


@partial(jax.jit, static_argnames=("method", "sparse", "slots", "max_steps"))
def _encode(problem, dictionary, X, codes, *, tol, method, sparse, slots, max_steps):
    lasso, start = lasso_of(problem, dictionary, X), _plain_start(problem, dictionary, codes, X.dtype)
    most = min(max_steps, MAX_ROUNDS) if method != "gradient" else max_steps

    def solve(engine, lasso, start, tol):
        return engine.solve(lasso, start, tol, None, n_slots=slots, dense=not sparse, max_rounds=most)

    found, Z, done = on_engine(method, solve, lasso, start, tol)
    out = problem_slots(problem, dictionary, found) if sparse else codes_of(problem, dictionary, Z)
    return Encoding(out, done.gap, _status(done, tol), done.steps), jnp.any(done.overflow)


def _plain_start(problem, dictionary, codes, dtype):
    """A warm start in the plain form: slots, dense codes or None."""
    if codes is None or not isinstance(codes, SparseCodes):
        return None if codes is None else plain_codes(problem, dictionary, codes.astype(dtype))
    values = codes.values.astype(dtype) * code_scales(problem, dictionary)[codes.indices]
    shift = jnp.where(values < 0, dictionary.atoms.shape[0], 0) if problem.signed else 0
    return Slots(codes.indices + shift, jnp.abs(values) if problem.signed else jnp.maximum(values, 0))


def problem_slots(problem: Problem, dictionary: Dictionary, slots: Slots) -> SparseCodes:
    """Sparse codes of the problem from the slots of its plain form."""
    n_atoms, used = dictionary.atoms.shape[0], slots.values > 0
    indices, values = jnp.where(used, slots.indices, 0), jnp.where(used, slots.values, 0)
    if problem.signed:
        indices, values = indices % n_atoms, jnp.where(indices >= n_atoms, -values, values)
    return SparseCodes(indices, values / code_scales(problem, dictionary)[indices])


def _status(done: Solved, tol):
    reason = jnp.where(jnp.any(done.limited), STEP_LIMIT, ROUNDING)
    reason = jnp.where(jnp.any(done.overflow), TOO_FEW_SLOTS, reason)
    reason = jnp.where(jnp.all(jnp.isfinite(done.gap)), reason, NOT_FINITE)
    return jnp.where(jnp.any(~(done.gap <= tol * done.primal)), reason, SOLVED)


# What solvers/ and fitting.py still call, until they take an Engine.


def where_best(method, compiled, by_jax, *args):
    """`compiled(*args)` where the kernels run, else `by_jax(*args)`."""
    return on_engine(method, lambda engine, *args: (compiled if engine is NUMBA_ENGINE else by_jax)(*args), *args)


by_kernels = on_numba


def exact_codes(lasso: Lasso, Z, tol, n_slots, max_steps: int, *, warm_up: bool, defect_tol=None):
    slots = slots_from_codes(Z, n_slots)
    _, Z, done = exact_from_slots(lasso, slots, tol, max_steps, defect_tol)
    return Z, done


def exact_from_slots(lasso: Lasso, slots: Slots, tol, max_steps, defect_tol=None):
    slots, Z, _, done = calls.exact_from_slots(lasso, slots, tol, min(max_steps, MAX_ROUNDS), max_steps, defect_tol)
    return slots, Z, done
