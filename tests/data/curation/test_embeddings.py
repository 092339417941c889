"""Alignment and aesthetics by the user's models: ONNX files made here, and a stand-in for an endpoint."""

import json

import numpy as np
import pytest
from PIL import Image

from nextstep_jax.data.curation import job
from nextstep_jax.data.curation.embedders import Preprocessing, open_embedder
from nextstep_jax.data.curation.embedding_signals import Aesthetics, Alignment
from nextstep_jax.data.curation.recipe import read_recipe
from nextstep_jax.data.curation.stages import description
from nextstep_jax.data.image_folder import FolderSource
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.errors import InputError
from tests.data.curation.onnx_files import write_embedder, write_head

pytest.importorskip("onnxruntime")


@pytest.fixture
def embedder(tmp_path):
    return write_embedder(tmp_path / "embedder")


def colored(*colors) -> list[np.ndarray]:
    return [np.full((16, 24, 3), color, np.uint8) for color in colors]


def sample_of(text: str, *images) -> Sample:
    parts = [ImagePart.from_pixels(image) for image in images]
    return Sample((TextPart(text), *parts), "pair" if len(parts) == 1 else "interleaved", "key")


def test_alignment_is_the_cosine_and_of_several_images_the_lowest(embedder):
    measure = Alignment(embedder).prepare()
    (mixed, blue) = colored((0, 150, 200), (0, 0, 200))
    assert measure(sample_of("blue", mixed)) == {"score": 0.8}  # (0, 3, 4) / 5
    assert measure(sample_of("blue and green", mixed))["score"] == pytest.approx(7 / 5 / 2**0.5, abs=2e-2)
    assert measure(sample_of("blue", blue, mixed)) == {"score": 0.8}
    assert measure(sample_of("red", blue)) == {"score": 0.0}
    assert measure(Sample((TextPart("red"),), "text", "key")) == {}


def test_aesthetics_is_what_the_head_says(embedder, tmp_path):
    measure = Aesthetics(embedder, write_head(tmp_path / "head.onnx")).prepare()
    (mixed, green) = colored((0, 150, 200), (0, 150, 0))
    assert measure(sample_of("a", mixed)) == {"score": 0.6} and measure(sample_of("a", green, mixed)) == {"score": 0.6}


def test_pixels_are_prepared_as_the_file_says(tmp_path):
    config = {"size": {"shortest_edge": 10}, "do_center_crop": True, "crop_size": {"height": 6, "width": 8}}
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(config | {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.25, 1], "resample": 0}))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)
    small = np.asarray(Image.fromarray(pixels).resize((20, 10), Image.Resampling.NEAREST), float)[2:8, 6:14] / 255
    expected = (small - [0.1, 0.2, 0.3]) / [0.5, 0.25, 1]
    np.testing.assert_allclose(Preprocessing(path)(pixels)[0], expected.transpose(2, 0, 1), atol=1e-6)


def test_other_weights_are_measured_anew_and_the_same_ones_not(embedder, tmp_path):
    head = tmp_path / "head.onnx"
    write_head(head)
    stage = Aesthetics(embedder, str(head))
    before = description(stage)
    assert description(stage) == before and {name for name, _ in before["model_files"]} >= {"head.onnx", "vision_model.onnx"}
    head.write_bytes(head.read_bytes() + b" ")
    assert description(stage) != before
    assert "model_files" not in description(
        read_recipe(RECIPE | {"signals": {"size": {}}, "cuts": {"all": ()}}).signals["size"]
    )


