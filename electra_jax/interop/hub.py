"""The Hugging Face Hub: fetching and publishing folders. Needs `huggingface_hub`, an extra."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from electra_jax.errors import UserError

Result = TypeVar("Result")

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]


def is_name(text: str) -> bool:
    """Whether `text` has the form ORG/NAME of a model on the Hub."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None


def fetch(flag: str, text: str) -> Path:
    """The folder of a model from the Hub, from the local cache if it is there.

    Args:
      flag: that named it, for messages.
      text: ORG/NAME or ORG/NAME@REVISION.

    Raises:
      UserError: where it cannot be had.
    """
    what = f"{flag}={text}: there is no such folder"
    hub = _hub(what)
    name, _, revision = text.partition("@")
    revision = revision or None
    print(f"{what}: fetching it from the Hugging Face Hub", flush=True)

    def download() -> Path:
        folder = Path(hub.snapshot_download(name, revision=revision, allow_patterns=_FILES))
        if not list(folder.glob("*.safetensors")):
            hub.snapshot_download(name, revision=revision, allow_patterns=["pytorch_model.bin"])
        return folder

    return _ask(what, download)


def publish(folder: Path, name: str, revision: str, message: str, is_private: bool) -> str:
    """Uploads `folder` as a revision of a model, made if it does not exist, private or not; returns its address.

    Raises:
      UserError: where the Hub refuses or cannot be reached.
    """
    what = f"--push_to={name}"
    api = _hub(what).HfApi()

    def push() -> str:
        url = api.create_repo(name, private=is_private or None, exist_ok=True)  # None: the organisation's default
        if revision != "main":
            api.create_branch(name, branch=revision, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message=message)
        return f"{url}/tree/{revision}"

    return _ask(what, push)


def _hub(what: str):
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{what}; the Hugging Face Hub needs huggingface_hub: pip install 'electra_jax[hub]'") from None
    return huggingface_hub


def _ask(what: str, call: Callable[[], Result]) -> Result:
    try:
        return call()
    except Exception as error:  # the Hub's own errors, and those of whatever HTTP library it uses
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{what}; the Hugging Face Hub refused or cannot be reached ({text[:300]})") from None
