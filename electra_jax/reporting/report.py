"""`report.html`: one or more runs as a page that needs nothing else: curves, verdicts in colour, what was run.

Everything is read from work directories, so the page can be made at any time, also of a run still in progress.
"""

import datetime
import html
import importlib.resources
import itertools
import json
import statistics
import string
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from electra_jax import storage
from electra_jax.errors import UserError
from electra_jax.reporting import run_info, verdicts
from electra_jax.reporting.writers import format_seconds, rows

_COLORS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#eab308", "#14b8a6", "#ec4899")
_POINTS = 2000  # of a line: more cannot be told apart

# The figures by subject, in the order of the page, with what they mean; others come last.
_GROUPS = {
    "Task": dict.fromkeys(
        (
            "accuracy",
            "f1",
            "macro_f1",
            "precision",
            "recall",
            "matthews",
            "span_f1",
            "exact_match",
            "spearman",
            "pearson",
            "pearson_spearman",
        ),
        "on the validation set",
    ),
    "Losses": {
        "loss": "what is minimised: the terms by their weights",
        "masked_lm_loss": "the generator's, nats a masked token; the logarithm of the vocabulary's size is guessing",
        "disc_loss": "the discriminator's, nats a token",
        "task_loss": "of fine-tuning",
    },
    "Discriminator": {
        "disc_auc": "chance that a replaced token scores above an original one; 0.5 is guessing",
        "disc_recall": "share of the replaced tokens that it finds",
        "disc_precision": "share of those it calls replaced that are",
        "disc_accuracy": "over all tokens; calling all original gives 1 - replaced_share",
        "replaced_share": "share of all tokens that the generator replaced by another",
    },
    "Generator": {
        "masked_lm_accuracy": "share of the masked tokens whose most probable filling is right",
        "sampled_masked_lm_accuracy": "share of the masked tokens whose sampled filling is right",
        "generator_entropy": "nats; near 0 it fills in the same tokens everywhere",
    },
    "Optimisation": {
        "learning_rate": "",
        "grad_norm": "of all gradients together, before they are clipped (clipping=per_replica: after)",
        "grad_norm_shared": "of the embeddings",
        "grad_norm_generator": "",
        "grad_norm_discriminator": "",
    },
    "Speed": {
        "tokens_per_second": "",
        "utilisation": "the model's arithmetic over what the hardware could do",
        "seconds_left": "",
        "step_seconds": "",
        "data_read_per_used": "bytes",
    },
}


class Run(NamedTuple):
    """What a work directory says of its run."""

    name: str  # its work directory
    rows: list[dict[str, Any]]  # of metrics.jsonl
    info: dict[str, Any]  # run.json
    config: dict[str, Any]
    verdicts: dict[int, list[list[verdicts.Token]]]
    results: dict[str, Any]  # of a fine-tuning, once all seeds are through


def runs_in(workdir: epath.Path) -> list[Run]:
    """What there is to report: of the work directory of a run, or of the seeds in that of a fine-tuning."""
    places = [workdir, *sorted(workdir.glob("seed-*"), key=lambda path: (len(path.name), path.name))]
    return [run for run in map(_read, places) if run.rows]


def write(workdirs: Sequence[epath.Path], path: epath.Path) -> None:
    """Writes the page of the runs in `workdirs` to `path`.

    Raises:
      UserError: for a directory without a run in it.
    """
    found = [runs_in(epath.Path(workdir)) for workdir in workdirs]
    for workdir, runs in zip(workdirs, found, strict=True):
        if not runs:
            raise UserError(f"{workdir}: no figures are there to report; it must be the work directory of a run")
    storage.write(path, page([run for runs in found for run in runs]))


def try_write(workdir: epath.Path, say: Callable[[str], None]) -> None:
    """Writes `report.html` as a run ends, if there is anything to report; a failure here must not become one of the run."""
    try:
        if runs := runs_in(workdir):
            storage.write(workdir / "report.html", page(runs))
    except Exception as error:  # a full disk, a bucket that cannot be reached
        say(f"WARNING: no report was made ({type(error).__name__}: {error})")


