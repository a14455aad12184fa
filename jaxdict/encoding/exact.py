"""`encode`: exact codes for a fixed dictionary, by the method that suits the shapes."""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxdict.encoding.implicit import implicit_codes
from jaxdict.encoding.jax_engine import working_set
from jaxdict.encoding.jax_engine.gradient import accelerated_gradient
from jaxdict.encoding.jax_engine.working_set import GRAM_ATOMS
from jaxdict.encoding.lasso import Lasso, code_scales, codes_of, lasso_of, plain_codes, zero_codes
from jaxdict.encoding.numba_engine.calls import codes_by_callback, kernels, require_kernels
from jaxdict.encoding.slots import Slots, dense_from_slots, slots_from_codes
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes, dense_codes
from jaxdict.validation import check_codes, check_data, check_dictionary, check_problem

METHODS = ("auto", "gradient", "working_set", "compiled")
# A gradient start to this relative gap finds nearly all of the support; the working set does the rest.
WARM_UP_GAP = 1e-2
MAX_ROUNDS = 200
# Where slots do not suffice they grow by this factor.
MORE_SLOTS = 4
# Entries of the largest array of a block of samples.
BLOCK_ENTRIES = 2**24

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


class Solved(NamedTuple):
    """How well plain codes are solved: gap and objective of each sample, samples that need more slots, steps taken."""

    gap: Float[Array, " samples"]
    primal: Float[Array, " samples"]
    overflow: Bool[Array, " samples"]
    steps: Int[Array, ""]


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
    - `method`: "gradient" (dense accelerated projected gradient), "working_set" (padded active sets, Cholesky), "compiled" (the
      same on the CPU by numba kernels, several times faster; extra `jaxdict[fast]`), or "auto": "compiled" on a CPU where numba
      is installed; else a gradient start followed by working sets up to 2,048 atoms, working sets from a cold start above.
    - `codes`: a warm start, dense or sparse.
    - `sparse`: return `SparseCodes(indices, values)` with `slots` columns: no (samples, atoms) array is formed.
    - `slots`: active atoms allowed a sample. By default 64, more until they suffice; under jit (where shapes cannot grow) a set
      that is too small gives the status "too few slots" at most, never a silent stall.

    **Returns** `Encoding(codes, gap, status, steps)`; `.message()` says how it ended. Codes have derivatives of any order with respect
    to lam, metric, atoms, offset and X (implicit function theorem on the support, see `encoding.implicit`; under jit on at most
    `slots`, by default 64, active atoms of dense codes); gap, status and steps have none.

    **Raises** ValueError for wrong shapes, NaN or inf, lam <= 0, an unknown method; ImportError for "compiled" without numba. Works
    under jit and vmap (no checks, no growth). "compiled" calls back to the host: `jax.export` for a CPU wants "working_set".

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> done = jd.encode(jd.Problem(lam=0.5), jd.Dictionary(jnp.eye(2)), jnp.array([[3.0, 0.25]]))
    >>> done.codes.tolist(), done.message()
    ([[2.5, 0.0]], "solved: every sample's duality gap is within tol of its objective")
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; use one of {METHODS}")
    if method == "compiled":
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
        done, overflow = run(problem, dictionary, X, codes if by_kernels(method) else done.codes, slots=size)
    return eqx.tree_at(lambda e: e.codes, done, implicit_codes(*given, done.codes, slots=slots))


def by_kernels(method: str = "auto") -> bool:
    """Whether the compiled kernels solve codes here, outside a program for another platform."""
    return method == "compiled" or (method == "auto" and kernels() is not None and jax.default_backend() == "cpu")


@partial(jax.jit, static_argnames=("method", "sparse", "slots", "max_steps"))
def _encode(problem, dictionary, X, codes, *, tol, method, sparse, slots, max_steps):
    lasso = lasso_of(problem, dictionary, X)
    options = {"slots": slots, "max_steps": max_steps, "sparse": sparse}
    by_jax = partial(_by_jax, method=method, **options)
    out, done = where_best(method, partial(_by_kernels, **options), by_jax, problem, dictionary, lasso, codes, tol)
    return Encoding(out, done.gap, _status(done, tol, max_steps), done.steps), jnp.any(done.overflow)


