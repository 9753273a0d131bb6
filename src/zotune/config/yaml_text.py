"""Settings in YAML, read as YAML 1.2 has it: `no` is a text and `1e-3` is a number, and a key stands once.

PyYAML's own rules are those of YAML 1.1, where `no` is false and `1e-3` a text: labels and learning rates of people.
"""

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        double = [key for key in keys if keys.count(key) > 1]
        if double:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {double[0]!r} is there twice", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


# The core schema of YAML 1.2, section 10.3.2.
_Loader.yaml_implicit_resolvers = {}
for tag, pattern, first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
     list("-+.0123456789")),
):  # fmt: skip
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))


def parse_yaml(text: str) -> Any:
    """What a YAML text holds.

    Raises:
        ValueError: it is no YAML, in one line.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error