def page(runs: Sequence[Run]) -> str:
    """The page, as HTML."""
    from plotly.offline import get_plotlyjs  # here: runs start without it

    runs = _told_apart(runs)
    named = [{"name": run.name, "color": _COLORS[i % len(_COLORS)]} for i, run in enumerate(runs)]
    data = json.dumps({"runs": named, "groups": _charts(runs)}, separators=(",", ":")).replace("</", "<\\/")
    template = (importlib.resources.files("electra_jax.reporting") / "report.html").read_text()
    return string.Template(template).substitute(
        title=html.escape(
            " and ".join(run.name for run in runs) if len(runs) < 4 else f"{runs[0].name} and {len(runs) - 1} more"
        ),
        summaries=f'{_results(runs)}<div class="grid fit">{"".join(map(_summary, runs))}</div>',
        verdicts="".join(map(_verdicts, runs)),
        settings=_settings(runs),
        written=f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        plotly=get_plotlyjs(),
        data=data,
    )


def _read(workdir: epath.Path) -> Run:
    found = rows(workdir / "metrics.jsonl")

    def read(name: str) -> dict[str, Any]:
        # All seeds share one configuration, in the folder above.
        places = [workdir / name, *([workdir.parent / name] if workdir.name.startswith("seed-") else [])]
        return next((json.loads(path.read_text()) for path in places if path.exists()), {})

    if not found:
        return Run(str(workdir), [], {}, {}, {}, {})
    said = verdicts.read(workdir / "verdicts.jsonl")
    return Run(str(workdir), found, read("run.json"), read("config.json"), said, read("results.json"))


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """`runs`, named by the last two parts of their paths, or by as many more as it takes to tell them apart."""
    parts = {run.name: Path(run.name).parts for run in runs}
    count = next(n for n in itertools.count(2) if len({path[-n:] for path in parts.values()}) == len(parts))
    return [run._replace(name="/".join(parts[run.name][-count:])) for run in runs]


