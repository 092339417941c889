"""The program behind the notebook `paper`: its data, its resumption, and its cheap measurements."""

import json

import numpy as np

from benchmarks.paper_claims import OneObject, main, measure_latents, result
from nextstep_jax.data import shapes


def test_a_result_is_made_once_and_again_when_made_with_something_else(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {"value": len(calls)}

    path = tmp_path / "results" / "one.json"
    assert result(path, {"seeds": (0, 1)}, make)["value"] == 1
    assert result(path, {"seeds": (0, 1)}, make)["value"] == 1
    assert result(path, {"seeds": (0, 2)}, make)["value"] == 2
    assert json.loads(path.read_text()) == {"made_with": {"seeds": [0, 2]}, "value": 2}
    assert [file.name for file in path.parent.iterdir()] == ["one.json"]


def test_one_object_pairs_say_what_they_show():
    source = OneObject("train", 12)
    for sample in (source[i] for i in range(len(source))):
        truth = shapes.parse(sample.texts[0].text)
        assert len(truth.mentions) == 1 and truth.mentions[0].count == 1 and len(sample.images) == 1
    assert source.fingerprint(0, 3) != OneObject("heldout", 12).fingerprint(0, 3)


def test_latents_of_the_builtin_tokenizer():
    found = measure_latents(4)
    assert found["normalized"]["numbers"] == found["raw"]["numbers"] == 4 * 8 * 8 * 16
    assert abs(found["normalized"]["mean"]) < 1e-3 and abs(found["normalized"]["variance"] - 1) < 1e-2
    assert len(found["edges"]) == len(found["raw"]["counts"]) + 1 and np.sum(found["raw"]["counts"]) > 0


def test_an_unknown_part_is_refused(capsys):
    try:
        main(["everything"])
    except SystemExit as stop:
        assert stop.code == 2
    assert "no such part: everything" in capsys.readouterr().err
