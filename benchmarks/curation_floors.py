"""What curation finds of what was planted, stage by stage, and what tests ask of it at least.

    python -m benchmarks.curation_floors [--only WORD]

Each stage gets items of which it is known whether they are to be found, and a threshold as the recipes have it. Recall is how
many of them were found, precision how many of those found were planted. Photographs are those that scikit-image ships, whole
and in parts; the classifier of watermarks was trained on others. Prints the table of docs/curation.md; exit code 1 if a floor
is not reached.
"""

import argparse
import functools
import io
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from nextstep_jax.data.curation import overlays
from nextstep_jax.data.curation.duplicates import best_of_groups, image_pairs, text_pairs
from nextstep_jax.data.curation.image_signals import PerceptualHash, Sharpness
from nextstep_jax.data.curation.model_signals import Nsfw, Ocr
from nextstep_jax.data.curation.recipe import Duplicates, Recipe, read_recipe
from nextstep_jax.data.curation.sequences import DistinctFrames
from nextstep_jax.data.curation.stages import Dropped, Measure
from nextstep_jax.data.curation.text_signals import Language, MinHash
from nextstep_jax.data.curation.watermarks import Watermark
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.data.video_folder import find_shots
from tests.data.curation.scenes import near_duplicates, photograph
from tests.data.test_video_folder import write_video

# Whether each item was planted, and whether it was found.
Found = tuple[Sequence[bool], Sequence[bool]]


class Floor(NamedTuple):
    """A measurement and what it must come to. `most_others`: the share of items that were not planted and may be found."""

    stage: str
    planted: str
    others: str
    find: Callable[[], Found]
    recall: float = 0.0
    precision: float = 0.0
    most_others: float = 1.0


class Result(NamedTuple):
    planted: int
    others: int
    recall: float
    precision: float
    others_found: float

    def reaches(self, floor: Floor) -> bool:
        of_planted = not self.planted or (self.recall >= floor.recall and self.precision >= floor.precision)
        return of_planted and self.others_found <= floor.most_others


def measure(floor: Floor) -> Result:
    planted, found = (np.asarray(values, bool) for values in floor.find())
    right = int((planted & found).sum())
    return Result(
        int(planted.sum()),
        int((~planted).sum()),
        right / max(1, int(planted.sum())),
        right / max(1, int(found.sum())),
        int((~planted & found).sum()) / max(1, int((~planted).sum())),
    )


# --- items ------------------------------------------------------------------------------------------------------------


@functools.cache
def photographs() -> list[Image.Image]:
    """Seven photographs, whole and in four overlapping parts."""
    from skimage import data

    whole = [getattr(data, name)() for name in ("astronaut", "camera", "chelsea", "coffee", "coins", "rocket")]
    found = []
    for pixels in (*whole, data.stereo_motorcycle()[0]):
        image = Image.fromarray(pixels).convert("RGB")
        width, height = image.size
        w, h = round(0.6 * width), round(0.6 * height)
        places = ((0, 0), (width - w, 0), (0, height - h), (width - w, height - h))
        found += [image, *(image.crop((x, y, x + w, y + h)) for x, y in places)]
    return found


def pages() -> list[Image.Image]:
    """Scanned text."""
    from skimage import data

    return [Image.fromarray(pixels).convert("RGB") for pixels in (data.page(), data.text())]


def with_words(image: Image.Image, seed: int) -> tuple[Image.Image, list[str]]:
    """The image with two lines that hide what is behind them, the second on a sign; and the lines."""
    rng, image = np.random.default_rng(seed), image.resize((320, 320))
    draw, lines = ImageDraw.Draw(image), []
    for number, y in enumerate(rng.integers((20, 180), (120, 270))):
        text = " ".join(map(str, rng.choice(SIGNS, 2)))
        face, place = ImageFont.load_default(int(rng.integers(26, 34))), (int(rng.integers(4, 40)), int(y))
        if number:
            left, top, right, bottom = draw.textbbox(place, text, font=face)
            draw.rectangle((left - 8, top - 8, right + 8, bottom + 8), fill="white")
            draw.text(place, text, "black", font=face)
        else:
            draw.text(place, text, "yellow", font=face, stroke_width=2, stroke_fill="black")
        lines.append(text)
    return image, lines


SIGNS = ["MARKET", "STREET", "OPEN", "NORTH", "FRESH", "COFFEE", "TICKETS", "RIVER"]


def value_of(measure: Measure, name: str, item: Image.Image | str):
    part = TextPart(item) if isinstance(item, str) else ImagePart.from_pixels(np.asarray(item))
    return measure(Sample((part,), "text" if isinstance(item, str) else "pair", "key"))[name]


