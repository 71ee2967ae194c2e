"""A fine-tuned model as a folder: what transformers loads, and `task.json`, by which `predict` reads it again."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from electra_jax import config_values, storage
from electra_jax.config import ModelConfig
from electra_jax.errors import UserError
from electra_jax.interop import huggingface, names, tokenizer_files
from electra_jax.interop.model_card import NO_NAME
from electra_jax.interop.names import HUGGING_FACE
from electra_jax.interop.weights import read_json
from electra_jax.models.electra import Params
from electra_jax.tasks import encoder
from electra_jax.tasks.config import TaskConfig, encoder_alone
from electra_jax.tasks.kinds import Kind
from electra_jax.tasks.of_kind import make_kind, predicting

_PLACES = ("path", "train", "validation", "test")


def write(folder: epath.Path, params: Params, model: ModelConfig, kind: Kind, about: dict[str, Any]) -> None:
    """Writes a fine-tuned model; the folder appears whole, in place of what was there.

    Args:
      folder: to write to, on this machine or in a bucket.
      params: `{"shared", "discriminator", "head"}`.
      model: the configuration of the encoder.
      kind: of the task.
      about: what `task.json` says besides: metric, figures, origin.
    """
    params = jax.tree.map(np.asarray, params)
    params = params | {"head": kind.for_export(params["head"])}
    task, tokenizer = kind.task, kind.tokenizer
    folder.parent.mkdir(parents=True, exist_ok=True)
    with storage.new_folder(folder) as partial:
        # Dropout rates are exported as they are: transformers applies them in training only, not to predictions.
        exported = encoder_alone(model, attention="auto", unroll="auto")
        huggingface.write_task(partial, params, exported, kind.head, tokenizer.special, _labels(kind))
        tokenizer_files.write(tokenizer, partial, task.max_length)
        # Nothing about this machine: the folder may be published.
        saved = {"task": dataclasses.asdict(task) | dict.fromkeys(_PLACES, ""), "settings": kind.settings(), **about}
        saved["from"] = shown_origin(about["from"])
        (partial / "task.json").write_text(json.dumps(saved, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(_card(kind, saved), encoding="utf-8")


def shown_origin(name: str) -> str:
    """The encoder's name without the folders of the machine it was on: `runs/french, step 3,000`."""
    place, comma, more = name.partition(",")
    run, at, step = place.rpartition("/checkpoints/")
    is_step = bool(at) and step.isdecimal()
    short = "/".join(Path(run if is_step else place).parts[-2:])
    return short + (f", step {int(step):,}" if is_step else "") + comma + more


_PIPELINES = {
    "sequence": "text-classification",
    "tagging": "token-classification",
    "question_answering": "question-answering",
}


def _card(kind: Kind, saved: dict[str, Any]) -> str:
    """The model card, with the head that the Hub reads."""
    task, architecture = kind.task, huggingface.TASK_MODELS[kind.head]
    lines = ["---", "library_name: transformers", "tags:", "- electra", "- electra_jax"]
    lines += [f"pipeline_tag: {_PIPELINES[kind.head]}", "---", "", f"# ELECTRA, fine-tuned: {task.kind}", ""]
    lines += [f"From {saved['from']}, by [electra_jax](https://github.com/OWNER/electra_jax).", ""]
    lines += ["```python", f"from transformers import AutoTokenizer, {architecture}", ""]
    lines += [f'tokenizer = AutoTokenizer.from_pretrained("{NO_NAME}")']
    lines += [f'model = {architecture}.from_pretrained("{NO_NAME}")', "```", ""]
    lines += [
        f"Texts of up to {task.max_length} tokens. Figures of this seed ({saved['seed']}):",
        "",
        "| | | |",
        "|---|---|---|",
    ]
    lines += [
        f"| {s} | {name} | {value:.4f} |" for s, found in saved["figures"].items() for name, value in found.items()
    ]
    return "\n".join(lines) + "\n"


def _labels(kind: Kind) -> dict[str, Any]:
    task = kind.task
    if task.kind == "regression":
        return {"num_labels": 1, "problem_type": "regression"}
    if task.kind == "question_answering":
        return {}
    found = {"id2label": dict(enumerate(task.labels)), "label2id": {name: i for i, name in enumerate(task.labels)}}
    return found | ({"problem_type": "single_label_classification"} if task.kind == "classification" else {})


def read(folder: Path) -> tuple[Kind, ModelConfig, Params]:
    """A folder that `write` made: kind, configuration, parameters as NumPy arrays.

    Raises:
      UserError: where it is none, or damaged.
    """
    if not (folder / "task.json").is_file():
        raise UserError(f"{folder} has no task.json: it is not a model that finetune wrote (WORKDIR/model is)")
    saved = read_json(folder / "task.json")
    body = encoder.load(str(folder))
    try:
        task = config_values.build(TaskConfig, saved["task"])
        kind = make_kind(task, body.tokenizer)
        for name, value in saved["settings"].items():
            setattr(kind, name, value)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / 'task.json'} is damaged ({error!r})") from None
    stored, params = huggingface.read(folder).weights, body.params(None)
    architecture = predicting(body.model, kind)
    head = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), architecture.shapes["head"])
    params = params | {"head": head}
    for tensor in names.task_head(kind.head, HUGGING_FACE):
        value = stored.get(tensor.theirs)
        if value is None:
            raise UserError(f"{folder} has no tensor {tensor.theirs}")
        tensor.put(params, value)
    return kind, body.model, params