def _charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The curves by group; training and held-out figures of a name share a chart."""
    present = {name.removeprefix("eval/") for run in runs for row in run.rows for name in row} - {"step"}
    groups = {
        name: {figure: text for figure, text in group.items() if figure in present} for name, group in _GROUPS.items()
    }
    others = sorted(present - {figure for group in groups.values() for figure in group})
    groups["Others"] = dict.fromkeys(others, "")
    return [
        {"name": group,
         "charts": [{"name": name, "meaning": text, "lines": list(_lines(runs, name))} for name, text in figures.items()]}
        for group, figures in groups.items() if figures
    ]  # fmt: skip


def _lines(runs: Sequence[Run], name: str) -> Iterator[dict[str, Any]]:
    for index, run in enumerate(runs):
        for key, how in ((name, "training"), (f"eval/{name}", "held out")):
            points = [(row["step"], row[key]) for row in run.rows if key in row]
            points = _thinned(points)
            if points:
                steps, values = zip(*points, strict=True)
                title = how if len(runs) == 1 else f"{run.name}, {how}"
                yield {"run": index, "name": title, "held_out": how == "held out", "steps": steps, "values": values}


def _thinned(points: list[tuple[int, float | None]]) -> list[tuple[int, float | None]]:
    """At most `_POINTS` of them: of each stretch the least and the greatest, so that no spike is lost, and the last."""
    width = -(-2 * len(points) // _POINTS)
    if len(points) <= _POINTS:
        return points
    found = []
    for first in range(0, len(points), width):
        stretch = sorted(points[first : first + width], key=lambda point: (point[1] is None, point[1] or 0))
        found += sorted({stretch[0], stretch[-1]})
    return [*found, points[-1]] if found[-1] != points[-1] else found


def _results(runs: Sequence[Run]) -> str:
    """What fine-tunings came to, a line each."""
    lines = []
    for found in {json.dumps(run.results): run.results for run in runs if "mean" in run.results}.values():
        many = f", mean of {len(found['values'])} seeds, standard deviation {found['standard_deviation']:.4f}"
        line = f"{found['split']} {found['metric']} {found['mean']:.4f}{many if len(found['values']) > 1 else ''}"
        gone = [str(one["seed"]) for one in found["collapsed"]]
        line += f"; collapsed: seed {', '.join(gone)}" if gone else ""
        lines.append(f'<h3>{html.escape(line)}</h3><p class="soft">from {html.escape(found["init"])}</p>')
    return f'<div class="card">{"".join(lines)}</div><br>' if lines else ""


def _kept(run: Run) -> Iterator[tuple[str, float]]:
    """Of a seed, the figures of the weights that were kept, by split."""
    seeds = [f"seed-{one['seed']}" for one in run.results.get("seeds", ())]
    if (name := Path(run.name).name) in seeds:
        metric = run.results["metric"]
        for split, figures in run.results["figures"].items():
            yield f"{metric}, {split}, as kept", figures[metric]["values"][seeds.index(name)]


def _summary(run: Run) -> str:
    """Where the run stands: its last figures."""
    last: dict[str, float] = {}
    for row in run.rows:
        last |= {name: value for name, value in row.items() if value is not None}
    total = run.info.get("planned", {}).get("steps")
    shown = {"step": f"{last['step']:,}" + (f" of {total:,}" if total else "")}
    shown |= {name: f"{value:.3f}" for name, value in _kept(run)}
    shown |= {name: f"{last[key]:.3f}" for name, key in _last_figures(last)}
    for name, key, form in (
        ("tokens a second", "tokens_per_second", "{:,.0f}"),
        ("utilisation", "utilisation", "{:.1%}"),
    ):
        if values := [row[key] for row in run.rows if row.get(key) is not None]:
            shown[name] = form.format(statistics.median(values))
    if total and last["step"] < total and "seconds_left" in last:
        shown["time left"] = format_seconds(last["seconds_left"])
    cells = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in shown.items())
    about = run_info.text(run.info.get("devices", ""))
    heading = f'<h3>{html.escape(run.name)}</h3><p class="soft">{html.escape(about)}</p>'
    return f'<div class="card">{heading}<dl class="figures">{cells}</dl></div>'


_HEADLINES = (
    "masked_lm_loss", "masked_lm_accuracy", "disc_loss", "disc_auc", "accuracy", "matthews", "macro_f1", "f1", "span_f1",
    "exact_match", "spearman", "pearson_spearman",
)  # fmt: skip


def _last_figures(last: dict[str, float]) -> Iterator[tuple[str, str]]:
    for name in _HEADLINES:
        if f"eval/{name}" in last:
            yield f"{name}, held out", f"eval/{name}"
        elif name in last:
            yield name, name


def _verdicts(run: Run) -> str:
    """The first and the last verdicts on the same text."""
    if not run.verdicts:
        return ""
    late = max(run.verdicts)
    text = _text(run.verdicts[late])
    # With a curriculum, another length has other text.
    early = min(step for step, sequences in run.verdicts.items() if _text(sequences) == text)
    steps = sorted({early, late})
    parts = [
        f"<h2>What the discriminator says: {html.escape(run.name)}</h2>",
        '<p class="soft">The redder a token, the surer the discriminator is that it was replaced. Framed: the generator did '
        "replace it; the original follows, struck through. Held-out text, the same at every step.</p>",
    ]
    shown = [verdicts.to_html(run.verdicts[step]) for step in steps]
    for number in range(min(map(len, shown))):
        early_and_late = (
            f'<p class="soft">step {step:,}</p>{at[number]}' for step, at in zip(steps, shown, strict=True)
        )
        parts.append(f'<div class="card early">{"".join(early_and_late)}</div>')
    return "".join(parts)


def _text(sequences: Sequence[Sequence[verdicts.Token]]) -> list[list[str]]:
    return [[token.text for token in tokens] for tokens in sequences]


def _settings(runs: Sequence[Run]) -> str:
    """What was resolved before the first step, and the configurations: what differs between them first."""
    columns = [
        {**_flat(run.info), **{f"config.{name}": value for name, value in _flat(run.config).items()}} for run in runs
    ]
    names = list(dict.fromkeys(name for column in columns for name in column))
    differ = [name for name in names if len({repr(column.get(name)) for column in columns}) > 1]
    head = "".join(f"<th>{html.escape(run.name)}</th>" for run in runs)

    def table(names: Sequence[str]) -> str:
        cells = (
            "".join(f"<td>{html.escape(run_info.text(column.get(name, '')))}</td>" for column in columns)
            for name in names
        )
        lines = (f"<tr><td>{html.escape(name)}</td>{row}</tr>" for name, row in zip(names, cells, strict=True))
        return f'<div class="wide"><table><tr><th></th>{head}</tr>{"".join(lines)}</table></div>'

    everything = f"<details{'' if differ else ' open'}><summary>everything</summary>{table(names)}</details>"
    return (f"<h3>What differs</h3>{table(differ)}" if differ else "") + everything


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        if name == "layout":  # a line a parameter
            continue
        if isinstance(value, dict):
            found |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            found[name] = value
    return found
