"""Questions of stages: several in flight and no more, none twice, a budget; whole recipes with a stand-in for the model."""

import collections
import importlib
import threading

import numpy as np
import PIL.Image
import pytest

from nextstep_jax.chat import Question
from nextstep_jax.data.curation import job, stages
from nextstep_jax.data.curation.model_signals import Judgement
from nextstep_jax.data.curation.questions import Asks
from nextstep_jax.data.curation.recipe import read_recipe, with_endpoint
from nextstep_jax.data.curation.stages import description
from nextstep_jax.data.shards import ArrayRecordSource
from nextstep_jax.data.sources import open_source
from nextstep_jax.errors import InputError
from tests.stand_in import asked, chat_reply


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts


def echo(path, body, count):
    system = f" in {body['messages'][0]['content']}" if len(body["messages"]) > 1 else ""
    return chat_reply(f"to {asked(body)}{system}")


def test_as_many_questions_are_in_flight_as_allowed_and_answers_keep_their_order(server):
    together, lock = threading.Barrier(3), threading.Lock()
    now = most = 0

    def answer(path, body, count):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        together.wait(60)  # passes only where three are asked at once
        with lock:
            now -= 1
        return echo(path, body, count)

    server.answer = answer
    ask = Asks(concurrency=3).open(f"openai:{server.url}/v1#m", "test")
    questions = [Question(str(n)) for n in range(9)]
    assert ask(questions, 10) == [f"to {n}" for n in range(9)] and most == 3


def test_what_was_answered_is_not_asked_again(server, tmp_path):
    server.answer = echo
    image = np.zeros((4, 4, 3), np.uint8)
    questions = [Question("a", [image]), Question("a", [image + 1]), Question("b", [image]), Question("a", [image], "system")]
    answers = tmp_path / "answers"
    for _ in range(2):
        ask = Asks(answers=str(answers)).open(f"openai:{server.url}/v1#m", "test")
        assert ask(questions, 10) == ["to a", "to a", "to b", "to a in system"]
        assert len(server.bodies) == 4
    Asks(answers=str(answers)).open(f"openai:{server.url}/v1#other", "test")(questions[:1], 10)
    ask(questions[:1], 11)
    assert len(server.bodies) == 6
    for kept in answers.glob("*/*.json"):
        kept.write_text("{}")  # no answer: asked again
    assert ask(questions[:1], 10) == ["to a"] and len(server.bodies) == 7


def test_no_answer_is_not_kept(server, tmp_path):
    server.answer = lambda path, body, count: chat_reply(None)
    ask = Asks(answers=str(tmp_path / "answers")).open(f"openai:{server.url}/v1#m", "test")
    assert ask([Question("a")], 10) == [None] and not list((tmp_path / "answers").rglob("*.json"))


def test_settings_of_asking_are_no_part_of_the_result():
    first = Judgement("?", endpoint="openai:http://localhost/v1#m")
    second = Judgement("?", endpoint="openai:http://localhost/v1#m", concurrency=2, answers="folder", max_requests=7)
    assert description(first) == description(second) != description(Judgement("!", endpoint=first.endpoint))


# --- recipes ----------------------------------------------------------------------------------------------------------


def recipe(server, **asking):
    settings = {
        "name": "captions",
        "signals": {"judgement": {"question": "Is it good?", "answer": "yes_no", "endpoint": ""}},
        "duplicates": {},
        "cuts": {"all": ("judgement.score == 1",)},
        "transforms": {"recaption": {"endpoint": "", "languages": ("en",), "styles": ("dense", "short")}},
    }
    with_endpoint(settings, f"openai:{server.url}/v1#m", **asking)
    return read_recipe(settings)


def test_captions_stand_with_their_images_and_those_missing_are_counted(server, tmp_path):
    """Every question says the caption, and so does every answer; of one sample there is none."""

    def answer(path, body, count):
        text = asked(body)
        if "Is it good" in text:
            return chat_reply("yes")
        caption = text.split('the point: "')[1].split('". Answer')[0]
        return chat_reply(None if caption == silent else f"as {caption}")

    source = open_source("shapes:pair:train:40")
    captions = [source[n].texts[0].text for n in range(40)]
    silent = next(caption for caption in captions if captions.count(caption) == 1)
    server.answer = answer
    report = job.curate(source, recipe(server), tmp_path / "out", shard_samples=25)
    kept = ArrayRecordSource(tmp_path / "out" / "all")
    assert [kept[n].texts[0].text for n in range(39)] == [f"as {caption}" for caption in captions if caption != silent]
    assert report["cuts"]["all"]["kept"] == 40 and report["cuts"]["all"]["written"] == 39
    assert "no caption" in str(report["cuts"]["all"])


