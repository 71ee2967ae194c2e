"""What the README says: its commands, its tables, its example."""

import ast
import dataclasses
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import zstandard

import task_data
from conftest import ROOT, SMALL, config_file, embedded_documents, in_one_process, process_env
from electra_jax import cli
from electra_jax.config import Config
from electra_jax.errors import UserError
from electra_jax.tasks import config as task_config
from electra_jax.tasks.config import FinetuneConfig

TEXT = (ROOT / "README.md").read_text()
TABLES = ROOT / "configs" / "README.md"
SETTINGS = {"settings": Config, "settings of fine-tuning": FinetuneConfig}
# Settings that fine-tuning refuses.
OF_PRETRAINING_ALONE = {("checkpoint", "keep_period"), ("reporting", "profile_steps")}


def commands() -> list[str]:
    """Every `python -m electra_jax...` in code, lines that go on joined."""
    blocks = re.findall(r"^```\w*\n(.*?)^```|((?:^    [^\n]*\n)+)", TEXT.replace("\\\n", " "), re.M | re.S)
    lines = (line.strip() for block in blocks for part in block for line in part.splitlines())
    found = [match.group(0) for line in lines if (match := re.search(r"python -m electra_jax\..*", line))]
    found += re.findall(r"`(python -m electra_jax\.[^`]*)`", TEXT)
    assert len(found) > 20
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("command", commands())
def test_a_command_is_one_that_works(command, capsys, monkeypatch):
    """Its module is there and knows its flags; its configuration and every setting it overrides are accepted."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(command.split("  #")[0].split(" < ")[0].replace("...", "x"))[2:]
    module = importlib.import_module(words[0])
    monkeypatch.setattr(sys, "argv", [words[0], "--help"])
    with pytest.raises(SystemExit):
        cli.run(module.main)
    known = set(re.findall(r"--\w+", capsys.readouterr().out)) | {"--config"}
    flags = [word.split("=")[0] for word in words[1:] if word.startswith("--")]
    assert {flag for flag in flags if not flag.startswith("--config.")} <= known
    given = dict(word.split("=", 1) for word in words if word.startswith("--config") and "=" in word)
    file = given.pop("--config", None)
    if file is None or not file.startswith("configs/"):
        return
    overrides = [(name.removeprefix("--config."), value) for name, value in given.items()]
    load = cli.load_finetune_config if file.startswith("configs/finetune") else cli.load_config
    load(file.replace("NAME", "jsonl").replace("TASK", "CoLA"), overrides)


def marked(name: str) -> re.Pattern:
    """Matches what is between the marks of a table that is generated from the code."""
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", re.S)


def settings(config: type) -> str:
    """The table of every setting, generated from the code."""
    lines = ["| setting | default | |", "|---|---|---|"]
    for section in dataclasses.fields(config):
        if dataclasses.is_dataclass(section.type):
            shown = section.default  # fine-tuning has defaults of its own for the sections they share
            lines += [
                _line(f"{section.name}.{f.name}", f, getattr(shown, f.name))
                for f in dataclasses.fields(section.type)
                if config is Config or (section.name, f.name) not in OF_PRETRAINING_ALONE
            ]
        else:
            lines.append(_line(section.name, section, section.default))
    return "\n".join(lines) + "\n\n"


def _line(name: str, field: dataclasses.Field, default: typing.Any) -> str:
    choices = typing.get_args(field.type) if typing.get_origin(field.type) is typing.Literal else ()
    text = field.metadata["doc"]
    if choices and not all(f"`{choice}`" in text for choice in choices):
        text = f"{' or '.join(f'`{choice}`' for choice in choices)}: {text}"
    text = text.replace("|", "\\|")
    shown = '""' if default == "" else default
    return f"| `{name}` | `{shown}` | {text} |"


def test_settings_that_the_table_of_fine_tuning_leaves_out_are_refused():
    for section, name in OF_PRETRAINING_ALONE:
        with pytest.raises(UserError, match=f"config.{section}.{name}=1 cannot work"):
            task_config.from_dict({section: {name: 1}, "task": {"path": "x"}})


@pytest.mark.parametrize("name", SETTINGS)
def test_the_table_of_settings_is_that_of_the_code(name):
    """ELECTRA_JAX_WRITE_SETTINGS=1 writes it anew."""
    table = settings(SETTINGS[name])
    if os.environ.get("ELECTRA_JAX_WRITE_SETTINGS"):
        TABLES.write_text(marked(name).sub(lambda _: table, TABLES.read_text(), count=1))
    assert marked(name).search(TABLES.read_text()).group(0) == table


def test_every_message_in_troubleshooting_is_in_the_code():
    rows = TEXT.split("## Troubleshooting")[1].split("\n## ")[0].splitlines()
    messages = [match.group(1) for row in rows if (match := re.match(r"\| `([^`]+)`", row))]
    assert len(messages) > 10
    code = "".join(_strings(path) for path in (ROOT / "electra_jax").rglob("*.py"))
    for message in messages:
        assert message in code or message == "Timeout (", message  # that one is Python's own


def _strings(path: Path) -> str:
    """All strings of a module, parts of one joined."""
    tree = ast.parse(path.read_text())
    return "\n".join(
        "".join(str(part.value) if isinstance(part, ast.Constant) else "" for part in node.values)
        if isinstance(node, ast.JoinedStr)
        else str(node.value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.JoinedStr, ast.Constant))
    )


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            text = (ROOT / file).read_text() if file.endswith(".md") else "" if file else TEXT
            titles = re.findall(r"^#+ (.*)$", text, re.M)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert (ROOT / file).exists() and (not anchor or anchor in anchors), target


# Appended to commands, where later words win. An imported model keeps its own sizes.
SIZES = [
    f"--config.{section}.{name}={value}"
    for section in ("data", "model", "train", "evaluation", "checkpoint")
    for name, value in SMALL[section].items()
    if name not in ("num_train_steps", "max_position_embeddings")  # fine-tuning takes longer texts
]
SMALL_FORM = {
    "train": [
        *SIZES,
        "--config.tokenizer.vocab_size=512",
        "--config.optimizer.cooldown_steps=0",
        "--config.optimizer.schedule=wsd",
    ],  # a run may only be made longer if its rate has not decayed
    "prepare": [*SIZES, "--config.tokenizer.vocab_size=512"],
    "benchmark": [*SIZES, "--config.tokenizer.vocab_size=512"],
    "compile": [*SIZES, "--config.train.batch_size=16"],
    "finetune": ["--config.train.epochs=1", "--config.optimizer.learning_rate=1e-3", "--config.max_restarts=0"],
}
# These names would take the Hub, the memory of a large slice, or an hour of training; each is replaced by what is here.
ELSEWHERE = {
    "google/electra-small-discriminator": "exported/discriminator",
    "google/electra-small-generator": "exported/generator",
    "v5e:16x16": "v5e:2x2",
    "runs/masked_lm-1-x2@3792": "runs/mini-masked_lm",  # what the command before it leaves
}


def small_form(command: str) -> list[str]:
    """The words of a command of the README as the test runs it."""
    for name, other in ELSEWHERE.items():
        command = command.replace(name, other)
    name, *words = shlex.split(command)[2:]
    name = name.removeprefix("electra_jax.")
    more = list(SMALL_FORM.get(name, ()))
    if name == "train":
        steps = 30 if "probe" in command else 20  # the command with a probe resumes a run
        more += [f"--config.train.num_train_steps={steps}", "--config.optimizer.warmup_steps=5"]
        more += ["--config.probe.interval_steps=10"] if "probe" in command else []
    if "runs/imported/config.py" in command:
        more = [word for word in more if ".model." not in word and "vocab_size" not in word]
    return [name, *words, *([] if "<" in words else more)]


@pytest.mark.slow
def test_the_commands_run_from_french_text_to_transformers(tmp_path, monkeypatch, capsys):
    """In the README's order, each on what those before it left; all but `growth` (hours) and those that use a bucket."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for name in ("french.py", "le_la.py"):
        (tmp_path / name).write_text(re.search(rf"```python\n(# {name}.*?)```", TEXT, re.S).group(1))
    texts = embedded_documents(300)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "corpus").mkdir()
    french = [
        f"Le chat {n} est dans la maison de la ville, et le chien {n} aussi. {texts[n % 300]}" for n in range(1100)
    ]
    (tmp_path / "corpus" / "fr.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in french))
    subprocess.run([sys.executable, "le_la.py"], cwd=tmp_path, check=True)
    (tmp_path / "corpus" / "a.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    (tmp_path / "corpus" / "a.txt").write_text("\n\n".join(texts))
    for name in ("text.jsonl", "pieces.jsonl"):
        (tmp_path / name).write_text(lines)
    (tmp_path / "text.txt").write_text("Good! A text.\nBad? Another.\n")
    (tmp_path / "pairs.jsonl").write_text('{"sentence_good": "It is a city.", "sentence_bad": "It a is city."}\n')
    task_data.make(tmp_path / "FOLDER", "classification")
    for name in ("other", "third"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "metrics.jsonl").write_text('{"step": 2, "loss": 3.0}\n')

    all_commands, words = commands(), []
    for command in all_commands:
        is_mention = "..." in command or "[" in command or " --" not in command or "--find_batch" in command
        if is_mention or "gs://" in command or "electra_jax.growth" in command:
            continue
        words.append(small_form(command))
    ended = in_one_process(words, tmp_path, until_failure=True)
    assert [status for status, _ in ended] == [0] * len(words), (words[len(ended) - 1], ended[-1][1][-3000:])
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(from transformers.*?)```", TEXT, re.S)
    exec(example, found := {})
    assert found["vectors"].shape[::2] == (1, 32) and len(capsys.readouterr().out.split(",")) == 5
    (example,) = re.findall(r"```python\n(import jax.numpy.*?)```", TEXT, re.S)
    exec(example, in_jax := {})
    np.testing.assert_allclose(in_jax["vectors"], found["vectors"].detach().numpy(), atol=1e-4)


@pytest.mark.slow
def test_the_example_of_another_objective(tmp_path, corpus_file):
    """Applies the README's diff to a copy of the code, and trains with it."""
    shutil.copytree(ROOT / "electra_jax", tmp_path / "electra_jax", ignore=shutil.ignore_patterns("__pycache__"))
    diff = re.search(r"```diff\n(.*?)```", TEXT, re.S).group(1)
    for part in re.split(r"^--- a/", diff, flags=re.M)[1:]:
        name, _, body = part.split("\n", 2)
        path = tmp_path / name
        path.write_text(_changed(path.read_text(), body))
    config_file(tmp_path / "small.py", {**SMALL, "data": {**SMALL["data"], "source": str(corpus_file)}})
    recall = {}
    for positions in ("all", "masked"):
        flags = [f"--config.objective.disc_positions={positions}", f"--workdir={positions}"]
        flags += ["--config.optimizer.learning_rate=5e-3"]
        command = [sys.executable, "-m", "electra_jax.train", "--config=small.py", *flags]
        env = process_env({"PYTHONPATH": str(tmp_path)})
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        last = (tmp_path / positions / "metrics.jsonl").read_text().splitlines()[-1]
        recall[positions] = json.loads(last)["eval/disc_recall"]
    # The first it learns is the more frequent answer: few of all tokens are replaced, most of the masked ones are.
    assert recall["all"] < 0.1 and recall["masked"] > 0.9


def _changed(text: str, diff: str) -> str:
    """`text` after a diff: `-` lines go out and `+` lines come in, at the place of each hunk's lines, or else at the end."""
    for hunk in re.split(r"^@@.*\n|^\n(?=-)", diff, flags=re.M):
        lines = hunk.splitlines()
        old = "".join(line[1:] + "\n" for line in lines if line[:1] in (" ", "-"))
        new = "".join(line[1:] + "\n" for line in lines if line[:1] in (" ", "+"))
        if old:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        else:
            text += new
    return text
