"""Print the JSON Schema: `python -m orchestrator.spec > sweeps/sweep.schema.json`."""

from orchestrator.spec.schema import schema_text

if __name__ == "__main__":
    print(schema_text(), end="")
