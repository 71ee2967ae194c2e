"""Hugging Face folders, exported and imported: the same numbers there, the same bits back, and clear errors for damage."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import typing

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sentencepiece import sentencepiece_model_pb2

from conftest import ROOT, embedded_documents, process_env, small_config
from electra_jax import export, import_checkpoint, minimal_pairs, predict, report
from electra_jax.config import ModelConfig, TokenizerConfig
from electra_jax.config_values import FREE
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.data.sentencepiece_model import SentencePiece
from electra_jax.errors import UserError
from electra_jax.interop import huggingface, model_card, tokenizer_files
from electra_jax.models.electra import Architecture, Text
from electra_jax.training import checkpoint, loop
from runs import TEXTS, make_run, random_params, restored, tokenizer

torch = pytest.importorskip("torch", reason="Hugging Face's side runs on torch (extra [test])")
transformers = pytest.importorskip("transformers", reason="Hugging Face's side is transformers (extra [test])")
save_torch = pytest.importorskip("safetensors.torch").save_file
transformers.logging.set_verbosity_error()

SIZES = {
    "tiny": ModelConfig(embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64, generator_hidden_size=0.5, initializer_range=0.2),
    "small": ModelConfig(),
    "base": ModelConfig(embedding_size=768, hidden_size=768, num_attention_heads=12, intermediate_size=3072,
                        generator_hidden_size=1 / 3),
}  # fmt: skip


def write_model(folder, params, config):
    for part in huggingface.parts(config):
        (folder / part).mkdir(parents=True)
        huggingface.write(folder / part, params, config, part, tokenizer().special)


@pytest.mark.parametrize(("size", "lengths"), [("tiny", (1, 2, 77, 512)), ("small", (1, 512)), ("base", (1, 512))])
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
        return model.generator_logits(text, positions).reshape(*ids.shape, -1), model.discriminator_logits(text)

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


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_text_after_a_mask_has_the_ids_of_training(kind, embedded_texts, tmp_path):
    made = tokenizer_lib.train(TokenizerConfig(kind=kind, vocab_size=900), embedded_texts)
    tokenizer_files.write(made, tmp_path, 128)
    (tmp_path / "config.json").write_text('{"model_type": "electra"}')
    theirs, mask = transformers.AutoTokenizer.from_pretrained(tmp_path), made.special.mask
    for before, after in (("la ", "."), ("the city", " of the"), ("It ", ", which"), ("a", " b ")):
        one, whole = (made.encode_batch([text])[0].tolist() for text in (before.rstrip(), before.rstrip() + after))
        assert whole[: len(one)] == one  # no token spans the place of the mask
        expected = [made.special.cls, *one, mask, *whole[len(one) :], made.special.sep]
        assert theirs(f"{before}[MASK]{after}")["input_ids"] == expected, (before, after)


def test_the_unknown_piece_may_have_another_name(embedded_texts, tmp_path):
    """As in SentencePiece's own default: no second one is made, whose id the embeddings would not have."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(
        tokenizer_lib.train(TokenizerConfig(kind="unigram", vocab_size=900), embedded_texts).model
    )
    next(piece for piece in proto.pieces if piece.piece == "[UNK]").piece = "<unk>"
    made = SentencePiece(proto.SerializeToString())
    tokenizer_files.write(made, tmp_path, 128)
    (tmp_path / "config.json").write_text('{"model_type": "electra"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (len(theirs), theirs.unk_token, theirs.unk_token_id) == (made.vocab_size, "<unk>", made.special.unk)
    text = "The [UNK] of 東京"
    assert theirs(text)["input_ids"][1:-1] == made.encode_batch([text])[0].tolist()


def test_added_tokens_are_refused(embedded_texts, tmp_path):
    """They would be cut into pieces, or be unknown."""
    made = tokenizer_lib.train(TokenizerConfig(vocab_size=900), embedded_texts)
    (tmp_path / "made").mkdir()
    tokenizer_files.write(made, tmp_path / "made", 128)
    (tmp_path / "made" / "config.json").write_text('{"model_type": "electra"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "made")
    theirs.add_tokens(["<url>"])
    theirs.save_pretrained(tmp_path / "more")
    shutil.copy(tmp_path / "made" / "vocab.txt", tmp_path / "more")
    with pytest.raises(UserError, match=r"added tokens \(<url>\), which the tokenizer here cannot keep"):
        tokenizer_files.read(tmp_path / "more", TokenizerConfig())
    (tmp_path / "made" / "tokenizer.json").unlink()
    (tmp_path / "made" / "tokenizer_config.json").write_text('{"tokenizer_class": "ElectraTokenizer"}')
    tokenizer_files.read(tmp_path / "made", TokenizerConfig())
    (tmp_path / "made" / "added_tokens.json").write_text(json.dumps({"<url>": 900}))
    with pytest.raises(UserError, match=r"added tokens \(<url>\)"):
        tokenizer_files.read(tmp_path / "made", TokenizerConfig())


def test_tokenizers_by_other_rules_are_refused(embedded_texts, tmp_path):
    """Their ids would differ from those the model was trained on."""
    made = tokenizer_lib.train(TokenizerConfig(vocab_size=900), embedded_texts)
    tokenizer_files.write(made, tmp_path, 128)
    config, whole = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("tokenizer_config", "tokenizer"))

    def read(config, whole):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
        return tokenizer_files.read(tmp_path, TokenizerConfig())

    assert tokenizer_lib.digest(read(config, whole)) == tokenizer_lib.digest(made)
    # Accepted: a file that also cuts and pads, and a class that says nothing. The ids stay the same.
    padded = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
              "pad_token": "[PAD]"}  # fmt: skip
    cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    read(config | {"tokenizer_class": "TokenizersBackend"}, whole | {"padding": padded, "truncation": cut})
    # transformers goes by tokenizer_config.json where the two differ.
    assert not read(config | {"do_lower_case": False, "strip_accents": False}, whole).lowercase
    for other in (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}},
        {"pre_tokenizer": {"type": "WhitespaceSplit"}},
        {"model": whole["model"] | {"continuing_subword_prefix": "@@"}},
    ):
        with pytest.raises(
            UserError, match="tokenizer.json cuts text by rules that the tokenizer here does not have: of "
        ):
            read(config, whole | other)
    with pytest.raises(UserError, match="tokenizer.json is no tokenizer"):
        read(config, {"model": 3} | {"version": 5})
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "BertJapaneseTokenizer"}))
    with pytest.raises(UserError, match="its tokenizer is a BertJapaneseTokenizer"):
        tokenizer_files.read(tmp_path, TokenizerConfig())


