"""A strict YAML reader for suites and plans: no duplicated keys, no anchors. No torch here."""

import re
from pathlib import Path
from typing import Any

import yaml
from yaml import AliasEvent, MappingNode, MarkedYAMLError, Node

from erasure.errors import UserError, unreadable_error


def read_strict_yaml(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        UserError: no such file, invalid YAML, a duplicated key in a mapping, an anchor or an alias; the message has the line, if known.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: {error.problem or error.context}.") from error
    # PyYAML also raises errors of Python itself, for values that do not fit their tags and for brackets nested a thousand deep
    except (OSError, yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise unreadable_error(path, "YAML", error) from error


class _StrictLoader(yaml.SafeLoader):
    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """Refuse anchors before anything is built: ten lines of nested ones expand to millions of values."""
        event = self.peek_event()  # type: ignore[no-untyped-call]  # of PyYAML
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None):
            raise MarkedYAMLError(problem="anchors and aliases (& and *) are refused; write it out", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse duplicated keys: plain YAML takes the last of them, so that a second `gates` would delete the first."""
        mapping = super().construct_mapping(node, deep)
        seen_keys = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen_keys:
                raise MarkedYAMLError(problem=f"the key {key!r} is duplicated; remove one of them", problem_mark=key_node.start_mark)
            seen_keys.add(key)
        return mapping


# YAML 1.1, which PyYAML reads, takes 1e-3 for text because it has no point; YAML 1.2 (10.3.2) takes it for a number, as users expect
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))
