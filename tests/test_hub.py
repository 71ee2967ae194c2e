"""Publishing and fetching, against a server on this machine that speaks the Hugging Face Hub's protocol."""

import base64
import hashlib
import http.server
import io
import json
import re
import subprocess
import sys
import threading

import pytest
from safetensors.torch import load

from conftest import process_env
from runs import make_run, restored

pytest.importorskip("huggingface_hub", reason="publishing needs huggingface_hub (extra [test])")


class Hub:
    """Repositories as {name: {revision: {path: bytes}}}, and a server over them."""

    def __init__(self):
        self.repos, self.objects, self.tokens, self.commits, self.visibility = {}, {}, set(), {}, {}
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def reply(self, body=b"", status=200, headers=None):
                body = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                if "Content-Length" not in (headers or {}):
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def handle_any(self):
                size = int(self.headers.get("Content-Length") or 0)
                hub.tokens.add(self.headers.get("Authorization"))
                hub.answer(self, self.path.split("?")[0], self.rfile.read(size))

            do_GET = do_POST = do_PUT = do_HEAD = handle_any

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request, path, body):
        """Replies as the Hub does to what huggingface_hub asks."""
        for form, reply in (
            (r"/api/repos/create", self.create),
            (r"/api/validate-yaml", lambda body: {"errors": [], "warnings": []}),
            (r"/api/models/(.+)/branch/(.+)", self.branch),
            (r"/api/models/(.+)/preupload/(.+)", self.preupload),
            (r"/(.+)\.git/info/lfs/objects/batch", self.lfs_batch),
            (r"/store/(.+)", self.store),
            (r"/api/models/(.+)/commit/(.+)", self.commit),
            (r"/api/models/([^/]+/[^/]+)/tree/(.+)", self.tree),
            (r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self.info),
        ):
            if found := re.fullmatch(form, path):
                answer = reply(body, *found.groups())
                request.reply(answer, 200 if "error" not in answer else 404 if "no model" in answer["error"] else 403)
                return
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not found or found[1] not in self.repos:
            request.reply({"error": f"not found: {path}"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        content = self.repos[found[1]][self.commits[found[2]]][found[3]]
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": found[2]}
        request.reply(content, headers=headers | {"Content-Length": str(len(content))})

    def sha(self, revision):
        """The commit that a revision stands at: one for each."""
        commit = hashlib.sha1(revision.encode()).hexdigest()
        self.commits[commit] = revision
        return commit

    def create(self, body):
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if name.startswith("forbidden/"):
            return {"error": "You have no right to create a model there"}
        self.repos.setdefault(name, {"main": {}})
        self.visibility[name] = asked.get("visibility")
        return {"url": f"{self.address}/{name}", "name": name, "id": name}

    def branch(self, body, name, revision):
        self.repos[name].setdefault(revision, {})
        return {}

    def preupload(self, body, name, revision):
        def mode(path):
            return "lfs" if path.endswith(".safetensors") else "regular"

        asked = [file["path"] for file in json.loads(body)["files"]]
        return {"files": [{"path": p, "uploadMode": mode(p), "shouldIgnore": False, "oid": None} for p in asked]}

    def lfs_batch(self, body, name):
        objects = [{"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{self.address}/store/{o['oid']}"}}}
                   for o in json.loads(body)["objects"]]  # fmt: skip
        return {"transfer": "basic", "objects": objects}

    def store(self, body, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        self.objects[oid] = body
        return {}

    def commit(self, body, name, revision):
        files = self.repos[name][revision]
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                files[line["value"]["path"]] = self.objects[line["value"]["oid"]]
        return {"commitUrl": f"{self.address}/{name}/commit/1", "commitOid": "1" * 40, "success": True}

    def tree(self, body, name, commit):
        files = self.repos[name][self.commits[commit]]
        return [
            {"type": "file", "path": path, "size": len(content), "oid": "1" * 40} for path, content in files.items()
        ]

    def info(self, body, name, revision):
        files = self.repos.get(name, {}).get(revision or "main")
        if files is None:
            return {"error": f"no model {name}"}
        return {"id": name, "sha": self.sha(revision or "main"), "siblings": [{"rfilename": file} for file in files]}


@pytest.fixture
def hub():
    made = Hub()
    yield made
    made.server.shutdown()


# The discriminator's sizes, which a generator's files do not give.
SIZES = [f"--config.model.{name}" for name in (
    "hidden_size=32", "num_attention_heads=2", "intermediate_size=64", "num_hidden_layers=2"
)]  # fmt: skip


def run(hub, tmp_path, *command):
    env = {"HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_test", "HF_HOME": str(tmp_path / "cache"),
           "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", *command], env=process_env(env), cwd=tmp_path, capture_output=True, text=True
    )


