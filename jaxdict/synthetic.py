"""Data with a known answer: `X = b + Z D + noise` with the codes, the dictionary, and what theory says of them.

Pure functions of a `jax.random` key; counts and names are static, frequencies, rates, scales and noise may be traced.
Atoms are orthonormal where there is room for it (`d >= n_atoms`, the default), else random directions. `bench_model` makes a model of
SynthSAEBench, by which `bench_sample` draws.
"""

import jax
import jax.numpy as jnp

from jaxdict.numerics import unit_rows
from jaxdict.synthetic_atoms import coherence, random_atoms, spread_atoms  # noqa: F401  (public here)
from jaxdict.synthetic_benchmark import firing, sizes  # noqa: F401
from jaxdict.synthetic_benchmark.forests import Forest  # noqa: F401
from jaxdict.synthetic_benchmark.models import SYNTH_SAE_BENCH_16K, BenchModel, LowRank, bench_model  # noqa: F401
from jaxdict.synthetic_benchmark.orthogonal_atoms import Orthogonal, orthogonalise  # noqa: F401
from jaxdict.synthetic_benchmark.sampling import bench_sample  # noqa: F401
from jaxdict.synthetic_benchmark.saved import load_bench_model, save_bench_model  # noqa: F401
from jaxdict.synthetic_parts import MAGNITUDES, Planted, assemble, draw_sizes, plant, refuse_probability  # noqa: F401

MISSING = ("nothing", "middle", "edge")


def independent(
    key, n_samples=400, n_atoms=4, d=None, *, frequency=0.3, magnitudes="uniform", scale=1.0, noise=0.0, offset=None
) -> Planted:
    """Independent sparse features: each on with its `frequency`, whatever the others do.

    `frequency` is a number or (atoms,); `magnitudes` of active codes, mean `scale`: "uniform" on [1/2, 3/2],
    "exponential", "lognormal" (sigma 1/2) or "constant". `noise` is the standard deviation of each entry of the Gaussian
    noise, `offset` the planted b (d,), zero by default. The other generators take the same options.

    >>> import jax, jaxdict.synthetic as synthetic
    >>> planted = synthetic.independent(jax.random.key(0), 100, 3, 5, frequency=0.2)
    >>> planted.X.shape, planted.codes.shape, planted.dictionary.atoms.shape
    ((100, 5), (100, 3), (3, 5))
    """
    refuse_probability(frequency, "frequency")
    on_key, rest = jax.random.split(key)
    on = jax.random.bernoulli(on_key, jnp.broadcast_to(frequency, (n_atoms,)), (n_samples, n_atoms))
    says = (
        "independent features pass the pair condition (T6); to first order in lam a free offset leaves them alone (C3)"
    )
    return plant(rest, on, d, magnitudes, scale, noise, offset, says)


def tree(n_trees: int = 2, branching: int = 2, depth: int = 1) -> tuple[int, ...]:
    """The parent of every node of `n_trees` equal trees, -1 for roots; parents come before their children.

    >>> tree(1, 2, 2)
    (-1, 0, 0, 1, 1, 2, 2)
    """
    parents, level = [-1] * n_trees, list(range(n_trees))
    for _ in range(depth):
        below = range(len(parents), len(parents) + branching * len(level))
        parents += [parent for parent in level for _ in range(branching)]
        level = list(below)
    return tuple(parents)