def judged(planted: Iterable, others: Iterable, is_found: Callable[..., bool]) -> Found:
    planted, others = list(planted), list(others)
    return [True] * len(planted) + [False] * len(others), [is_found(item) for item in (*planted, *others)]


# --- images -----------------------------------------------------------------------------------------------------------


def find_blurred() -> Found:
    measure = Sharpness().prepare()
    images = [*photographs(), *(photograph(seed, 384, 512) for seed in range(10))]
    blurred = [image.filter(ImageFilter.GaussianBlur(0.012 * min(image.size))) for image in images]
    return judged(blurred, images, lambda image: value_of(measure, "laplacian", image) < 40)


def find_blocks() -> Found:
    def jpeg(image: Image.Image, quality: int) -> Image.Image:
        data = io.BytesIO()
        image.save(data, "JPEG", quality=quality)
        return Image.open(data).convert("RGB")

    measure, images = Sharpness().prepare(), photographs()
    low, high = ([jpeg(image, quality) for image in images] for quality in (8, 92))
    return judged(low, high, lambda image: value_of(measure, "blockiness", image) > 1.4)


def find_lines() -> Found:
    """Lines as items: those planted, and those read that nobody planted. Case and blanks, which OCR loses, do not count."""
    measure, planted, found = Ocr().prepare(), [], []
    for seed, image in enumerate(photographs()[::5]):
        image, lines = with_words(image, seed)
        read = [line.upper().replace(" ", "") for line in value_of(measure, "text", image).splitlines()]
        for line in (line.replace(" ", "") for line in lines):
            planted.append(True)
            found.append(line in read)
            if line in read:
                read.remove(line)
        planted += [False] * len(read)
        found += [True] * len(read)
    return planted, found


def find_text_rich() -> Found:
    measure, drawn = Ocr().prepare(), []
    for seed in range(2):
        page = Image.new("RGB", (320, 240), "white")
        ImageDraw.Draw(page).text((8, 8), prose(seed, 6).replace(" and ", "\n"), "black", font=ImageFont.load_default(20))
        drawn.append(page)
    return judged([pages()[0], *drawn], photographs()[10::10], lambda image: value_of(measure, "area", image) > 0.2)


def find_unsafe() -> Found:
    measure = Nsfw().prepare()
    images = [*photographs(), *pages(), *(photograph(seed, 384, 512) for seed in range(10))]
    return judged([], images, lambda image: value_of(measure, "score", image) >= 0.3)


def find_watermarks() -> Found:
    measure, images = Watermark().prepare(), photographs()
    marked = [
        Image.fromarray(overlays.watermark(np.asarray(image), np.random.default_rng((7, n, draw)))[0])
        for n, image in enumerate(images)
        for draw in range(2)
    ]
    signs = [with_words(image, n)[0] for n, image in enumerate(images)]
    return judged(marked, [*images, *signs, *pages()], lambda image: value_of(measure, "score", image) >= 0.5)


