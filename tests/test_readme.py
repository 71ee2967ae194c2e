"""What the README says: its commands, its tables, its example."""

import ast
import dataclasses
import importlib
import json
import re
import shlex
import shutil
import sys
import typing
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, config_file, run_module

from electra_jax import cli
from electra_jax.config import Config

README = ROOT / "README.md"
TEXT = README.read_text()
SETTINGS = re.compile(r"(?<=<!-- settings -->\n).*?(?=<!-- end -->)", re.S)


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


def settings() -> str:
    """The table of every setting, made of the code."""
    lines = []
    for section in dataclasses.fields(Config):
        if not dataclasses.is_dataclass(section.type):
            lines += ["| setting | default | |", "|---|---|---|", _line("seed", section)]
            continue
        lines += [_line(f"{section.name}.{field.name}", field) for field in dataclasses.fields(section.type)]
    table = "\n".join(lines)
    return f"<details><summary>Every setting of pretraining</summary>\n\n{table}\n\n</details>\n\n"


def _line(name: str, field: dataclasses.Field) -> str:
    choices = typing.get_args(field.type) if typing.get_origin(field.type) is typing.Literal else ()
    text = field.metadata["doc"]
    if choices and not all(f"`{choice}`" in text for choice in choices):
        text = f"{' or '.join(f'`{choice}`' for choice in choices)}: {text}"
    return f"| `{name}` | `{field.default if field.default != '' else 'none'}` | {text.replace('|', 'or')} |"


def test_the_table_of_settings_is_that_of_the_code():
    """ELECTRA_JAX_WRITE_SETTINGS=1 writes it anew."""
    import os

    if os.environ.get("ELECTRA_JAX_WRITE_SETTINGS"):
        README.write_text(SETTINGS.sub(lambda _: settings(), TEXT))
    assert SETTINGS.search(README.read_text()).group(0) == settings()


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
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", TEXT, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("http"):
            assert (ROOT / target).exists(), target


@pytest.mark.slow
def test_the_example_of_another_objective(tmp_path, corpus_file):
    """The change as it stands there, made and trained with."""
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
        done = run_module("train", "--config=small.py", *flags, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
        assert done.returncode == 0, done.stderr
        last = (tmp_path / positions / "metrics.jsonl").read_text().splitlines()[-1]
        recall[positions] = json.loads(last)["eval/disc_recall"]
    # The first it learns is the more frequent answer: few of all tokens are replaced, most of the masked ones are.
    assert recall["all"] < 0.1 and recall["masked"] > 0.9


def _changed(text: str, diff: str) -> str:
    """`text` after a change: lines that go out and come in, each after lines that stay or in place of what goes out."""
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
