"""Hugging Face folders, out and in: the same numbers there, the same bits back, and damage told apart."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, process_env, small_config
from safetensors.numpy import load_file, save_file

from electra_jax import export, import_checkpoint
from electra_jax.config import MeshConfig, ModelConfig, TokenizerConfig
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.errors import UserError
from electra_jax.interop import huggingface, tokenizer_files
from electra_jax.models.electra import Architecture, Text
from electra_jax.training import checkpoint, partitioning
from electra_jax.training.checkpoint import Checkpoints, Saved
from electra_jax.training.state import abstract_state, new_state

torch = pytest.importorskip("torch", reason="Hugging Face's side runs on torch (extra [test])")
transformers = pytest.importorskip("transformers", reason="Hugging Face's side is transformers (extra [test])")
transformers.logging.set_verbosity_error()

SIZES = {
    "tiny": ModelConfig(embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64, generator_hidden_size=0.5, initializer_range=0.2),
    "small": ModelConfig(),
    "base": ModelConfig(embedding_size=768, hidden_size=768, num_attention_heads=12, intermediate_size=3072,
                        generator_hidden_size=1 / 3),
}  # fmt: skip
TEXTS = [
    "The quick brown fox jumps over the lazy dog, twice.",
    "Où êtes-vous allés, garçons ? Noël à l'œuvre, une île naïve.",
    "床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。",
    "😀 👩‍👩‍👧 🇫🇷 \x00\x07 control \x7f\x85 tab\tnew\nline",
    "",
    "   ",
    "\u200b\ufeff e\u0301 ﬁ ＦＵＬＬ　ｗｉｄｔｈ \u00a0 İstanbul",
    "a" * 150,
]


def random_params(config: ModelConfig, vocab_size: int):
    """Biases and LayerNorms away from zero and one, so that a swapped or forgotten one is seen."""
    rng = np.random.default_rng(0)
    shapes = Architecture(config, vocab_size).shapes

    def values(path, leaf):
        noise = rng.normal(0, 0.05, leaf.shape).astype(np.float32)
        return 1 + noise if path[-1].key == "scale" else noise

    return jax.tree_util.tree_map_with_path(values, shapes)


def write_model(folder, params, config):
    for part in huggingface.parts(config):
        (folder / part).mkdir(parents=True)
        huggingface.write(folder / part, params, config, part, tokenizer().special)


def tokenizer(kind="wordpiece"):
    return tokenizer_lib.train(TokenizerConfig(kind=kind, vocab_size=300, lowercase=False), TEXTS * 5)


@pytest.mark.parametrize(("size", "lengths"), [("tiny", (1, 2, 77, 512)), ("small", (1, 512)), ("base", (1, 128))])
def test_logits_equal_transformers(size, lengths, tmp_path):
    config, rng, vocab_size = SIZES[size], np.random.default_rng(1), 501
    params, architecture = random_params(config, vocab_size), Architecture(config, vocab_size)
    write_model(tmp_path, params, config)
    disc, loading = transformers.ElectraForPreTraining.from_pretrained(
        tmp_path / "discriminator", output_loading_info=True
    )
    assert not any(loading.values()), loading
    gen, loading = transformers.ElectraForMaskedLM.from_pretrained(tmp_path / "generator", output_loading_info=True)
    assert not any(loading.values()), loading

    @jax.jit
    def ours(params, ids, mask, types):
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        text, model = Text(ids, positions, types, mask), architecture.merge(params)
        return model.generator_logits(text, positions), model.discriminator_logits(text)

    for length in lengths:
        ids = rng.integers(0, vocab_size, (3, length))
        mask = (np.arange(length) < np.asarray([[length], [max(1, length // 2)], [1]])).astype(np.int64)
        types = rng.integers(0, 2, (3, length))
        for given in (types, None):
            generated, scores = ours(params, ids, mask, types if given is not None else np.zeros_like(types))
            inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
            if given is not None:
                inputs["token_type_ids"] = torch.tensor(given)
            with torch.no_grad():
                their_scores, their_logits = disc.eval()(**inputs).logits.numpy(), gen.eval()(**inputs).logits.numpy()
            real = mask > 0
            np.testing.assert_allclose(np.asarray(scores)[real], their_scores[real], atol=1e-4)
            np.testing.assert_allclose(np.asarray(generated)[..., :vocab_size][real], their_logits[real], atol=1e-4)
            assert np.abs(their_logits).max() > 0.1  # there is something to agree about


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
@pytest.mark.parametrize("lowercase", [True, False])
def test_token_ids_equal_auto_tokenizers(kind, lowercase, embedded_texts, tmp_path):
    texts = [*embedded_texts, *TEXTS]
    made = tokenizer_lib.train(TokenizerConfig(kind=kind, vocab_size=900, lowercase=lowercase), texts)
    tokenizer_files.write(made, tmp_path, 128)
    (tmp_path / "config.json").write_text('{"model_type": "electra"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == made.vocab_size
    for text, ours in zip(texts, made.encode_batch(texts), strict=True):
        expected = [made.special.cls, *ours.tolist(), made.special.sep]
        assert theirs(text, verbose=False)["input_ids"] == expected, text
    pair = theirs("one two", "three")
    assert pair["token_type_ids"] == [0] * (pair["input_ids"].index(made.special.sep) + 1) + [1] * (
        len(pair["input_ids"]) - pair["input_ids"].index(made.special.sep) - 1
    )
    special = [theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id]
    assert special == list(made.special)
    assert tokenizer_lib.digest(tokenizer_files.read(tmp_path, TokenizerConfig())) == tokenizer_lib.digest(made)


@pytest.fixture(scope="module")
def embedded_texts():
    from electra_jax.config import DataConfig
    from electra_jax.data import corpus

    return [text for _, text in zip(range(300), corpus.documents(DataConfig()))]


def make_run(workdir, config=None, steps=(7,), params=None, kind="wordpiece"):
    """A work directory with checkpoints, as a run leaves one."""
    config = config or small_config()
    made = tokenizer(kind)
    architecture = Architecture(config.model, made.vocab_size)
    params = random_params(config.model, made.vocab_size) if params is None else params
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint)
    for step in steps:
        state = new_state(config, architecture, jax.tree.map(lambda x, step=step: jnp.asarray(x) + step, params))
        checkpoints.save(state, Saved(config, step, step * 8, "some data", made.to_json()))
    checkpoints.close()
    lines = [{"step": step, "loss": 1.0, "eval/disc_auc": step / 10} for step in steps]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return params


def restored(workdir):
    origin = checkpoint.find(str(workdir))
    saved = checkpoint.read_saved(origin)
    architecture = Architecture(saved.config.model, tokenizer_lib.from_json(saved.tokenizer).vocab_size)
    mesh = partitioning.make_mesh(MeshConfig(), jax.devices()[:1])
    return saved, checkpoint.restore(origin, abstract_state(saved.config, architecture, mesh))


def equal_files(one, other, names):
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_export_import_and_export_again(kind, tmp_path, capsys):
    make_run(tmp_path / "run", steps=(0, 3), kind=kind)
    export.main([f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", "--license=mit", "--language=en,fr"])
    import_checkpoint.main([f"--from={tmp_path / 'out'}", f"--workdir={tmp_path / 'again'}"])
    said = capsys.readouterr().out
    assert "taken from" in said and "discriminator head, generator, generator head" in said
    assert "fresh: optimizer state" in said
    assert "ignored: nothing" in said
    export.main([f"--workdir={tmp_path / 'again'}", f"--out={tmp_path / 'out2'}"])
    for part in ("discriminator", "generator"):
        names = ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]
        equal_files(tmp_path / "out" / part, tmp_path / "out2" / part, names)
    card = (tmp_path / "out" / "discriminator" / "README.md").read_text()
    for expected in (
        "license: mit",
        "- en\n- fr",
        "| disc_auc | 0.3000 |",
        "| step | 3 of 20 |",
        '"disc_weight": 50.0',
    ):
        assert expected in card
    export.main([f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'first'}", "--step=0"])
    first, last = (load_file(tmp_path / name / "generator" / "model.safetensors") for name in ("first", "out"))
    np.testing.assert_allclose(last["generator_lm_head.bias"] - first["generator_lm_head.bias"], 3, atol=1e-5)
    with pytest.raises(UserError, match="there already"):
        export.main([f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"])


def test_it_loads_the_way_its_users_load_it(tmp_path):
    make_run(tmp_path / "run", steps=(0,))
    export.main([f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"])
    disc, gen = tmp_path / "out" / "discriminator", tmp_path / "out" / "generator"
    heads = ("discriminator_predictions", "generator_predictions", "generator_lm_head")
    for folder in (disc, gen):
        model, loading = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
        assert isinstance(model, transformers.ElectraModel)
        assert not loading["missing_keys"]
        assert all(name.startswith(heads) for name in loading["unexpected_keys"])  # the heads that a body has not
    classifier, loading = transformers.ElectraForSequenceClassification.from_pretrained(disc, output_loading_info=True)
    assert {name.split(".")[0] for name in loading["missing_keys"]} == {"classifier"}
    assert not [name for name in loading["unexpected_keys"] if not name.startswith(heads)]
    batch = transformers.AutoTokenizer.from_pretrained(disc)(["The fox", "jumps"], padding=True, return_tensors="pt")
    assert classifier(**batch).logits.shape == (2, 2)
    found = transformers.pipeline("fill-mask", model=str(gen))("The quick brown [MASK] jumps.")
    assert len(found) == 5
    assert all(0 < x["score"] < 1 for x in found)


def test_export_needs_neither_torch_nor_transformers(tmp_path):
    make_run(tmp_path / "run")
    blocked = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'tensorflow', 'huggingface_hub']));"
    )
    arguments = [f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"]
    command = f"{blocked} from electra_jax import export; export.main({arguments!r})"
    subprocess.run([sys.executable, "-c", command], check=True, env=process_env(), cwd=tmp_path, capture_output=True)
    assert (tmp_path / "out" / "generator" / "model.safetensors").is_file()
    command = f"{blocked} import torch"  # the block blocks
    assert subprocess.run([sys.executable, "-c", command], capture_output=True).returncode


@pytest.mark.parametrize("towers", ["tied", "masked_lm", "uniform_generator"])
def test_variants(towers, tmp_path):
    """What a variant has is exported, and computes there what it computes here."""
    config = small_config(model={"towers": towers})
    params = make_run(tmp_path / "run", config, steps=(0,))
    export.main([f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"])
    assert (tmp_path / "out" / "generator").exists() == (towers != "uniform_generator")
    model = Architecture(config.model, tokenizer().vocab_size).merge(params)
    ids = np.arange(20).reshape(2, 10) + 5
    text = Text(
        jnp.asarray(ids), jnp.broadcast_to(jnp.arange(10), (2, 10)), jnp.zeros((2, 10), int), jnp.ones((2, 10), int)
    )
    with torch.no_grad():
        theirs = transformers.AutoModel.from_pretrained(tmp_path / "out" / "discriminator")(torch.tensor(ids))
        np.testing.assert_allclose(model.discriminator_hidden(text), theirs.last_hidden_state, atol=1e-4)
        if towers != "uniform_generator":
            theirs = transformers.ElectraForMaskedLM.from_pretrained(tmp_path / "out" / "generator")(torch.tensor(ids))
            ours = model.generator_logits(text, text.position_ids)[..., : tokenizer().vocab_size]
            np.testing.assert_allclose(ours, theirs.logits, atol=1e-4)


def test_untied_embeddings_come_back(tmp_path):
    config = small_config(model={"tied_embeddings": False, "generator_hidden_size": 0.5, "embedding_size": 16})
    make_run(tmp_path / "run", config, steps=(0,))
    export.main([f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"])
    import_checkpoint.main([f"--from={tmp_path / 'out'}", f"--workdir={tmp_path / 'again'}"])
    saved, state = restored(tmp_path / "again")
    assert not saved.config.model.tied_embeddings
    _, original = restored(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, state.params, original.params)


@pytest.fixture
def exported(tmp_path):
    """A run's export, to be damaged."""
    make_run(tmp_path / "run", steps=(0,))
    export.main([f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"])
    return tmp_path / "out"


def import_from(path, tmp_path, *arguments):
    import_checkpoint.main([f"--from={path}", f"--workdir={tmp_path / 'new'}", *map(str, arguments)])
    return restored(tmp_path / "new")


def test_one_tower_alone(exported, tmp_path, capsys):
    saved, state = import_from(exported / "discriminator", tmp_path)
    said = capsys.readouterr().out
    assert "discriminator, discriminator head" in said
    assert "fresh: generator, optimizer state" in said
    _, original = restored(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, state.params["discriminator"], original.params["discriminator"])
    jax.tree.map(np.testing.assert_array_equal, state.params["shared"], original.params["shared"])
    assert saved.config.model.generator.hidden_size == 8  # the default quarter: nothing else is known
    os.rename(tmp_path / "new", tmp_path / "first")
    _, state = import_from(
        exported / "generator", tmp_path, "--config.model.hidden_size=32", "--config.model.num_attention_heads=2",
        "--config.model.intermediate_size=64", "--config.model.num_hidden_layers=2",
    )  # fmt: skip
    assert "fresh: discriminator, optimizer state" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, state.params["generator"], original.params["generator"])
    os.rename(tmp_path / "new", tmp_path / "second")
    both = f"{exported / 'generator'},{exported / 'discriminator'}"
    _, state = import_from(both, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, state.params, original.params)


def test_bin_files_and_old_names(exported, tmp_path):
    """A `.bin` as torch saves it, with TensorFlow's names for LayerNorms, gives the same state."""
    for part in ("discriminator", "generator"):
        path = exported / part / "model.safetensors"
        tensors = {name: torch.tensor(value) for name, value in load_file(path).items()}
        old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
               for n, t in tensors.items()}  # fmt: skip
        old["electra.embeddings.position_ids"] = torch.arange(32)[None]
        torch.save(old, exported / part / "pytorch_model.bin")
        path.unlink()
    _, state = import_from(exported, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, state.params, restored(tmp_path / "run")[1].params)


