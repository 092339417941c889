"""Running a recipe's jobs by Apache Beam: on this machine, Dataflow, Flink or Spark. The only module that imports it.

No pixels flow between Beam's steps: an element is a job's number and range, and what a job makes is a file in OUT, which all
workers must see under the same path (a network file system, or a mounted bucket). So an interrupted pipeline continues where it
stopped, which Beam alone does not do.
"""

import difflib
import importlib.util
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nextstep_jax.data.worker_pool import map_jobs
from nextstep_jax.errors import InputError, NextStepError


class BeamRunner:
    """As `map_jobs`, with the jobs done by a Beam pipeline first; here their files are only read.

    Args:
      options: pipeline options, as "runner=DirectRunner" or "direct_num_workers=2".

    Raises:
      InputError: the package is not installed, or does not know an option.
      NextStepError: when called, the pipeline failed.
    """

    def __init__(self, options: Sequence[str]):
        if importlib.util.find_spec("apache_beam") is None:
            raise InputError("--beam needs the package apache-beam: pip install 'nextstep_jax[beam]'")
        from apache_beam.options.pipeline_options import PipelineOptions

        known = PipelineOptions([]).get_all_options()
        for option in options:
            name, equals, _ = option.partition("=")
            if not equals or name not in known:
                near = difflib.get_close_matches(name, known, 1) if equals else []
                hint = f"; did you mean {near[0]}?" if near else ", as Beam's pipeline options are called"
                raise InputError(f"--beam: expected NAME=VALUE, such as runner=DirectRunner, found {option!r}{hint}")
        self._options = PipelineOptions([f"--{option}" for option in options])

    def __call__(
        self, function: Callable[..., Any], state: Any, jobs: Sequence[tuple], workers: int, name: str
    ) -> Iterator[tuple[int, Any]]:
        import apache_beam as beam

        # As bytes, of which Beam infers no types; it would look at every value of every job. Create spreads them over workers.
        elements = [pickle.dumps(job) for job in jobs]
        try:
            with beam.Pipeline(options=self._options) as pipeline:
                _ = pipeline | beam.Create(elements) | beam.Map(_do, function, state)
        except InputError:
            raise
        except Exception as error:  # whatever a runner raises
            raise NextStepError(f"{name}: the Beam pipeline failed ({' '.join(str(error).split())[-300:]})") from error
        yield from map_jobs(function, state, jobs, workers, name)


def _do(job: bytes, function: Callable[..., Any], state: Any) -> None:
    function(state, *pickle.loads(job))