@pytest.mark.parametrize(("said", "expected"), [(None, 512), (10**30, 512), (1e30, 512), (64, 64), ("long", 512)])
def test_length_by_the_tokenizer(said, expected, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": said}))
    assert tokenizer_files.max_length(tmp_path, 512) == expected


@pytest.fixture(scope="module")
def embedded_texts():
    return embedded_documents(300)


def equal_files(one, other, names):
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_export_import_and_export_again(kind, tmp_path, capsys):
    config = small_config(model={"num_hidden_layers": 2, "max_position_embeddings": 64})
    make_run(tmp_path / "run", config, steps=(0, 3), kind=kind)
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
        "| longest text trained on | 32 tokens |",
        "license: mit",
        "- en\n- fr",
        "| disc_auc | 0.3000 |",
        "| step | 3 of 20 |",
        '"disc_weight": 50.0',
    ):
        assert expected in card
    # The length it was trained on, not its number of positions.
    assert json.loads((tmp_path / "out2" / part / "tokenizer_config.json").read_text())["model_max_length"] == 32
    assert json.loads((tmp_path / "out2" / part / "config.json").read_text())["max_position_embeddings"] > 32
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
        assert all(name.startswith(heads) for name in loading["unexpected_keys"])  # heads, which a bare encoder lacks
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
    command = f"{blocked} import torch"  # the control: the import is blocked
    assert subprocess.run([sys.executable, "-c", command], capture_output=True).returncode


