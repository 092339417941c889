"""Two scores side by side: intervals against a bootstrap written out, and everything that does not compare."""

import copy
import json

import numpy as np
import pytest

from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.compare import PAPER, compare, differences, format_table, read_score, single


def made(seed: int = 0, better: float = 0.0) -> dict:
    """A score of WISE_Verified's form: two groups of 30 and 10 prompts, one with two images of a prompt."""
    random = np.random.default_rng(seed)
    groups = {
        "culture": {str(i): [float(random.random() < 0.4 + better)] for i in range(30)},
        "time": {str(i): random.random(1 + i % 2).tolist() for i in range(100, 110)},
    }
    means = {name: np.mean(sum(of.values(), [])) for name, of in groups.items()}
    weights = {"culture": 0.75, "time": 0.25}
    return {
        "suite": "wise",
        "title": "WISE with m at u",
        "official": False,
        "quirks": [],
        "metrics": {
            "overall": {"value": sum(weights[name] * means[name] for name in weights), "weights": weights},
            "culture": {"value": means["culture"], "weights": {"culture": 1.0}},
            "odd": {"value": 3.0, "weights": None},
        },
        "groups": groups,
        "judge": {"name": "m at u", "temperature": 0.0, "prompt_sha256": "p", "dates": ["x", "x"]},
        "export": {"files": {"a.json": "d"}, "settings": {"cfg": 7.5, "steps": 20}, "seed": 0, "checkpoint": {"digest": "c"}},
    }


def test_a_difference_and_its_interval():
    first, second = made(0), made(1, better=0.3)
    rows = {row.name: row for row in compare(first, second, resamples=4000)}
    change = rows["overall"].change
    assert change.difference == pytest.approx(second["metrics"]["overall"]["value"] - first["metrics"]["overall"]["value"])
    random, drawn = np.random.default_rng(5), []
    for _ in range(4000):  # the definition, with other draws
        total = 0.0
        for name, weight in first["metrics"]["overall"]["weights"].items():
            ids = random.choice(sorted(first["groups"][name]), len(first["groups"][name]))
            means = [np.mean(sum((s["groups"][name][id] for id in ids), [])) for s in (first, second)]
            total += weight * (means[1] - means[0])
        drawn.append(total)
    np.testing.assert_allclose(change[1:], np.percentile(drawn, [2.5, 97.5]), atol=0.02)
    assert rows["odd"].change is None and rows["overall"].paper["NextStep-1"] == 0.54


def test_pairing_takes_out_what_both_find_hard():
    first = made(0)
    second = copy.deepcopy(first)
    for of in second["groups"].values():
        for id in of:
            of[id] = [value + 0.1 for value in of[id]]
    for metric in second["metrics"].values():
        metric["value"] += 0.1
    change = compare(first, second)[0].change
    assert change.low == pytest.approx(0.1) == change.high


def test_a_score_and_itself():
    assert all(row.change[:3] == (0, 0, 0) for row in compare(made(), made()) if row.change)
    assert differences(made(), made()) == []


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("suite",), "geneval", "their suite differ: wise and geneval"),
        (("judge", "name"), "n at u", "their judge's name differ: m at u and n at u"),
        (("judge", "temperature"), 1.0, "judge's temperature differ"),
        (("judge", "prompt_sha256"), "q", "judge's prompt_sha256 differ"),
        (("judge",), None, "judge's name differ: m at u and None"),
        (("quirks",), ["x"], "their quirks differ"),
        (("export", "files"), {"a.json": "e"}, "digests of the prompts differ: .*'d'.* and .*'e'"),
        (("export", "settings"), {"cfg": 7.5, "image_cfg": 1.0}, "kinds of settings differ: .*steps.* and .*image_cfg"),
        (("groups", "time"), {"1": [1.0]}, "11 prompts of time are in one of them only, first: 1"),
        (("groups", "culture"), {}, "30 prompts of culture are in one of them only"),
    ],
)
def test_what_does_not_compare(path, value, message):
    other = made(1)
    place = other
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(InputError, match=message):
        compare(made(), other)


def test_tokenizers_need_one_convention():
    score = made() | {"suite": "tokenizer", "judge": None}
    other = copy.deepcopy(score)
    for one, protocol in ((score, "ours"), (other, "llamagen")):
        one["export"]["settings"] = {"protocol": protocol, "area": 256, "mode": None}
    with pytest.raises(InputError, match="their protocol differ: ours and llamagen"):
        compare(score, other)


def test_other_settings_are_named_and_compared():
    other = made(1)
    other["export"] |= {"seed": 1, "settings": {"cfg": 3.0, "steps": 20}, "checkpoint": {"digest": "e"}}
    assert differences(made(), other) == ["settings: cfg: 7.5 and 3.0", "seed: 0 and 1", "checkpoint: digest: c and e"]
    assert compare(made(), other)[0].change is not None


def test_tables():
    table = format_table(compare(made(), made(1)))
    assert table.splitlines()[0].split() == ["A", "B", "B", "-", "A", "95", "%", "interval", "paper"]
    assert "0.54 NextStep-1; 0.67 NextStep-1, Self-CoT" in table and "not known" not in table
    alone = format_table(single(made()))
    assert "95 %" not in alone and "0.51 NextStep-1" in alone
    nothing = made()
    nothing["metrics"]["overall"]["value"] = None
    assert "not known" in format_table(single(nothing))


def test_the_papers_rows_agree_with_each_other():
    wise = {name: rows["NextStep-1"] for name, rows in PAPER["wise"].items()}
    weights = {"culture": 0.4, "time": 0.167, "space": 0.133, "biology": 0.1, "physics": 0.1, "chemistry": 0.1}
    assert sum(weight * wise[name] for name, weight in weights.items()) == pytest.approx(wise["overall"], abs=0.005)
    oneig = {name: rows["NextStep-1"] for name, rows in PAPER["oneig-en"].items()}
    assert (sum(oneig.values()) - oneig["overall"]) / 5 == pytest.approx(oneig["overall"], abs=0.001)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"groups": 1}, "groups: expected an object, found int"),
        ({"groups": {"culture": {"1": ["x"]}}}, r"groups: culture: 1: expected a list of numbers, found \['x'\]"),
        ({"metrics": {"a": {"value": "x", "weights": None}}}, "metrics: a: expected a value"),
        ({"metrics": {"a": {"value": 1, "weights": {"none": 1}}}}, "metrics: a: expected weights of groups"),
        ({"metrics": {"a": {"value": 1, "weights": {"time": "x"}}}}, "metrics: a: expected weights of groups"),
        ({"metrics": {"a": {"value": 1, "weights": [1]}}}, "metrics: a: expected weights of groups"),
    ],
)
def test_files_that_are_no_scores(tmp_path, change, message):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(made() | change))
    with pytest.raises(InputError, match=message):
        read_score(path)
    path.write_text("[]")
    with pytest.raises(InputError, match="expected a score .*, found no suite, title"):
        read_score(path)
    path.write_text(json.dumps(made()))
    assert read_score(path) == made()
