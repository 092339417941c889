"""Parity with the golden files: nothing missed, nothing left out, and every kind of damage seen."""

import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from nextstep_jax.cli import main
from nextstep_jax.conversion.parity import run_parity
from nextstep_jax.conversion.parity.report import NO_NUMBER, Report
from nextstep_jax.errors import InputError
from tests.conftest import GOLDENS
from tests.conversion import torch_writer

# Compiling is most of the work: all of it in one process.
pytestmark = pytest.mark.xdist_group("parity")


@pytest.fixture(scope="module")
def report() -> Report:
    return run_parity(GOLDENS)


@pytest.fixture
def copy(tmp_path) -> pathlib.Path:
    """The golden files, to be changed."""
    return pathlib.Path(shutil.copytree(GOLDENS, tmp_path / "goldens"))


def change_arrays(path: pathlib.Path, change) -> None:
    """change(arrays) of a safetensors file, in place."""
    arrays = load_file(path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    change(arrays)
    save_file(arrays, path, metadata)


def change_json(path: pathlib.Path, change) -> None:
    """change(content) of a JSON file, in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def add(name: str, number: float):
    """Add to the first number of an array."""

    def change(arrays) -> None:
        arrays[name].reshape(-1)[0] += number

    return change


def strict_json(text: str):
    """JSON without NaN and infinities."""

    def refuse(constant: str):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


# --- the goldens as they are ------------------------------------------------------------------------------------------


def test_nothing_is_missed(report):
    assert report.misses == []


def test_every_file_has_its_rows(report):
    names = [row.array for row in report.rows]
    # Settings, weights, and a recipe: these are what the other files are compared with.
    used = "cases.json|.*/config.json|.*/checkpoint.safetensors|vae_1244_recipe.json"
    for path in (path for path in GOLDENS.rglob("*") if path.is_file()):
        file = path.relative_to(GOLDENS).as_posix()
        start = file.replace("/", ".") if path.suffix == ".pt" else file.removesuffix(path.suffix).split("/")[0]
        assert re.fullmatch(used, file) or any(name.startswith(f"{start}.") for name in names), file


# What the comparisons take as given.
GIVEN = {
    "backbone": "input_ids|attention_mask|latents.*|rope_far_positions",
    "train": "input_ids|attention_mask|labels|latents.*|image_filtered_idx|noise|u|noise_strength.input_noise.*",
    "head": "[xtc]",
    "sampler": r".*noise|c\.mult\d|rescale.*\.v|forward_head.*\.[xtc]",
    "vae": r".*[xz]",
    "t2i": "noise",
    "edit": "noise|posterior_noise|source_uint8",
}


@pytest.mark.parametrize("file", sorted(path.stem for path in GOLDENS.glob("*.safetensors")))
def test_every_array_is_compared_or_given(report, file):
    compared = {row.array for row in report.rows}
    for array in load_file(GOLDENS / f"{file}.safetensors"):
        given = re.fullmatch(GIVEN.get(file.split("_")[0], ""), array)
        assert (f"{file}.{array}" in compared) != bool(given), array


BOUNDS = {
    r"train\w*\.grad\..*|train\w*_grad_summary\..*": 1e-4,  # of largest entries, which are below 1
    r"(t2i|edit).*\.tokens.*": 1e-4,
    r"(t2i|edit).*\.final_latents": 3e-4,
    r"(t2i|edit).*\.image_uint8": 1,
    r"sequences_feb\..*|.*\.(input_ids|nonzero_rows|lm_targets|image_tokens)|tiny_vae.*": 0,
    r".*": 2e-5,
}


def test_bounds_are_those_of_the_goldens(report):
    for row in report.rows:
        assert row.bound <= next(bound for pattern, bound in BOUNDS.items() if re.fullmatch(pattern, row.array)), row


# --- other numbers ----------------------------------------------------------------------------------------------------

CHANGED = (
    ("backbone", "logits"),
    ("backbone_list", "layer_out.1"),
    ("head", "velocity"),
    ("patchify", "gen_pos_embed.row1023"),
    ("vae", "64x64.norm.mean"),
    ("vae_1244", "decode"),
    ("sampler", "cfg3_img1_shift1_n20_r2.out"),
    ("sampler_hf11", "cfg1_img1_shift3.2_n28_r1.t"),
    ("sampler_feb", "rescale.mult3.rescaled"),
    ("t2i_cfg1", "c_proj"),
    ("t2i_cfg3_linear", "cfg_per_token"),
    ("edit_2captions", "tokens_before_norm"),
    ("train", "grad.norm.weight"),
    ("train_list", "im_loss"),
    ("train_feb", "grad.embed_tokens.weight.values"),
    ("train_feb_list", "noise_strength.loss"),
)


def test_one_changed_number_is_one_miss(copy, tmp_path, monkeypatch, capsys):
    """In every kind of file at once, through the command, with the sums of the files before."""
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in copy.glob("*.safetensors")]
    (copy / "SHA256SUMS").write_text("\n".join(sums))
    for file, array in CHANGED:
        change_arrays(copy / f"{file}.safetensors", add(array, 1e-3 if array != "velocity" else 1e-4))
    change_arrays(copy / "edit_cfg7.5_img2.safetensors", add("image_uint8", 3))
    change_arrays(copy / "train_feb.safetensors", lambda arrays: arrays.update(lm_loss=np.array(np.nan, np.float32)))
    change_json(copy / "train_grad_summary.json", lambda file: file["norm.weight"].update(l2=file["norm.weight"]["l2"] * 1.01))
    change_json(copy / "sequences_feb.json", lambda file: file["examples"][0]["packs"][0]["labels"].__setitem__(3, 7))
    change_json(copy / "sequences_feb.json", lambda file: file["batches"][1]["batches"][0].update(pad_total=0))
    change_json(copy / "cases_later.json", lambda file: file["cfg_per_token_feb_linear"]["cfg3.0_n16"].__setitem__(2, 1.6))
    tensors = load_file(copy / "tiny_vae/checkpoint.safetensors")
    add("encoder.conv_in.bias", 1e-6)(tensors)
    torch_writer.save(copy / "tiny_vae/checkpoint.pt", tensors)

    monkeypatch.setattr(sys, "argv", ["nextstep-jax", "parity", str(copy), "--json", str(tmp_path / "rows.json")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    rows = strict_json((tmp_path / "rows.json").read_text())
    assert all(list(row) == ["array", "max_abs", "max_rel", "bound", "verdict"] for row in rows)
    misses = {row["array"]: row for row in rows if row["verdict"] == "miss"}
    expected = {f"{file}.{array}" for file, array in CHANGED} | {"edit_cfg7.5_img2.image_uint8", "train_feb.lm_loss"}
    expected |= {"train_grad_summary.norm.weight", "sequences_feb.examples.t2i", "sequences_feb.batches.batch_size_1"}
    expected |= {"cases_later.cfg_per_token_feb_linear.cfg3.0_n16", "tiny_vae.checkpoint.pt.encoder.conv_in.bias"}
    assert set(misses) == expected
    assert all((row["max_abs"] <= row["bound"]) == (row["verdict"] == "ok") for row in rows)
    assert misses["train_feb.lm_loss"]["max_abs"] == NO_NUMBER
    assert misses["sequences_feb.examples.t2i"]["max_abs"] == 1
    table = capsys.readouterr().out
    assert f"{len(rows)} arrays compared, {len(misses)} missed" in table
    assert "the reference is not finite" in table and "packs[0].labels[3]" in table


def test_a_file_that_is_not_the_listed_one_is_refused_if_nothing_missed(copy):
    """Here the change is too small to be a miss."""
    listed = [path for path in copy.rglob("*") if path.suffix in (".safetensors", ".json", ".pt")]
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(copy)}" for path in listed]
    (copy / "SHA256SUMS").write_text("\n".join([*sums, f"{'0' * 64}  README.md", f"{'0' * 64}  ../outside"]))
    (copy / "README.md").write_text("what these files are")
    assert run_parity(copy).misses == []
    change_arrays(copy / "head.safetensors", add("velocity", 1e-7))
    with pytest.raises(InputError, match="SHA256SUMS lists them: head.safetensors$"):
        run_parity(copy)


# --- other files ------------------------------------------------------------------------------------------------------


def test_files_and_arrays_that_nothing_compares_are_refused(copy):
    (copy / "tiny_vae/notes.txt").write_text("")
    (copy / "later.safetensors").write_bytes((copy / "head.safetensors").read_bytes())
    change_arrays(copy / "train_list.safetensors", lambda arrays: arrays.update(loss_2=arrays["loss"]))
    with pytest.raises(InputError) as refused:
        run_parity(copy)
    assert str(refused.value).endswith("not compared: later.safetensors, tiny_vae/notes.txt, train_list:loss_2")


def drop(key: str):
    return lambda content: content.pop(key)


# (what is done to the copy, what the error names)
BROKEN = {
    "absent file": (lambda folder: (folder / "sampler_hf11.safetensors").unlink(), "sampler_hf11.safetensors: absent"),
    "absent checkpoint": (lambda folder: (folder / "tiny_vae/checkpoint.pt").unlink(), "checkpoint.pt: absent"),
    "absent array": (lambda folder: change_arrays(folder / "head.safetensors", drop("velocity")), "head.*no array 'velocity'"),
    "truncated": (lambda folder: (folder / "head.safetensors").write_bytes(b"0123456789"), "head.*cannot be read"),
    "no JSON": (lambda folder: (folder / "cases_later.json").write_text("{"), "cases_later.json: not valid JSON"),
    "no setting": (lambda folder: change_json(folder / "cases.json", drop("e2e")), "cases.json: has no 'e2e'"),
    "wrong shape": (
        lambda folder: change_arrays(folder / "head.safetensors", lambda arrays: arrays.update(x=arrays["x"][:, :-1].copy())),
        "'networks' do not fit together",
    ),
    "wrong draws": (
        lambda folder: change_arrays(folder / "train.safetensors", lambda arrays: arrays.update(noise=arrays["noise"][4:])),
        "draws of noise",
    ),
    "outside": (
        lambda folder: change_json(folder / "cases.json", lambda file: file.update(e2e={"../x": file["e2e"]["t2i_cfg1"]})),
        "not a file of its own",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_absent_or_not_understood_is_refused(copy, case):
    damage, message = BROKEN[case]
    damage(copy)
    with pytest.raises(InputError, match=message) as refused:
        run_parity(copy)
    assert "\n" not in str(refused.value)


def test_a_folder_that_is_not_there():
    with pytest.raises(InputError, match="not a folder"):
        run_parity(GOLDENS / "none")


def test_sequences_need_no_training_stack():
    forbidden = ["grain", "tensorflow", "tensorflow_datasets", "ml_collections", "optax"]
    lines = [
        f"import sys; sys.modules.update(dict.fromkeys({forbidden!r}))",
        "import pathlib",
        "from nextstep_jax.conversion.parity import Goldens, Report, sequences",
        f"report = Report(); sequences.compare(Goldens(pathlib.Path({str(GOLDENS)!r})), None, report)",
        "assert report.rows and not report.misses",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "reference", "max_abs"),
    [
        ([1.0, 2.5], [1.0, 2.0], 0.5),
        ([np.nan, 2.0], [np.nan, 2.0], NO_NUMBER),
        ([1.0, np.nan], [1.0, 2.0], NO_NUMBER),
        ([1.0, 2.0], [1.0, np.nan], NO_NUMBER),
        ([1.0, np.inf], [1.0, np.inf], NO_NUMBER),
        ([1.0], [1.0, 2.0], NO_NUMBER),
    ],
)
def test_a_miss(ours, reference, max_abs):
    report = Report()
    report.compare("array", ours, np.asarray(reference), 0.1)
    (row,) = strict_json(report.to_json())
    assert row["verdict"] == "miss" and row["max_abs"] == max_abs and "array" in report.table()


def test_masks_and_relative_bounds():
    report = Report()
    report.compare("masked", [1.0, np.nan], np.array([1.0, 2.0]), 0, where=[True, False])
    report.compare("relative", [100.0, 1.0], np.array([100.0, 2.0]), 0.01, relative=True)
    report.compare("off", [100.0, 0.5], np.array([100.0, 2.0]), 0.01, relative=True)
    report.compare("nothing", np.zeros((0, 2)), np.zeros((0, 2)), 0)
    assert [(row.verdict, row.bound) for row in report.rows] == [("ok", 0), ("ok", 1), ("miss", 1), ("ok", 0)]


def test_values_are_counted():
    report = Report()
    report.compare_values("same", {"a": [1, {"b": []}]}, {"a": [1, {"b": []}]})
    report.compare_values("other", {"a": [1, 2, 3], "b": {}}, {"a": [1, 5], "b": {}, "c": None})
    assert [(row.verdict, row.max_abs) for row in report.rows] == [("ok", 0), ("miss", 3)]