@pytest.mark.parametrize("towers", ["tied", "masked_lm", "uniform_generator"])
def test_variants(towers, tmp_path, capsys):
    """The towers that a variant has are exported, and give the same in transformers as here."""
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
            ours = model.generator_logits(text, text.position_ids).reshape(2, 10, -1)[..., : tokenizer().vocab_size]
            np.testing.assert_allclose(ours, theirs.logits, atol=1e-4)
    # And back, as the variant it was.
    given = [] if towers != "uniform_generator" else ["--config.model.towers=uniform_generator"]
    saved, state = import_from(tmp_path / "out", tmp_path, *given)
    assert saved.config.model.towers == towers
    assert "ignored: nothing" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, state.params, restored(tmp_path / "run")[1].params)


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


def test_half_precision_and_shards(exported, tmp_path):
    """As others save them: bfloat16, and in several files with an index."""
    path = exported / "discriminator" / "model.safetensors"
    tensors = {name: value.astype(ml_dtypes.bfloat16) for name, value in load_file(path).items()}
    halves = [dict(list(tensors.items())[i::2]) for i in range(2)]
    for i, half in enumerate(halves):
        save_torch({name: torch.tensor(value.astype(np.float32)).bfloat16() for name, value in half.items()},
                   exported / "discriminator" / f"model-{i}.safetensors")  # fmt: skip
    index = {"weight_map": {name: f"model-{i}.safetensors" for i, half in enumerate(halves) for name in half}}
    (exported / "discriminator" / "model.safetensors.index.json").write_text(json.dumps(index))
    path.unlink()
    _, state = import_from(exported / "discriminator", tmp_path)
    _, original = restored(tmp_path / "run")
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), original.params["discriminator"])
    jax.tree.map(np.testing.assert_array_equal, state.params["discriminator"], rounded)


