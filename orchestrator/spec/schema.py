"""The JSON Schema of a sweep file, with every plug-in's options: editors complete and check by
it."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.spec.choices import ChosenFamily, options_model, options_of
from orchestrator.spec.sweep_spec import SweepSpec
from workloads import registry


def schema_text() -> str:
    """The schema as the file beside the sweeps has it."""
    return json.dumps(json_schema(), indent=2) + "\n"


def json_schema() -> dict[str, Any]:
    """What pydantic says of `SweepSpec`, with the plug-ins' names and options in it."""
    schema: dict[str, Any] = _without_null(SweepSpec.model_json_schema())
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Sweep file"
    schema["anyOf"] = [{"required": ["measure"]}, {"required": ["train"]}]
    schema["properties"]["architectures"]["items"] = _choice("architectures", labelled=True)
    schema["properties"]["task"] = _choice("tasks", labelled=False)
    model = schema["$defs"]["Model"]
    model["anyOf"] = [{"required": ["parameters"]}, {"required": ["d_model"]}]
    # With a width and without MLPs there is nothing left that a size could decide.
    bare = {"properties": {"mlp": {"const": False}}, "required": ["mlp", "d_model", "parameters"]}
    model["not"] = bare
    batches = [{"required": ["batch_size"]}, {"required": ["batch_tokens"]}]
    schema["$defs"]["Measure"]["oneOf"] = batches
    return schema


def _choice(family: ChosenFamily, *, labelled: bool) -> dict[str, Any]:
    """A name, or one name with its options; of an architecture also the path of a file."""
    known = registry.names(family)
    branches: list[dict[str, Any]] = [{"enum": known}]
    for name in known:
        options = options_model(options_of(family, name)).model_json_schema()
        if labelled:
            options.setdefault("properties", {})["label"] = {"type": "string"}
        branches.append(
            {
                "type": "object",
                "properties": {name: options},
                "required": [name],
                "additionalProperties": False,
            }
        )
    if family == "architectures":
        path = r"\.py$"
        branches.append({"type": "string", "pattern": path})
        one = {"minProperties": 1, "maxProperties": 1, "additionalProperties": False}
        branches.append({"type": "object", "patternProperties": {path: {"type": "object"}}, **one})
    return {"oneOf": branches}


def _without_null(node: Any) -> Any:
    """Keys are left out, never null: pydantic says `or null` of everything that may be absent."""
    if isinstance(node, list):
        return [_without_null(item) for item in node]
    if not isinstance(node, dict):
        return node
    branches = [branch for branch in node.get("anyOf", ()) if branch != {"type": "null"}]
    if len(branches) == 1:
        rest = {key: value for key, value in node.items() if key not in ("anyOf", "default")}
        node = {**branches[0], **rest}
    return {key: _without_null(value) for key, value in node.items()}
