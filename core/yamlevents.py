"""The events of a YAML text whose nesting is bounded, whatever libyaml is built with.

Newer libyaml has a bound of its own, and reads so far ahead that it may refuse a text before the
event that is too deep has been seen. Both are told in the same words.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml


class TooDeep(Exception):
    """Nested deeper than the bound; ``mark`` is where."""

    def __init__(self, depth_max: int, mark: Any) -> None:
        super().__init__(f"nested deeper than {depth_max} levels")
        self.mark = mark


def events(text: str, depth_max: int) -> Iterator[yaml.Event]:
    """Yield the events of a text.

    Raises TooDeep for what is nested deeper than ``depth_max`` collections, yaml.YAMLError for what
    is not YAML.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            if isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
                depth += 1
                if depth > depth_max:
                    raise TooDeep(depth_max, event.start_mark)
            elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
                depth -= 1
            yield event
    except yaml.MarkedYAMLError as error:
        if "nesting" in (error.problem or ""):
            raise TooDeep(depth_max, error.problem_mark or error.context_mark) from None
        raise