def test_figures_that_were_not_finite_and_a_torn_line(tmp_path):
    make_run(tmp_path / "run", steps=(3,))
    with open(tmp_path / "run" / "metrics.jsonl", "w") as file:
        file.write('{"step": 3, "eval/disc_auc": null, "eval/disc_loss": 0.25}\n{"step": 4, "los')
    export.main([f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"])
    card = (tmp_path / "out" / "generator" / "README.md").read_text()
    assert "| disc_loss | 0.2500 |" in card
    assert "| disc_auc |" not in card


def test_a_directory_may_be_called_as_a_step_of_another(tmp_path):
    """Such as a branch from step 3: where `run@3` exists, the name means that directory, and `--step` is never read from a name."""
    make_run(tmp_path / "run", steps=(3,))
    make_run(tmp_path / "run@3", steps=(5,))
    assert checkpoint.find(str(tmp_path / "run@3")).path == tmp_path / "run@3" / "checkpoints" / "5"
    assert checkpoint.find(str(tmp_path / "run@3@5")).path == tmp_path / "run@3" / "checkpoints" / "5"
    assert checkpoint.find_in(str(tmp_path / "run"), 3).path == tmp_path / "run" / "checkpoints" / "3"
    shutil.rmtree(tmp_path / "run@3")
    assert checkpoint.find(str(tmp_path / "run@3")).path == tmp_path / "run" / "checkpoints" / "3"
    with pytest.raises(UserError, match="run@4: no such step"):
        checkpoint.find(str(tmp_path / "run@4"))


@pytest.mark.parametrize(
    ("step", "sequences", "tokens"), [(3, 12, 12 * 16), (4, 0, 16 * 16), (7, 24, 16 * 16 + 24 * 32)]
)
def test_the_tokens_that_were_read_are_of_every_length(step, sequences, tokens):
    config = small_config(
        train={"batch_size": 8, "curriculum_batch_sizes": (4,)}, data={"curriculum_lengths": (16,), "curriculum_steps": (4,)}
    )  # fmt: skip
    position = loop.Position(0, 0)
    while position.step < step:
        position = position.next(config)
    assert position.sequences == sequences
    run = model_card.PretrainingRun(config, step, sequences, 1, 32, {}, [], "mit", is_import=False, name="")
    assert f"| tokens read | {tokens:,} |" in model_card.text(run, "discriminator", "ElectraForPreTraining")


def test_every_setting_of_the_model_is_exported_or_refused():
    """A new setting must either be expressed by the export, or be refused where it is not at its default."""
    huggingface.refuse_inexpressible(SIZES["base"])
    made = dataclasses.make_dataclass("Extended", [("rotary", bool, False)], bases=(ModelConfig,), frozen=True)
    huggingface.refuse_inexpressible(made())
    with pytest.raises(UserError, match="config.model.rotary=True: Hugging Face's ELECTRA cannot express it"):
        huggingface.refuse_inexpressible(made(rotary=True))
    for field in dataclasses.fields(ModelConfig):  # how a model is computed does not change it
        if field.metadata["on_resume"] == FREE:
            for value in typing.get_args(typing.get_type_hints(ModelConfig)[field.name]):
                huggingface.refuse_inexpressible(ModelConfig(**{field.name: value}))


@pytest.mark.parametrize("module", [export, predict, minimal_pairs, report])
def test_commands_without_a_configuration_take_no_overrides(module):
    with pytest.raises(UserError, match="--config.model.nonsense=3: this command has no configuration"):
        module.main(["--config.model.nonsense=3", "--workdir=x", "--out=y", "--model=x", "--init=x", "x"])


def test_a_place_that_cannot_be_written_to(exported, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--workdir=.*cannot be written to"):
        import_checkpoint.main([f"--from={exported}", f"--workdir={tmp_path / 'file' / 'new'}"])
    with pytest.raises(UserError, match="--out=.*cannot be written to"):
        export.main([f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'file' / 'out'}"])


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
    assert "rows of embeddings.word_embeddings.weight beyond the vocabulary" in said
    assert "pooler.dense.bias, pooler.dense.weight" in said
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


def not_finite(folder):
    path = folder / "generator" / "model.safetensors"
    tensors = load_file(path)
    tensors["generator_lm_head.bias"] = tensors["generator_lm_head.bias"] * np.nan
    save_file(tensors, path)


class Runs:
    """Pickles into code that runs on loading, as in a malicious file."""

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
        (lambda f: (f / "discriminator" / "config.json").write_text("[]"), "holds a JSON list, not an object"),
        (set_field("layer_norm_eps", "small"), "layer_norm_eps is 'small'"),
        (lambda f: (f / "discriminator" / "vocab.txt").write_bytes(b"\xff\xfe"), "vocab.txt is no UTF-8"),
        (not_finite, "holds values that are not finite"),
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


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere/at/all", "does not exist"),
        ("/nonexistent", "does not exist"),
        (f"{ROOT / 'setup.cfg'}", "is a file"),
        ("", "names nothing"),
        (f"{ROOT / 'tests'},", "names nothing"),
        ("a b", "does not exist"),
        (",".join(str(ROOT / name) for name in ("tests", "configs", "launch")), "names 3 models"),
    ],
)
def test_a_path_that_is_no_model(path, said, tmp_path):
    with pytest.raises(UserError, match=f"--from=.* {said}"):
        import_from(path, tmp_path)
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
        "--config.evaluation.batch_size=8", "--config.data.validation_fraction=0.05", "--config.optimizer.schedule=wsd",
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
    # From its own checkpoint on it is a run like any other.
    more = subprocess.run(
        [*command, "--config.train.num_train_steps=4"], env=process_env(), capture_output=True, text=True
    )
    assert more.returncode == 0, more.stderr
    assert "finished at step 4" in more.stdout