def hierarchy(
    key, n_samples=400, parents=(-1, 0, 0, -1, 3, 3), d=None, *, frequency=0.3, rho=0.4, q=1.0,
    magnitudes="uniform", scale=1.0, noise=0.0, offset=None,
) -> Planted:  # fmt: skip
    """Features in trees: a child is on with probability rho where its parent is, and `P(parent on | child on) = q`.

    `parents` (static; see `tree`) has -1 for roots, which are independent with `frequency`. With q = 1 a child never
    fires alone (C1); with q < 1 it also fires with probability `p rho (1 - q) / (q (1 - p))` where its parent, of
    frequency p, is off. Given its parent, a child is independent of everything else that is not below it.

    >>> import jax, jaxdict.synthetic as synthetic
    >>> planted = synthetic.hierarchy(jax.random.key(0), 200, parents=(-1, 0, -1))
    >>> planted.pairs(), bool(((planted.codes[:, 1] > 0) <= (planted.codes[:, 0] > 0)).all())
    ([(0, 1)], True)
    """
    if any(not -1 <= parent < child for child, parent in enumerate(parents)):
        raise ValueError(f"parents={parents} is not in order; give -1 for roots, and each parent before its children")
    for name, value in (("frequency", frequency), ("rho", rho), ("q", q)):
        refuse_probability(value, name)
    rest, *keys = jax.random.split(key, len(parents) + 1)
    on, chance = [], []
    for node, parent in zip(keys, parents, strict=True):
        p = jnp.asarray(frequency if parent < 0 else chance[parent] * rho / q)
        alone = p if parent < 0 else chance[parent] * rho * (1 - q) / (q * (1 - chance[parent]))
        refuse_probability(p, "a child's frequency p rho / q")
        refuse_probability(alone, "a child's rate p rho (1 - q) / (q (1 - p)) where its parent is off")
        given = alone if parent < 0 else jnp.where(on[parent], rho, alone)
        on.append(jax.random.bernoulli(node, given, (n_samples,)))
        chance.append(p)
    says = (
        "a child that fires only with its parent (q = 1): not stationary, the parent is absorbed or split (C1, T5, T6)"
    )
    if isinstance(q, float | int) and q < 1:
        says = "a child that also fires alone: its cosine with its parent is drawn up as q -> 1 (C3)"
    return plant(rest, jnp.stack(on, axis=1), d, magnitudes, scale, noise, offset, says, parents=parents)


def dog_labrador(key, n_samples=400, d=None, *, rho=0.4, **options) -> Planted:
    """`hierarchy` of "dog" (feature 0) with one child, "labrador" (1), and two bystanders (2, 3).

    What a dictionary without "labrador" leaves in the residual is mopped up by "dog" (C4). Options as for `hierarchy`.

    >>> import jax, jaxdict.synthetic as synthetic
    >>> synthetic.dog_labrador(jax.random.key(0), 50).pairs()
    [(0, 1)]
    """
    planted = hierarchy(key, n_samples, (-1, 0, -1, -1), d, rho=rho, **options)
    says = "a feature for dog cannot leave labrador in the residual (C4), nor coexist with a feature for it (C1)"
    return Planted(planted.X, planted.codes, planted.dictionary, planted.parents, planted.groups, says)


def exclusive(
    key, n_samples=400, n_groups=2, group_size=3, d=None, *, frequency=0.6,
    magnitudes="uniform", scale=1.0, noise=0.0, offset=None,
) -> Planted:  # fmt: skip
    """Mutually exclusive groups: a group is on with probability `frequency`, then exactly one of its features is.

    Groups are independent of each other. `frequency` below 1 leaves samples with a whole group off.

    >>> import jax, jaxdict.synthetic as synthetic
    >>> planted = synthetic.exclusive(jax.random.key(0), 100, 2, 3)
    >>> planted.groups.tolist(), int((planted.codes[:, :3] > 0).sum(axis=1).max())
    ([0, 0, 0, 1, 1, 1], 1)
    """
    refuse_probability(frequency, "frequency")
    on_key, pick_key, rest = jax.random.split(key, 3)
    on = jax.random.bernoulli(on_key, frequency, (n_samples, n_groups))
    picked = jax.random.randint(pick_key, (n_samples, n_groups), 0, group_size)
    on = (on[..., None] & (picked[..., None] == jnp.arange(group_size))).reshape(n_samples, -1)
    says = "exclusive features pass the pair condition at every cosine >= 0 (C2); a free offset pushes them apart (C3)"
    groups = jnp.arange(n_groups * group_size) // group_size
    return plant(rest, on, d, magnitudes, scale, noise, offset, says, groups=groups)


def correlated(
    key, n_samples=400, n_groups=2, group_size=2, d=None, *, correlation=0.6, frequency=0.3,
    magnitudes="uniform", scale=1.0, noise=0.0, offset=None,
) -> Planted:  # fmt: skip
    """Features that fire together more often than by chance, within groups; groups are independent of each other.

    Feature k is on where `sqrt(c) g + sqrt(1 - c) e_k` exceeds the quantile that makes its frequency `frequency`, g
    normal and shared by the group, e_k its own; c = `correlation` in [0, 1), that of the hidden normals.

    >>> import jax, jaxdict.synthetic as synthetic
    >>> on = synthetic.correlated(jax.random.key(0), 2000, 1, 2, correlation=0.9).codes > 0
    >>> bool((on[:, 0] & on[:, 1]).mean() > 2 * on[:, 0].mean() * on[:, 1].mean())
    True
    """
    refuse_probability(frequency, "frequency")
    refuse_probability(correlation, "correlation")
    shared_key, own_key, rest = jax.random.split(key, 3)
    shared = jax.random.normal(shared_key, (n_samples, n_groups, 1))
    own = jax.random.normal(own_key, (n_samples, n_groups, group_size))
    correlation = jnp.asarray(correlation)
    height = jnp.sqrt(correlation) * shared + jnp.sqrt(1 - correlation) * own
    on = (height > -jax.scipy.special.ndtri(jnp.asarray(frequency, height.dtype))).reshape(n_samples, -1)
    says = "features that fire together are drawn together, the more the larger lam (C3)"
    groups = jnp.arange(n_groups * group_size) // group_size
    return plant(rest, on, d, magnitudes, scale, noise, offset, says, groups=groups)


