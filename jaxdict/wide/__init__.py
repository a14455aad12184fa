"""What dictionaries of any width can reach, and how width is paid for: T11 to T13 and T15 of theory.md.

`bound` is the optimum over all widths. `solve_size_penalised` pays for every atom used, a convex problem whose regulariser is a gauge;
`certify_size` says how far any dictionary and codes are from its optimum, by the gauge's `polar`, and `size_path` follows it in tau.
"""

from jaxdict.wide.bounds import bound, loose_bound
from jaxdict.wide.certifying import SizeCertificate, certify_size
from jaxdict.wide.gauges import Gauge, fewer_atoms, gauge, rank_one_gauge, rank_one_solution
from jaxdict.wide.paths import SizePath, size_path, tau_max
from jaxdict.wide.penalised import SizePenalised, solve_size_penalised
from jaxdict.wide.polars import Polar, polar, polar_height
