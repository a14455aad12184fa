"""How many rows the split of an error takes: by the SAE's size, or as many as fit the minutes that are given."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float

from jaxdict.encoding.subsets.search import best_subset
from jaxdict.problem import Dictionary, SparseCodes

# Of a wide SAE the error is split on fewer rows than the sample has, unless these were named or minutes given.
SPLIT_LEAST, SPLIT_ENTRIES = 256, 2**23
# Rows that a descent codes at most, as entries (rows, features), unless minutes are given.
DESCENT_ENTRIES = 2**22
# A row with more features on than this counts for as many more as it has more of them: a search takes longer for each.
USUAL_L0 = 16
# With minutes, rows times features are at most so many: codes of a sample are dense for a moment.
MOST_ENTRIES = 2**26
# Rows whose search is timed; the share of the time that goes to measured rows, each of which is searched about so many times.
TIMED, SHARE_MEASURED, SEARCHES = 64, 0.4, 3


class Budget(NamedTuple):
    """What a descent may cost: rows coded, and the moment (`time.perf_counter()`) after which no batch is begun."""

    rows: float
    until: float = math.inf

    def allows(self, rows: int) -> bool:
        """Whether so many rows may be coded."""
        return rows <= self.rows and time.perf_counter() < self.until


def worth_a_descent(d_sae: int, minutes: float | None) -> bool:
    """Whether a descent may find something: without minutes it codes few rows of a wide SAE, fewer than features say nothing.

    >>> worth_a_descent(2048, None), worth_a_descent(4096, None), worth_a_descent(4096, 5.0)
    (True, False, True)
    """
    return minutes is not None or DESCENT_ENTRIES // d_sae >= d_sae


def budgets(d_sae: int, l0: float, until: float) -> Callable[[int], Budget]:
    """The budget of the next descent where so many are to come: by size, or its share of the time that is left.

    >>> budgets(512, 10.0, math.inf)(2).rows, budgets(512, 32.0, math.inf)(2).rows
    (8192, 4096)
    """
    if until == math.inf:
        return lambda left: Budget(_rows(DESCENT_ENTRIES, d_sae, l0))

    def of_time(left: int) -> Budget:
        now = time.perf_counter()
        return Budget(math.inf, now + (until - now) / left)

    return of_time


def rows_by_size(d_sae: int, l0: float) -> int:
    """Rows that the split takes at most: fewer for an SAE of many features, and for one with many of them on in a row.

    >>> rows_by_size(4096, 10.0), rows_by_size(4096, 32.0), rows_by_size(2**20, 10.0)
    (2048, 1024, 256)
    """
    return _rows(SPLIT_ENTRIES, d_sae, l0)


def _rows(entries: int, d_sae: int, l0: float) -> int:
    return max(SPLIT_LEAST, int(entries / (d_sae * max(1.0, l0 / USUAL_L0))))


def rows_by_time(
    seconds: float, dictionary: Dictionary, X: Float[Array, "rows d"], own: SparseCodes, signed: bool, most: int
) -> int:
    """As many rows as can be measured in their share of the seconds, by the time that some take; never fewer than `SPLIT_LEAST`."""
    part = SparseCodes(own.indices[:TIMED], own.values[:TIMED])
    sizes, slots = (part.values != 0).sum(axis=1), part.values.shape[1]
    took = math.inf
    for _ in range(2):  # the first one compiles
        begin = time.perf_counter()
        found = best_subset(dictionary, X[:TIMED], sizes, start=part, signed=signed, slots=slots)
        found.codes.values.block_until_ready()  # type: ignore[union-attr]
        took = time.perf_counter() - begin
    wanted = int(SHARE_MEASURED * seconds * len(sizes) / (SEARCHES * took))
    return min(most, max(SPLIT_LEAST, min(wanted, MOST_ENTRIES // dictionary.atoms.shape[0])))
