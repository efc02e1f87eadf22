"""What the adapters share: cases, arrays that know which of them were read, and recurrences driven
from every start that a file has and through its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
Tensors = dict[str, Tensor]
LOSS_WEIGHTS = ("w", "w_loss")
"""Gradients are those of sum(w o)."""


@dataclass(frozen=True, slots=True)
class Case:
    """run(dtype): ours and theirs. chunked: ours takes the sums of a whole chunk by products, and
    is held to what float32 leaves of those. least: below this no tolerance goes, where ours and
    theirs differ by more than rounding."""

    name: str
    run: Callable[[torch.dtype], Pair]
    chunked: bool = False
    least: float = 0.0


class Arrays(Mapping[str, np.ndarray]):
    """A file's arrays, and the names of those whose values were never asked for. Names and shapes
    may be looked at without that."""

    def __init__(self, held: Mapping[str, np.ndarray]) -> None:
        self._held, self._read = dict(held), set[str]()

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._held[name]
        self._read.add(name)
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._held[name].shape

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A copy of the array, in the file's dtype where none is given."""
        return torch.from_numpy(np.array(self[name])).to(dtype)

    @property
    def unread(self) -> list[str]:
        return sorted(self._held.keys() - self._read)


@dataclass(frozen=True, slots=True)
class Form:
    """One way to compute a recurrence. run: inputs by the file's names, and the state to start from
    (empty for zeros) -> results by the file's names."""

    run: Callable[[Tensors, Tensors], Tensors]
    chunked: bool = False


def recurrence(
    arrays: Arrays,
    forms: Mapping[str, Form],
    *,
    inputs: Iterable[str],
    results: Iterable[str],
    start: Callable[[str], tuple[str, ...]] | None = None,
) -> Iterator[Case]:
    """Every RESULT and RESULT_from_STATE that the file has, by every form, and the gradients
    dINPUT, dINPUT_from_STATE and dSTATE of the loss on the first result.

    start: the arrays that make up the state which a name stands for, none where it stands for none;
    else the array of that name.
    """
    given, known = tuple(name for name in inputs if name in arrays), tuple(results)
    begin = start or (lambda name: (name,) if name in arrays else ())
    weights = next((name for name in LOSS_WEIGHTS if name in arrays), None)

    for label, form in forms.items():

        @cache
        def forward(names: tuple[str, ...], dtype: torch.dtype, form: Form = form) -> Tensors:
            with torch.no_grad():
                return form.run(_tensors(arrays, given, dtype), _tensors(arrays, names, dtype))

        for array in arrays:
            stem, _, origin = array.partition("_from_")
            names = begin(origin) if origin else ()
            if (origin and not names) or array in given:
                continue
            of = next((stem.removeprefix(d) for d in ("grad_", "d") if stem.startswith(d)), "")
            run: Callable[[torch.dtype], Pair] | None = None
            if stem in known:
                run = partial(_result, arrays, forward, names, stem, array)
            elif weights and of in given:
                run = partial(_gradient, arrays, form, given, names, of, weights, array)
            elif weights and not origin and _is_state(of) and of in begin(of):
                run = partial(_gradient, arrays, form, given, begin(of), of, weights, array)
            if run is not None:
                yield Case(f"{label}: {array}", run, form.chunked)


def _is_state(name: str) -> bool:
    return name.endswith("0") or "state" in name


def loss_weights_alone(arrays: Arrays) -> dict[str, str]:
    """Weights of a loss in a file without gradients, with the reason why they are not used."""
    stems = (name.partition("_from_")[0] for name in arrays)
    if any(stem.startswith("grad_") or (stem[:1] == "d" and stem[1:] in arrays) for stem in stems):
        return {}
    reason = "weights of a loss, whose gradients the file does not have"
    return {name: reason for name in LOSS_WEIGHTS if name in arrays}


def called(note: Mapping[str, object], name: str, *prefixes: str) -> bool:
    """Whether the note's name or the file's begins so."""
    return any(str(one).startswith(prefixes) for one in (note.get("name", ""), name))


def like(found: Tensor, expected: Tensor) -> Tensor:
    """In the expected shape, where only dimensions of 1 tell them apart."""
    if found.squeeze().shape == expected.squeeze().shape:
        return found.reshape(expected.shape)
    return found


def _tensors(arrays: Arrays, names: Iterable[str], dtype: torch.dtype) -> Tensors:
    return {name: arrays.tensor(name, dtype) for name in names}


def _result(
    arrays: Arrays,
    forward: Callable[[tuple[str, ...], torch.dtype], Tensors],
    start: tuple[str, ...],
    stem: str,
    array: str,
    dtype: torch.dtype,
) -> Pair:
    expected = arrays.tensor(array)
    return like(forward(start, dtype)[stem], expected), expected


def _gradient(
    arrays: Arrays,
    form: Form,
    given: tuple[str, ...],
    start: tuple[str, ...],
    of: str,
    weights: str,
    array: str,
    dtype: torch.dtype,
) -> Pair:
    inputs, state = _tensors(arrays, given, dtype), _tensors(arrays, start, dtype)
    leaf = inputs[of] if of in inputs else state[of]
    leaf.requires_grad_()
    output = next(iter(form.run(inputs, state).values()))
    loss = (output * arrays.tensor(weights, dtype)).sum()
    (found,) = torch.autograd.grad(loss, leaf)
    return found, arrays.tensor(array)
