"""What a benchmark's data are drawn from, made by key."""

import json
from dataclasses import asdict, dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import unit_rows
from jaxdict.problem import Dictionary
from jaxdict.synthetic_benchmark import firing as firing_laws
from jaxdict.synthetic_benchmark.forests import Forest, compensated, grow
from jaxdict.synthetic_benchmark.orthogonal_atoms import Orthogonal, orthogonalise
from jaxdict.synthetic_benchmark.sizes import Constant, FoldedNormal, Linear, size_law

# The largest share of a feature's variance that correlations may have, where some feature would have more than all of it.
MOST_SHARED = 0.99
DEFAULT_FIRING = firing_laws.Zipfian()
# What a forest's options are called in a saved model.
FOREST_NAMES = {
    "roots": "total_root_nodes",
    "branching": "branching_factor",
    "depth": "max_depth",
    "exclusive": "mutually_exclusive_portion",
    "exclusive_from": "mutually_exclusive_min_depth",
    "exclusive_to": "mutually_exclusive_max_depth",
    "compensate": "compensate_probabilities",
    "scale_by_parent": "scale_children_by_parent",
}


@dataclass(frozen=True)
class LowRank:
    """Correlations `F F^T` off the diagonal, F (features, `rank`) normal of standard deviation `scale`."""

    rank: int = 32
    scale: float = 0.1


class BenchModel(eqx.Module):
    """Features and how they are drawn: a pytree, `depth` and `config` static. -1 stands for no parent, level or group.

    Replace arrays to study another law (`equinox.tree_at`); `config` says how the model was made, as a saved one does.
    """

    dictionary: Dictionary
    probabilities: Float[Array, " features"]  # with which features are drawn, before hierarchy and exclusion
    means: Float[Array, " features"]  # of sizes
    spreads: Float[Array, " features"]  # their standard deviations
    parents: Int[Array, " features"]
    levels: Int[Array, " features"]  # 0 for roots
    groups: Int[Array, " features"] | None  # the first of those that exclude one another
    scaled: Bool[Array, " features"]  # whether a feature's size goes with its parent's
    factor: Float[Array, "features rank"] | None  # of the copula's correlations, None: features fire independently
    diagonal: Float[Array, " features"] | None  # what the factor leaves of the copula's variance
    depth: int = eqx.field(static=True, default=0)  # the largest level
    config: str = eqx.field(static=True, default="{}")  # JSON, in the form of a saved model

    def __check_init__(self):
        n = jnp.shape(self.dictionary.atoms)[0]
        for name in ("probabilities", "means", "spreads", "parents", "levels", "groups", "scaled", "diagonal"):
            array = getattr(self, name)
            if array is not None and jnp.shape(array) != (n,):
                raise ValueError(f"{name} has shape {jnp.shape(array)} but there are {n} features; give one for each")
        shape = None if self.factor is None else jnp.shape(self.factor)
        if (shape is None) != (self.diagonal is None) or (shape is not None and (len(shape) != 2 or shape[0] != n)):
            raise ValueError(f"factor has shape {shape}; give (features, rank) = ({n}, rank) and the diagonal with it")

    def edges(self) -> list[tuple[int, int]]:
        """The (parent, child) pairs. Host side: not for jit."""
        return [(int(parent), child) for child, parent in enumerate(self.parents.tolist()) if parent >= 0]


def bench_model(
    key, n_features, d, *, firing=DEFAULT_FIRING, means=1.0, spreads=0.0, forest=None, orthogonal=None,
    correlation=None, offset=1.0,
) -> BenchModel:  # fmt: skip
    """A model of SynthSAEBench by key: its laws, its options' defaults, other random numbers. Draw from it by `bench_sample`.

    - `firing`: a law of `synthetic.firing` (Zipfian, Linear, Random, Constant): how often features are to fire.
    - `means`, `spreads`: numbers, or laws of `synthetic.sizes` (Constant, Linear, Exponential, FoldedNormal).
    - `forest`: a `Forest`, or None for features without parents.
    - `orthogonal`: an `Orthogonal`, which spreads the random unit atoms (`orthogonalise`), or None to leave them.
    - `correlation`: a `LowRank`, or None for features that are drawn independently.
    - `offset`: the norm of b, whose direction is random; 0 for none.

    `bench_model(key, **SYNTH_SAE_BENCH_16K)` is their model of 16,384 features, version 2. All options are static; jit and vmap
    over keys. Raises ValueError for sizes and options that make no sense.

    >>> import jax, jaxdict as jd
    >>> forest = jd.synthetic.Forest(roots=2, branching=2, depth=1, compensate=True)
    >>> model = jd.synthetic.bench_model(jax.random.key(0), 8, 4, firing=jd.synthetic.firing.Constant(0.2), forest=forest)
    >>> model.edges(), model.probabilities.round(3).tolist()[:3]
    ([(0, 2), (0, 3), (1, 4), (1, 5)], [0.2..., 0.2..., 1.0])
    """
    _check(n_features, d, firing, forest, orthogonal, correlation, offset)
    return _made(
        key, n_features, d, firing, size_law(means, "means"), size_law(spreads, "spreads"), forest, orthogonal, correlation,
        float(offset),
    )  # fmt: skip


