"""YAML as suites and plans are written, read strictly: no key twice, and no anchors. No torch here."""

import re
from pathlib import Path
from typing import Any

import yaml
from yaml import AliasEvent, MappingNode, MarkedYAMLError, Node

from erasure.errors import UserError


def read_strict_yaml(path: Path) -> Any:
    """What a YAML file says.

    Raises:
        UserError: no such file, no YAML, a key that stands twice in one mapping, an anchor or an alias; with the line where there is one.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: {error.problem or error.context}.") from error
    # from YAMLError on: what PyYAML lets through of values that do not fit their tags, and of brackets a thousand deep
    except (OSError, yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}.") from error


class _StrictLoader(yaml.SafeLoader):
    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """Anchors are refused before anything is built: ten lines of nested ones stand for millions of values."""
        event = self.peek_event()
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None):
            raise MarkedYAMLError(problem="anchors and aliases (& and *) are refused; write it out", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Plain YAML keeps the last of equal keys, so that a second `gates` would delete the first."""
        mapping = super().construct_mapping(node, deep)
        seen_keys = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen_keys:
                raise MarkedYAMLError(problem=f"the key {key!r} stands twice; leave one of them out", problem_mark=key_node.start_mark)
            seen_keys.add(key)
        return mapping


# YAML 1.1, which PyYAML speaks, takes 1e-3 for text because it has no point; 1.2 (10.3.2) and everybody who writes a learning rate do not
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))
