"""The border: every fault in one message for people, each with its place; never anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.spec import LoadedSpec, SweepSpec, load_spec
from orchestrator.spec.load import MAX_FAULTS, validated
from orchestrator.spec.schema import json_schema, schema_text
from orchestrator.spec.strict_yaml import YamlFault, parse
from tests.orchestrator.sweep_files import ABSENT, SWEEP, changed, faults, faults_of, load, write
from workloads import registry

SWEEPS = sorted(Path("sweeps").glob("*.yaml"))
TUNE = {"learning_rate": {"low": 1e-3, "high": 1e-1}, "tokens": 6_400}
TUNED = {key: value for key, value in SWEEP["train"].items() if key != "learning_rate"}
PRIMARY = {"challenger": "transformer", "metric": "train_step_time"}

FAULTS: list[tuple[dict[str, Any], str]] = [
    (
        {"measure.seqlen": [3]},
        (
            "measure.seqlen: unknown key 'seqlen'. Did you mean 'seq_len'? Known:"
            " seq_len, batch_size, batch_tokens, execution, rounds, metrics"
        ),
    ),
    ({"rounds": 3}, "rounds: belongs under measure"),
    ({"seq_len": [3]}, "seq_len: belongs under measure, train or tune"),
    (
        {"measure.metrics": ["max_seq_len"]},
        "measure.metrics[0]: 'max_seq_len' is measured under limits.memory_bytes: give it",
    ),
    (
        {"measure.execution": ["compile"]},
        "measure.execution[0]: must be eager, compiled or graph, not 'compile'",
    ),
    (
        {"train.learning_rate": ABSENT},
        "train.learning_rate: is missing; give it, or a `tune` part that searches for it",
    ),
    ({"tune": TUNE}, "train.learning_rate: is what `tune` searches for; leave one of the two out"),
    (
        {"tune": {**TUNE, "learning_rate": {"low": 0.1, "high": 0.01}}, "train": TUNED},
        "tune.learning_rate: must have low below high, not 0.1 and 0.01",
    ),
    (
        {"tune": {**TUNE, "metric": "acuracy"}, "train": TUNED},
        "tune.metric: unknown metric of train 'acuracy'. Known: validation_loss",
    ),
    (
        {"tune": {**TUNE, "seq_len": [64, 100]}, "train": TUNED},
        "tune.seq_len: train.seq_len has no 100",
    ),
    (
        {"tune": {**TUNE, "trials": 3}, "train": TUNED},
        "tune.trials: must be at least 4, not 3",
    ),
    (
        {
            "tune": {**TUNE, "clip_norm": {"low": 0.1, "high": 10.0}},
            "train": {**TUNED, "optimiser": {"clip_norm": 2.0}},
        },
        "tune.clip_norm: train.optimiser gives it too; leave one of the two out",
    ),
    (
        {
            "tune": {**TUNE, "forget_bias": {"low": 0.3, "high": 3.0}},
            "train": TUNED,
            "architectures": [{"lstm": {"forget_bias": 2.0}}, "gru", "transformer"],
            "compare.baseline": "gru",
        },
        "tune.forget_bias: lstm(forget_bias=2.0) gives it too; leave one of the two out",
    ),
    (
        {
            "tune": {**TUNE, "forget_bias": {"low": 0.3, "high": 3.0}},
            "train": TUNED,
            "architectures": ["gru", "transformer"],
            "compare.baseline": "gru",
        },
        "tune.forget_bias: no architecture here has this option",
    ),
    (
        {"tune": {**TUNE, "dropout": {"low": 0.1, "high": 1.0}}, "train": TUNED},
        "tune.dropout.high: must be less than 1, not 1.0",
    ),
    (
        {"train.optimiser": {"momentum": 0.9}},
        "train.optimiser.momentum: unknown key 'momentum'. Known: weight_decay, clip_norm, dropout",
    ),
    (
        {"model.d_model": 64, "model.mlp": False},
        (
            "model.parameters: d_model alone decides the size where there is no mlp; leave one of "
            "the two out"
        ),
    ),
    (
        {"model.parameters": ABSENT},
        "model: needs parameters, or d_model, which then decides the size",
    ),
    ({"model.mlp": 0}, "model.mlp: must be true or false, not 0"),
    (
        {"architectures": ["lstm", "transfomer"]},
        (
            "architectures[1]: unknown architecture 'transfomer'. Did you mean "
            f"'transformer'? Known: {', '.join(registry.names('architectures'))}"
        ),
    ),
    ({"measure.seq_len": [64, -5]}, "measure.seq_len[1]: must be at least 1, not -5"),
    ({"measure.seq_len": []}, "measure.seq_len: is empty; name at least one value"),
    ({"measure.seq_len": [64, 64]}, "measure.seq_len: lists 64 twice"),
    ({"measure.seq_len": 64}, "measure.seq_len: must be a list, as in [a, b], not 64"),
    ({"architectures": []}, "architectures: is empty"),
    ({"architectures": "lstm"}, "architectures: must be a list, as in [a, b], not 'lstm'"),
    ({"model.num_layers": True}, "model.num_layers: must be a whole number, not true"),
    ({"model.num_layers": "2"}, "model.num_layers: must be a whole number, not '2'"),
    ({"model.num_layers": 2.0}, "model.num_layers: must be a whole number, not 2.0 (write 2)"),
    (
        {"model.num_layers": 10**60},
        "model.num_layers: must be at most 1,000, not 1" + "0" * 56 + "...",
    ),
    ({"model": [1]}, "model: must be a mapping, as in {key: value}, not a list of 1"),
    ({"model": None}, "model: has no value; give it one, or leave it out"),
    ({"model.parameters": None}, "model.parameters: has no value; give it one, or leave it out"),
    ({"question": ABSENT}, "question: is missing"),
    ({"question": " "}, "question: is empty"),
    ({"question": "a\x1b[2J"}, "question: must be plain text, not 'a\\x1b[2J'"),
    (
        {"name": "Über"},
        (
            "name: must be 1 to 100 lower-case letters, digits, - and _, a letter"
            " or digit first, not 'Über'"
        ),
    ),
    (
        {"name": "../x"},
        (
            "name: must be 1 to 100 lower-case letters, digits, - and _, a letter"
            " or digit first, not '../x'"
        ),
    ),
    ({"precision": "fp16"}, "precision: must be float32 or bfloat16, not 'fp16'"),
    ({"device": "cpu:4"}, "device: threads are written {cpu: {threads: 4}}, not 'cpu:4'"),
    (
        {"device": "cuda"},
        (
            "device: 'cuda' is no device class: auto, cpu, {cpu: {threads: 8}}, "
            "or an accelerator's own, which `python -m orchestrator doctor` "
            "prints"
        ),
    ),
    ({"device": {"cpu": {"threads": 0}}}, "device.cpu.threads: must be at least 1, not 0"),
    ({"device": 4}, "device: must be text, not 4"),
    ({"limits": {"cell_seconds": 0}}, "limits.cell_seconds: must be more than 0, not 0"),
    (
        {"limits": {"memory_bytes": 8e9}},
        "limits.memory_bytes: must be a whole number, not 8000000000.0 (write 8000000000)",
    ),
    (
        {"architectures": ["lstm", "lstm"]},
        "architectures[1]: 'lstm' is architectures[0] already; give one a `label:`",
    ),
    (
        {"architectures": ["lstm", {"gru": {"label": "default"}}]},
        (
            "architectures[1].gru.label: 'default' is what train.learning_rate "
            "calls the rate of all others"
        ),
    ),
    (
        {"architectures": ["lstm", {"gru": {"label": "none"}}]},
        "architectures[1].gru.label: 'none' is the name of another architecture",
    ),
    (
        {"architectures": ["lstm", {"gru": {"label": "a\nb"}}]},
        "architectures[1].gru.label: must be one line of 1 to 60 characters, not 'a\\nb'",
    ),
    (
        {"architectures": ["lstm", {"transformer": {"haeds": 2}}]},
        (
            "architectures[1].transformer.haeds: unknown option 'haeds'. Did you "
            "mean 'heads' or 'kv_heads'? Known: heads, kv_heads, position, attention"
        ),
    ),
    (
        {"architectures": ["lstm", {"transformer": {"heads": "2"}}]},
        "architectures[1].transformer.heads: must be a whole number, not '2'",
    ),
    (
        {"architectures": ["lstm", {"gru": None}]},
        "architectures[1].gru: must be a mapping of options, not null",
    ),
    (
        {"architectures": ["lstm", {"gru": {}, "none": {}}]},
        (
            "architectures[1]: must be a name, or one name with its options as in"
            " {name: {option: value}}, not a mapping"
        ),
    ),
    (
        {"task": {"language_modelling": {"tokenizer": "bep"}}},
        "task.language_modelling.tokenizer: must be bytes or bpe, not 'bep'",
    ),
    (
        {"measure.batch_tokens": [64]},
        "measure.batch_tokens: batch_size is given too; choose one of the two",
    ),
    ({"measure.batch_size": ABSENT}, "measure: needs batch_size or batch_tokens"),
    ({"measure": ABSENT, "train": ABSENT}, "has neither a `measure` nor a `train` part"),
    (
        {"measure.metrics": ["validation_loss"]},
        "measure.metrics[0]: 'validation_loss' belongs under train.metrics",
    ),
    (
        {"train.metrics": ["state_bytes"]},
        "train.metrics[0]: 'state_bytes' belongs under measure.metrics",
    ),
    (
        {"train.eval_seq_len": [64], "train.metrics": ["validation_loss"]},
        (
            "train.eval_seq_len: no metric asked for goes through lengths; this task has "
            "loss_by_length"
        ),
    ),
    (
        {"train.learning_rate": {"lstm": 1e-3}},
        "train.learning_rate: has no rate for gru, transformer and no `default`",
    ),
    (
        {"train.learning_rate": {"default": 1e-3, "gur": 1}},
        (
            "train.learning_rate.gur: unknown label 'gur'. Did you mean 'gru'? "
            "Known: lstm, gru, transformer"
        ),
    ),
    ({"train.learning_rate": "fast"}, "train.learning_rate: must be a number, not 'fast'"),
    (
        {"train.learning_rate": {"default": -1}},
        "train.learning_rate.default: must be more than 0, not -1",
    ),
    (
        {"compare.zone": [128, 64]},
        "compare.zone: must be [low, high] with low below high, not [128, 64]",
    ),
    ({"compare.zone": [128]}, "compare.zone: must be [low, high], not a list of 1"),
    (
        {"compare.baseline": "none"},
        "compare.baseline: unknown label 'none'. Known: lstm, gru, transformer",
    ),
    (
        {"compare.primary": {**PRIMARY, "metric": "decode_time"}},
        (
            "compare.primary.metric: unknown metric of this sweep 'decode_time'. "
            "Known: train_step_time, state_bytes, validation_loss"
        ),
    ),
    (
        {
            "task": "recall",
            "train.metrics": ["solved"],
            "compare.primary": {**PRIMARY, "metric": "solved"},
        },
        "compare.primary.metric: 'solved' is passed or failed by a seed and is not compared",
    ),
    (
        {"compare.primary": {**PRIMARY, "batch_size": 3}},
        "compare.primary.batch_size: 3 is not in measure.batch_size (1, 4)",
    ),
    (
        {"compare.primary": {**PRIMARY, "metric": "validation_loss", "batch_size": 1}},
        (
            "compare.primary.batch_size: 'validation_loss' is a metric of "
            "training, which has no batch_size"
        ),
    ),
    (
        {"compare.primary": {**PRIMARY, "challenger": "lstm"}},
        "compare.primary.challenger: is the baseline itself",
    ),
    (
        {"measure.rounds": 1000, "measure.seq_len": list(range(1, 40))},
        "asks for 234,006 cells; 100,000 is the most",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), FAULTS, ids=lambda value: str(value)[:60])
def test_a_fault_is_told_once_with_its_place_and_the_way_out(
    changes: dict[str, Any], expected: str
) -> None:
    assert faults(changes) == [expected]


def test_all_faults_stand_in_one_message_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "name: x\n"
        "architectures: [lstm, transfomer]\n"
        "task: language_modelling\n"
        "model: {parameters: 50_000, num_layers: 0}\n"
        "measure: {seq_len: [64], batch_size: [1], metrics: [peek_memory], speed: 3}\n"
        "model: {parameters: 9}\n"
        "compare: {baseline: lsmt, zone: [9, 3], primary: {challenger: gru, metric: peek_memory}}\n"
    )
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    known_metrics = "Known: activation_memory, decode_throughput, decode_time"
    lines = str(caught.value).splitlines()
    expected = [
        "question: is missing",
        "line 2: architectures[1]: unknown architecture 'transfomer'. Did you mean 'transformer'?",
        "line 4: model.num_layers: must be at least 1, not 0",
        "line 5: measure.metrics[0]: unknown metric 'peek_memory'. Did you mean 'peak_memory' or "
        f"'peak_process_memory'? {known_metrics}",
        "line 5: measure.speed: unknown key 'speed'.",
        "line 6: model: is given twice, first on line 4",
        "line 7: compare.baseline: unknown label 'lsmt'. Did you mean 'lstm'? Known: lstm",
        "line 7: compare.primary.challenger: unknown label 'gru'. Known: lstm",
        "line 7: compare.zone: must be [low, high] with low below high, not [9, 3]",
    ]
    assert len(lines) == len(expected)
    for start in expected:
        assert sum(line.startswith(f"{path}: {start}") for line in lines) == 1, start
    numbers = [int(line.split("line ")[1].split(":")[0]) for line in lines[1:]]
    assert numbers == sorted(numbers)


def test_a_faulty_architecture_does_not_make_references_to_it_wrong() -> None:
    found = faults(
        {"architectures": ["lstm", {"gru": {"label": "g", "x": 1}}], "compare.baseline": "g"}
    )
    assert found == [
        "architectures[1].gru.x: unknown option 'x'. Known: library",
    ]


def test_a_message_is_not_without_end() -> None:
    text = "".join(f"k{i}: 1\n" for i in range(3000))
    found = faults_of(text)
    assert len(found) == MAX_FAULTS + 1
    assert found[-1].endswith("faults more")
    assert len(faults_of(f"{'x' * 1000}: 1")[-1]) < 300


def test_labels_let_one_architecture_stand_twice(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        {
            "architectures": [
                "lstm",
                {"transformer": {"heads": 2}},
                {"transformer": {"heads": 4, "label": "Transformer, 4 Köpfe"}},
            ],
            "compare.baseline": "transformer(heads=2)",
            "compare.primary": {**PRIMARY, "challenger": "Transformer, 4 Köpfe"},
        },
    )
    assert [choice.label for choice in loaded.spec.choices()] == [
        "lstm",
        "transformer(heads=2)",
        "Transformer, 4 Köpfe",
    ]
    both = {"architectures": ["lstm", {"gru": {"label": "a"}}, {"gru": {"label": "b"}}]}
    assert faults({**both, "compare.baseline": "gru"}) == [
        "compare.baseline: 'gru' names several; use a label: a, b"
    ]
    assert not faults({**both, "train.learning_rate": {"gru": 1e-3, "lstm": 2e-3}})


def test_an_option_equal_to_its_default_is_none(tmp_path: Path) -> None:
    plain = load(tmp_path, {"task": "language_modelling"})
    spelt = load(tmp_path, {"task": {"language_modelling": {"tokenizer": "bytes"}}})
    assert spelt.spec.task.options == {}
    assert plain.hash == spelt.hash


@pytest.mark.parametrize(
    ("device", "device_class"),
    [
        ("cpu", "cpu:1"),
        ({"cpu": {"threads": 8}}, "cpu:8"),
        ("nvidia-h100-80gb-hbm3", "nvidia-h100-80gb-hbm3"),
    ],
)
def test_devices(tmp_path: Path, device: Any, device_class: str) -> None:
    assert load(tmp_path, {"device": device}).device_class == device_class


def test_the_hash_is_of_the_meaning(tmp_path: Path) -> None:
    def hash_of(text: str) -> str:
        spec = validated("x.yaml", parse(text))
        return LoadedSpec(path="x.yaml", spec=spec, text=text).hash

    text = json.dumps(dict(SWEEP))
    turned = json.dumps(dict(reversed(SWEEP.items())), indent=3)
    assert hash_of(turned + "\n# a comment\n") == hash_of(text)
    spelt = json.dumps(changed({"model.parameters": [50_000]}))
    assert hash_of(spelt) == hash_of(text)
    hashes = {hash_of(json.dumps(changed(change))) for change in DIFFERENT}
    assert len(hashes | {hash_of(text)}) == len(DIFFERENT) + 1


DIFFERENT: list[dict[str, Any]] = [
    {"measure.rounds": 4},
    {"measure.seq_len": [128, 64]},
    {"limits": {"cell_seconds": 5}},
    {"train.learning_rate": 1e-3},
    {"architectures": ["lstm", "gru", {"transformer": {"heads": 2}}]},
    {"architectures": ["lstm", "gru", {"transformer": {"label": "t"}}]},
    {"compare.primary": PRIMARY},
    {"device": {"cpu": {"threads": 1}}},
]

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10)
    | st.sampled_from(["lstm", "gru", "default", "cpu", "train_step_time", "validation_loss"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["lstm", "label", "cpu", "heads", "x"]) | st.text(max_size=4),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


def _places(data: Any, place: str = "") -> list[str]:
    found = [place.removeprefix(".")] if place else []
    if isinstance(data, dict):
        for key, value in data.items():
            found += _places(value, f"{place}.{key}")
    return found


def test_a_character_written_as_two_halves_is_one() -> None:
    assert parse(r'"\ud83d\ude00"').data == "\U0001f600"
    with pytest.raises(YamlFault, match="line 1: holds half a character"):
        parse(r'"\ud83d"')


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@example({"train.metrics": ["\U00010000", "\U00010000"]})
@given(st.dictionaries(st.sampled_from(_places(dict(SWEEP))), VALUES, min_size=1, max_size=3))
def test_any_change_of_a_sweep_is_read_or_refused(changes: dict[str, Any]) -> None:
    try:
        data = changed(dict(sorted(changes.items(), reverse=True)))
    except AttributeError:
        return  # a place inside what another change has made a scalar
    try:
        spec = validated("sweep.yaml", parse(json.dumps(data)))
    except (SpecError, YamlFault) as error:
        assert str(error)
        assert "pydantic" not in str(error)
        assert "Input should" not in str(error)
    else:
        assert isinstance(spec, SweepSpec)
        assert LoadedSpec(path="", spec=spec, text="").hash


@settings(max_examples=200, deadline=None)
@given(VALUES)
@example({"\0": None})
@example({"name": ["\U00010000", "\U00010000"]})
@example({"\0plain": {"\0mapping": 1}})
def test_any_yaml_is_read_or_refused(value: Any) -> None:
    with pytest.raises((SpecError, YamlFault)):
        validated("sweep.yaml", parse(json.dumps(value)))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80) | st.text(max_size=80).map(lambda text: text.encode("utf-8")))
def test_any_file_is_read_or_refused(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert all(line.startswith(f"{path}: ") for line in str(caught.value).splitlines())


# The schema for editors.


def test_the_schema_beside_the_sweeps_is_the_generated_one() -> None:
    kept = Path("sweeps/sweep.schema.json").read_text()
    assert kept == schema_text(), (
        "out of date: python -m orchestrator.spec > sweeps/sweep.schema.json"
    )


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_is_valid_by_the_schema_too(path: Path) -> None:
    load_spec(path)
    jsonschema.validate(parse(path.read_text()).data, json_schema())


BETWEEN_KEYS = (
    "rate",
    "label",
    "belongs",
    "low below",
    "metric",
    "primary",
    "asks for",
    "already",
    "is the name",
    "leave one of the two out",
    "is measured under",
    "no architecture here",
    "train.seq_len has no",
)


@pytest.mark.parametrize(("changes", "expected"), FAULTS, ids=lambda value: str(value)[:60])
def test_the_schema_refuses_what_the_border_refuses(changes: dict[str, Any], expected: str) -> None:
    """But for what stands between keys, and numbers such as 2.0, which JSON Schema calls whole."""
    if any(word in expected for word in BETWEEN_KEYS) or "(write" in expected:
        return
    valid = jsonschema.Draft202012Validator(json_schema()).is_valid(changed(changes))
    assert not valid or expected.startswith("question"), expected


def test_a_file_written_by_the_test_is_right(tmp_path: Path) -> None:
    assert load_spec(write(tmp_path)).spec.count() == 3 * 2 * 2 * 3 + 3 * 2
