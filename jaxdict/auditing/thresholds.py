"""Conditions that an audit can be asked to meet, such as `explained_variance<0.8`, for use in a pipeline."""

import math
import operator
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

# Longer signs first: "<" begins "<=".
COMPARISONS = {"<=": operator.le, ">=": operator.ge, "==": operator.eq, "<": operator.lt, ">": operator.gt}


class Threshold(NamedTuple):
    """A condition on a measure that makes an audit fail."""

    measure: str
    sign: str
    value: float

    def __str__(self) -> str:
        return f"{self.measure}{self.sign}{self.value:g}"


class Failure(NamedTuple):
    """A condition that was met, and the value that met it."""

    threshold: Threshold
    value: float

    def message(self) -> str:
        """The failure as a sentence; NaN stands for a measure that is not known."""
        if math.isnan(self.value):
            return f"{self.threshold.measure} was not measured: fails on {self.threshold}"
        return f"{self.threshold.measure} is {self.value:.6g}: fails on {self.threshold}"


def parse_threshold(text: str, measures: Iterable[str]) -> Threshold:
    """`measure<value`, with <, <=, >, >= or ==. Raises ValueError that names the measures there are.

    >>> parse_threshold("explained_variance < 0.8", ["explained_variance"])
    Threshold(measure='explained_variance', sign='<', value=0.8)
    """
    known = sorted(measures)
    parts = re.fullmatch(r"\s*([a-z0-9_]+)\s*(<=|>=|==|<|>)\s*(\S+)\s*", text)
    if parts is None:
        raise ValueError(f"--fail-on {text!r} is not understood; write for example 'explained_variance<0.8'")
    name, sign, number = parts.groups()
    if name not in known:
        raise ValueError(f"--fail-on {text!r}: there is no measure {name!r}; there are {', '.join(known)}")
    try:
        value = float(number)
    except ValueError as error:
        raise ValueError(f"--fail-on {text!r}: {number!r} is not a number") from error
    if math.isnan(value):
        raise ValueError(f"--fail-on {text!r}: compare with a number")
    return Threshold(name, sign, value)


def failures(thresholds: Iterable[Threshold], values: Mapping[str, float | None]) -> list[Failure]:
    """The thresholds that the measures meet; a measure that is not known (None, NaN) meets every threshold on it.

    >>> [f.message() for f in failures([Threshold("l0", ">", 20)], {"l0": 31.0})]
    ['l0 is 31: fails on l0>20']
    """
    found = []
    for threshold in thresholds:
        value = values.get(threshold.measure)
        number = math.nan if value is None else float(value)
        if math.isnan(number) or COMPARISONS[threshold.sign](number, threshold.value):
            found.append(Failure(threshold, number))
    return found
