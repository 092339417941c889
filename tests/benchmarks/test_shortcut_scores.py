"""ShapeEval of settings beside the checkpoint's own."""

import json

from benchmarks import shortcut_scores


def test_a_setting_that_changes_nothing_has_the_same_scores(tmp_path, capsys):
    arguments = [
        "cfg=3.0",
        "--prompts",
        "1",
        "--seeds",
        "1",
        "--results",
        str(tmp_path),
        "--json",
        str(tmp_path / "found.json"),
    ]
    shortcut_scores.main(arguments)
    found = json.loads((tmp_path / "found.json").read_text())["compared"]["cfg=3.0"]["scores"]
    assert len(found) == 8 and 0 < found["overall"]["before"] <= 1
    assert all(row["difference"] == row["low"] == row["high"] == 0 for row in found.values())
    capsys.readouterr()
    shortcut_scores.main(arguments)
    assert capsys.readouterr().out.count("there already") == 2


def test_settings_are_read_as_numbers_where_they_are_some():
    assert shortcut_scores.changes("sampler=ab2,steps=10,rescale=true,shift=0.5") == {
        "sampler": "ab2",
        "steps": 10,
        "rescale": True,
        "shift": 0.5,
    }