def test_bert_as_a_body(tmp_path, capsys):
    config = transformers.BertConfig(
        vocab_size=304, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    body = transformers.BertModel(config).eval()
    body.save_pretrained(tmp_path / "bert")
    made = tokenizer()
    (tmp_path / "bert" / "vocab.txt").write_text("".join(f"{t}\n" for t in made.tokens(range(made.vocab_size))))
    (tmp_path / "bert" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    saved, state = import_from(tmp_path / "bert", tmp_path)
    said = capsys.readouterr().out
    assert "fresh: discriminator head, generator, optimizer state" in said
    assert "ignored: pooler.dense.bias, pooler.dense.weight" in said
    assert saved.config.model.embedding_size == 32
    assert not saved.config.tokenizer.lowercase
    # Four rows beyond the vocabulary are padding, and left out.
    assert state.params["shared"]["word"].shape == (made.vocab_size, 32)
    ids = np.arange(24).reshape(2, 12) % made.vocab_size
    text = Text(
        jnp.asarray(ids), jnp.broadcast_to(jnp.arange(12), (2, 12)), jnp.zeros((2, 12), int), jnp.ones((2, 12), int)
    )
    ours = Architecture(saved.config.model, made.vocab_size).merge(state.params).discriminator_hidden(text)
    with torch.no_grad():
        np.testing.assert_allclose(ours, body(torch.tensor(ids)).last_hidden_state, atol=1e-4)


def truncate(folder):
    path = folder / "discriminator" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def change_shape(folder):
    path = folder / "discriminator" / "model.safetensors"
    tensors = load_file(path)
    tensors["electra.encoder.layer.1.intermediate.dense.weight"] = np.zeros((63, 32), np.float32)
    save_file(tensors, path)


def drop_tensor(folder):
    path = folder / "generator" / "model.safetensors"
    tensors = load_file(path)
    del tensors["electra.encoder.layer.1.attention.self.key.bias"]
    save_file(tensors, path)


class Runs:
    """What a malicious pickle does when it is loaded as one."""

    def __reduce__(self):
        return (open, (str(os.environ["ELECTRA_JAX_MARKER"]), "w"))


def malicious_pickle(folder):
    (folder / "discriminator" / "model.safetensors").unlink()
    torch.save({"electra.embeddings.word_embeddings.weight": Runs()}, folder / "discriminator" / "pytorch_model.bin")


def set_field(name, value):
    def change(folder):
        path = folder / "discriminator" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))

    return change


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (truncate, r"model.safetensors is damaged"),
        (change_shape, r"layer.1.intermediate.dense.weight is \(63, 32\), expected \(64, 32\)"),
        (drop_tensor, r"1 of the \d+ tensors of the generator are missing, first .*layer.1.attention.self.key.bias"),
        (malicious_pickle, r"pytorch_model.bin cannot be read as tensors alone, and nothing in it was run"),
        (lambda f: (f / "generator" / "model.safetensors").unlink(), "neither model.safetensors nor pytorch_model.bin"),
        (lambda f: (f / "discriminator" / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "discriminator" / "config.json").write_text("{"), "config.json is no JSON"),
        (set_field("model_type", "roberta"), "model_type is 'roberta'; electra and bert"),
        (set_field("hidden_act", "relu"), "hidden_act is 'relu'; only 'gelu'"),
        (set_field("hidden_size", "wide"), "hidden_size is 'wide'"),
        (set_field("num_attention_heads", 5), "num_attention_heads"),
        (lambda f: [p.unlink() for p in f.glob("*/*token*")] + [p.unlink() for p in f.glob("*/vocab.txt")], "no vocabulary"),
    ],
)  # fmt: skip
def test_damaged_sources(exported, tmp_path, damage, part, monkeypatch):
    monkeypatch.setenv("ELECTRA_JAX_MARKER", str(tmp_path / "marker"))
    damage(exported)
    with pytest.raises(UserError, match=part) as error:
        import_from(exported, tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "marker").exists()


