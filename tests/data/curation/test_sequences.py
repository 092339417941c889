"""Sequences of keyframes: near-equal frames, lengths, words of the screen and of a storyline."""

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest

from nextstep_jax.data.curation.sequences import DistinctFrames, ScreenText, Storyline
from nextstep_jax.data.curation.stages import Dropped
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from tests.data.curation.scenes import near_duplicates, photograph
from tests.stand_in import asked, chat_reply

SEQUENCE = "abcdefghijklmnop"


def sample_of(*parts) -> Sample:
    """Texts, and images by number or as they are."""
    made = []
    for part in parts:
        if isinstance(part, str):
            made.append(TextPart(part))
        else:
            image = photograph(part, 96, 128) if isinstance(part, int) else part
            made.append(ImagePart.from_pixels(np.asarray(image)))
    return Sample(tuple(made), "interleaved", "film", {}, {"shots": []})


def outline(sample: Sample, known: int = 16) -> list[str | int]:
    """Texts, and the numbers of images."""
    numbers = {np.asarray(photograph(n, 96, 128)).tobytes(): n for n in range(known)}
    return [part.text if isinstance(part, TextPart) else numbers[part.pixels().tobytes()] for part in sample.parts]


def make(stage, sample):
    return list(stage.prepare()(sample, {}, np.random.default_rng(0)))


def test_near_equal_and_empty_frames_go_and_their_words_stay():
    near, black = near_duplicates(photograph(1, 96, 128))["jpeg"], np.zeros((96, 128, 3), np.uint8)
    (made,) = make(DistinctFrames(), sample_of("a", 1, "b", near, "c", 2, "d", black, "e", 3, "f", black))
    assert outline(made) == ["a", 1, "b c", 2, "d e", 3, "f"]
    assert (made.kind, made.key, made.metadata) == ("interleaved", "film#0", {"shots": []})


def test_a_frame_that_comes_again_later_is_kept():
    (made,) = make(DistinctFrames(), sample_of(1, 2, 1))
    assert outline(made) == [1, 2, 1]


@pytest.mark.parametrize("most, expected", [(2, [["a", 0, "b", 1], ["c", 2, "d", 3]]), (3, [["a", 0, "b", 1, "c", 2]])])
def test_long_sequences_are_cut_before_the_text_of_an_image(most, expected):
    made = make(DistinctFrames(max_images=most), sample_of("a", 0, "b", 1, "c", 2, "d", 3, "e", *([4] if most == 2 else [])))
    assert [outline(sample) for sample in made] == expected
    assert [sample.key for sample in made] == [f"film#{n}" for n in range(len(expected))]


def test_too_few_frames():
    with pytest.raises(Dropped, match="film: under 2 distinct frames") as dropped:
        make(DistinctFrames(), sample_of("a", 1, 1))
    assert dropped.value.reason == "too few distinct frames"


def slide(text: str) -> PIL.Image.Image:
    image = PIL.Image.new("RGB", (420, 120), "white")
    PIL.ImageDraw.Draw(image).text((10, 30), text, fill="black", font=PIL.ImageFont.load_default(36))
    return image


def test_words_of_the_screen_that_were_not_said_are_added():
    sample = sample_of("We add the numbers", slide("ADD NUMBERS"), slide("STEP TWO"), "then", slide("MULTIPLY"))
    (made,) = make(ScreenText(), sample)
    texts = [part.text.upper().replace(" ", "") if isinstance(part, TextPart) else "*" for part in made.parts]
    assert texts == ["WEADDTHENUMBERS", "*", "STEPTWO", "*", "THENMULTIPLY", "*"]


def test_a_storyline_goes_on_from_the_captions_before(server):
    server.answer = lambda path, body, count: chat_reply(f"caption {count}") if count < 4 else chat_reply("")
    stage = Storyline(f"openai:{server.url}/v1#m", context=1)
    (made,) = make(stage, sample_of(1, "they say hello", 2, 3))
    assert outline(made) == ["caption 1", 1, "caption 2", 2, "caption 3", 3]
    questions = [asked(body) for body, _ in server.bodies]
    assert "Captions before" not in questions[0]
    assert questions[1].endswith("Captions before:\ncaption 1\nWhat is said: they say hello")
    assert questions[2].endswith("Captions before:\ncaption 2")
    with pytest.raises(Dropped, match="no caption for image 0") as dropped:
        make(stage, sample_of(1))
    assert dropped.value.reason == "no caption"