def where_best(method, compiled, by_jax, *args) -> Any:
    """The compiled kernels where they are asked for, or may be chosen and the program runs on a CPU; else plain JAX.

    The choice is made when the program is lowered, so a program for an accelerator holds no callback and one for a CPU does not
    compile the other branch.
    """
    if method == "compiled":
        return compiled(*args)
    if method == "auto" and kernels() is not None:
        return jax.lax.platform_dependent(*args, cpu=compiled, default=by_jax)
    return by_jax(*args)


def _by_kernels(problem, dictionary, lasso: Lasso, codes, tol, *, slots, max_steps, sparse):
    start = codes
    if isinstance(codes, SparseCodes):
        start = _plain_slots(problem, dictionary, codes, codes.values.shape[1])
    elif codes is not None:
        start = plain_codes(problem, dictionary, codes.astype(lasso.targets.dtype))
    n_slots, most = slots if sparse else 0, min(max_steps, MAX_ROUNDS)
    found, Z, done = _solved_by_kernels(lasso, start, tol, most, None, n_slots=n_slots, dense=not sparse)
    return codes_of(problem, dictionary, Z) if Z is not None else problem_slots(problem, dictionary, found), done


def _solved_by_kernels(lasso: Lasso, start, tol, max_steps, defect_tol, *, n_slots, dense):
    slots, Z, gap, primal, used, steps = codes_by_callback(
        lasso, start, tol, max_steps, defect_tol, n_slots=n_slots, dense=dense
    )
    overflow = jnp.zeros_like(used, dtype=bool) if dense else used > n_slots
    return slots, Z, Solved(gap, primal, overflow, steps.astype(int))


def _by_jax(problem, dictionary, lasso: Lasso, codes, tol, *, method, slots, max_steps, sparse):
    n_atoms = dictionary.atoms.shape[0]
    few = lasso.atoms.shape[0] <= GRAM_ATOMS
    if method == "gradient" or (few and not sparse):
        start = zero_codes(lasso.targets, n_atoms) if codes is None else dense_codes(codes, n_atoms)
        Z = plain_codes(problem, dictionary, start.astype(lasso.targets.dtype))
        if method == "gradient":
            Z, seen, steps = accelerated_gradient(lasso, Z, tol, max_steps)
            done = Solved(seen.gap, seen.primal, jnp.zeros_like(seen.gap, dtype=bool), steps)
        else:
            warm = method == "auto" and codes is None
            Z, done = exact_codes(lasso, Z, tol, slots, max_steps, warm_up=warm, cold=codes is None)
        if sparse:
            done = done._replace(overflow=done.overflow | (jnp.sum(Z > 0, axis=1) > slots))
            out = problem_slots(problem, dictionary, slots_from_codes(Z, slots))
        else:
            out = codes_of(problem, dictionary, Z)
    else:
        start = _plain_slots(problem, dictionary, codes, slots)
        found, done = _in_blocks(lasso, start, tol, slots, max_steps)
        out = problem_slots(problem, dictionary, found)
        out = out if sparse else dense_codes(out, n_atoms)
    return out, done._replace(steps=done.steps.astype(int))


@partial(jax.jit, static_argnames=("n_slots", "max_steps", "warm_up", "cold"))
def exact_codes(lasso: Lasso, Z, tol, n_slots, max_steps: int, *, warm_up: bool, cold=False, defect_tol=None):
    """Exact dense codes by plain JAX, and how well: an optional gradient start, then `exact_from_slots`."""
    steps = jnp.zeros_like(Z[0, 0], dtype=int)
    if warm_up:
        Z, _, steps = accelerated_gradient(lasso, Z, jnp.maximum(tol, WARM_UP_GAP), max_steps)
    by_correlation = cold and not warm_up
    slots = working_set.slots_from_correlations(lasso, n_slots) if by_correlation else slots_from_codes(Z, n_slots)
    _, Z, done = exact_from_slots(lasso, slots, tol, max_steps, defect_tol)
    return Z, done._replace(steps=steps + done.steps)


