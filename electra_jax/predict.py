"""Labels text with a fine-tuned model: `python -m electra_jax.predict --model=WORKDIR/model < TEXT`."""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import jax

from electra_jax import cli, storage
from electra_jax.errors import UserError
from electra_jax.tasks import batches, examples, folder, formats
from electra_jax.tasks.config import TaskConfig
from electra_jax.tasks.examples import TaskExample
from electra_jax.tasks.formats import Row
from electra_jax.tasks.kinds import Kind
from electra_jax.tasks.of_kind import predicting

# Examples that are read before they are sorted by length and labelled.
_BUFFER = 4096
# As in a task's folder, except for plain text, which has one example per line here.
_BY_SUFFIX = {f".{ending}": form for ending, form in formats.FORMATS.items() if ending != "txt"}


def main(argv: list[str]) -> None:
    parser = cli.parser(
        "electra_jax.predict",
        "Labels text: a JSON object a line. Plain text has one example per line: the texts of a pair, or a question and its "
        "context, separated by a tab; words to be tagged, by spaces.",
        with_config=False,
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="a folder that finetune wrote: WORKDIR/model")
    parser.add_argument("--input", metavar="FILE", default="-", help="default: standard input")
    parser.add_argument("--output", metavar="FILE", default="-", help="where the labels go (default: standard output)")
    parser.add_argument("--format", choices=("auto", "text", *_BY_SUFFIX.values()), default="auto")
    parser.add_argument("--batch_size", type=cli.positive, default=32, metavar="N")
    args = cli.arguments(parser, argv)
    form = _form(args.input, args.format)
    if args.output != "-" and _is_same(args.input, args.output):
        raise UserError(f"--output={args.output} is the input, which would be lost")
    kind, model, params = folder.read(cli.local_path("--model", args.model))
    label = Labeller(kind, predicting(model, kind), jax.device_put(params), args.batch_size)
    name = "standard input" if args.input == "-" else args.input
    count = num_cut = 0
    with _opened(args.input) as source, _made(args.output) as target:
        if form == "text":
            rows = _text(source, name, kind.task)
        else:  # no labels are read, whatever column training had them in
            rows = formats.from_lines(source, name, form, dataclasses.replace(kind.task, label="label"))
        for chunk in _chunks(rows):
            found = examples.of_rows(kind.task, chunk)
            shown = [{"id": example.id, **kind.shown(example, said)} for example, said in zip(found, label(found))]
            try:
                target.write("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in shown))
                target.flush()
            except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                break
            count, num_cut = count + len(found), num_cut + kind.num_cut
    if num_cut:
        print(
            f"{num_cut:,} of {count:,} texts were cut, as the model was fine-tuned with {kind.limit}", file=sys.stderr
        )


class Labeller:
    """A model that is called with examples."""

    def __init__(self, kind: Kind, architecture, params, batch_size: int):
        self._kind, self._params, self._size = kind, params, batch_size
        self._lengths = batches.lengths_up_to(kind.task.max_length)
        pad = kind.tokenizer.special.pad
        self._logits = jax.jit(lambda params, ids, types: architecture.merge(params)(ids, types, pad, None))

    def __call__(self, found: list[TaskExample]) -> list:
        """A prediction each."""
        kind = self._kind
        features, logits = kind.features(found), functools.partial(self._logits, self._params)
        outputs = batches.outputs(logits, features, self._size, self._lengths, kind.tokenizer.special.pad)
        return kind.predictions(found, features, outputs)


def _form(path: str, given: str) -> str:
    """The format of a file; raises `UserError` where its name has no known ending."""
    suffix = Path(path).suffix
    if given != "auto":
        return given
    if path == "-" or suffix in ("", ".txt"):
        return "text"
    if suffix not in _BY_SUFFIX:
        raise UserError(f"--input={path}: what is in it does not follow from its name; set --format")
    return _BY_SUFFIX[suffix]


def _text(lines: Iterable[str], name: str, task: TaskConfig) -> Iterator[Row]:
    """Lines of plain text as rows of the fields that the task reads."""
    names = {"tagging": ((task.text or "tokens").split("|")[0],), "question_answering": ("question", "context")}.get(
        task.kind
    )
    if names is None:
        one, two = (field.split("|")[0] for field in (task.text, task.text_pair))
        names = tuple(filter(None, (one, two)))
    for number, line in enumerate(formats.without_mark(lines)):
        where, cells = f"{name}:{number + 1}", line.rstrip("\r\n").split("\t")
        if not line.strip():
            raise UserError(f"{where} is empty; an example a line")
        if len(cells) != len(names):
            raise UserError(f"{where} has {len(cells)} parts, the task reads {len(names)}: {' and '.join(names)}")
        yield Row(where, number, dict(zip(names, cells)))


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    try:
        while chunk := list(itertools.islice(rows, _BUFFER)):
            yield chunk
    except UnicodeDecodeError as error:
        raise UserError(f"the input is no UTF-8 text ({error})") from None


def _is_same(source: str, target: str) -> bool:
    """Whether the input is the file that the output would replace."""
    try:
        there = os.stat(sys.stdin.fileno() if source == "-" else Path(source).expanduser())
        return os.path.isfile(target) and os.path.samestat(there, os.stat(target))
    except OSError:  # not there, or no file
        return False


@contextlib.contextmanager
def _opened(path: str) -> Iterator[IO[str]]:
    """The input. Only a line feed ends a line, so that each has one answer."""
    as_text = {"encoding": "utf-8", "errors": "strict", "newline": "\n"}  # whatever the locale is
    if path == "-":
        if isinstance(sys.stdin, io.TextIOWrapper):  # not where another program has put its own
            sys.stdin.reconfigure(**as_text)
        yield sys.stdin
        return
    with _open(path, "r", **as_text) as file:
        yield file


@contextlib.contextmanager
def _made(path: str) -> Iterator[IO[str]]:
    """Where the labels go. A file appears whole, under its name, or what was there before stays."""
    if path == "-":
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="strict")
        yield sys.stdout
        return
    place = Path(path).expanduser()
    if place.exists() and not place.is_file():  # a pipe
        with _open(path, "w", encoding="utf-8") as file:
            yield file
        return
    partial = storage.scratch(place)
    with _open(str(partial), "w", encoding="utf-8") as file:
        yield file
    partial.replace(place)


def _open(path: str, mode: str, **options) -> IO[str]:
    try:
        return Path(path).expanduser().open(mode, **options)
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror})") from None


if __name__ == "__main__":
    cli.run(main)