@on_any_mesh
@partial(jax.jit, static_argnums=tuple(range(1, 10)))
def _made(key, n_features, d, firing, means, spreads, forest, orthogonal, correlation, offset) -> BenchModel:
    names = ("firing", "means", "spreads", "forest", "factor", "atoms", "offset")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    atoms = unit_rows(jax.random.normal(keys["atoms"], (n_features, d)))
    if orthogonal is not None:
        atoms = orthogonalise(atoms, orthogonal.steps, orthogonal.rate)
    grown = grow(keys["forest"], n_features, forest)
    probabilities = firing.draw(keys["firing"], n_features)
    if forest is not None and forest.compensate:
        probabilities = compensated(probabilities, grown.parents, grown.groups)
    factor, diagonal = (None, None) if correlation is None else low_rank(keys["factor"], n_features, correlation)
    return BenchModel(
        dictionary=Dictionary(atoms, offset * unit_rows(jax.random.normal(keys["offset"], (d,)))),
        probabilities=probabilities,
        means=means.draw(keys["means"], n_features),
        spreads=spreads.draw(keys["spreads"], n_features),
        **grown._asdict(),
        scaled=jnp.full(n_features, forest is not None and forest.scale_by_parent) & (grown.parents >= 0),
        factor=factor,
        diagonal=diagonal,
        depth=0 if forest is None else forest.depth,
        config=json.dumps(_config(n_features, d, firing, means, spreads, forest, orthogonal, correlation, offset)),
    )


@partial(jax.jit, static_argnums=(1, 2))
def low_rank(key, n_features: int, law: LowRank) -> tuple[Float[Array, "features rank"], Float[Array, " features"]]:
    """The factor F of a correlation matrix `F F^T + diag`, and its diagonal `1 - sum_r F_ir^2`.

    Where that is not positive for some feature, F is shrunk until the largest `sum_r F_ir^2` is .99.

    >>> F, diagonal = low_rank(jax.random.key(0), 5, LowRank(rank=3, scale=2.0))
    >>> bool(jnp.allclose(jnp.diagonal(F @ F.T) + diagonal, 1)), round(float(diagonal.min()), 3)
    (True, 0.01)
    """
    factor = law.scale * jax.random.normal(key, (n_features, law.rank))
    most = jnp.max(jnp.sum(factor**2, axis=1))
    factor = factor * jnp.where(most >= 1, jnp.sqrt(MOST_SHARED / jnp.maximum(most, 1)), 1)
    return factor, 1 - jnp.sum(factor**2, axis=1)


def _check(n_features, d, firing, forest, orthogonal, correlation, offset):
    if n_features < 1 or d < 1:
        raise ValueError(f"n_features={n_features} and d={d}; give at least one of each")
    if not isinstance(firing, tuple(firing_laws.FIRING.values())):
        raise ValueError(f"firing={firing!r} is no law of firing; give one of {tuple(firing_laws.FIRING)}")
    for given, kind, name in (
        (forest, Forest, "forest"), (orthogonal, Orthogonal, "orthogonal"), (correlation, LowRank, "correlation"),
    ):  # fmt: skip
        if given is not None and not isinstance(given, kind):
            raise ValueError(f"{name}={given!r} is unknown; give a {kind.__name__} or None")
    if correlation is not None and (correlation.rank < 1 or correlation.scale < 0):
        raise ValueError(f"correlation={correlation}; give a rank of at least 1 and a scale >= 0")
    if not offset >= 0:
        raise ValueError(f"offset={offset} is no norm; give a number >= 0")


def _config(n_features, d, firing, means, spreads, forest, orthogonal, correlation, offset) -> dict:
    """The options as a saved model states them."""

    def law(given):
        return given.value if isinstance(given, Constant) else {**asdict(given), "generator_name": given.name}

    steps = None if orthogonal is None else {"num_steps": orthogonal.steps, "lr": orthogonal.rate}
    low = None if correlation is None else {"rank": correlation.rank, "correlation_scale": correlation.scale}
    return {
        "num_features": n_features,
        "hidden_dim": d,
        "firing_probability": {**asdict(firing), "generator_name": firing.name},
        "hierarchy": None if forest is None else {FOREST_NAMES[name]: value for name, value in asdict(forest).items()},
        "orthogonalization": steps,
        "correlation": low,
        "std_firing_magnitudes": law(spreads),
        "mean_firing_magnitudes": law(means),
        "bias": float(offset),
        "dtype": "float32",
        "seed": None,
    }


# The model of 16,384 features, version 2, as its package's configuration has it.
SYNTH_SAE_BENCH_16K = {
    "n_features": 16384,
    "d": 768,
    "firing": firing_laws.Zipfian(exponent=0.5, max_prob=0.4, min_prob=5e-4),
    "means": Linear(5.0, 4.0),
    "spreads": FoldedNormal(0.5, 0.5),
    "forest": Forest(roots=128, branching=4, depth=3, exclusive=1.0, compensate=True, scale_by_parent=True),
    "orthogonal": Orthogonal(100, 3e-4),
    "correlation": LowRank(25, 0.1),
    "offset": 0.5,
}
