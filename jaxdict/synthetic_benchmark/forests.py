"""Hierarchies as flat arrays: who is whose parent, at which level, and which siblings exclude one another."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdict.numerics import safe_divide


@dataclass(frozen=True)
class Forest:
    """Trees of features, numbered level by level, as long as there are features; those left over stand alone.

    - `roots`: how many trees; `depth`: how many levels below the roots.
    - `branching`: children of every node above the last level, or (least, most), drawn for each.
    - `exclusive`: of the nodes with two children or more at levels `exclusive_from` to `exclusive_to` (None: the last), this
      portion, rounded down and drawn by key, has children that exclude one another.
    - `compensate`: raise the children's probabilities so that they fire about as often as was asked (`compensated`).
    - `scale_by_parent`: a child's size goes with its parent's, over the parent's mean; else a parent that is on just lets it pass.

    >>> Forest(roots=2, branching=3, depth=1).levels
    (0, 1)
    """

    roots: int = 100
    branching: int | tuple[int, int] = 100
    depth: int = 2
    exclusive: float = 0.0
    exclusive_from: int = 0
    exclusive_to: int | None = None
    compensate: bool = False
    scale_by_parent: bool = False

    def __post_init__(self):
        least, most = self.children
        if self.roots < 1 or self.depth < 1 or not 1 <= least <= most:
            raise ValueError(
                f"roots={self.roots}, depth={self.depth}, branching={self.branching}; give at least one of each, ascending"
            )
        if not 0 <= self.exclusive <= 1:
            raise ValueError(f"exclusive={self.exclusive} is no portion of the parents; give one from 0 to 1")
        if not 0 <= self.exclusive_from <= (self.exclusive_from if self.exclusive_to is None else self.exclusive_to):
            raise ValueError(
                f"exclusive_from={self.exclusive_from} and exclusive_to={self.exclusive_to}; give levels that ascend from 0"
            )

    @property
    def children(self) -> tuple[int, int]:
        """The least and the most children of a node."""
        return (self.branching, self.branching) if isinstance(self.branching, int) else (*self.branching,)  # type: ignore[return-value]

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels that there can be."""
        return tuple(range(self.depth + 1))


class Grown(NamedTuple):
    """A hierarchy of features; -1 stands for none."""

    parents: Int[Array, " features"]
    levels: Int[Array, " features"]  # 0 for roots, -1 for features outside
    groups: Int[Array, " features"] | None  # the first of those that exclude one another; None: there are none


@partial(jax.jit, static_argnums=(1, 2))
def grow(key, n_features: int, forest: Forest | None) -> Grown:
    """The trees of a forest over so many features. Pure: which parents are exclusive, and how many children, may be traced.

    >>> found = grow(jax.random.key(0), 8, Forest(roots=2, branching=2, depth=1, exclusive=1.0))
    >>> found.parents.tolist(), found.levels.tolist(), found.groups.tolist()
    ([-1, -1, 0, 0, 1, 1, -1, -1], [0, 0, 1, 1, 1, 1, -1, -1], [-1, -1, 2, 2, 4, 4, -1, -1])
    """
    none = jnp.full(n_features, -1, int)
    if forest is None:
        return Grown(none, none, None)
    features, (least, most) = jnp.arange(n_features), forest.children
    children_key, pick_key = jax.random.split(key)
    children = jax.random.randint(children_key, (n_features,), least, most + 1)
    # Level by level, the children of one node follow those of the node before it.
    parents = jnp.searchsorted(jnp.cumsum(children), features - forest.roots, side="right").astype(int)
    is_root = features < forest.roots
    levels = jnp.where(is_root, 0, forest.depth + 1)
    for _ in range(forest.depth):
        levels = jnp.where(is_root, 0, jnp.minimum(levels[parents] + 1, forest.depth + 1))
    outside = levels > forest.depth
    parents, levels = jnp.where(is_root | outside, -1, parents), jnp.where(outside, -1, levels)
    return Grown(parents, levels, _exclusive(pick_key, parents, levels, forest) if forest.exclusive else None)


def _exclusive(key, parents, levels, forest):
    n = parents.shape[0]
    has = parents >= 0
    families = jax.ops.segment_sum(has.astype(int), jnp.where(has, parents, n), n + 1)[:n]
    last = forest.depth if forest.exclusive_to is None else forest.exclusive_to
    eligible = (levels >= forest.exclusive_from) & (levels <= last) & (families >= 2)
    many = jnp.floor(forest.exclusive * jnp.sum(eligible).astype(float)).astype(int)
    order = jnp.argsort(jnp.where(eligible, jax.random.uniform(key, (n,)), 2))
    chosen = eligible & (jnp.zeros(n, int).at[order].set(jnp.arange(n)) < many)
    first = jax.ops.segment_min(jnp.arange(n), jnp.where(has, parents, n), n + 1)[parents]
    return jnp.where(has & chosen[parents], first, -1)


@jax.jit
def compensated(
    probabilities: Float[Array, " features"], parents: Int[Array, " features"], groups: Int[Array, " features"] | None
) -> Float[Array, " features"]:
    """What to draw features with so that, after hierarchy and exclusion, they fire about as often as `probabilities` say:

        min(1, p_i / p_parent (1 + sum_{j excludes i} p_j / p_parent))

    Exact without exclusion and correlation while nothing is cut at 1. With exclusion it is the first order: siblings are counted
    at the rate before their own correction, and the share of draws that a feature wins is `E[1 / (1 + rivals)]`.

    >>> compensated(jnp.array([0.5, 0.2, 0.2]), jnp.array([-1, 0, 0]), jnp.array([-1, 1, 1])).round(3).tolist()
    [0.5, 0.56..., 0.56...]
    """
    above = jnp.where(parents >= 0, probabilities[parents], 1)
    given = probabilities / jnp.where(above > 0, above, 1)
    if groups is None:
        return jnp.minimum(given, 1)
    n = groups.shape[0]
    at = jnp.where(groups >= 0, groups, n)
    totals = jax.ops.segment_sum(probabilities, at, n + 1)[at]
    rivals = jnp.where(groups >= 0, jnp.maximum(totals - probabilities, 0), 0)
    return jnp.minimum(given * (1 + safe_divide(rivals, above)), 1)