def test_publish_and_fetch(hub, tmp_path):
    torch = pytest.importorskip("torch", reason="weights in PyTorch's own form")
    make_run(tmp_path / "run", steps=(3, 5))
    (tmp_path / "out" / "private").mkdir(parents=True)
    (tmp_path / "out" / "private" / "notes.txt").write_text("not to be published")
    done = run(
        hub,
        tmp_path,
        "electra_jax.export",
        "--workdir=run",
        "--out=out",
        "--push_to=ours/fox",
        "--push_every_step",
        "--private",
    )
    assert done.returncode == 0, done.stderr
    assert hub.tokens == {"Bearer hf_test"} | (hub.tokens & {None})
    assert hub.visibility == {"ours/fox-discriminator": "private", "ours/fox-generator": "private"}
    assert set(hub.repos) == set(hub.visibility)
    for name, revisions in hub.repos.items():
        assert set(revisions) == {"main", "step-3", "step-5"}
        local = tmp_path / "out" / name.rpartition("-")[2]
        assert revisions["main"] == {path.name: path.read_bytes() for path in local.iterdir()}
        weights = {revision: files["model.safetensors"] for revision, files in revisions.items()}
        assert weights["main"] == weights["step-5"] != weights["step-3"]
    assert "published" in done.stdout and "ours/fox-generator/tree/step-3" in done.stdout

    done = run(hub, tmp_path, "electra_jax.import_checkpoint", "--from=ours/fox-discriminator,ours/fox-generator",
               "--workdir=back")  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = run(hub, tmp_path, "electra_jax.export", "--workdir=back", "--out=out2")
    assert done.returncode == 0, done.stderr
    # Weights in PyTorch's own form alone, as older models have them.
    files = hub.repos["ours/fox-generator"]["step-3"]
    torch.save(load(files.pop("model.safetensors")), buffer := io.BytesIO())
    files["pytorch_model.bin"] = buffer.getvalue()
    done = run(
        hub, tmp_path, "electra_jax.import_checkpoint", "--from=ours/fox-generator@step-3", "--workdir=third", *SIZES
    )
    assert done.returncode == 0, done.stderr
    third = restored(tmp_path / "third")[1].params["generator"]["output_bias"]
    last = restored(tmp_path / "back")[1].params["generator"]["output_bias"]
    assert abs(float((last - third).mean()) - 2) < 1e-4
    assert (
        'from_pretrained("ours/fox-discriminator")' in hub.repos["ours/fox-discriminator"]["main"]["README.md"].decode()
    )
    (tmp_path / "pairs.jsonl").write_text('{"sentence_good": "The fox jumps.", "sentence_bad": "Fox the jumps."}\n')
    done = run(hub, tmp_path, "electra_jax.minimal_pairs", "--init=ours/fox-discriminator", "pairs.jsonl")
    assert done.returncode == 0 and "of 1 pairs" in done.stdout, done.stderr
    for part in ("discriminator", "generator"):
        one, other = (tmp_path / out / part / "model.safetensors" for out in ("out", "out2"))
        assert one.read_bytes() == other.read_bytes()


def test_what_the_hub_refuses_is_one_line(hub, tmp_path):
    make_run(tmp_path / "run", steps=(3,))
    done = run(hub, tmp_path, "electra_jax.export", "--workdir=run", "--out=out", "--push_to=forbidden/fox")
    assert done.returncode == 2
    assert "--push_to=forbidden/fox-discriminator; the Hugging Face Hub refused" in done.stderr.splitlines()[-1]
    assert "no right to create" in done.stderr.splitlines()[-1]
    assert (tmp_path / "out" / "generator").is_dir()  # the export itself is done
    done = run(hub, tmp_path, "electra_jax.import_checkpoint", "--from=ours/absent", "--workdir=back")
    assert done.returncode == 2
    assert "--from=ours/absent: there is no such folder; the Hugging Face Hub refused" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "back").exists()
    done = run(hub, tmp_path, "electra_jax.export", "--workdir=run", "--out=out", "--push_to=nothing")
    assert done.returncode == 2
    assert "it must be ORG/NAME" in done.stderr
