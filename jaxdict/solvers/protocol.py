"""What a solver is: four methods over a state of its own."""

from typing import Any, Protocol

from jaxtyping import Array, Bool, Float

from jaxdict.problem import Codes, Dictionary, Problem
from jaxdict.solvers.reduced import Iterate


class Solver(Protocol):
    """A method for the joint problem, as the one loop (`solvers.loop.run`) and the rounds of `fit` take it.

    An `equinox.Module` whose settings are static fields; its state is any pytree of arrays. All four methods are pure and run
    under jit and vmap, at float32 or float64 data X (samples, d), the problem in the constrained gauge and in X's dtype.
    """

    @property
    def slots(self) -> int | None:
        """Active atoms kept a sample between steps; None: `fit` counts how many the data need."""
        ...

    def init_at(
        self, problem: Problem, X: Float[Array, "samples d"], point: Iterate, codes: Float[Array, "samples atoms"]
    ) -> Any:
        """The state that starts from an iterate with solved codes: the first point of a fit, or what another stage handed over."""
        ...

    def step(self, problem: Problem, X: Float[Array, "samples d"], state: Any) -> Any:
        """The next state. The objective must not rise beyond rounding; a step may be a trial that is refused."""
        ...

    def progress_of(self, state: Any) -> tuple[Float[Array, ""], Float[Array, ""], Bool[Array, ""]]:
        """(objective, worst T1 measure, whether no further step can help in this precision) of the state, from sums it keeps."""
        ...

    def point(self, problem: Problem, X: Float[Array, "samples d"], state: Any) -> tuple[Iterate, Codes]:
        """The iterate that the state stands for, with unit atoms, and its dense codes: what the next stage or the fit takes over.

        A solver that can do without dense codes takes a keyword `sparse`, with which these are `SparseCodes` here and in `init_at`:
        `fit(sparse=True)` asks for it.
        """
        ...


class Proposing(Solver, Protocol):
    """A solver whose step is to solve codes once, for a dictionary that it proposes: the rounds of a traced fit then hold one program
    for codes, whoever asks. Its state keeps the accepted iterate as `point`.
    """

    def propose(self, problem: Problem, X: Float[Array, "samples d"], state: Any) -> tuple[Dictionary, Any]:
        """The dictionary to solve codes for next, and what `take` wants to know of how it came about."""
        ...

    def take(
        self,
        problem: Problem,
        X: Float[Array, "samples d"],
        state: Any,
        about: Any,
        trial: Iterate,
        codes: Codes | None,
    ) -> Any:
        """The next state, from the iterate of the proposed dictionary and its codes: `step` without the solving."""
        ...
