"""What optimality forces between features, and between features and residuals (theory.md sections 2 and 3)."""

from jaxdict.conditions.absorptions import (
    Absorption,
    LabelAbsorption,
    absorption,
    absorption_by_label,
    direction_present,
)
from jaxdict.conditions.barycentres import (
    barycentre,
    barycentre_from_sums,
    barycentre_weights,
    unit_moments,
)
from jaxdict.conditions.costs import Cost, direction_cost, pair_costs, turning_gains
from jaxdict.conditions.exclusions import Antipodal, Exclusive, antipodal, exclusive
from jaxdict.conditions.hierarchies import Hierarchy, absorption_direction, hierarchy, predicted_cosine
from jaxdict.conditions.hulls import HullCondition, hull, hull_direction, row_direction
from jaxdict.conditions.open_pairs import FlatPair, PrefixPair, flat_pairs, penalty_cosines, prefix_pairs
from jaxdict.conditions.pair_conditions import (
    PairConditions,
    PairStatistics,
    merge_pair_statistics,
    pair_statistics,
    pairs,
    pairs_from_statistics,
)
from jaxdict.conditions.residuals import (
    MopUp,
    ResidualConditions,
    mop_up,
    mop_up_direction,
    residual,
    residual_from_sums,
    residual_samples,
)
