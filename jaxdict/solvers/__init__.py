"""Solvers of the joint problem, one interface and one loop."""

from jaxdict.solvers.alternating import Alternating
from jaxdict.solvers.combined import Combined
from jaxdict.solvers.growing import Growing
from jaxdict.solvers.loop import History, Progress
from jaxdict.solvers.newton import Newton
from jaxdict.solvers.online import Online
from jaxdict.solvers.projected_gradient import ProjectedGradient
from jaxdict.solvers.protocol import Solver
from jaxdict.solvers.quasi_newton import QuasiNewton
