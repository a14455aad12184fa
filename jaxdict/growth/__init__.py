"""Growth: dictionaries of growing width judged on rows kept aside, and the tree of how their atoms split."""

from jaxdict.growth.labelling import label_atoms
from jaxdict.growth.pages import write_tree
from jaxdict.growth.path import grow
from jaxdict.growth.records import MESSAGES, Growth, GrowthProgress, Step
from jaxdict.growth.stability import Stability, tree_stability
from jaxdict.growth.trees import Match, Tree, match_trees
