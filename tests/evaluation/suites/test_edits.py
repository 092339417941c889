"""GEdit-Bench and ImgEdit-Bench: files, replies, scores, and whole runs."""

import base64
import io
import json
import math

import pytest
from PIL import Image

from nextstep_jax.chat import Answer
from nextstep_jax.data.images import load
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites.gedit import TASKS, GEdit, GEditChinese, parse_pair, source_of
from nextstep_jax.evaluation.suites.imgedit import TYPES, ImgEdit, parse_scores
from tests.evaluation.suites import made


@pytest.fixture(scope="module")
def gedit(data) -> GEdit:
    return GEdit(data / "gedit", unofficial=True)


@pytest.fixture(scope="module")
def imgedit(data) -> ImgEdit:
    return ImgEdit(data / "imgedit", unofficial=True)


def test_the_official_files(official):
    suite = GEdit(official("gedit_bench"))
    assert suite.files.official and len(suite.items) == 604
    with pytest.raises(InputError, match="SRCIMG.png: not there; get stepfun-ai/GEdit-Bench from the hub"):
        source_of(suite.items[0])
    suite = ImgEdit(official("imgedit_bench"))
    counts = {kind: sum(item.groups == (kind,) for item in suite.items) for kind in TYPES}
    assert suite.files.official and counts["extract"] == 117 and counts["compose"] == 23 and sum(counts.values()) == 737


def test_parquet_files_of_both_languages(tmp_path):
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    rows = []
    for language in ("en", "cn"):
        for i, (task, count) in enumerate(TASKS.items()):
            for j in range(count):
                file = io.BytesIO()
                Image.new("RGB", (8, 8), (i, j, 0)).save(file, "PNG")
                key = "twice" if (task, j) in (("ps_human", 0), ("text_change", 0)) else f"{i}-{j}"
                image = {"bytes": file.getvalue(), "path": None}
                rows.append(dict(task_type=task, key=key, instruction=f"{language} {i} {j}", instruction_language=language))
                rows[-1] |= dict(input_image=image, input_image_raw=image, Intersection_exist=j == 0)
    for part in range(2):
        parquet.write_table(pa.Table.from_pylist(rows[part::2]), tmp_path / f"train-{part}.parquet", row_group_size=100)
    for language, name in ((GEdit, "en"), (GEditChinese, "cn")):
        suite = language(tmp_path)
        assert suite.files.official and len(suite.items) == 606
        assert [item.id for item in suite.items if item.id.startswith("twice")] == ["twice", "twice-2"]
        item = next(item for item in suite.items if item.prompt == f"{name} 9 98")
        assert load(source_of(item)).getpixel((0, 0)) == (9, 98, 0) and item.files[0].endswith(f"/text_change/{name}/9-98.png")
    parquet.write_table(pa.Table.from_pylist(rows[:100]), tmp_path / "train-0.parquet")
    with pytest.raises(InputError, match="expected 606 edits of 11 tasks, found"):
        GEdit(tmp_path)


@pytest.mark.parametrize(
    "reply, score",
    [
        ('{"score": [8, 6], "reasoning": "x"}', [6]),
        ('Sure. ```json\n{"reasoning": "x", "score": [10, 0]}\n```', [0]),
        ("[7, 9]", [7]),
        ('{"score": 5}', [5]),
        ('{"score": [8, 6], "reaso', None),
        ('{"score": [11, 6]}', None),
        ('{"score": ["8", 6]}', None),
        ('{"score": [8, 6, 4]}', None),
        ('{"score": []}', None),
        ("8", [8]),
        ("I would say 8", None),
        ("", None),
    ],
)
def test_replies_of_gedit(reply, score):
    assert parse_pair(Answer(reply)) == score


def test_gedit_takes_the_root_of_each_edit_before_the_mean(gedit):
    scores = {}
    for i, item in enumerate(gedit.items):
        scores |= {(item.id, 0, "semantics"): float(i % 10), (item.id, 0, "quality"): float(9 - i % 10)}
    metrics = gedit.score(scores).metrics
    expected = sum(math.sqrt((i % 10) * (9 - i % 10)) for i in range(11)) / 11
    assert metrics["G_O"].value == pytest.approx(expected)
    assert metrics["G_SC"].value == pytest.approx(sum(i % 10 for i in range(11)) / 11)
    scores[gedit.items[3].id, 0, "quality"] = None
    metrics = gedit.score(scores).metrics
    assert metrics["G_O"].value is None and metrics["G_SC"].value is not None


def test_the_official_tables_of_gedit(gedit):
    item = gedit.items[2]
    header = "source_image,edited_image,instruction,sementics_score,quality_score,intersection_exist,instruction_language"
    line = f"s,/x/nextstep/fullset/{item.groups[0]}/en/{item.id}.png,i,8,2.0,True,en"
    other = f"s,/x/nextstep/fullset/{item.groups[0]}/cn/{item.id}.png,i,1,1,True,cn"
    scores = gedit.read_official(f"{header}\n{line}\n{other}\n".encode(), "t.csv")
    assert scores == {(item.id, 0, "semantics"): 8, (item.id, 0, "quality"): 2}
    assert gedit.score(scores).metrics[f"G_O: {item.groups[0]}"].value == 4
    with pytest.raises(InputError, match="t.csv, row 1: expected a score from 0 to 10, found '12'"):
        gedit.read_official(f"{header}\n{line.replace(',8,', ',12,')}\n".encode(), "t.csv")


