"""The contact sheet: what is on it and in which order, and that nothing on it can run or load."""

import html.parser
import json
import re

import numpy as np
import pytest

from nextstep_jax.data.image_output import save_image
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.contact_sheet import Card, Verdict, export_cards, render_sheet
from nextstep_jax.evaluation.suites.results import Lines

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> \" ' & {braces}"


def result(id, score, **changes):
    fields = dict(suite="geneval", id=id, sample=0, criterion="correct", score=score, raw=f"reply {id}", judge="m at u")
    fields |= dict(temperature=0.0, date="d", prompt_sha256="p", image_sha256="i", attempt=1, error=None)
    return fields | changes


@pytest.fixture
def out(tmp_path):
    """An export of four prompts: right, wrong, unread, not judged."""
    prompts = []
    for i in range(4):
        prompts.append({"id": str(i), "prompt": f"prompt {i}", "groups": ["g"], "files": [f"{i}/a.png"], "seed": 0})
        (tmp_path / "images" / f"{i}").mkdir(parents=True)
        save_image(tmp_path / "images" / f"{i}" / "a.png", np.full((600, 300, 3), 40 * i, np.uint8))
    prompts[1]["prompt"] = EVIL
    (tmp_path / "nextstep.json").write_text(json.dumps({"suite": "geneval", "prompts": prompts}))
    with Lines(tmp_path / "results.jsonl") as lines:
        lines.append([result("0", 1.0), result("1", 0.0, raw=EVIL), result("2", None, raw="maybe", error="unread")])
    return tmp_path


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_worst_come_first_and_text_is_text(out):
    cards, title, total = export_cards(out, out / "results.jsonl")
    text = render_sheet(cards, title, total)
    page = Page(text)
    assert [card.id for card in cards] == ["2", "1", "0"] and total == 3
    assert page.text.index("prompt 2") < page.text.index(EVIL) < page.text.index("prompt 0")
    assert page.text.count(EVIL) == 2 and "reply 0" in page.text and "geneval: m at u" in page.text
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "link", "object", "a", "form"}
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3 and all(i["src"].startswith("data:image/jpeg;base64,") for i in images)
    assert all(i["height"] == "256" and i["width"] == "128" for i in images)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "default-src 'none'" in text and not re.search(r"https?://|url\(", text)


def test_only_the_worst(out):
    cards, title, total = export_cards(out, out / "results.jsonl", limit=2)
    assert [card.id for card in cards] == ["2", "1"]
    assert "the worst 2 of 3 prompts" in render_sheet(cards, title, total)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../secret.png", "0/../../x.png"])
def test_no_image_from_elsewhere(out, name):
    save_image(out.parent / "secret.png", np.zeros((8, 8, 3), np.uint8))
    record = json.loads((out / "nextstep.json").read_text())
    record["prompts"][0]["files"] = [name]
    (out / "nextstep.json").write_text(json.dumps(record))
    cards, _, _ = export_cards(out, out / "results.jsonl")
    assert "leads out of the folder" in cards[-1].pictures[0]


def test_images_that_cannot_be_read_say_why(out):
    (out / "images" / "0" / "a.png").unlink()
    (out / "images" / "1" / "a.png").write_bytes(b"none")
    cards, title, total = export_cards(out, out / "results.jsonl")
    text = Page(render_sheet(cards, title, total)).text
    assert "0/a.png: cannot be read (No such file" in text and "1/a.png: not a PNG" in text


def test_scores_in_order():
    def card(*scores):
        return Card("x", "p", (), (), [Verdict("v", score) for score in scores])

    assert card(1.0, 0.0).score == 0.5 and card(None, 1.0).score == card().score == -np.inf


@pytest.mark.parametrize("record", ["[]", "{}", '{"prompts": [1]}', '{"prompts": [{"id": "1", "prompt": "x", "files": "x"}]}'])
def test_folders_that_are_no_export(tmp_path, record):
    (tmp_path / "nextstep.json").write_text(record)
    with pytest.raises(InputError, match="not the record of an export"):
        export_cards(tmp_path, tmp_path / "results.jsonl")


def test_results_of_other_prompts(out):
    with Lines(out / "other.jsonl") as lines:
        lines.append([result("9", 1.0)])
    with pytest.raises(InputError, match="other.jsonl: holds no verdict on a prompt of"):
        export_cards(out, out / "other.jsonl")
