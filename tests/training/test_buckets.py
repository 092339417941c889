"""A run whose data and work directory are in a bucket: the same files and numbers as on a disk."""

import json
import re

import pytest

from nextstep_jax import checkpoints, storage
from nextstep_jax.checkpoints.steps import read_step
from nextstep_jax.data import shard_files
from nextstep_jax.data.build import build
from nextstep_jax.data.sources import open_source
from nextstep_jax.errors import InputError
from nextstep_jax.training import loop
from nextstep_jax.training.run_logs import read_metrics, read_samples
from tests.training.test_run import config  # noqa: F401 (a fixture)

pytest_plugins = ["tests.buckets"]
pytestmark = pytest.mark.usefixtures("shared_compilations")


def test_a_run_in_a_bucket_ends_like_one_on_a_disk(config, stand_ins, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv(shard_files.FOLDER_VARIABLE, str(tmp_path / "copies"))
    bucket = f"{stand_ins['s3']}/loop"
    build(open_source("shapes:pair:train:24"), f"{bucket}/data")
    config.data.sources, config.samples.every = (f"{bucket}/data",), 2
    places = [tmp_path / "run", storage.at(f"{bucket}/run")]
    for place in places:
        for config.steps in (2, 3):
            assert loop.train(config, str(place)).step == config.steps
    first, second = ({name: values[1].tolist() for name, values in read_metrics(place).items()} for place in places)
    assert first.keys() == second.keys() and all(
        first[name] == second[name] for name in first if not re.search("second|goodput", name)
    )
    assert len(first["loss"]) == 3
    for other in ("config.json", "samples/step_00000002.png"):
        assert (places[0] / other).read_bytes() == (places[1] / other).read_bytes()
    assert [image.tolist() for image in read_samples(places[0]).values()] == [
        image.tolist() for image in read_samples(places[1]).values()
    ]
    local, remote = (read_step(place / "checkpoints" / "3")[0]["leaves"] for place in places)
    assert local == remote and not (places[1] / "run.json").exists()
    local, remote = (json.loads((place / "export" / checkpoints.MANIFEST).read_bytes())["leaves"] for place in places)
    assert local == remote


def test_a_bucket_that_is_not_there_stops_a_run_at_once(config, stand_ins):  # noqa: F811
    with pytest.raises(InputError, match="^s3://nowhere: no such bucket$"):
        loop.train(config, "s3://nowhere/run")
