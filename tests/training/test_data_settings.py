"""What a run makes of its data settings: samples left out are counted and limited, data that ends ends the run."""

import json

import jax
import numpy as np
import pytest

from nextstep_jax import checkpoints
from nextstep_jax.configs import nextstep_14b_anneal, shapes_tokenizer
from nextstep_jax.data.image_output import encode_image
from nextstep_jax.errors import InputError
from nextstep_jax.training import loop
from nextstep_jax.training.config import override, resolve
from nextstep_jax.training.init import to_canonical
from nextstep_jax.training.reconstruction import open_data


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def pairs(shapes_data, tokenizer_folder):
    """Annealing for a laptop, on pairs alone."""
    config = nextstep_14b_anneal.get_config("laptop")
    config.image_tokenizer_checkpoint = str(tokenizer_folder)
    config.data.root = str(shapes_data)
    for name in config.data.sources:
        config.data.sources[name].weight = float(name == "pairs")
    config.data.batch_size, config.checkpoint.every, config.steps = 2, 0, 6
    config.model.transformer.layers = config.model.flow_head.layers = 1
    return config


def test_the_share_of_oversized_samples_is_in_the_metrics_and_limited(pairs, tmp_path):
    pairs.data.seq_len, pairs.data.max_oversized = 30, 1.0  # 25 positions for an image and the end of text: some captions fit
    loop.train(pairs, tmp_path / "lenient")
    share = lines(tmp_path / "lenient")[-1]["data/oversized/pairs"]
    assert 0.1 < share < 0.9
    pairs.data.max_oversized = 0.05
    with pytest.raises(
        InputError, match=r"^pairs: \d+ of the \d+ samples .* row of 30 .*at most 5.00% .*max_oversized"
    ) as caught:
        loop.train(pairs, tmp_path / "strict")
    assert "\n" not in str(caught.value)


def test_a_run_ends_with_its_data_and_continues_exactly(pairs, tmp_path, monkeypatch):
    """One epoch of 24 pairs in rows of 64 positions, two a step: six steps or so of the hundred allowed."""
    pairs.data.epochs, pairs.data.seq_len, pairs.steps = 1, 64, 100
    whole = loop.train(pairs, tmp_path / "whole")
    last = int(whole.step)
    assert 4 <= last <= 12
    assert lines(tmp_path / "whole")[-1]["step"] == last
    exported = checkpoints.load_params(tmp_path / "whole" / "export", subtree="model")
    jax.tree.map(np.testing.assert_array_equal, exported, to_canonical(whole.averaged_params)["model"])

    monkeypatch.setattr(loop.TrainCheckpointer, "reached_preemption", lambda self, step: step == 2)
    assert loop.train(pairs, tmp_path / "pieces").step == 2
    monkeypatch.undo()
    continued = loop.train(pairs, tmp_path / "pieces")
    jax.tree.map(np.testing.assert_array_equal, continued.params, whole.params)
    again = loop.train(pairs, tmp_path / "pieces")  # nothing is left to do
    assert int(again.step) == last


def test_two_data_shards_end_together(pairs, tmp_path):
    pairs.data.epochs, pairs.data.seq_len, pairs.steps, pairs.data.data_shards = 1, 64, 100, 2
    assert 4 <= int(loop.train(pairs, tmp_path).step) <= 12


def test_unusable_images_are_skipped_up_to_a_limit_that_the_error_names(tmp_path, monkeypatch):
    """A folder of 62 images, one of them broken and one without a caption."""
    for number in range(62):
        (tmp_path / f"{number:02d}.png").write_bytes(encode_image(np.full((64, 64, 3), number, np.uint8)))
        (tmp_path / f"{number:02d}.txt").write_text("an image")
    (tmp_path / "07.png").write_bytes(b"broken")
    (tmp_path / "30.txt").unlink()
    config = shapes_tokenizer.get_config("laptop")
    config.data.sources = (str(tmp_path),)
    with pytest.raises(InputError) as caught:
        for _, _ in zip(range(60), open_data(resolve(config), config.data.sources), strict=False):
            pass
    message = str(caught.value)
    assert "at most 1.00% may be left out (config.data.max_skipped)" in message
    assert "07.png: not a PNG" in message and "30.png: no caption" in message and "\n" not in message
    override(config, "data.max_skipped", "0.05")
    for _, batch in zip(range(60), open_data(resolve(config), config.data.sources), strict=False):
        assert not {f"{tmp_path.name}:07.png", f"{tmp_path.name}:30.png"} & set(batch.names)
    assert batch.metrics["data/skipped/images"] == pytest.approx(2 / 62, abs=0.01)
