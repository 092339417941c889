"""Jobs run by Apache Beam's direct runner: the same files as without it."""

import pickle
import types

import pytest

from nextstep_jax.data.curation import beam_job, job
from nextstep_jax.data.curation.beam_job import BeamRunner
from nextstep_jax.data.curation.recipe import read_recipe
from nextstep_jax.data.sources import open_source
from nextstep_jax.errors import InputError, NextStepError
from tests.data.curation.test_job import RECIPE, contents

pytest.importorskip("apache_beam", reason="needs the extra beam")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:apache_beam"),
    pytest.mark.filterwarnings("ignore::FutureWarning:apache_beam"),
]


def curate(out, **options):
    recipe = read_recipe(RECIPE | {"transforms": {"degradations": {}}})
    return job.curate(open_source("shapes:pair:train:60"), recipe, out, shard_samples=20, **options)


def test_a_pipeline_makes_the_same_files(tmp_path):
    reports = [curate(tmp_path / "plain"), curate(tmp_path / "beam", runner=BeamRunner(["runner=DirectRunner"]))]
    assert reports[0] == reports[1] and contents(tmp_path / "plain") == contents(tmp_path / "beam")


def test_what_beam_made_is_not_made_again(tmp_path, monkeypatch):
    made = []
    original = job.shard_job.make_shard

    def make_shard(out, number, source, samples):
        return original(out, number, source, (made.append(sample) or sample for sample in samples))

    monkeypatch.setattr(job.shard_job, "make_shard", make_shard)
    report = curate(tmp_path / "out", runner=BeamRunner(["runner=DirectRunner", "direct_num_workers=1"]))
    assert len(made) == sum(counts["written"] for counts in report["cuts"].values()) > 0


def test_no_pixels_flow_between_steps(tmp_path, monkeypatch):
    elements = []

    def dumps(job):
        elements.append(pickle.dumps(job))
        return elements[-1]

    monkeypatch.setattr(beam_job, "pickle", types.SimpleNamespace(dumps=dumps, loads=pickle.loads))
    curate(tmp_path / "out", runner=BeamRunner(["runner=DirectRunner"]))
    assert len(elements) == 3 + 2 * 3  # shards to measure, and to write for each of two cuts
    assert not any(b"PNG" in element or len(element) > 20 * 1000 for element in elements)


@pytest.mark.parametrize(
    "option, message",
    [("runer=DirectRunner", "did you mean runner"), ("runner", "expected NAME=VALUE"), ("--x=1", "NAME=VALUE")],
)
def test_unknown_options_are_refused(option, message):
    with pytest.raises(InputError, match=message):
        BeamRunner([option])


def test_a_failing_pipeline_is_one_line(tmp_path):
    with pytest.raises(NextStepError, match="the Beam pipeline failed") as error:
        curate(tmp_path / "out", runner=BeamRunner(["runner=NoRunner"]))
    assert "\n" not in str(error.value)
