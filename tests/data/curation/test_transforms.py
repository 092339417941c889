"""What transforms make of pairs: control images, degraded images, captions from a stand-in for a language model."""

import numpy as np
import pytest
import scipy.ndimage

from nextstep_jax.data.curation.captions import Recaption
from nextstep_jax.data.curation.controls import CONTROLS, Controls, control_image
from nextstep_jax.data.curation.degradations import INSTRUCTIONS, Degradations, degrade
from nextstep_jax.data.curation.image_signals import gray
from nextstep_jax.data.curation.model_signals import Judgement, Nsfw, Ocr, parse_answer
from nextstep_jax.data.curation.stages import Dropped, generator
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from tests.data.curation.scenes import photograph
from tests.stand_in import asked, chat_reply

cv2 = pytest.importorskip("cv2")


def pair(seed=0, caption="a red circle", key="key"):
    return Sample((TextPart(caption), ImagePart.from_pixels(np.asarray(photograph(seed)))), "pair", key, {}, {"score": 1})


def make(stage, sample, name="stage"):
    return list(stage.prepare()(sample, {}, generator(sample, name)))


PIXELS = np.asarray(photograph(0))


@pytest.mark.parametrize("kind", CONTROLS)
def test_a_control_image_says_less_than_the_image_and_is_repeatable(kind):
    first, second = (control_image(kind, PIXELS, np.random.default_rng(3), cv2) for _ in range(2))
    assert first.shape == PIXELS.shape and first.dtype == np.uint8 and np.array_equal(first, second)
    assert len(np.unique(first.reshape(-1, 3), axis=0)) < len(np.unique(PIXELS.reshape(-1, 3), axis=0))


def test_control_images_by_what_they_are_for():
    def image(kind):
        return control_image(kind, PIXELS, np.random.default_rng(0), cv2)

    assert set(np.unique(image("canny"))) == {0, 255}
    assert np.array_equal(image("gray")[..., 0], gray(PIXELS))
    smooth = scipy.ndimage.gaussian_filter(gray(PIXELS).astype(float), 1.5)
    gradient = np.hypot(scipy.ndimage.sobel(smooth, 0), scipy.ndimage.sobel(smooth, 1))
    assert (
        np.corrcoef(image("soft_edge")[..., 0].ravel(), np.minimum(gradient, np.percentile(gradient, 99)).ravel())[0, 1] > 0.99
    )
    assert len(np.unique(image("segmentation").reshape(-1, 3), axis=0)) <= 6
    masked = (image("mask") != PIXELS).any(axis=2)
    assert 0.08 <= masked.mean() <= 0.5 and (image("mask")[masked] == 127).all()
    block = image("color_grid")[:32, :32].reshape(-1, 3)
    assert (block == block[0]).all() and np.allclose(block[0], PIXELS[:32, :32].mean(axis=(0, 1)), atol=1)


def test_pairs_become_edits_in_both_directions():
    edits = [edit for n in range(12) for edit in make(Controls(("canny",)), pair(key=f"key{n}"))]
    assert {edit.metadata["direction"] for edit in edits} == {"generate", "perceive"}
    for edit in edits:
        source, target = edit.images
        image, control = (target, source) if edit.metadata["direction"] == "generate" else (source, target)
        assert np.array_equal(image.pixels(), PIXELS) and set(np.unique(control.pixels())) == {0, 255}
        assert [source.loss, target.loss] == [False, True] and edit.kind == "edit" and edit.metadata["score"] == 1
        assert ("a red circle" in edit.texts[0].text) == (edit.metadata["direction"] == "generate")
        assert "edge map" in edit.texts[0].text and edit.key.endswith("#canny")


def test_the_same_sample_gives_the_same_edits_and_other_kinds_each_time():
    stage = Controls(per_image=7)
    first, second = make(stage, pair()), make(stage, pair())
    assert first == second and {edit.metadata["control"] for edit in first} == set(CONTROLS)
    assert make(Controls(), pair(key="a")) != make(Controls(), pair(key="b"))


@pytest.mark.parametrize("kind", INSTRUCTIONS)
def test_a_degraded_image_is_like_the_original_and_worse(kind):
    degraded = degrade(kind, PIXELS, np.random.default_rng(1), cv2)
    assert degraded.shape == PIXELS.shape and degraded.dtype == np.uint8
    assert np.array_equal(degraded, degrade(kind, PIXELS, np.random.default_rng(1), cv2))
    error = np.mean((degraded.astype(float) - PIXELS) ** 2)
    assert 20 < error < 15_000  # a PSNR between 6 and 35 dB
    (edit,) = make(Degradations((kind,)), pair())
    assert edit.texts[0].text in INSTRUCTIONS[kind] and edit.images[1].data == pair().images[0].data
    assert [part.loss for part in edit.images] == [False, True] and edit.metadata["degradation"] == kind


