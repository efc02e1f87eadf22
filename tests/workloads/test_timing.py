"""The clock: warm before it starts, as many samples as the median needs within its bound, and
without those of an accelerator that was slowed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workloads import clocks, conditions, occupancy, timing
from workloads.median import interval_width

CPU = torch.device("cpu")
UUID = "GPU-0123"


class Clock:
    """Calls that take the given seconds, one after the other, without waiting for them."""

    def __init__(self, seconds: Iterator[float], slowed: Iterator[bool] | None = None) -> None:
        self.seconds, self.slowed, self.calls = seconds, slowed, 0

    def __call__(self, function: object, device: object) -> tuple[float, clocks.Reading | None]:
        self.calls += 1
        if self.slowed is None:
            return next(self.seconds), None
        slowed = next(self.slowed)
        reading = clocks.Reading(
            sm_clock=1e9 if slowed else 2e9, temperature=80.0, slowed=slowed, capped=False
        )
        return next(self.seconds), reading


def sampled(clock: Clock, monkeypatch: pytest.MonkeyPatch, **options: int) -> tuple[float, ...]:
    monkeypatch.setattr(timing, "_once_on_cpu", clock)
    return timing.sample(lambda: None, device=CPU, **options)


def endless(*first: float, noise: float = 0.0) -> Iterator[float]:
    """These, and then the last one for ever, more or less."""
    yield from first
    draw = random.Random(0)
    while True:
        yield first[-1] * (1 + noise * draw.uniform(-1, 1))


@pytest.mark.parametrize(
    ("cold", "calls"),
    [([], 2), ([0.08], 3), ([0.09, 0.08, 0.07, 0.06], 6), ([9 - n for n in range(8)], 10)],
)
def test_calls_go_untimed_until_they_get_no_faster(
    cold: list[float], calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(endless(*cold, 0.05))
    samples = sampled(clock, monkeypatch)
    assert clock.calls - len(samples) == calls
    assert set(samples) == {0.05} or calls == timing.MAX_WARM_UP


def test_a_steady_call_is_sampled_for_the_least_time(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = sampled(Clock(endless(0.01)), monkeypatch)
    assert sum(samples) == pytest.approx(timing.MIN_SECONDS, abs=0.011)


def test_a_noisy_call_is_sampled_until_its_median_is_known_or_time_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for noise, narrow in ((0.04, True), (0.5, False)):
        samples = sampled(Clock(endless(0.003, noise=noise)), monkeypatch)
        assert (interval_width(samples) <= timing.NARROW) is narrow
        assert (sum(samples) < timing.MAX_SECONDS) is narrow
        assert sum(samples) < timing.MAX_SECONDS + 0.005


def test_a_call_beyond_the_bound_is_still_sampled_three_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert len(sampled(Clock(endless(5.0)), monkeypatch)) == timing.MIN_SAMPLES


@pytest.mark.parametrize(("every", "left_out"), [(3, True), (1, False)])
def test_calls_of_a_slowed_device_are_left_out_unless_they_are_most(
    every: int, left_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    conditions.taken()
    slowed = (number % every == 0 for number in range(1000))
    clock = Clock(iter(0.02 if n % every == 0 else 0.01 for n in range(1000)), slowed)
    samples = sampled(clock, monkeypatch, warm_up=0)
    assert (0.02 not in samples) is left_out
    under = conditions.taken()
    assert under["slowed_share"] == pytest.approx(0.5 if left_out else 1.0, abs=0.1)
    assert under["sm_clock"] == pytest.approx(1.5e9 if left_out else 1e9, rel=0.05)
    assert under["temperature"] == pytest.approx(80.0)


@given(st.integers(1, 200), st.randoms(use_true_random=False))
def test_the_interval_of_a_median_holds_it_and_knows_no_unit(
    count: int, draw: random.Random
) -> None:
    samples = [draw.uniform(1, 2) for _ in range(count)]
    width = interval_width(samples)
    assert (width == float("inf")) == (count < 6)
    assert width == pytest.approx(interval_width([1e-3 * one for one in samples]))
    assert width >= 0


def test_the_interval_of_a_median_covers_it_as_often_as_it_says() -> None:
    draw = random.Random(0)
    for count in (6, 9, 40):
        covered = 0
        for _ in range(2000):
            samples = sorted(draw.expovariate(1.0) for _ in range(count))
            width = interval_width(samples) * samples[count // 2]
            ranks = next(
                k for k in range(count) if samples[-1 - k] - samples[k] == pytest.approx(width)
            )
            covered += samples[ranks] <= 0.6931 <= samples[-1 - ranks]
        assert covered / 2000 >= 0.94


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).map(sorted)))
def test_what_several_streams_do_at_once_counts_once(spans: list[list[int]]) -> None:
    moments = {at for start, end in spans for at in range(start, end)}
    assert occupancy.covered((start, end) for start, end in spans) == len(moments)


def nvml(reasons: int, broken: bool = False) -> SimpleNamespace:
    """What pynvml has of names, for one device."""

    class Error(Exception):
        pass

    def handle(uuid: str) -> str:
        if uuid != UUID or broken:
            raise Error
        return uuid

    return SimpleNamespace(
        NVMLError=Error,
        NVML_CLOCK_SM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlClocksEventReasonHwSlowdown=8,
        nvmlClocksEventReasonHwThermalSlowdown=64,
        nvmlClocksEventReasonHwPowerBrakeSlowdown=128,
        nvmlClocksEventReasonSwThermalSlowdown=32,
        nvmlClocksEventReasonSwPowerCap=4,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetCurrentClocksEventReasons=lambda handle: reasons,
        nvmlDeviceGetClockInfo=lambda handle, which: 1980,
        nvmlDeviceGetTemperature=lambda handle, which: 61,
    )


@pytest.mark.parametrize(
    ("reasons", "slowed", "capped"),
    [
        (0, False, False),
        (1, False, False),
        (4, False, True),
        (8 | 4, True, True),
        (32, True, False),
    ],
)
def test_a_gauge_tells_heat_from_a_limit_of_power(
    reasons: int, slowed: bool, capped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clocks, "_library", lambda: nvml(reasons))
    read = clocks._gauge.__wrapped__(UUID)
    assert read is not None
    assert read() == clocks.Reading(sm_clock=1.98e9, temperature=61.0, slowed=slowed, capped=capped)


def test_without_nvml_or_its_device_there_is_no_gauge(monkeypatch: pytest.MonkeyPatch) -> None:
    assert clocks.gauge(CPU) is None
    for library in (None, nvml(0, broken=True)):
        monkeypatch.setattr(clocks, "_library", lambda library=library: library)
        assert clocks._gauge.__wrapped__(UUID) is None


def test_the_names_of_nvml_are_those_of_its_package() -> None:
    import pynvml

    for name, value in vars(nvml(0)).items():
        assert hasattr(pynvml, name), name
        if isinstance(value, int):
            assert getattr(pynvml, name) == value, name
