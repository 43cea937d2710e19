"""What a command refuses before anything is started: exit code 2 and one clear sentence."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pilotlight.cli import main, vllm
from pilotlight.client import checks
from pilotlight.core.errors import ConfigError
from pilotlight.poolfile import pool_folder, write_spec
from pilotlight.wire import PoolSpec


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PILOTLIGHT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    _write("in.jsonl", [{"claim": "x", "evidence": "y"}])
    _write("prompts.jsonl", [{"prompt": "x"}])
    _write("batch.jsonl", [{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}])
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    Path("model/model.safetensors").write_bytes(b"")
    Path("empty").mkdir()
    os.mkfifo("pipe")
    return tmp_path


def _write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


LONG = "x" * 300
REFUSED = [
    ("run missing.jsonl -o out.jsonl --model model", "the input missing.jsonl does not exist"),
    ("run empty -o out.jsonl --model model", "is a folder"),
    ("run pipe -o out.jsonl --model model", "the input pipe is a pipe or device .*write it to a file first"),
    ("run-batch -i pipe -o out.jsonl --model model", "is a pipe or device"),
    ("factcheck verify pipe -o out.jsonl --model model", "is a pipe or device"),
    (f"run {LONG} -o out.jsonl --model model", "can't be read: File name too long"),
    (f"run prompts.jsonl -o {LONG}/out.jsonl --model model", "output's folder .* can't be used: File name too long"),
    (f"run prompts.jsonl -o out.jsonl --model ./{LONG}", "model folder .* can't be used: File name too long"),
    ("run prompts.jsonl -o nowhere/out.jsonl --model model", "folder .*nowhere does not exist"),
    ("run prompts.jsonl -o prompts.jsonl --model model", "also an input"),
    ("run prompts.jsonl -o empty --model model", "is a folder; name a file"),
    ("run prompts.jsonl -o out.jsonl", "--model is needed"),
    ("run prompts.jsonl -o out.jsonl --model ./none", "the model folder ./none does not exist"),
    ("run prompts.jsonl -o out.jsonl --model empty", "no config.json"),
    ("run prompts.jsonl -o out.jsonl --model model --nonsense 3", "Unknown option: --nonsense"),
    ("run prompts.jsonl -o out.jsonl --model model --temperature hot", "temperature"),
    ("run prompts.jsonl -o out.jsonl --model model --temperature -1", "temperature must be 0 or more"),
    ("run prompts.jsonl -o out.jsonl --model model --labels A", "at least 2 labels"),
    ("run prompts.jsonl -o out.jsonl --model model --labels A,B,A", "A is given more than once"),
    ("run prompts.jsonl -o out.jsonl --model model --labels A,,B", "not empty"),
    ("run prompts.jsonl -o out.jsonl --model model --label-scoring max --labels A,B", "label-scoring"),
    ("run prompts.jsonl -o out.jsonl --model model --dtype int4", "dtype"),
    ("run prompts.jsonl -o out.jsonl --model model --workers 0", "--workers must be 1 or more"),
    ("run prompts.jsonl -o out.jsonl --model model --limit -1", "--limit must be 0 or more"),
    ("run prompts.jsonl -o out.jsonl --model model --chat-template-kwargs {", "no JSON"),
    ("run prompts.jsonl -o out.jsonl --model model --chat-template-kwargs [1]", "must be a JSON object"),
    ("run prompts.jsonl -o out.jsonl --model model --truncate-prompt-tokens 0", "--truncate-prompt-tokens"),
    ("run prompts.jsonl -o out.jsonl --model model --overwrite --retry-errors", "give one of them"),
    ("run prompts.jsonl -o out.jsonl --model model --truncate-prompt-tokens -2", "--truncate-prompt-tokens"),
    ("run prompts.jsonl -o out.jsonl --model model --labels A,B --seed 3 --stop x", "--seed, --stop would have no"),
    ("run prompts.jsonl -o out.jsonl --model model --label-scoring mean", "no effect without --labels"),
    ("run prompts.jsonl -o out.jsonl --model model --system-prompt x", "--system-prompt would have no effect"),
    ("run prompts.jsonl -o out.jsonl --model model --chat-template-kwargs {}", "--chat-template-kwargs would have no"),
    ("run in.jsonl -o out.jsonl --model model", "neither prompt nor messages .*claim, evidence.*--prompt-template"),
    ("run in.jsonl -o out.jsonl --model model --prompt-template {fact}", "no field 'fact'.*claim, evidence"),
    ("run in.jsonl -o out.jsonl --model model --prompt-template {claim", "can't be read"),
    ("run in.jsonl -o out.jsonl --model model --prompt-template claim", "must name fields"),
    ("run -o out.jsonl --model model", "INPUTS|inputs"),
    ("run-batch -i in.jsonl -o out.jsonl --model model", "no batch file"),
    ("run-batch -i batch.jsonl -o batch.jsonl --model model", "also an input"),
    ("run-batch -i batch.jsonl -o out.jsonl --model model --truncate-prompt-tokens 0", "--truncate-prompt-tokens"),
    ("run-batch -i batch.jsonl -o out.jsonl --model model --quantization awq", "--quantization is not supported: w"),
    ("run-batch -i batch.jsonl -o out.jsonl --model model --tokenizer other", "--tokenizer is not supported: "),
    ("run-batch -i batch.jsonl -o out.jsonl --model model --chat-template t", "--chat-template is not supported: "),
    ("run-batch -i batch.jsonl -o out.jsonl --model model --generation-config vllm", "--generation-config is not"),
    ("run-batch -i batch.jsonl -o out.jsonl --model model --enable-lora", "--enable-lora is not supported"),
    ("demo --passes 0", "--passes must be 1 or more, not 0"),
    ("demo --passes -3", "--passes must be 1 or more"),
    ("demo --workers 1", "--workers must be 2 or more, not 1: one is killed"),
    ("factcheck verify in.jsonl -o out.jsonl --runtime echo", "no verdicts"),
    ("factcheck verify in.jsonl -o out.jsonl --model model --truncate-prompt-tokens 0", "--truncate-prompt-tokens"),
    ("factcheck verify in.jsonl -o out.jsonl --model model --max-attempts 0", "--max-attempts must be 1"),
    ("factcheck verify prompts.jsonl -o out.jsonl --model model", "no field claim; they have prompt"),
    ("factcheck verify in.jsonl -o out.jsonl", "give either --model or --bundled-model"),
    ("factcheck verify in.jsonl -o out.jsonl --model model --bundled-model", "give either"),
    ("run prompts.jsonl -o out.jsonl --model model --dry-run --pool nope", "pool nope is not up; start it first"),
    ("run prompts.jsonl -o out.jsonl --model model --dry-run --detach", "--detach needs a pool that stays"),
    ("run prompts.jsonl -o out.jsonl --model model --weight 3", "--weight would have no effect"),
    ("run prompts.jsonl -o out.jsonl --model model --weight 0", "--weight must be above 0"),
    (
        "run prompts.jsonl -o out.jsonl --model model --request-timeout soon",
        "a time such as 90s, 10m or 1h, not 'soon'",
    ),
    ("run prompts.jsonl -o out.jsonl --model model --request-timeout -1", "a time such as 90s, 10m or 1h, not '-1'"),
    ("run prompts.jsonl -o out.jsonl --model model --request-timeout 0s", "--request-timeout must be above 0"),
    ("pin model --model model", "Unknown option: --model"),
    ("runn", "Unknown command"),
]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("line", "said"), REFUSED)
def test_refused_in_one_sentence(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    assert main.invoke(line.split()) == 2
    told = capsys.readouterr().err
    assert re.search(said, told), told
    assert told.count("\n") == 1
    assert "Traceback" not in told
    assert not Path("out.jsonl").exists()


@pytest.mark.usefixtures("folder")
def test_an_unknown_label_is_refused_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    _write("odd.jsonl", [{"claim": "x", "label": "SUPPORTS"}, {"claim": "x", "label": "MAYBE"}])
    assert main.invoke(["factcheck", "verify", "odd.jsonl", "-o", "out.jsonl", "--model", "model"]) == 2
    assert "odd.jsonl line 2 has the label 'MAYBE'" in capsys.readouterr().err
    assert list(Path().glob(".*")) == []


def test_retry_errors_works_bare_and_with_a_kind() -> None:
    closed = main._bare_options_closed
    assert closed(["run", "--retry-errors", "in"]) == ["run", "--retry-errors=", "in"]
    assert closed(["run", "--retry-errors=bad_row", "in"]) == ["run", "--retry-errors=bad_row", "in"]
    assert closed(["run", "--", "--retry-errors"]) == ["run", "--", "--retry-errors"]


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.invoke(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pilotlight ")
    for verb in (["run"], ["run-batch"], ["demo"], ["factcheck", "verify"]):
        assert main.invoke([*verb, "--help"]) == 0
        assert "--output" in capsys.readouterr().out


def test_a_verbs_help_says_more_than_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    said: dict[str, str] = {}
    for verb in ("", "down", "run", "up", "explain", "factcheck", "factcheck verify", "pin"):
        assert main.invoke([*verb.split(), "--help"]) == 0
        said[verb] = " ".join(capsys.readouterr().out.split())
    assert "What jobs have written stays" in said["down"]
    assert "the same command goes on where it was" in said["run"]
    assert "CUDA_VISIBLE_DEVICES" in said["up"]
    assert "SUBJECTS are a worker" in said["explain"]
    assert "Verify a file of claims" in said["factcheck"]
    assert "NOT ENOUGH INFO" in said["factcheck verify"]
    assert "--model " not in said["pin"]
    assert not {"it", "its", "It", "it."} & set(said[""].split())


@pytest.mark.usefixtures("folder")
def test_a_dry_run_refuses_what_a_pool_makes_void(capsys: pytest.CaptureFixture[str]) -> None:
    folder = pool_folder()
    folder.mkdir(parents=True)
    write_spec(folder, PoolSpec(name="default", lasting=True, workers=2, log_dir=str(folder), python="x"))
    line = "run prompts.jsonl -o out.jsonl --model model --dry-run --workers 5"
    assert main.invoke(line.split()) == 2
    assert "--workers would have no effect: pool default is up with 2 workers" in capsys.readouterr().err


def test_every_refused_option_of_vllm_has_its_reason_and_takes_its_default() -> None:
    names = {field.name for field in dataclasses.fields(vllm.RefusedOptions)}
    assert names == vllm.REASONS.keys()
    assert names >= vllm._DEFAULTS.keys()
    vllm.RefusedOptions(**vllm._DEFAULTS).check()


@pytest.mark.usefixtures("folder")
def test_vllms_idle_options_are_taken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    taken: list[Any] = []
    monkeypatch.setattr("pilotlight.cli.run_batch.run_files", lambda *arguments: taken.append(arguments) or 0)
    line = (
        "run-batch -i batch.jsonl -o out.jsonl --model model --served-model-name a b -tp 2 -pp 1 -dp 1 "
        "--download-dir d --output-tmp-dir t --disable-log-stats --no-enable-prefix-caching --generation-config auto"
    )
    assert main.invoke(line.split()) == 0
    assert len(taken) == 1
    told = capsys.readouterr().err
    for name in ("--served-model-name", "--pipeline-parallel-size", "--data-parallel-size", "--output-tmp-dir"):
        assert name in told
    assert "generation-config" not in told


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/cwd/out.jsonl", "/dev/../proc/self/fd/1"])
def test_paths_that_mean_another_file_in_another_process_are_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="name the file itself"):
        checks.check_output(Path(path), [])


def test_files_in_shared_memory_are_files() -> None:
    assert not checks.is_own_view(Path("/dev/shm/out.jsonl"))
