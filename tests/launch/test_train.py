"""The command line of launch/train.py: exit codes and one line for every mistake."""

import pathlib

import pytest
from absl import flags

from nextstep_jax.errors import DamagedDataError
from nextstep_jax.launch import train as launch_train

CONFIG = str(pathlib.Path(__file__).parents[2] / "configs" / "shapes_tokenizer.py")


@pytest.fixture(autouse=True)
def fresh_flags():
    yield
    flags.FLAGS.unparse_flags()
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    flags.FLAGS["workdir"].value = flags.FLAGS["config"].value = None


@pytest.fixture
def trained(monkeypatch):
    """What `train` was called with, instead of training."""
    calls = []
    monkeypatch.setattr(launch_train, "train", lambda config, workdir, evaluators: calls.append((config, workdir)))
    return calls


@pytest.fixture
def run(monkeypatch):
    def main(*arguments):
        return launch_train.main(["launch/train.py", *arguments])

    return main


def test_overrides_reach_the_run(run, trained, tmp_path):
    overrides = ["--config.steps=7", "--config.optimizer.learning_rate=0.5", "--config.data.sources=('a', 'b')"]
    assert run("--config", CONFIG, "--workdir", str(tmp_path), *overrides) == 0
    ((config, workdir),) = trained
    assert (config.steps, config.optimizer.learning_rate, config.data.sources) == (7, 0.5, ("a", "b"))
    assert workdir == str(tmp_path)


def test_the_laptop_argument_shrinks(run, trained, tmp_path):
    assert run("--config", CONFIG + ":laptop", "--workdir", str(tmp_path)) == 0
    assert trained[0][0].image_tokenizer.channels == 32


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--config is missing"),
        (["--config", CONFIG], "--workdir is missing"),
        (["--config", "/nowhere.py", "--workdir", "x"], "/nowhere.py"),
        (["--config", CONFIG + ":desktop", "--workdir", "x"], "laptop, found 'desktop'"),
        (["--config", CONFIG, "--workdir", "x", "--config.no_such_key=1"], "no_such_key"),
        (["--config", CONFIG, "--workdir", "x", "--config.steps=many"], "many"),
        (["--config", CONFIG, "--workdir", "x", "--unknown"], "unknown"),
        (["--config", CONFIG, "--workdir", "x", "steps=1"], "unexpected argument 'steps=1'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(run, arguments, message, trained, capsys):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not trained


def test_damaged_data_is_exit_code_3(run, monkeypatch, tmp_path, capsys):
    def train(config, workdir, evaluators):
        raise DamagedDataError("step 10: state/x is cut short")

    monkeypatch.setattr(launch_train, "train", train)
    assert run("--config", CONFIG, "--workdir", str(tmp_path)) == 3
    assert capsys.readouterr().err == "error: step 10: state/x is cut short\n"


@pytest.mark.parametrize(
    "error, message",
    [
        (OSError(28, "No space left on device", "/run/metrics.jsonl"), "/run/metrics.jsonl: No space left on device"),
        (OSError(5, "Input/output error"), "{workdir}: Input/output error"),
        (PermissionError(13, "Permission denied", "/run/config.json"), "/run/config.json: Permission denied"),
    ],
)
def test_a_disk_that_fails_is_exit_code_1(run, monkeypatch, tmp_path, capsys, error, message):
    def train(config, workdir, evaluators):
        raise error

    monkeypatch.setattr(launch_train, "train", train)
    assert run("--config", CONFIG, "--workdir", str(tmp_path)) == 1
    assert capsys.readouterr().err == f"error: {message.format(workdir=tmp_path)}\n"


def test_an_error_of_the_system_that_names_nothing_is_not_hidden(run, monkeypatch, tmp_path):
    """A library's own OSError without a number may be a defect: its traceback stays."""

    def train(config, workdir, evaluators):
        raise OSError("odd")

    monkeypatch.setattr(launch_train, "train", train)
    with pytest.raises(OSError, match="odd"):
        run("--config", CONFIG, "--workdir", str(tmp_path))


def test_flags_of_one_command_line_are_not_those_of_the_next(tmp_path):
    from nextstep_jax.launch import train as program
    from nextstep_jax.launch.flag_parsing import parse

    command = ["train", "--config", "shapes_tokenizer:laptop", "--workdir", str(tmp_path)]
    parse([*command, "--distributed"], program.FLAGS, ("config", "workdir"), "")
    assert program._DISTRIBUTED.value
    parse(command, program.FLAGS, ("config", "workdir"), "")
    assert not program._DISTRIBUTED.value
