"""What an SAE's split error means, in sentences."""

import math
from typing import Any

from jaxdict.auditing.sentences import share
from jaxdict.auditing.splitting import Part, Split

# The parts of the error, in the order in which they are taken, and what each would take to mend.
WHAT = {
    "values": (
        "the values of the features that it chose",
        "solve the values again on its own features, or train the encoder on",
    ),
    "supports": (
        "its choice of features",
        "its decoder has better features for these rows: spend more on inference, or train the encoder on",
    ),
    "decoder": (
        "its decoder",
        "its decoder rows are not where the data want them: train the decoder on with the codes that it has",
    ),
    "dictionary": (
        "its dictionary",
        "other features of the same number serve these data better: train longer, encoder and decoder together",
    ),
    "atoms": (
        "its number of features",
        "these data have features that it has no room for: train a wider SAE",
    ),
}
HOW = {
    "values": "The best values on the features that each row uses already lower its error by {size}.",
    "supports": "Other features, as many in each row, lower it by another {size}: the best that a search finds, so at least that.",
    "decoder": (
        "With these codes held, a step of the decoder that was fitted on half of the rows lowers the error of the other "
        "{rows:,} by {size}."
    ),
    "dictionary": (
        "A dictionary that descended from there over {fitted:,} other rows, at each row's own number of features, lowers the error "
        "of the {rows:,} fresh rows by {size}."
    ),
    "atoms": (
        "With {added:,} more features, placed by what is left over and descended on {fitted:,} other rows, the error of the "
        "{rows:,} fresh rows at the same sparsity falls by another {size}."
    ),
}
NO_DESCENT = (
    "no descent was asked for (above 2,048 features: by minutes), too few rows are left, or too few minutes for a step."
)
NOT_MEASURED = {
    "decoder": "What the decoder costs was not measured: there are too few rows, or documents, to fit a step on half of them.",
    "dictionary": f"What a better dictionary would gain was not measured: {NO_DESCENT}",
    "atoms": f"What more features would gain was not measured: {NO_DESCENT}",
}
UNCHANGED = {
    "dictionary": (
        "A descent over {fitted:,} other rows found no dictionary of the same size that gains on rows kept aside (more rows, by "
        "minutes, may); codes found anew for the decoder after its step lower the error of the {rows:,} fresh rows by {size}."
    ),
    "atoms": (
        "With {added:,} more features a descent over {fitted:,} other rows gained nothing on rows kept aside (more rows, by minutes, "
        "may)."
    ),
}
# What an SAE's penalty has to do with its values, where it has one.
SHRINKS = " (an L1 penalty shrinks its values)"
# Below this share of the error a part is no headline.
NEGLIGIBLE = 0.005


def split_facts(split: Split, normalised: bool, penalised: bool = False) -> dict[str, Any]:
    """The split as plain data, each part with its sentence; a part that was not measured is None throughout.

    `penalised`: the training loss had an L1 penalty.
    """
    known = {part.name: part for part in split.parts}
    return {
        "unit": "mean squared error a row" + (" of the normalised input" if normalised else ""),
        "own": split.own,
        "own_standard_error": split.own_error,
        "rows": split.rows,
        "documents": split.groups,
        "pursuit": split.pursuit,
        "parts": [_part_facts(name, known.get(name), split) for name in WHAT],
        "rest": _rest(split),
        "sentence": headline(split, penalised),
    }


def _part_facts(name: str, part: Part | None, split: Split) -> dict[str, Any]:
    if part is None:
        missing = dict.fromkeys(("mean", "standard_error", "share", "rows", "fitted_rows", "added"))
        return {"name": name, **missing, "shown": False, "sentence": NOT_MEASURED[name]}
    return {
        "name": name,
        "mean": part.mean,
        "standard_error": part.standard_error,
        "share": _of(part.mean, split.own),
        "rows": part.rows,
        "fitted_rows": part.fitted,
        "added": part.added,
        "shown": part.shown,
        "sentence": _part_sentence(part, split),
    }


def _part_sentence(part: Part, split: Split) -> str:
    size = f"{part.mean:.4g} +- {part.standard_error:.1g} ({share(part.mean, split.own)} of it)"
    facts = {"size": size, "rows": part.rows, "fitted": part.fitted, "added": part.added}
    sentence = (HOW if part.changed else UNCHANGED)[part.name].format(**facts)
    if part.name == "supports":
        sentence += _pursuit_sentence(split)
    return sentence if part.shown else f"{sentence} Nothing shown: that is below three standard errors."


def _pursuit_sentence(split: Split) -> str:
    """What pursuit alone reaches, and what exchanges and the SAE's own supports add."""
    found = {part.name: part.mean for part in split.parts}
    best = split.own - found["values"] - found["supports"]
    return (
        f" Greedy pursuit alone ends at {split.pursuit:.4g}, exchanges and the SAE's own supports to start from at {best:.4g} "
        f"({share(split.pursuit - best, split.own)} better)."
    )


def _rest(split: Split) -> dict[str, Any]:
    """What the parts leave of the error, and its standard error were they independent."""
    mean = split.own - math.fsum(part.mean for part in split.parts)
    error = math.hypot(*(part.standard_error for part in split.parts))
    sentence = (
        f"What is left: {mean:.4g} ({share(mean, split.own)} of its squared error), which nothing above accounts for."
    )
    return {"mean": mean, "standard_error": error, "share": _of(mean, split.own), "sentence": sentence}


def _of(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def headline(split: Split, penalised: bool = False) -> str:
    """The largest part that is shown on these rows, and what to do about it."""
    about = f"{split.rows:,} rows" + ("" if split.groups is None else f" of {split.groups:,} documents")
    shown = [part for part in split.parts if part.shown and part.mean > NEGLIGIBLE * split.own]
    if not shown:
        measured = [WHAT[part.name][0] for part in split.parts]
        return f"Nothing shown: on {about} no more than half a percent of its squared error is lost to {', to '.join(measured)}."
    largest = max(shown, key=lambda part: part.mean)
    what, remedy = WHAT[largest.name]
    remedy += SHRINKS if penalised and largest.name == "values" else ""
    size = f"{share(largest.mean, split.own)} +- {share(largest.standard_error, split.own)}"
    if largest.rows < split.rows:
        about = f"{largest.rows:,} fresh rows" + (
            "" if split.groups is None else f" of {split.groups:,} documents in all"
        )
    return f"The largest part shown is {what}: {size} of its squared error on {about}. What to do: {remedy}."
