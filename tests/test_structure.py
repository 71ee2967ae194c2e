"""The house rules, kept by the code itself."""

import ast

import pytest

from conftest import ROOT

PACKAGE = ROOT / "electra_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each room (a folder or module at the top of the package) may import of ours, besides itself, errors and storage.
ALLOWED = {
    "config": {"config_values"},
    "config_loading": {"config", "config_values"},
    "config_values": set(),
    "errors": set(),
    "data": {"config"},
    "models": {"config"},
    "objectives": {"models", "config"},
    "training": {"objectives", "models", "config", "config_loading", "reporting"},
    "reporting": {"config"},
    "analysis": {"config", "models"},
    "interop": {"models", "training", "data", "config", "config_loading"},
    "tasks": {
        "models",
        "objectives",
        "training",
        "reporting",
        "data",
        "interop",
        "config",
        "config_loading",
        "config_values",
        "distributed",
        "memory",
    },
}
OURS = {path.stem for path in PACKAGE.iterdir()}
COMMANDS = {path.stem for path in PACKAGE.glob("*.py")} - {
    "__init__",
    "config",
    "config_loading",
    "config_values",
    "errors",
    "memory",
    "cli",
    "distributed",
    "failure",
    "held_out",
    "inputs",
    "resume",
    "storage",
    "workdir",
}


def room(path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path) -> set[str]:
    """What a module imports: of ours by room, of other packages by their top-level name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [
                f"{node.module}.{alias.name}" if node.module == "electra_jax" else node.module for alias in node.names
            ]
        else:
            continue
        found |= {name.split(".")[1] if name.startswith("electra_jax.") else name.split(".")[0] for name in names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    ours = imports(path) & OURS
    if room(path) in ALLOWED:
        assert ours <= ALLOWED[room(path)] | {room(path), "errors", "storage"}
    else:
        assert not ours & (COMMANDS - {path.stem}), "a command line imports another"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_or_foreign_packages_stay_out(path):
    found = imports(path)
    # Optional packages, each imported only in the one module that needs it.
    extras = {
        "interop/tensorflow.py": {"tensorflow"},
        "interop/weights.py": {"torch"},
        "interop/hub.py": {"huggingface_hub"},
        "data/work.py": {"apache_beam"},
        "data/near_duplicates.py": {"datasketch"},
        "data/card.py": {"py3langid"},
        "growth.py": {"matplotlib"},
        "reporting/writers.py": {"wandb"},
    }
    allowed = extras.get(str(path.relative_to(PACKAGE)), set())
    assert (
        not (
            found
            & {
                "tensorflow",
                "torch",
                "transformers",
                "clu",
                "huggingface_hub",
                "apache_beam",
                "datasketch",
                "py3langid",
                "datasets",
                "matplotlib",
                "wandb",
            }
        )
        - allowed
    )
    if room(path) in ("models", "objectives"):
        assert not found & {"tensorflow_datasets", "orbax", "absl", "argparse", "grain"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 320
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 75, f"{node.name} is long"
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and node.col_offset == 0:
            assert ast.get_docstring(node) or node.name == "main", f"{node.name} has no docstring"
