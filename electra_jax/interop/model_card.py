"""The README.md of an exported model."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from electra_jax.config import Config
from electra_jax.config_loading import to_dict


class PretrainingRun(NamedTuple):
    """What is known of the run that a model comes from."""

    config: Config
    step: int
    sequences: int  # consumed at the present length
    parameters: int
    trained_length: int  # tokens of the longest text
    metrics: Mapping[str, float]  # held-out figures of that step, by name; may be empty
    languages: Sequence[str]
    license: str
    is_import: bool  # weights of another program, not trained here since
    name: str  # on the Hub, or empty


def text(run: PretrainingRun, part: str, architecture: str) -> str:
    """The model card of one tower, with the YAML head that the Hub reads."""
    return "\n".join([*_head(run, part, architecture), *_body(run, part, architecture)])


# Placeholder for the name of a model that has none yet.
NO_NAME = "PATH_OR_NAME"


def rights(license_name: str, languages: Sequence[str]) -> list[str]:
    """The lines of the head that only the publisher knows."""
    named = ["language:", *(f"- {language}" for language in languages)] if languages else []
    return [f"license: {license_name}", *named]


def _head(run: PretrainingRun, part: str, architecture: str) -> list[str]:
    lines = ["---", "library_name: transformers", *rights(run.license, run.languages)]
    lines += ["tags:", "- electra", "- electra_jax"]
    lines += [f"pipeline_tag: {'fill-mask' if part == 'generator' else 'feature-extraction'}"]
    if run.config.data.source == "embedded" and not run.is_import:
        lines += ["datasets:", "- wikipedia"]
    return [*lines, "---", ""]


def _body(run: PretrainingRun, part: str, architecture: str) -> list[str]:
    task = {
        "ElectraForPreTraining": "The discriminator: an encoder to fine-tune, and a head that tells which tokens were replaced.",
        "ElectraForMaskedLM": "The generator: a masked language model, trained to offer the discriminator likely replacements.",
        "ElectraModel": "An encoder trained by masked language modelling alone.",
    }[architecture]  # fmt: skip
    by = "[electra_jax](https://github.com/OWNER/electra_jax)"
    made = (
        f"Converted by {by} from another program's weights; the method:"
        if run.is_import
        else f"Pretrained by {by} after"
    )
    lines = [
        f"# ELECTRA {part}",
        "",
        f"{task} {made} Clark et al., [ELECTRA](https://arxiv.org/abs/2003.10555) (2020).",
        "",
        "```python",
        f"from transformers import AutoTokenizer, {architecture}",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{run.name or NO_NAME}")',
        f'model = {architecture}.from_pretrained("{run.name or NO_NAME}")',
        "```",
        "",
        f"{run.parameters:,} parameters.",
        "",
    ]
    return lines + ([] if run.is_import else _training(run))


def _training(run: PretrainingRun) -> list[str]:
    config = run.config
    tokens = _tokens_read(run)
    is_embedded = config.data.source == "embedded"
    data = "introductions of English Wikipedia articles (CC BY-SA 4.0)" if is_embedded else f"`{config.data.source}`"
    lines = [
        "## Training",
        "",
        "| | |",
        "|---|---|",
        f"| step | {run.step:,} of {config.train.num_train_steps:,} |",
        f"| tokens read | {tokens:,} |",
        f"| text | {data} |",
        f"| tokenizer | {config.tokenizer.kind}, {'lower-cased' if config.tokenizer.lowercase else 'cased'} |",
        f"| longest text trained on | {run.trained_length:,} tokens |",
        "",
    ]
    lines += ["## Held-out figures", ""]
    if run.metrics:
        lines += [f"On held-out documents of the same text, at step {run.step:,}.", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value:.4f} |" for name, value in sorted(run.metrics.items())] + [""]
    else:
        lines += ["None were measured at this step.", ""]
    lines += ["## Configuration", "", "```json", json.dumps(_written(config), indent=1), "```", ""]
    return lines


def _tokens_read(run: PretrainingRun) -> int:
    """Tokens read at all lengths so far, padding included."""
    tokens, begin = run.sequences * run.config.phase(run.step).length, 0
    for phase in run.config.phases:
        if phase.end is not None and phase.end <= run.step:
            tokens += (phase.end - begin) * phase.batch_size * phase.length
            begin = phase.end
    return tokens


def _written(config: Config) -> dict[str, Any]:
    """The configuration, without what belongs to the machine it ran on."""
    values = {name: value for name, value in to_dict(config).items() if name not in ("mesh", "checkpoint", "reporting")}
    values["data"] = {name: value for name, value in values["data"].items() if name != "directory"}
    return values
