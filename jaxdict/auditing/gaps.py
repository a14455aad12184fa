"""What an SAE loses and to what (theory.md section 5): its encoder, its dictionary, its width, on one sample of rows."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdict.certificates.certificate import Certificate, certify
from jaxdict.encoding.exact import Encoding, encode
from jaxdict.fitting import Solution, fit
from jaxdict.numerics import unit_rows
from jaxdict.objectives import objective
from jaxdict.problem import Dictionary, Problem, SparseCodes, sparse_codes
from jaxdict.sae.models import SAE
from jaxdict.solvers.alternating import Alternating
from jaxdict.solvers.combined import Combined
from jaxdict.validation import check_data

# Relative duality gap of exact codes, by precision.
CODE_TOL = {"float32": 1e-6, "float64": 1e-10}
# The SAE's own codes take slots in multiples of this.
SLOT_STEP = 32
# Above this many atoms a sample's dense codes are too large to descend with.
DESCENT_ATOMS = 8192


class Sample(NamedTuple):
    """Rows of the data as the dictionary sees them, with the SAE's own codes and the exact ones."""

    rows: np.ndarray
    X: Float[Array, "samples d"]  # normalised as the SAE does
    own: SparseCodes
    exact: Encoding

    @property
    def exact_codes(self) -> SparseCodes:
        """The exact codes, in slots."""
        return sparse_codes(self.exact.codes)


class Gaps(NamedTuple):
    """`sae - wide = amortisation + dictionary + width`, all means over the sample, in F's units; without a descent the last two
    are not told apart, and None.
    """

    sae: float
    exact: float
    local: float | None  # at the end of the descent; None where none was made
    wide: float
    reached: Solution | None  # the point at the end of the descent; None where none was made
    certificate: Certificate  # of the SAE's dictionary with exact codes

    @property
    def amortisation(self) -> float:
        """What the encoder loses against the best codes of its own dictionary."""
        return self.sae - self.exact

    @property
    def dictionary(self) -> float | None:
        """What the descent from the SAE's dictionary gained."""
        return None if self.local is None else self.exact - self.local

    @property
    def width(self) -> float | None:
        """What is left above the bound for every width; more atoms, or another optimum."""
        return None if self.local is None else self.local - self.wide


def take_rows(n_rows: int, wanted: int, skip: int = 0) -> np.ndarray:
    """At most `wanted` rows spread evenly over the data, shifted by `skip` of the spacing's halves.

    >>> take_rows(10, 3).tolist(), take_rows(10, 3, skip=1).tolist()
    ([0, 3, 6], [1, 5, 8])
    """
    wanted = min(wanted, n_rows)
    return ((np.arange(wanted) + skip / 2) * n_rows / wanted).astype(np.int64)


def sample_rows(
    sae: SAE, X: Float[Any, "samples d_in"], rows: np.ndarray
) -> tuple[Float[Array, "samples d"], SparseCodes]:
    """Rows of the data in the working precision, that of the SAE, as the dictionary sees them, and the SAE's codes of them."""
    dtype = jnp.result_type(float)
    x = check_data(np.asarray(X[rows]).astype(dtype), wide="allow")  # type: ignore
    codes = np.asarray(sae.encode(x))
    # Slots in steps, so that SAEs of one width share compiled programs.
    fullest = int(np.max(np.count_nonzero(codes, axis=1)))
    slots = min(codes.shape[1], SLOT_STEP * max(1, -(-fullest // SLOT_STEP)))
    return sae.normalise(x), sparse_codes(jnp.asarray(codes), slots)


def exact_sample(
    problem: Problem, dictionary: Dictionary, rows, X: Float[Array, "samples d"], own: SparseCodes
) -> Sample:
    """The sample with exact codes, each as close as the precision allows (T2)."""
    tol = CODE_TOL[str(X.dtype)]
    return Sample(rows, X, own, encode(problem, dictionary, X, tol=tol, sparse=True))


def measure_gaps(problem: Problem, dictionary: Dictionary, sample: Sample, *, steps: int, tol: float) -> Gaps:
    """F at the SAE, with exact codes, after a descent of at most `steps` steps, and the wide bound.

    The descent starts at the dictionary and never goes up; the point it ends at carries its own certificate.
    """
    at_exact = certify(problem, dictionary, sample.exact.codes, sample.X)
    own = float(objective(problem, dictionary, sample.own, sample.X))
    exact, wide = float(at_exact.objective), float(at_exact.wide_bound)
    reached = local = None
    if steps > 0 and dictionary.atoms.shape[0] <= DESCENT_ATOMS:
        reached = descend(problem, dictionary, sample.X, steps=steps, tol=tol)
        local = min(exact, float(reached.objective))
    return Gaps(own, exact, local, wide, reached, at_exact)


def descend(
    problem: Problem, dictionary: Dictionary, X: Float[Array, "samples d"], *, steps: int, tol: float, **options: Any
) -> Solution:
    """`fit` from a dictionary, unit atoms; so few steps that only its first stage would run are left to that one."""
    if steps <= Combined().first_steps:
        options.setdefault("solver", Alternating())
    start = Dictionary(unit_rows(dictionary.atoms.astype(X.dtype)), dictionary.offset)
    return fit(problem, X, start=start, tol=tol, max_steps=steps, allow_wide=True, **options)


class HeldOut(NamedTuple):
    """The dictionary gap on rows that the descent did not see."""

    rows: int
    exact: float
    local: float

    @property
    def dictionary(self) -> float:
        """How much better the dictionary after the descent is there; negative where it only learned its sample."""
        return self.exact - self.local


def held_out_gap(
    problem: Problem, dictionary: Dictionary, reached: Dictionary, X: Float[Array, "samples d"]
) -> HeldOut:
    """F with exact codes on other rows, before and after the descent."""
    tol = CODE_TOL[str(X.dtype)]

    def value(at: Dictionary) -> float:
        return float(objective(problem, at, encode(problem, at, X, tol=tol, sparse=True).codes, X))

    return HeldOut(X.shape[0], value(dictionary), value(reached))


def estimate_lam(cross_along: np.ndarray, means: np.ndarray) -> tuple[float, np.ndarray]:
    """The lam that minimises the atoms' defect, and each live feature's own (theory.md section 5).

    `lam = sum_k zbar_k a_k / sum_k zbar_k^2`, `a_k = E[z_k <d_k, r>]` (features,), `zbar_k = E|z_k|`; a feature's own is
    `a_k / zbar_k`. NaN where no feature is live.

    >>> lam, own = estimate_lam(np.array([0.5, 1.0, 0.0]), np.array([1.0, 2.0, 0.0]))
    >>> lam, own.tolist()
    (0.5, [0.5, 0.5])
    """
    live = means > 0
    if not live.any():
        return float("nan"), np.array([])
    return float(means @ cross_along / (means @ means)), cross_along[live] / means[live]
