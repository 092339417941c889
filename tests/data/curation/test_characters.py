"""Who is in which frame: faces drawn for a detector and a recognizer made here, clusters, sequences, the check list."""

import numpy as np
import pytest

from nextstep_jax.data.curation.characters import QUESTIONS, Characters, CheckList
from nextstep_jax.data.curation.faces import Face, cluster, open_face_finder
from nextstep_jax.data.curation.stages import Dropped, description
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.errors import InputError
from tests.data.curation.onnx_files import FACE, face, write_face_models
from tests.data.curation.scenes import photograph
from tests.data.test_video_folder import write_video
from tests.stand_in import asked, chat_reply

pytest.importorskip("cv2")

PLACES = ((16, 24), (72, 120))  # top, left of the first and the second person


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_face_models(tmp_path_factory.mktemp("faces"))


def frame(seed: int, *people: int) -> np.ndarray:
    """[128, 192, 3]: a gray photograph, dark or bright by turns, with people."""
    gray = np.asarray(photograph(seed, 128, 192).convert("L").convert("RGB")) // 2 + (100 if seed % 2 else 0)
    gray = gray.astype(np.uint8)
    for person in people:
        top, left = PLACES[person]
        gray[top : top + FACE, left : left + FACE] = face(person)
    return gray


def write_film(folder) -> None:
    """film.mp4 of eight shots of a second, and subtitles: the first person is in four of them, the second in three."""
    people = ((0,), (1,), (0, 1), (), (0,), (1,), (0,), ())
    write_video(folder / "film.mp4", [frame(10 + n, *who) for n, who in enumerate(people) for _ in range(12)])
    lines = (f"{n + 1}\n00:00:0{n},200 --> 00:00:0{n},800\nshot {n}\n" for n in range(len(people)))
    (folder / "film.srt").write_text("\n".join(lines))


def sample_of(*parts) -> Sample:
    made = [TextPart(part) if isinstance(part, str) else ImagePart.from_pixels(part) for part in parts]
    return Sample(tuple(made), "interleaved", "film", {}, {"shots": []})


def make(stage, sample):
    return list(stage.prepare()(sample, {}, np.random.default_rng(0)))


def test_faces_are_found_where_they_are_and_told_apart(models):
    find = open_face_finder(**models, min_confidence=0.8, min_side=20)
    assert find(frame(0)) == []
    first, second = sorted(find(frame(1, 0, 1)), key=lambda found: found.box)
    assert first.box == (24, 16, FACE, FACE) and second.box == (120, 72, FACE, FACE) and first.confidence > 0.9
    (again,) = find(frame(2, 0))
    assert first.vector @ again.vector > 0.9 > 0 > first.vector @ second.vector
    assert open_face_finder(**models, min_confidence=0.8, min_side=FACE + 1)(frame(1, 0, 1)) == []


def unit(*vector) -> Face:
    return Face((0, 0, 1, 1), 1.0, np.asarray(vector) / np.linalg.norm(vector))


def test_faces_of_one_frame_are_different_people():
    frames = [[unit(1, 0), unit(0.9, 0.1)], [unit(0.95, 0.05)], [], [unit(0, 1), unit(1, 0)]]
    assert cluster(frames, 0.5) == [[(0, 0), (1, 0), (3, 1)], [(0, 1)], [(3, 0)]]
    assert cluster([[unit(1, 0)], [unit(1, 0.2), unit(1, 0.1)]], 0.5) == [[(0, 0), (1, 1)], [(1, 0)]]  # the nearest joins
    assert cluster([[unit(1, 0)], [unit(0.7, 0.714)]], 0.8) == [[(0, 0)], [(1, 0)]]
    assert cluster([], 0.5) == [] and cluster([[]], 0.5) == []


def test_each_person_of_enough_frames_gets_a_sequence(models):
    frames = [frame(n, *people) for n, people in enumerate(((0,), (0, 1), (), (1,), (0,), (1,)))]
    sample = sample_of(*(part for n, pixels in enumerate(frames) for part in (f"text {n}", pixels)), "the end")
    first, second = make(Characters(**models, min_face=20), sample)
    for made, number, chosen in ((first, 0, (0, 1, 4)), (second, 1, (1, 3, 5))):
        assert [part.text for part in made.texts] == [f"text {n}" for n in chosen] and made.kind == "interleaved"
        assert all(np.array_equal(part.pixels(), frames[n]) for part, n in zip(made.images, chosen, strict=True))
        top, left = PLACES[number]
        assert made.metadata == {"shots": [], "character": {"number": number, "boxes": [[left, top, FACE, FACE]] * 3}}
    assert [first.key, second.key] == ["film#p0.0", "film#p1.0"]


def test_long_sequences_are_cut_and_short_ends_left_out(models):
    sample = sample_of(*(frame(n, 0) for n in range(5)))
    assert [len(made.images) for made in make(Characters(**models, min_images=2, max_images=3), sample)] == [3, 2]
    assert [len(made.images) for made in make(Characters(**models, max_images=3), sample)] == [3]


def test_nobody_is_counted(models):
    with pytest.raises(Dropped, match="film: nobody is in at least 3 images") as dropped:
        make(Characters(**models), sample_of(frame(0, 0), frame(1, 1), frame(2, 0)))
    assert dropped.value.reason == "no character"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"detector": ""}, "detector is not set .*face_detection_yunet_2023mar.onnx"),
        ({"recognizer": "/nowhere.onnx"}, "recognizer: /nowhere.onnx: no such file"),
        ({"recognizer": __file__}, "recognizer: .*: not a model that OpenCV can run"),
        ({"detector": __file__}, "detector: .*: not a model that OpenCV can run"),
    ],
)
def test_a_missing_model_fails_at_the_start_by_name(models, changes, message):
    with pytest.raises(InputError, match=message) as error:
        Characters(**models | changes).prepare()
    assert "\n" not in str(error.value)


def test_the_models_bytes_count(models):
    names = [name for name, _ in description(Characters(**models))["model_files"]]
    assert names == ["detector.onnx", "recognizer.onnx"]


# --- the check list ---------------------------------------------------------------------------------------------------


def test_a_sequence_that_passes_the_check_list_stays_as_it_is(server):
    server.answer = lambda path, body, count: chat_reply("Yes.")
    sample = sample_of("Ann walks.", frame(0), "Ann sits.", frame(1))
    assert make(CheckList(endpoint=f"openai:{server.url}/v1#m"), sample) == [sample]
    questions = sorted(asked(body) for body, _ in server.bodies)
    written = "Ann walks.\n[image 1]\nAnn sits.\n[image 2]\n"
    assert questions == sorted(f"{written}{question}\nAnswer with yes or no only." for question in QUESTIONS)
    assert [part["type"] for part in server.bodies[0][0]["messages"][0]["content"]] == ["text", "image_url", "image_url"]


@pytest.mark.parametrize("reply, reason", [("no", "check list: B?"), ("maybe", "check list not answered")])
def test_the_first_question_that_is_not_answered_with_yes_is_the_reason(server, reply, reason):
    server.answer = lambda path, body, count: chat_reply("yes" if "A?" in asked(body) else reply)
    stage = CheckList(("A?", "B?", "C?"), f"openai:{server.url}/v1#m")
    with pytest.raises(Dropped, match=r"film: B\?") as dropped:
        make(stage, sample_of("a", frame(0)))
    assert dropped.value.reason == reason
