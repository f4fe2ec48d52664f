"""Rules for single values of a configuration, in the words that all of them share. Each gives no line or one."""

import difflib
from collections.abc import Sequence
from typing import Any


def one_of(key: str, value: Any, allowed: Sequence[str]) -> list[str]:
    """`value` of `config.key` is one of `allowed`; the line names the nearest one."""
    if value in allowed:
        return []
    near = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return [f"config.{key} must be one of {', '.join(allowed)}, got {value!r}{hint}"]


def at_least_one(key: str, value: float) -> list[str]:
    """`value` of `config.key` is 1 or more."""
    return [] if value >= 1 else [f"config.{key} must be at least 1, got {value}"]


def draws(section: str, settings: Any, why: str, instead: str = "") -> list[str]:
    """`config.section` draws at random: neither temperature 0 nor top-k 1. `why` ends in "... needs"."""
    found = []
    if settings.temperature == 0:
        found.append(f"config.{section}.temperature is 0 (greedy): {why} a positive one{instead}")
    if settings.top_k == 1:
        found.append(f"config.{section}.top_k is 1 (greedy): {why} at least 2, or 0 for all codes{instead}")
    return found
