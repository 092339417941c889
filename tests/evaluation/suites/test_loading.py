"""Suites by name; files that are not what they should be never end in anything but one line."""

import json

import hypothesis
import pytest
from hypothesis import strategies as st

from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites.loading import SUITES, open_suite

FOLDERS = {"geneval": None, "oneig-en": "oneig", "oneig-zh": "oneig", "wise-verified": "wise", "gedit-en": "gedit"}


@pytest.fixture(scope="module")
def suites(data):
    names = [name for name in SUITES if name != "gedit-cn"]  # needs parquet files
    folders = {name: FOLDERS.get(name, name) for name in names}
    return {name: open_suite(name, folder and data / folder, unofficial=True) for name, folder in folders.items()}


def test_ids_and_files_are_unique_and_stay_in_their_folder(suites):
    for suite in suites.values():
        files = [file for item in suite.items for file in item.files]
        assert len({item.id for item in suite.items}) == len(suite.items) and len(set(files)) == len(files)
        assert not any(part in ("", "..") for file in files for part in file.split("/"))
        assert {len(item.files) for item in suite.items} == {1 if suite.grid else suite.samples}


def test_an_unknown_suite_is_named():
    with pytest.raises(InputError, match="suite must be one of geneval, .* found 'gneval'"):
        open_suite("gneval")


@pytest.mark.parametrize("name", [name for name in SUITES if name not in ("geneval", "dpg-bench")])
def test_an_empty_folder_is_one_line(tmp_path, name):
    with pytest.raises(InputError, match="not there|no parquet file"):
        open_suite(name, tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["0", "00000", "prompt_id", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
CONTENT = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.lists(
        st.sampled_from(
            ["edited_image", "a/en/0.png", ",", "\n", "226.png, ", "1.0, ", "1.0.0, ", "2.0", "\n", '"', "(0, 0, 1, 1), "]
        ),
        max_size=12,
    ).map(lambda parts: "".join(parts).encode()),
)


@hypothesis.settings(max_examples=60)
@hypothesis.given(CONTENT, st.sampled_from(["r.txt", "alignment_prompt_score_EN.csv", "text_prompt_score.csv"]))
def test_whatever_a_results_file_holds_it_is_scores_or_one_line(suites, content, name):
    for suite in suites.values():
        try:
            scores = suite.read_official(content, name)
        except InputError as error:
            assert "\n" not in str(error).replace(content.decode("utf-8", "replace"), "")
        else:
            ids = {item.id for item in suite.items}
            assert all(key[0] in ids and (score is None or score == score) for key, score in scores.items())
            suite.score(scores)
