"""The border: a sweep file becomes a valid `SweepSpec`, or one message with every fault in it.

The only package that imports pydantic and yaml. `python -m orchestrator.spec` prints the JSON
Schema that stands beside the sweeps.
"""

from orchestrator.spec.choices import Choice, default_label, resolve_label
from orchestrator.spec.load import LoadedSpec, load_spec
from orchestrator.spec.sentences import Fault
from orchestrator.spec.sweep_spec import Measure, SweepSpec, Train

__all__ = [
    "Choice",
    "Fault",
    "LoadedSpec",
    "Measure",
    "SweepSpec",
    "Train",
    "default_label",
    "load_spec",
    "resolve_label",
]
