"""How a function called in a fork ends: with an answer, with too little memory, or badly."""

from __future__ import annotations

import os
import signal

import pytest

from workloads.children import done_in_a_child

MEBIBYTE = 1 << 20


def test_says_what_the_function_returned() -> None:
    mine = os.getpid()
    (child,) = done_in_a_child(lambda: (float(os.getpid()),), cap=64 * MEBIBYTE) or ()
    assert int(child) != mine


def grow() -> tuple[float, ...]:
    return (float(len(b"1" * (128 * MEBIBYTE))),)


def lack() -> tuple[float, ...]:
    raise MemoryError


def be_killed() -> tuple[float, ...]:
    os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where the machine has no more
    return ()


@pytest.mark.parametrize("function", [grow, lack, be_killed])
def test_too_little_memory_is_no_answer(function: object) -> None:
    assert callable(function)
    assert done_in_a_child(function, cap=64 * MEBIBYTE) is None


def fail() -> tuple[float, ...]:
    raise ValueError("a word")


def crash() -> tuple[float, ...]:
    os.kill(os.getpid(), signal.SIGUSR1)  # which nobody here handles, and no debugger prints
    return ()


@pytest.mark.parametrize(("function", "said"), [(fail, "ValueError: a word"), (crash, "crashed")])
def test_a_failure_is_not_taken_for_too_little_memory(function: object, said: str) -> None:
    assert callable(function)
    with pytest.raises(RuntimeError, match=said):
        done_in_a_child(function, cap=64 * MEBIBYTE)
