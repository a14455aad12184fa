"""What a dictionary is worth beyond its sample (theory.md section 7).

A certificate speaks of the rows it was given. Here the dictionary was found on other rows, and fresh ones estimate what holds for rows
like them: each figure is a mean over fresh rows with a standard error, or corrected for the noise that squaring a mean adds.
"""

from jaxdict.population.comparisons import Comparison, Refutation, compare, refute
from jaxdict.population.unbiased import (
    PopulationDefects,
    PopulationSums,
    defects,
    defects_from_sums,
    population_sums,
)
