"""scikit-learn's LARS, exact up to rounding, so there is one point and no curve."""
# benchopt reads lists and dicts off the class, and sets its parameters as attributes.
# ruff: noqa: RUF012
# pyright: reportAttributeAccessIssue=false, reportAssignmentType=false

import warnings

from benchopt import BaseSolver
from sklearn.decomposition import sparse_encode


class Solver(BaseSolver):
    name = "scikit-learn LARS"
    requirements = ["scikit-learn"]
    sampling_strategy = "run_once"

    def set_objective(self, X, D, lam):
        self.X, self.D, self.lam = X, D, lam
        self.codes = None

    def run(self, _):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says so where steps degenerate; the gap tells what that costs
            self.codes = sparse_encode(
                self.X, self.D, algorithm="lasso_lars", alpha=self.lam, positive=True, max_iter=10_000, n_jobs=1
            )

    def get_result(self):
        return {"codes": self.codes}