@pytest.mark.parametrize(
    "missing, message",
    [
        ("vision_model.onnx", "vision_model.onnx: no such file"),
        ("text_model.onnx", "text_model.onnx: no such file"),
        ("tokenizer.json", "tokenizer.json: no such file"),
        ("preprocessor_config.json", "preprocessor_config.json: no such file"),
    ],
)
def test_a_missing_file_is_named_at_the_start(embedder, tmp_path, missing, message):
    (tmp_path / "embedder" / missing).unlink()
    with pytest.raises(InputError, match=message):
        Alignment(embedder).prepare()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("vision_model.onnx", b"nothing", "vision_model.onnx: not an ONNX model"),
        ("tokenizer.json", b"{}", "tokenizer.json: not a tokenizer.json"),
        ("preprocessor_config.json", b'{"size": "large"}', "size must be pixels from 1 to 4096, found 'large'"),
        ("preprocessor_config.json", b'{"size": 8, "image_mean": [0]}', "resample, image_mean or image_std cannot be used"),
        ("preprocessor_config.json", b'{"size": 9}', "vision_model.onnx: cannot be run"),
    ],
)
def test_a_wrong_file_is_named_at_the_start(embedder, tmp_path, name, content, message):
    (tmp_path / "embedder" / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        Alignment(embedder).prepare()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "stage, message",
    [
        (Alignment(), "embedder of an alignment is not set"),
        (Alignment("clip"), "embedder must be onnx:FOLDER or openai:URL#MODEL, found 'clip'"),
        (Alignment("onnx:/nowhere"), "/nowhere: no such folder"),
        (Alignment("openai:localhost"), "expected openai:URL#MODEL"),
        (Aesthetics(), "embedder of aesthetics is not set"),
        (Aesthetics("onnx:/nowhere"), "head of aesthetics is not set"),
        (Aesthetics("onnx:/nowhere", "/nothing.onnx"), "/nothing.onnx: no such file"),
    ],
)
def test_a_signal_without_its_model_fails_by_name(stage, message):
    with pytest.raises(InputError, match=message):
        stage.prepare()


# --- a recipe ---------------------------------------------------------------------------------------------------------

RECIPE = {"name": "mine", "signals": {}, "duplicates": {}, "cuts": {}, "transforms": {}}


def test_wrong_captions_are_found(embedder, tmp_path):
    """Planted: every fifth caption names another color."""
    photos, draw = tmp_path / "photos", np.random.default_rng(0)
    photos.mkdir()
    wrong = set()
    for number in range(30):
        color = int(draw.integers(3))
        pixels = draw.integers(0, 70, (16, 16, 3), np.uint8)
        pixels[..., color] += 150
        if number % 5 == 0:
            color = (color + 1) % 3
            wrong.add(f"{number:02d}")
        Image.fromarray(pixels).save(photos / f"{number:02d}.png")
        (photos / f"{number:02d}.txt").write_text(f"a {('red', 'green', 'blue')[color]} image")
    settings = {"signals": {"alignment": {"embedder": embedder}}, "cuts": {"all": ("alignment.score >= 0.6",)}}
    report = job.curate(FolderSource(photos), read_recipe(RECIPE | settings), tmp_path / "out")
    assert report["cuts"]["all"]["written"] == 24 and report["cuts"]["all"]["dropped"] == {"not alignment.score >= 0.6": 6}


# --- endpoints --------------------------------------------------------------------------------------------------------


def reply(vector) -> tuple[int, bytes]:
    data = [{"object": "embedding", "index": 0, "embedding": vector}]
    return 200, json.dumps({"object": "list", "data": data, "model": "m"}).encode()


def test_an_endpoint_is_asked_for_images_and_texts(server):
    server.answer = lambda path, body, count: reply([3, 4] if "messages" in body else [1, 0])
    assert Alignment(f"openai:{server.url}/v1#clip").prepare()(sample_of("words", *colored(7))) == {"score": 0.6}
    text, image = (next(body for body, _ in server.bodies[2:] if key in body) for key in ("input", "messages"))
    assert text["input"] == "words" and text["model"] == "clip" and text["encoding_format"] == "float"
    assert image["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")


@pytest.mark.parametrize("answer", [(200, b"{}"), (200, b"nothing"), reply([0, 0]), reply(["a"]), reply([float("nan")])])
def test_no_vector_is_not_found_out(server, answer):
    server.answer = lambda path, body, count: answer if count > 2 else reply([1, 0])
    assert Alignment(f"openai:{server.url}/v1#clip").prepare()(sample_of("words", *colored(7))) == {"score": None}


def test_an_endpoint_that_refuses_or_gives_other_lengths(server):
    server.answer = lambda path, body, count: (404, b'{"error": {"message": "no such model"}}')
    with pytest.raises(InputError, match="the endpoint refused the request .*no such model"):
        open_embedder(f"openai:{server.url}/v1#clip", texts=True)
    server.answer = lambda path, body, count: reply([1, 0] if "messages" in body else [1])
    with pytest.raises(InputError, match="an image has 2 dimensions, a text 1"):
        open_embedder(f"openai:{server.url}/v1#clip", texts=True)
