"""Functions of samples in plain JAX, each device's own where they are spread: `split_calls` of traced functions."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax

from jaxdict.encoding.split_calls import Result, over_axes, varying_alike


@dataclass(frozen=True)
class TracedCall:
    """A call of a function defined once (`split_calls.SplitCall`): `function(axes, *operands, **options)` gives a list of arrays.

    `axes` are those of a mesh over which samples are split, none where all are at hand. `batches` say which operands have a further
    axis in front, for each vmap that the call is in, the innermost first.
    """

    function: Callable
    operands: tuple[str, ...]
    results: tuple[Result, ...]
    options: tuple[tuple[str, Any], ...] = ()
    batches: tuple[tuple[bool, ...], ...] = ()
    split: bool = True
    portable: bool = True

    def alone(self, axes: tuple[str, ...], *args) -> list:
        """The function, of the samples at hand."""
        if all(out.joined or "n" in out.axes.split() for out in self.results):
            # A loop or branch under vmap makes all that it reads vary, and jax refuses what was to vary first within it.
            args = varying_alike(args)
        run = partial(_traced_once, self.function, axes, self.options)
        for batched in self.batches:
            run = jax.vmap(run, in_axes=tuple(0 if several else None for several in batched))
        return list(run(*args))

    def several(self, axes: tuple[str, ...], size: int, batched: list[bool], args) -> list:
        """All side by side, samples still where they are."""
        name = f"runs{len(self.batches)}"
        operands = tuple(
            f"{name} {words}" if several else words for words, several in zip(self.operands, batched, strict=True)
        )
        results = tuple(out._replace(axes=f"{name} {out.axes}") for out in self.results)
        more = replace(self, operands=operands, results=results, batches=(*self.batches, tuple(batched)))
        return over_axes(more, axes)(*args)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _traced_once(function: Callable, axes: tuple[str, ...], options, *args) -> list:
    """A call's function, traced once for all places in which a program holds it: one for each kind of partitioner, and more."""
    return function(axes, *args, **dict(options))