@pytest.mark.parametrize("stage", [Controls(), Degradations(), Recaption("openai:http://localhost/v1#m")])
def test_what_is_no_pair_is_left_out(stage):
    with pytest.raises(Dropped, match="key: .* found kind 'text'") as dropped:
        make(stage, Sample((TextPart("words"),), "text", "key"))
    assert dropped.value.reason == "not a pair"


# --- language models --------------------------------------------------------------------------------------------------


def test_captions_in_languages_and_styles(server):
    captions = {(style, language): f"{style} {language}" for style in ("paragraph", "sentence") for language in ("En", "Ch")}
    server.answer = lambda path, body, count: chat_reply(
        next(f" {caption}\n" for words, caption in captions.items() if all(word in asked(body) for word in words))
    )
    stage = Recaption(f"openai:{server.url}/v1#m", styles=("dense", "short"))
    (made,) = make(stage, pair())
    assert made.texts[0].text == "paragraph En" and made.kind == "pair" and made.images == pair().images
    assert made.caption_variants == {
        "dense.zh": "paragraph Ch", "short.en": "sentence En", "short.zh": "sentence Ch", "original": "a red circle",
    }  # fmt: skip
    questions = [asked(body) for body, _ in server.bodies]
    assert all('"a red circle"' in question for question in questions)
    assert sorted("Chinese" in question for question in questions) == [False, False, True, True]
    assert server.bodies[0][0]["messages"][0]["content"][1]["type"] == "image_url"


@pytest.mark.parametrize("reply", [chat_reply(""), chat_reply(None), (400 + 100, b"")])
def test_a_caption_that_is_not_given_leaves_the_sample_out(server, reply, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.answer = lambda path, body, count: chat_reply("good") if "English" in asked(body) else reply
    with pytest.raises(Dropped, match="the model gave no dense caption in Chinese") as dropped:
        make(Recaption(f"openai:{server.url}/v1#m"), pair())
    assert dropped.value.reason == "no caption"


def test_a_judgement_asks_with_the_text_and_the_images(server):
    server.answer = lambda path, body, count: chat_reply("7")
    stage = Judgement("Does {text} fit?", endpoint=f"openai:{server.url}/v1#m")
    assert stage.prepare()(pair()) == {"score": 0.7}
    assert asked(server.bodies[0][0]).startswith("Does a red circle fit?\nAnswer with one number")
    sources = (ImagePart.from_pixels(np.asarray(photograph(n)), loss=False) for n in range(2))
    stage.prepare()(Sample((*sources, TextPart("go"), pair().images[0]), "edit", "key"))
    assert [part["type"] for part in server.bodies[1][0]["messages"][0]["content"]] == ["text", *["image_url"] * 3]


@pytest.mark.parametrize(
    "reply, form, expected",
    [
        ("Yes.", "yes_no", 1.0),
        ("no", "yes_no", 0.0),
        ("Yes, I think", "yes_no", None),
        ("", "yes_no", None),
        ("7", "scale", 0.7),
        (" 7.5/10 ", "scale", 0.75),
        ("10", "scale", 1.0),
        ("11", "scale", None),
        ("-1", "scale", None),
        ("about 7", "scale", None),
        ("7 or 8", "scale", None),
    ],
)
def test_an_answer_is_a_number_only_if_it_says_one(reply, form, expected):
    assert parse_answer(reply, form) == expected


def test_models_that_packages_ship():
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    page = PIL.Image.new("RGB", (320, 160), "white")
    PIL.ImageDraw.Draw(page).text((20, 60), "HELLO WORLD", fill="black", font=PIL.ImageFont.load_default(36))
    sample = Sample((TextPart("a"), ImagePart.from_pixels(np.asarray(page))), "pair", "key")
    found = Ocr().prepare()(sample)
    assert found["text"].replace(" ", "") == "HELLOWORLD" and found["lines"] == 1 and 0.05 < found["area"] < 0.35
    bare = Sample((TextPart("a"), ImagePart.from_pixels(PIXELS // 8 + 100)), "pair", "key")
    assert Ocr().prepare()(bare) == {"area": 0.0, "lines": 0, "text": ""}
    assert 0 <= Nsfw().prepare()(pair())["score"] < 0.3
