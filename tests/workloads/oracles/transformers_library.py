"""transformers' modules, configurations of one layer, and plain functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from tests.workloads.oracles.oracle import library


def modeling(family: str) -> Any:
    return library(f"transformers.models.{family}.modeling_{family}")


def configured(family: str, name: str, *layers: str, **settings: Any) -> Any:
    """A configuration of one layer, or of `layers`, their types."""
    module = library(f"transformers.models.{family}.configuration_{family}")
    if layers:
        settings["layer_types"] = list(layers)
    return getattr(module, f"{name}Config")(num_hidden_layers=len(layers) or 1, **settings)


def function(family: str, name: str) -> Callable[..., Any]:
    """The plain torch function below what may stand in for it."""
    found: Callable[..., Any] = inspect.unwrap(getattr(modeling(family), name))
    return found
