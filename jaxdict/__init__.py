"""jaxdict: non-negative L1 dictionary learning in JAX, with certificates of local optimality.

Formulas are written with (d,) against (samples, d), as on paper, so `jax_numpy_rank_promotion="raise"` refuses them; strict dtype
promotion and `jax_debug_nans` hold but where a docstring says why not.
"""

from jaxdict import conditions, datasets, growth, plots, population, recovery, sae, solvers, streaming, synthetic, wide
from jaxdict.arbitration.assembly import Arbitration, arbitrate
from jaxdict.auditing.assembly import Audit, audit
from jaxdict.auditing.polishing import Polished, polish
from jaxdict.certificates.certificate import Certificate, certify
from jaxdict.certificates.optimality import Defects, optimality_map
from jaxdict.certificates.stationarity import Direction, directional_derivative, steepest_feasible_direction
from jaxdict.encoding.exact import Encoding, encode
from jaxdict.encoding.subsets.search import best_subset
from jaxdict.encoding.subsets.values import refit_values, values_gap
from jaxdict.fitting import Solution, fit, fit_batch
from jaxdict.growth.path import grow
from jaxdict.growth.records import Growth
from jaxdict.objectives import correlations, objective, residual
from jaxdict.problem import Dictionary, Problem, SparseCodes, canonical, dense_codes, lam_max, sparse_codes
from jaxdict.sensitivity import Response, optimal_value, response
from jaxdict.streaming.run import StreamSolution, fit_stream
from jaxdict.sweeps import Sweep, sweep
