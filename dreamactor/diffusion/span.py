"""The share of a schedule's steps in which guidance works."""

from __future__ import annotations

import math

from dreamactor.errors import ConfigError


def parse_span(word: str) -> tuple[float, float]:
    """A share of the steps as the command line has it, FROM:TO.

    Raises:
        ConfigError: It is none.

    Example:
        >>> parse_span("0:0.5")
        (0.0, 0.5)
    """
    start, _, end = word.partition(":")
    try:
        span = float(start), float(end)
    except ValueError:
        span = math.nan, math.nan
    if not 0 <= span[0] < span[1] <= 1:
        raise ConfigError(
            f"guidance_span={word!r}: want FROM:TO, shares of the steps from 0 to 1, such as 0:0.5"
        )
    return span


def in_span(steps: int, span: tuple[float, float]) -> range:
    """The steps that begin within a share of all of them: of 4 and (0, .5) the first two."""
    first, end = (math.ceil(steps * share - 1e-9) for share in span)
    return range(first, end)