@pytest.mark.parametrize(
    "reply, scores",
    [
        ("Brief reasoning: good.\nPrompt Compliance: 5\nVisual Naturalness: 4\nPhysical & Detail Integrity: 3", [5, 4, 3]),
        ("A: 5\nB: 4", None),
        ("A: 6\nB: 4\nC: 4", None),
        ("A: 5/5\nB: 4\nC: 3", None),
        ("", None),
    ],
)
def test_replies_of_imgedit(reply, scores):
    assert parse_scores(Answer(reply)) == scores


def test_imgedit_is_a_mean_over_types(imgedit):
    scores = {(item.id, 0, name): 1.0 + i % 5 for i, item in enumerate(imgedit.items) for name in ("first", "second")}
    scores |= {(item.id, 0, "third"): 5.0 for item in imgedit.items}
    expected = [(2 * (1 + i % 5) + 5) / 3 for i in range(9)]
    assert imgedit.score(scores).metrics["overall"].value == pytest.approx(sum(expected) / 9)
    rounded = imgedit.score(scores, quirks=True)
    assert rounded.metrics["overall"].value == pytest.approx(sum(round(value, 2) for value in expected) / 9)
    assert rounded.quirks and rounded.metrics["overall"].value != imgedit.score(scores).metrics["overall"].value


def test_the_official_files_of_imgedit(imgedit):
    replies = {item.id: "A: 5\nB: 4\nC: 4" for item in imgedit.items} | {"0": {"error": "x"}}
    scores = imgedit.read_official(json.dumps(replies).encode(), "result.json")
    assert scores["0", 0, "mean"] is None and scores["1", 0, "mean"] == pytest.approx(13 / 3)
    means = imgedit.read_official(json.dumps({item.id: 4.33 for item in imgedit.items}).encode(), "average_score.json")
    assert imgedit.score(means).metrics["overall"].value == pytest.approx(4.33)
    with pytest.raises(InputError, match="no edit '99'"):
        imgedit.read_official(b'{"99": 4}', "average_score.json")


def test_a_source_cannot_lead_out_of_the_folder(tmp_path):
    made.imgedit(tmp_path / "data")
    made.write_image(tmp_path / "secret.png", 1)
    entries = json.loads((tmp_path / "data" / "basic_edit.json").read_text())
    entries["0"]["id"] = "../../secret.png"
    made.write(tmp_path / "data" / "basic_edit.json", entries)
    with pytest.raises(InputError, match="a link out of the folder"):
        source_of(ImgEdit(tmp_path / "data", unofficial=True).items[0])


def test_a_whole_run_of_gedit(whole_run, judge, data, tmp_path):
    judge.reply = lambda text, count: '{"score": [8, 9]}' if "instruction" in text else '{"score": [2, 3], "reasoning": ""}'
    score = whole_run("gedit-en", data / "gedit", 11)
    assert score["counts"]["scored"] == 22 and score["metrics"]["G_O"]["value"] == pytest.approx(4)
    folder = tmp_path / "gedit-en" / "images" / "nextstep" / "fullset" / "subject-add" / "en"
    key = f"{6:032x}"
    assert sorted(path.name for path in folder.iterdir()) == [f"{key}.png", f"{key}_SRCIMG.png"]
    assert load(folder / f"{key}_SRCIMG.png").getpixel((0, 0)) == (60, 60, 60)
    images = [part["image_url"]["url"] for part in judge.bodies[0][0]["messages"][0]["content"][1:]]
    assert all(load(base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))).size == (64, 64) for url in images)


def test_a_whole_run_of_gedit_in_chinese(whole_run, judge, tmp_path):
    """The rows of the other language are left alone. (The tiny model reads no Chinese.)"""
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    image = io.BytesIO()
    Image.new("RGB", (64, 64), "gray").save(image, "PNG")
    source = {"bytes": image.getvalue(), "path": None}
    both = dict(input_image=source, input_image_raw=source, Intersection_exist=True)
    rows = [
        dict(
            task_type=task, key=str(i), instruction="blue circle" if language == "cn" else "red", instruction_language=language
        )
        for i, task in enumerate(TASKS)
        for language in ("en", "cn")
    ]
    (tmp_path / "data").mkdir()
    parquet.write_table(pa.Table.from_pylist([row | both for row in rows]), tmp_path / "data" / "train.parquet")
    judge.reply = lambda text, count: '{"score": [9, 9]}'
    score = whole_run("gedit-cn", tmp_path / "data", 11)
    assert score["counts"]["scored"] == 22 and score["metrics"]["G_O"]["value"] == pytest.approx(9)
    asked = [body["messages"][0]["content"][0]["text"] for body, _ in judge.bodies]
    assert sum("blue circle" in text for text in asked) >= 11 and not any("red" in text.split() for text in asked)
    assert len(list((tmp_path / "gedit-cn" / "images" / "nextstep" / "fullset").glob("*/cn/?.png"))) == 10


def test_a_whole_run_of_imgedit(whole_run, judge, data, tmp_path):
    judge.reply = lambda text, count: "no idea" if "Rate this style" in text else "A: 5\nB: 4\nC: 3"
    score = whole_run("imgedit", data / "imgedit", 9)
    assert score["counts"]["unparsable"] == 3 and score["metrics"]["overall"]["value"] is None
    assert score["metrics"]["add"]["value"] == 4
    assert sorted(path.name for path in (tmp_path / "imgedit" / "images").iterdir()) == [f"{i}.png" for i in range(9)]