def dense_direction(
    key, n_samples=400, n_atoms=4, d=None, *, spread=1.0, frequency=0.2, magnitudes="uniform", scale=1.0,
    noise=0.0, offset=None,
) -> Planted:  # fmt: skip
    """A dense direction beside `n_atoms` independent sparse features: features 0 and 1 are its two signs.

    Along the dense direction samples are normal with standard deviation `spread`; the two atoms are +e and -e with codes
    the positive and negative parts, so one of the two is always on; group 0 marks them. Needs `d >= n_atoms + 1`.

    >>> import jax, jaxdict.synthetic as synthetic
    >>> planted = synthetic.dense_direction(jax.random.key(0), 100, 3)
    >>> planted.dictionary.atoms.shape, bool(((planted.codes[:, :2] > 0).sum(axis=1) == 1).all())
    ((5, 4), True)
    """
    d = n_atoms + 1 if d is None else d
    if d < n_atoms + 1:
        raise ValueError(f"d={d} has no room for a dense direction beside {n_atoms} features; use d >= {n_atoms + 1}")
    dense_key, rest = jax.random.split(key)
    along = spread * jax.random.normal(dense_key, (n_samples, 1))
    on = jax.random.bernoulli(jax.random.fold_in(dense_key, 1), frequency, (n_samples, n_atoms))
    atoms = random_atoms(jax.random.fold_in(dense_key, 2), n_atoms + 1, d)
    codes = jnp.concatenate(
        [jnp.maximum(along, 0), jnp.maximum(-along, 0), draw_sizes(rest, on, magnitudes, scale)], axis=1
    )
    says = "a dense direction takes an antipodal pair of atoms, and widening does not remove it (T14, in one dimension)"
    atoms = jnp.concatenate([atoms[:1], -atoms[:1], atoms[1:]])
    return assemble(rest, codes, atoms, noise, offset, says, groups=[0, 0] + [-1] * n_atoms)


def rays(key, n_samples=400, n_rays=5, d=3, *, magnitudes="uniform", scale=1.0, noise=0.0, offset=None) -> Planted:
    """Samples on finitely many rays from the origin (or from `offset`): one ray a sample, directions random.

    >>> import jax, jaxdict.synthetic as synthetic
    >>> planted = synthetic.rays(jax.random.key(0), 50, 4, 3)
    >>> bool(((planted.codes > 0).sum(axis=1) == 1).all())
    True
    """
    pick_key, atoms_key, rest = jax.random.split(key, 3)
    on = jax.random.randint(pick_key, (n_samples, 1), 0, n_rays) == jnp.arange(n_rays)
    atoms = unit_rows(jax.random.normal(atoms_key, (n_rays, d)))
    says = "no offset: splitting stops at one atom a ray, of value F_wide (T13); a free offset may leave the apex"
    return assemble(rest, draw_sizes(rest, on, magnitudes, scale), atoms, noise, offset, says, groups=range(n_rays))