def find_near_duplicates() -> Found:
    """Of 30 drawn images and 28 quarters of photographs, and six copies of each, the copies."""
    measure = PerceptualHash().prepare()
    quarters = []
    for image in photographs()[::5]:
        w, h = (n // 2 for n in image.size)
        quarters += [image.crop((x, y, x + w, y + h)) for x in (0, w) for y in (0, h)]
    hashes, owners, is_copy = [], [], []
    for owner, image in enumerate([*(photograph(seed) for seed in range(30)), *quarters]):
        for number, view in enumerate((image, *near_duplicates(image).values())):
            hashes.append(value_of(measure, "hashes", view))
            owners.append(owner)
            is_copy.append(number > 0)
    replaced = best_of_groups(image_pairs(hashes, Duplicates().max_distance), [float(not copy) for copy in is_copy])
    found = [owners[replaced[n]] == owners[n] if n in replaced else False for n in range(len(hashes))]
    wrong = [owners[dropped] != owners[kept] for dropped, kept in replaced.items()]
    return [*is_copy, *([False] * sum(wrong))], [*found, *([True] * sum(wrong))]


# --- texts ------------------------------------------------------------------------------------------------------------

SENTENCES = {
    "en": (
        "The ferry leaves the harbor at nine and comes back in the evening.",
        "Most of the old houses along the canal were built by merchants.",
        "She put the kettle on and opened the window to the garden.",
        "Rain is expected in the north, while the south stays dry.",
        "Two children are flying a red kite above the beach.",
        "The museum keeps its largest paintings in the eastern wing.",
        "A small dog waits in front of the bakery.",
        "We walked until the path ended at a wooden bridge.",
    ),
    "zh": (
        "渡轮早上九点离开港口，晚上返回。",
        "运河边的老房子大多是商人建造的。",
        "她烧上水，打开了通向花园的窗户。",
        "北方预计有雨，南方仍然干燥。",
        "两个孩子在海滩上放红色的风筝。",
        "博物馆最大的画收藏在东边的展厅。",
        "一只小狗在面包店门口等着。",
        "我们一直走到小路尽头的木桥。",
    ),
    "de": (
        "Die Fähre verlässt den Hafen um neun und kommt abends zurück.",
        "Zwei Kinder lassen am Strand einen roten Drachen steigen.",
        "Ein kleiner Hund wartet vor der Bäckerei.",
        "Wir gingen, bis der Weg an einer Holzbrücke endete.",
    ),
    "fr": (
        "Le bac quitte le port à neuf heures et revient le soir.",
        "Deux enfants font voler un cerf-volant rouge sur la plage.",
        "Un petit chien attend devant la boulangerie.",
        "Nous avons marché jusqu'au bout du chemin, près d'un pont de bois.",
    ),
    "ja": (
        "フェリーは朝九時に港を出て、夕方に戻ります。",
        "二人の子どもが浜辺で赤い凧をあげている。",
        "小さな犬がパン屋の前で待っている。",
        "道が木の橋で終わるまで歩いた。",
    ),
    "ru": (
        "Паром уходит из порта в девять и возвращается вечером.",
        "Двое детей запускают красного змея над пляжем.",
        "Маленькая собака ждёт перед булочной.",
        "Мы шли, пока тропа не кончилась у деревянного моста.",
    ),
}


def find_language(code: str) -> Found:
    measure = Language().prepare()
    others = [text for language, texts in SENTENCES.items() if language != code for text in texts]
    return judged(SENTENCES[code], others, lambda text: value_of(measure, "code", text) == code)


NOUNS = [
    "harbor",
    "valley",
    "station",
    "library",
    "orchard",
    "mill",
    "teacher",
    "river",
    "captain",
    "garden",
    "winter",
    "letter",
    "market",
    "bridge",
    "doctor",
    "village",
    "engine",
    "forest",
    "painter",
    "kitchen",
    "island",
    "train",
    "window",
    "mountain",
    "song",
]
VERBS = [
    "follows",
    "remembers",
    "builds",
    "leaves",
    "watches",
    "crosses",
    "repairs",
    "describes",
    "visits",
    "paints",
    "sells",
    "finds",
    "carries",
    "meets",
]
LINKS = ["and", "while", "because", "although", "before", "after", "until", "where", "when", "so"]
ADJECTIVES = [
    "old",
    "quiet",
    "northern",
    "wooden",
    "bright",
    "narrow",
    "famous",
    "early",
    "broken",
    "green",
    "patient",
    "empty",
    "distant",
    "warm",
]


def prose(seed: int, sentences: int = 12) -> str:
    """Sentences with the words of English and no sense, of which no two texts have many in common."""
    rng = np.random.default_rng(seed)

    def thing() -> str:
        adjective = f"{rng.choice(ADJECTIVES)} " if rng.random() < 0.5 else ""
        return f"{rng.choice(('the', 'a', 'that', 'every'))} {adjective}{rng.choice(NOUNS)}"

    def clause() -> str:
        return f"{thing()} {rng.choice(VERBS)} {thing()} {rng.choice(('of', 'with', 'near', 'under', 'to'))} {thing()}"

    lines = [f"{clause()} {rng.choice(LINKS)} {clause()}." for _ in range(sentences)]
    return "\n".join(line.capitalize() for line in lines)


def rubbish(seed: int) -> str:
    rng = np.random.default_rng(seed)
    makers = (
        lambda: "\n".join(["Sign up now to read the rest of the story and have it sent to you."] * 14),
        lambda: " ".join(f"#{overlays.phrase(rng).split()[0]}" for _ in range(80)),
        lambda: "\n".join(f"* {overlays.phrase(rng)}" for _ in range(60)),
        lambda: "buy cheap shoes online and the best cheap shoes that you can buy online with us " * 9,
        lambda: "the of to and " + " ".join(overlays.phrase(rng) for _ in range(4)),
        lambda: "\n".join(f"And {line[:40]} ..." for line in prose(seed).splitlines() * 3),
    )
    return makers[seed % len(makers)]()


@functools.cache
def text_recipe() -> Recipe:
    from nextstep_jax.configs import curate_text

    return read_recipe(curate_text.get_config().to_dict())


def find_rubbish() -> Found:
    recipe = text_recipe()
    measures = {name: recipe.signals[name].prepare() for name in ("text_quality", "language")}

    def is_dropped(text: str) -> bool:
        sample = Sample((TextPart(text),), "text", "key")
        entry = {name: measure(sample) for name, measure in measures.items()}
        return not all(condition.holds(entry) for condition in recipe.cuts["en"])

    return judged(map(rubbish, range(60)), map(prose, range(60)), is_dropped)


def find_near_equal_texts() -> Found:
    """Of 60 texts, a copy of each with some words changed, and a text with half of the sentences."""
    measure, rng = MinHash().prepare(), np.random.default_rng(0)
    texts, is_copy = [], []
    for seed in range(60):
        words = prose(seed).split()
        for place in rng.choice(len(words), 3, replace=False):
            words[place] = "changed"
        half = prose(seed, 6) + "\n" + prose(1000 + seed, 6)
        texts += [prose(seed), " ".join(words), half]
        is_copy += [False, True, False]
    signatures = [value_of(measure, "signature", text) for text in texts]
    replaced = best_of_groups(text_pairs(signatures, Duplicates().min_similarity), [float(not copy) for copy in is_copy])
    return is_copy, [n in replaced for n in range(len(texts))]


# --- videos -----------------------------------------------------------------------------------------------------------


def find_cuts() -> Found:
    """Frames at which a shot begins, in three videos of 8 shots with a camera that moves."""
    planted, found = [], []
    with tempfile.TemporaryDirectory() as folder:
        for film in range(3):
            rng, frames, starts = np.random.default_rng(film), [], []
            for shot in range(8):
                image = photographs()[5 * ((film + shot) % 7)].resize((200, 160))
                starts.append(len(frames))
                frames += [np.asarray(image.crop((n // 2, 0, n // 2 + 160, 120))) for n in range(int(rng.integers(15, 40)))]
            path = pathlib.Path(folder) / f"{film}.mp4"
            write_video(path, frames)
            begun = {round(12 * start) for start, _ in find_shots(path)}
            planted += [n in starts for n in range(len(frames))]
            found += [n in begun for n in range(len(frames))]
    return planted, found


def find_equal_frames() -> Found:
    """Frames that show what the one before shows."""
    stage, planted, found = DistinctFrames(min_images=1, max_images=64).prepare(), [], []
    for seed in range(20):
        image = photographs()[(7 * seed) % 35].resize((192, 144))
        other = photographs()[(7 * seed + 5) % 35].resize((192, 144))
        for kind, frame in (*near_duplicates(image).items(), ("other", other)):
            if kind in ("mirrored", "cut"):  # another frame, to who watches
                continue
            parts = tuple(ImagePart.from_pixels(np.asarray(part)) for part in (image, frame))
            try:
                (made,) = stage(Sample(parts, "interleaved", "key"), {}, np.random.default_rng(0))
                kept = len(made.images)
            except Dropped:
                kept = 0
            planted.append(kind != "other")
            found.append(kept < 2)
    return planted, found


FLOORS = [
    Floor("sharpness", "blurred", "as they are", find_blurred, 0.95, 0.9),
    Floor("sharpness: blocks", "JPEG of quality 8", "of quality 92", find_blocks, 0.95, 0.95),
    Floor("ocr", "lines of text", "lines that are not there", find_lines, 0.9, 0.9),
    Floor("ocr: area", "pages", "photographs", find_text_rich, 1, 1),
    Floor("nsfw", "none", "harmless images", find_unsafe, most_others=0),
    Floor("watermark", "marks", "photographs, signs, pages", find_watermarks, 0.5, 0.7, 0.25),
    Floor("perceptual_hash", "copies", "originals", find_near_duplicates, 0.95, 0.99),
    Floor("language: en", "English", "five others", functools.partial(find_language, "en"), 1, 1),
    Floor("language: zh", "Chinese", "five others", functools.partial(find_language, "zh"), 1, 1),
    Floor("text_quality", "six kinds of rubbish", "prose", find_rubbish, 0.95, 0.98),
    Floor("minhash", "copies", "originals, half the same", find_near_equal_texts, 0.95, 0.99),
    Floor("cuts", "first frames of shots", "other frames", find_cuts, 1, 1),
    Floor("distinct_frames", "near-equal frames", "other frames", find_equal_frames, 0.95, 0.99),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="stages with this in their name")
    given = parser.parse_args()
    print("| stage | to be found | not to be found | recall (floor) | precision (floor) | others found (at most) |")
    print("|---|---|---|---|---|---|")
    missed = []
    for floor in FLOORS:
        if given.only not in floor.stage:
            continue
        result = measure(floor)
        recall, precision = f"{result.recall:.3f} ({floor.recall:g})", f"{result.precision:.3f} ({floor.precision:g})"
        if not result.planted:
            recall = precision = ""
        most = f" ({floor.most_others:g})" if floor.most_others < 1 else ""
        items = f"{result.planted or ''} {floor.planted} | {result.others} {floor.others}"
        print(f"| `{floor.stage}` | {items} | {recall} | {precision} | {result.others_found:.3f}{most} |", flush=True)
        if not result.reaches(floor):
            missed.append(floor.stage)
    if missed:
        print(f"under its floor: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