@partial(jax.jit, static_argnames="max_steps")  # traced once, however many loops it stands in
def exact_from_slots(lasso: Lasso, slots: Slots, tol, max_steps, defect_tol=None):
    """By plain JAX: the working set to start from next time, exact dense codes, and how well they are solved.

    Samples that overflow their slots are left to the accelerated gradient, which takes no step where there are none.
    """
    rounds = working_set.solve(lasso, slots, tol, min(max_steps, MAX_ROUNDS), defect_tol)
    solved = dense_from_slots(rounds.slots, lasso.atoms.shape[0])
    short = rounds.overflow & (rounds.check.gap > tol * rounds.check.primal)
    Z, seen, more = accelerated_gradient(lasso, solved, tol, max_steps, wanted=short)
    gap = jnp.where(short, seen.gap, rounds.check.gap)
    primal = jnp.where(short, seen.primal, rounds.check.primal)
    steps = (rounds.steps + more).astype(int)
    done = Solved(gap, primal, short & ~(gap <= tol * primal), steps)
    return rounds.slots, jnp.where(short[:, None], Z, solved), done


def _in_blocks(lasso: Lasso, slots: Slots | None, tol, n_slots, max_steps) -> tuple[Slots, Solved]:
    """Working sets, block by block of samples, so that (block, atoms) and (block, slots, max(slots, d)) arrays stay small."""
    n_samples, d = lasso.targets.shape
    block = max(1, min(n_samples, BLOCK_ENTRIES // max(lasso.atoms.shape[0], n_slots * max(n_slots, d))))
    n_blocks = -(-n_samples // block)

    def blocks(array):  # a padding row is a zero target, solved before the first round
        padded = jnp.pad(array, [(0, n_blocks * block - n_samples), (0, 0)])
        return padded.reshape(n_blocks, block, array.shape[1])

    def one(args):
        targets, start = args
        part = Lasso(targets, lasso.atoms, lasso.lam)
        start = working_set.slots_from_correlations(part, n_slots) if start is None else start
        rounds = working_set.solve(part, start, tol, min(max_steps, MAX_ROUNDS))
        overflow = rounds.overflow & (rounds.check.gap > tol * rounds.check.primal)
        return rounds.slots, rounds.check.gap, rounds.check.primal, overflow, rounds.steps

    parts = jax.lax.map(one, (blocks(lasso.targets), None if slots is None else jax.tree.map(blocks, slots)))
    join = lambda part: part.reshape(n_blocks * block, *part.shape[2:])[:n_samples]  # noqa: E731
    found, gap, primal, overflow = jax.tree.map(join, parts[:4])
    return found, Solved(gap, primal, overflow, jnp.max(parts[4]))


def _plain_slots(problem, dictionary, codes, n_slots) -> Slots | None:
    if codes is None:
        return None
    n_atoms = dictionary.atoms.shape[0]
    if not isinstance(codes, SparseCodes):
        return slots_from_codes(plain_codes(problem, dictionary, codes), n_slots)
    values = codes.values * code_scales(problem, dictionary)[codes.indices]
    negative = problem.signed & (values < 0)
    size, plain = jnp.abs(values), codes.indices + jnp.where(negative, n_atoms, 0)
    largest, order = jax.lax.top_k(size, min(n_slots, size.shape[1]))
    indices = jnp.where(largest > 0, jnp.take_along_axis(plain, order, axis=1), n_atoms * (2 if problem.signed else 1))
    missing = [(0, 0), (0, n_slots - largest.shape[1])]
    empty = n_atoms * (2 if problem.signed else 1)
    return Slots(jnp.pad(indices, missing, constant_values=empty), jnp.pad(largest, missing))


def problem_slots(problem: Problem, dictionary: Dictionary, slots: Slots) -> SparseCodes:
    """Sparse codes of the problem from the slots of its plain form."""
    n_atoms = dictionary.atoms.shape[0]
    negative = slots.indices >= n_atoms if problem.signed else jnp.zeros_like(slots.indices, dtype=bool)
    used = slots.values > 0
    indices = jnp.where(used, jnp.where(negative, slots.indices - n_atoms, slots.indices), 0)
    values = jnp.where(used, jnp.where(negative, -slots.values, slots.values), 0)
    return SparseCodes(indices, values / code_scales(problem, dictionary)[indices])


def _status(done: Solved, tol, max_steps):
    open_ = jnp.any(~(done.gap <= tol * done.primal))
    reason = jnp.where(done.steps >= max_steps, STEP_LIMIT, ROUNDING)
    reason = jnp.where(jnp.any(done.overflow), TOO_FEW_SLOTS, reason)
    reason = jnp.where(jnp.all(jnp.isfinite(done.gap)), reason, NOT_FINITE)
    return jnp.where(open_, reason, SOLVED)