def test_a_job_without_requests_left_goes_on_with_what_was_answered(server, tmp_path):
    server.answer = lambda path, body, count: chat_reply("yes" if "Is it good" in asked(body) else "a caption")
    source, answers = open_source("shapes:pair:train:20"), str(tmp_path / "answers")
    for _ in range(2):
        stages._prepare.cache_clear()  # as in a new process
        with pytest.raises(InputError, match="the 12 requests of max_requests are used up; the same command goes on"):
            job.curate(source, recipe(server, answers=answers, max_requests=12), tmp_path / "out")
    stages._prepare.cache_clear()
    report = job.curate(source, recipe(server, answers=answers), tmp_path / "out")
    assert report["cuts"]["all"]["written"] == 20 and len(server.bodies) == 20 + 40


def test_edits_are_judged_by_the_papers_four_criteria(server, tmp_path):
    """Every fifth instruction passes; the others miss one criterion each, by turns, and are counted under it."""
    criteria = {
        "quality": "free of artifacts",
        "rationality": "make sense",
        "consistency": "unchanged",
        "alignment": "asks for",
    }
    source, names = open_source("shapes:edit:train:15"), [*criteria, ""]
    instructions = [source[n].texts[0].text for n in range(15)]
    missed = {instruction: names[n % 5] for n, instruction in enumerate(dict.fromkeys(instructions))}

    def answer(path, body, count):
        lines = asked(body).splitlines()
        (about,) = (name for name, words in criteria.items() if words in lines[1])
        assert sum(part["type"] == "image_url" for part in body["messages"][-1]["content"]) == 2
        return chat_reply("6" if about == missed[lines[0].split("The instruction: ")[1]] else "8")

    server.answer = answer
    settings = importlib.import_module("nextstep_jax.configs.curate_edits").get_config().to_dict()
    settings |= {"duplicates": {}, "cuts": {"sft": settings["cuts"]["sft"][1:]}}  # shapes are small, and much alike
    with_endpoint(settings, f"openai:{server.url}/v1#m")
    report = job.curate(source, read_recipe(settings), tmp_path / "out")
    counts = collections.Counter(missed[instruction] for instruction in instructions)
    assert len(counts) == 5 and report["cuts"]["sft"]["dropped"] == {f"not {n}.score >= 0.7": counts[n] for n in criteria}
    kept = ArrayRecordSource(tmp_path / "out" / "sft")
    assert [kept[n].texts[0].text for n in range(len(kept))] == [text for text in instructions if not missed[text]]
    assert len(server.bodies) == 15 * 4


def test_pairs_are_scored_once_cut_three_times_and_captioned_in_two_languages(server, tmp_path):
    """Three photographs: one is good enough for every cut, one is not beautiful enough for the last, one too small for two."""
    data = pytest.importorskip("skimage.data")
    photos = {"astronaut": "9", "camera": "7", "coffee": "9"}
    for name in photos:
        PIL.Image.fromarray(getattr(data, name)()).convert("RGB").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"a photograph called {name}")

    def answer(path, body, count):
        text = asked(body)
        if "watermark" in text:
            return chat_reply("no")
        if "beautiful" in text:
            seen[body["messages"][-1]["content"][1]["image_url"]["url"]] = None
            return chat_reply(list(photos.values())[list(seen).index(body["messages"][-1]["content"][1]["image_url"]["url"])])
        name = next(name for name in photos if name in text)
        if "How well does this text" in text:
            return chat_reply("9")
        return chat_reply(f"{'详细' if 'Chinese' in text else 'in English'}: {name}")

    seen: dict[str, None] = {}  # images, in the order of the source
    server.answer = answer
    settings = importlib.import_module("nextstep_jax.configs.curate_pairs").get_config().to_dict()
    with_endpoint(settings, f"openai:{server.url}/v1#m", concurrency=1)
    report = job.curate(open_source(tmp_path), read_recipe(settings), tmp_path / "out")
    names = {"pretrain": list(photos), "anneal": ["astronaut", "camera"], "sft": ["astronaut"]}
    for cut, expected in names.items():
        made = ArrayRecordSource(tmp_path / "out" / cut)
        assert [made[n].key for n in range(len(made))] == [f"{name}.png" for name in expected], report["cuts"][cut]
        for sample, name in zip((made[n] for n in range(len(made))), expected, strict=True):
            assert sample.texts[0].text == f"in English: {name}" and sample.caption_variants["short.zh"] == f"详细: {name}"
            assert sample.caption_variants["original"] == f"a photograph called {name}"
    judged = [body for body, _ in server.bodies if "beautiful" in asked(body) or "How well" in asked(body)]
    assert len(judged) == 2 * 3  # whatever the number of cuts