def one_dimensional(key, n_samples=400, *, shape="normal", scale=1.0, noise=0.0, offset=None) -> Planted:
    """One-dimensional data with the antipodal pair (+1, -1): `shape` is "normal", "laplace" or "two-sided" (+-1 +- 0.2).

    >>> import jax, jaxdict.synthetic as synthetic
    >>> planted = synthetic.one_dimensional(jax.random.key(0), 20)
    >>> planted.dictionary.atoms.tolist(), bool((planted.codes @ planted.dictionary.atoms == planted.X).all())
    ([[1.0], [-1.0]], True)
    """
    first, second = jax.random.split(key)
    draw = {
        "normal": lambda: jax.random.normal(first, (n_samples, 1)),
        "laplace": lambda: jax.random.laplace(first, (n_samples, 1)),
        "two-sided": lambda: (
            jax.random.rademacher(first, (n_samples, 1), dtype=float) + 0.2 * jax.random.normal(second, (n_samples, 1))
        ),
    }
    if shape not in draw:
        raise ValueError(f"shape={shape!r} is unknown; use one of {tuple(draw)}")
    x = scale * draw[shape]()
    codes = jnp.concatenate([jnp.maximum(x, 0), jnp.maximum(-x, 0)], axis=1)
    says = "the optimum at every width K >= 2 is an antipodal pair, of value F_wide: wider is no better (T14)"
    return assemble(second, codes, jnp.array([[1.0], [-1.0]]), noise, offset, says, groups=[0, 0])


def superposition(
    key, n_samples=400, n_atoms=12, d=6, *, frequency=0.1, spread_steps=200,
    magnitudes="uniform", scale=1.0, noise=0.0, offset=None,
) -> Planted:  # fmt: skip
    """More independent features than dimensions, their atoms' largest cosine kept low by `spread_atoms`.

    >>> import jax, jaxdict.synthetic as synthetic
    >>> planted = synthetic.superposition(jax.random.key(0), 50, 6, 3)
    >>> bool(synthetic.coherence(planted.dictionary) < 0.6)  # at least 0.447 for 6 unit vectors in 3 dimensions
    True
    """
    if n_atoms <= d:
        raise ValueError(f"n_atoms={n_atoms} atoms fit in d={d} dimensions; superposition wants n_atoms > d")
    refuse_probability(frequency, "frequency")
    on_key, atoms_key, rest = jax.random.split(key, 3)
    on = jax.random.bernoulli(on_key, frequency, (n_samples, n_atoms))
    atoms = spread_atoms(random_atoms(atoms_key, n_atoms, d), spread_steps)
    says = "K > d: the planted point is a candidate only; exact codes and the hull condition decide (T1, T5)"
    return assemble(rest, draw_sizes(rest, on, magnitudes, scale), atoms, noise, offset, says)


def illustrative(key, n_samples=600, missing="nothing", *, cosine=0.0) -> Planted:
    """Two features in the plane whose codes fill the unit square and its axes, but for a missing chunk; noiseless.

    Both on with probability .4, each alone .2, neither .2, activations uniform on [0, 1]. `missing="middle"` removes the
    samples with both above 1/2, `"edge"` those with feature 1 above .1 where feature 0 is off: there feature 1 is never
    large without feature 0. `cosine` is that of the two atoms, feature 0 along the first axis.

    >>> import jax, jaxdict as jd, jaxdict.synthetic as synthetic
    >>> holds = lambda p: bool((jd.conditions.pairs(p.dictionary, p.codes).margin >= 0).sum() == 2)
    >>> [holds(synthetic.illustrative(jax.random.key(0), missing=chunk)) for chunk in synthetic.MISSING]
    [True, True, False]
    """
    if missing not in MISSING:
        raise ValueError(f"missing={missing!r} is unknown; use one of {MISSING}")
    size_key, kind_key, side_key = jax.random.split(key, 3)
    z = jax.random.uniform(size_key, (n_samples, 2))
    kind = jax.random.choice(kind_key, 4, (n_samples,), p=jnp.array([0.4, 0.2, 0.2, 0.2]))  # both, first, second, none
    if missing == "middle":  # of the square's four quarters three stay: a sample in the fourth moves to one of them
        shift = 0.5 * jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])[jax.random.choice(side_key, 3, (n_samples,))]
        z = jnp.where(((kind == 0) & jnp.all(z > 0.5, axis=1))[:, None], z - shift, z)
    if missing == "edge":
        z = z.at[:, 1].multiply(jnp.where(kind == 2, 0.1, 1.0))
    on = jnp.stack([kind <= 1, (kind == 0) | (kind == 2)], axis=1)
    atoms = jnp.array([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]])
    stays = {
        "nothing": "nothing is missing: the pair condition holds and the planted point is stable (T6)",
        "middle": "a chunk that no condition asks for is missing: the pair condition holds, the point is stable (T6)",
        "edge": "feature 1 is never large where feature 0 is off: the lower bound exceeds their cosine, F falls (T6)",
    }
    return assemble(key, jnp.where(on, z, 0), atoms, 0.0, None, stays[missing])