def test_the_malicious_pickle_is_one(tmp_path, monkeypatch):
    """The control to the test above: loaded the careless way, it runs."""
    monkeypatch.setenv("ELECTRA_JAX_MARKER", str(tmp_path / "marker"))
    torch.save({"x": Runs()}, tmp_path / "file.bin")
    torch.load(tmp_path / "file.bin", weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("path", ["nowhere/at/all", "/nonexistent", "setup.cfg"])
def test_a_path_that_is_no_model(path, tmp_path):
    with pytest.raises(UserError, match="--from="):
        import_from(ROOT / path if path == "setup.cfg" else path, tmp_path)
    assert not (tmp_path / "new").exists()


def test_what_the_checkpoint_determines_cannot_be_set(exported, tmp_path):
    with pytest.raises(UserError, match=r"--config.model.hidden_size=64 cannot work: .* makes it 32"):
        import_from(exported, tmp_path, "--config.model.hidden_size=64")
    assert not (tmp_path / "new").exists()


def test_it_does_not_write_over_a_run(exported, tmp_path):
    with pytest.raises(UserError, match="has checkpoints already"):
        import_checkpoint.main([f"--from={exported}", f"--workdir={tmp_path / 'run'}"])


def test_training_goes_on_from_an_import(exported, tmp_path, corpus_file):
    """In a process of its own, from the configuration that the import wrote; other sizes are refused."""
    import_from(exported, tmp_path, "--config.data.max_seq_length=32", "--config.train.num_train_steps=3")
    command = [
        sys.executable, "-m", "electra_jax.train", f"--config={tmp_path / 'new' / 'config.py'}",
        f"--workdir={tmp_path / 'new'}", f"--config.data.source={corpus_file}", "--config.train.batch_size=8",
        f"--config.data.directory={tmp_path / 'data'}", "--config.evaluation.max_records=8",
        "--config.evaluation.batch_size=8", "--config.data.validation_fraction=0.05",
    ]  # fmt: skip
    refused = subprocess.run(
        [*command, "--config.model.hidden_size=64"], env=process_env(), capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "config.model.hidden_size was 32, now 64" in refused.stderr
    done = subprocess.run(command, env=process_env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "finished at step 3" in done.stdout
    saved, _ = restored(tmp_path / "new")
    assert saved.step == 3 and saved.data
