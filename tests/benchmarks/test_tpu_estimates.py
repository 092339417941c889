"""The table of estimates in docs/pods.md is what the results say."""

import json

from benchmarks import tpu_estimates
from benchmarks.tpu_estimates import BEGIN, DOCS, END, RESULTS, ROWS
from nextstep_jax.config import preset
from nextstep_jax.sharding.topologies import CHIPS
from nextstep_jax.training.flops import full_row_work, multitask_flops


def test_the_docs_have_the_table_of_the_results():
    text = DOCS.read_text()
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == tpu_estimates.table()


def test_every_result_was_made_with_its_rows_arguments():
    found = sorted(RESULTS.glob("*.json"))
    assert {path.stem for path in found} <= set(ROWS)
    for path in found:
        report = json.loads(path.read_text())
        assert report["made_with"] == {"arguments": list(ROWS[path.stem].arguments)}, path
        assert set(report["versions"]) == {"jax", "libtpu"}


def test_rows_say_what_fits_and_which_gate_is_reached(tmp_path):
    report = {
        "what": "train", "mesh": {"data": 1, "fsdp": 8}, "fits": True, "bytes_per_chip": 2**30, "peak_bytes": 2**29,
        "host_bytes_per_chip": 2**31, "estimated_seconds": 4.5, "estimated_mfu": 0.451,
        "on_a_mixture": {"tokens_per_second": 3641.2, "mfu": 0.4},
    }  # fmt: skip
    refused = {"what": "train", "mesh": {"fsdp": 8}, "fits": False, "reason": "40.0G wanted of 31.25G", "estimated_mfu": None}
    for name, values in (("v6e-256", report), ("v5e-256", report), ("v5p-128", refused)):
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    lines = tpu_estimates.table(tmp_path).splitlines()
    assert len(lines) == 2 + len(ROWS)
    of_row = dict(zip(ROWS, lines[2:], strict=True))
    assert of_row["v6e-256"].endswith(
        "| fsdp 8 | yes | 1.0 (0.5; 2.0 on the host) | 4.50 s | 45.1% | 45% reached | 3,641 (40.0%) |"
    )
    assert of_row["v5e-256"].endswith("| 48% missed | 3,641 (40.0%) |")
    assert of_row["v5p-128"].endswith("| no | 40.0G wanted of 31.25G |  |  | 56% missed |  |")
    assert of_row["2x-v6e-256"].endswith("|  | not compiled |  |  |  | 43% open |  |")


def test_rows_of_short_samples_take_as_long_and_are_worth_less(monkeypatch):
    monkeypatch.setattr(tpu_estimates, "MIXTURE_ROWS", 100)
    chip = CHIPS["v6e"]
    seconds = multitask_flops(preset("14b"), full_row_work(16_384, 8192, 4096)) / chip.flops
    report = {"what": "train", "topology": "v6e:16x16", "tokens_per_chip": 16_384.0, "estimated_seconds": seconds}
    found = tpu_estimates.on_a_mixture(ROWS["v6e-256"].arguments, report)
    assert 0.9 * 16_384 / seconds < found["tokens_per_second"] < 16_384 / seconds
    # Attention is an eighth of a whole row's work, and most of it falls away.
    assert 0.8 < found["mfu"] * 16_384 / seconds / found["tokens_per_second"] < 0.92
    assert tpu_estimates.on_a_mixture(ROWS["dpo-v5p-128"].arguments, report) is None
