"""The report page of a run, and where else figures go: verdicts, Weights & Biases."""

import html
import html.parser
import json
import re
import shutil
import subprocess
import time

import numpy as np
import pytest
from etils import epath
from sklearn.metrics import roc_auc_score

from conftest import make_setup, small_config
from electra_jax import report as command
from electra_jax import storage
from electra_jax.data import pipeline
from electra_jax.errors import UserError
from electra_jax.reporting import report, verdicts, writers


def test_verdicts_are_those_of_the_held_out_figures(prepared):
    """Evaluated on only as many records as verdicts keep: labels and scores from these give the evaluation's figures."""
    # Large weights spread the scores, since the AUC is computed from the bins of a histogram.
    setup = make_setup(small_config(model={"initializer_range": 0.3}), prepared)
    batches = pipeline.evaluation_batches(pipeline.held_out(prepared.sets[32]), 8, 8, setup.ids.pad)
    found = setup.evaluate(setup.init().params, batches)
    tokens = verdicts.read_tokens(found.verdicts, prepared.tokenizer.vocabulary, setup.ids.pad)
    flat = [token for sequence in tokens for token in sequence]
    replaced = [token.replacement is not None for token in flat]
    assert np.mean(replaced) == pytest.approx(found.figures["replaced_share"])
    ids, _, scores = found.verdicts
    assert roc_auc_score(replaced, scores[ids != setup.ids.pad]) == pytest.approx(found.figures["disc_auc"], abs=2e-3)
    assert [token.probability for token in flat] == pytest.approx(
        1 / (1 + np.exp(-scores[ids != setup.ids.pad])), abs=6e-4
    )
    assert [token.text for token in tokens[0]] == [
        prepared.tokenizer.vocabulary[i] for i in ids[0] if i != setup.ids.pad
    ]


def test_verdicts_of_masked_lm_alone_are_none(prepared):
    setup = make_setup(small_config(model={"towers": "masked_lm"}), prepared)
    batches = pipeline.evaluation_batches(pipeline.held_out(prepared.sets[32]), 8, 8, setup.ids.pad)
    assert setup.evaluate(setup.init().params, batches).verdicts is None


def test_verdicts_of_an_interrupted_run_are_replaced(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    for step, word in ((5, "a"), (10, "b"), (15, "c"), (10, "d")):
        verdicts.write(path, step, [[verdicts.Token(word, None, 0.5)]])
    assert verdicts.read(path) == {5: [[("a", None, 0.5)]], 10: [[("d", None, 0.5)]]}


def test_verdicts_that_a_bucket_does_not_take_end_no_run(monkeypatch, capsys, tmp_path):
    def fail(path, content):
        raise ConnectionError("busy")

    monkeypatch.setattr(verdicts, "rows", lambda path: [])
    monkeypatch.setattr(storage, "write", fail)
    verdicts.write(epath.Path("gs://bucket/verdicts.jsonl"), 5, [])
    assert "verdicts.jsonl could not be written (busy); the verdicts of step 5 are left out" in capsys.readouterr().out
    with pytest.raises(ConnectionError):
        verdicts.write(tmp_path / "verdicts.jsonl", 5, [])


class Page(html.parser.HTMLParser):
    """What a browser would see of a page: its data, its text, the marked tokens, what it loads from elsewhere."""

    def __init__(self, text: str):
        super().__init__()
        self.data, self.tokens, self.loaded, self.text, self._inside = None, [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self._inside.append((tag, attrs))
        self.loaded += [value for name, value in attrs.items() if name in ("src", "href")]

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tag, attrs = self._inside[-1] if self._inside else ("", {})
        if attrs.get("id") == "data":
            self.data = json.loads(data)
        elif tag == "span":
            self.tokens.append((data, "outline" in attrs["style"], attrs["title"]))
            self.text += data
        elif tag not in ("script", "style"):
            self.text += data


@pytest.fixture
def runs(tmp_path):
    """Two work directories with hand-made figures."""
    for name, shift in (("one", 0.0), ("two", 1.0)):
        workdir = tmp_path / name
        workdir.mkdir()
        table = [
            {"step": step, "loss": 9 - step / 10 + shift, "tokens_per_second": 100.0} for step in range(10, 60, 10)
        ]
        table[-1] |= {"eval/disc_auc": 0.7 + shift / 10, "loss": None, "seconds_left": 90.0, "eval/probe_f1": 0.5}
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
        (workdir / "run.json").write_text(json.dumps({"planned": {"steps": 100}, "devices": {"kind": "<b>cpu"}}))
        (workdir / "config.json").write_text(json.dumps({"seed": int(shift), "train": {"batch_size": 8}}))
        verdicts.write(workdir / "verdicts.jsonl", 5, [[verdicts.Token("another", None, 0.5)]])  # of another length
        for step in (10, 50):
            sequence = [("<i>", None, step / 100), ("##am", "##is", 0.9), ("</script>", None, 0.2)]
            verdicts.write(workdir / "verdicts.jsonl", step, [[verdicts.Token(*token) for token in sequence]])
    return tmp_path


def test_a_page_holds_the_runs_laid_over_each_other(runs, capsys):
    command.main([f"--workdir={runs / 'one'}", "--compare", str(runs / "two")])
    assert f"written: {runs / 'one' / 'report.html'}" in capsys.readouterr().out
    page = Page((runs / "one" / "report.html").read_text())
    assert page.loaded == []  # nothing from elsewhere
    charts = {chart["name"]: chart for group in page.data["groups"] for chart in group["charts"]}
    assert charts.keys() == {"loss", "disc_auc", "tokens_per_second", "seconds_left", "probe_f1"}
    assert [line["values"] for line in charts["loss"]["lines"]] == [[8, 7, 6, 5, None], [9, 8, 7, 6, None]]
    (held_out, other) = charts["disc_auc"]["lines"]
    assert (held_out["steps"], held_out["values"], held_out["held_out"], other["run"]) == ([50], [0.7], True, 1)
    assert "50 of 100" in page.text and "01:30" in page.text and "<b>cpu" in page.text
    names = [run["name"].split("/")[-1] for run in page.data["runs"]]
    assert names == ["one", "two"] and len({run["color"] for run in page.data["runs"]}) == 2
    before_everything = page.text.split("What differs")[1].split("everything")[0]
    assert "config.seed" in before_everything and "config.train.batch_size" not in before_everything
    assert "config.train.batch_size" in page.text.split("everything")[1]
    rest = [("is", True, "90% replaced"), ("</script>", False, "20% replaced")]
    early, late = ([("<i>", False, f"{step}% replaced"), *rest] for step in (10, 50))
    assert page.tokens == 2 * [*early, *late]


@pytest.mark.parametrize(
    ("tokens", "text"), [(["▁Pa", "ris", "▁est", "."], "Paris est."), (["pa", "##ris", "est", "."], "paris est .")]
)
def test_words_are_spaced_as_their_tokenizer_marks_them(runs, tokens, text):
    verdicts.write(runs / "one" / "verdicts.jsonl", 50, [[verdicts.Token(token, None, 0.5) for token in tokens]])
    report.write([runs / "one"], runs / "page.html")
    assert f"{text}" in Page((runs / "page.html").read_text()).text.replace("\n", " ")


def test_an_original_stands_apart_from_what_goes_on_with_its_word():
    tokens = [verdicts.Token("ma", "pa", 0.5), verdicts.Token("##ris", None, 0.5), verdicts.Token("##e", None, 0.5)]
    (shown,) = verdicts.to_html([tokens])
    assert Page(shown).text == " pama rise"
    assert re.search(r"<s style=[^>]+ margin: 0 4px", shown)
    (space,) = verdicts.to_html([[verdicts.Token("▁", None, 0.5), verdicts.Token("▁a", None, 0.5)]])
    assert Page(space).text == " \xa0 a"


def test_runs_of_the_same_name_are_told_apart(runs, capsys):
    shutil.copytree(runs / "one", runs / "again" / runs.name / "one")
    out = runs / "absent" / "page.html"
    command.main([f"--workdir={runs / 'one'}", "--compare", str(runs / "again" / runs.name / "one"), f"--out={out}"])
    names = [run["name"] for run in Page(out.read_text()).data["runs"]]
    assert names == [f"{runs.parent.name}/{runs.name}/one", f"again/{runs.name}/one"]


def test_a_fine_tuning_says_what_it_came_to(runs):
    """The reported figure, seeds that collapsed, and of each seed the figures of the weights that were kept."""
    figures = {
        split: {"f1": {"values": values}} for split, values in (("validation", [0.75, 0.5]), ("test", [0.7, 0.4]))
    }
    found = {
        "metric": "f1",
        "split": "test",
        "values": [0.7, 0.4],
        "mean": 0.55,
        "standard_deviation": 0.2121,
        "init": "x/y",
    }
    found |= {"figures": figures, "seeds": [{"seed": 0}, {"seed": 3}], "collapsed": [{"seed": 1}]}
    (runs / "results.json").write_text(json.dumps(found))
    (runs / "one").rename(runs / "seed-0")
    (runs / "two").rename(runs / "seed-3")
    report.write([runs], runs / "page.html")
    text = Page((runs / "page.html").read_text()).text
    assert "test f1 0.5500, mean of 2 seeds, standard deviation 0.2121; collapsed: seed 1" in text
    assert [
        text.count(f"f1, {split}, as kept{value}") for split, value in (("validation", "0.750"), ("test", "0.400"))
    ] == [1, 1]


def test_a_report_that_cannot_be_made_is_a_warning(runs, capsys):
    (runs / "one" / "report.html").mkdir()
    report.try_write(runs / "one", print)
    assert "WARNING: no report was made (" in capsys.readouterr().out


def test_long_runs_are_thinned_but_for_spikes(tmp_path):
    values = dict.fromkeys(range(1, 10002), 1.0) | {777: 50.0, 9_000: -3.0}
    text = "".join(f'{{"step": {step}, "loss": {value}}}\n' for step, value in values.items())
    (tmp_path / "metrics.jsonl").write_text(text)
    report.write([tmp_path], tmp_path / "report.html")
    (line,) = Page((tmp_path / "report.html").read_text()).data["groups"][0]["charts"][0]["lines"]
    steps, kept = line["steps"], dict(zip(line["steps"], line["values"]))
    assert 1000 < len(steps) <= 2001 and steps == sorted(set(steps)) and (steps[0], steps[-1]) == (1, 10_001)
    assert kept[777] == 50 and kept[9_000] == -3


BROWSER = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")), None)
# Shows the page in a frame of a given width, clicks as a reader would, and writes what is then seen into <pre>.
READER = """<iframe src="%s" width="%d" height="4000"></iframe><pre></pre><script>
onload = async () => {
  const view = document.querySelector("iframe").contentWindow, page = view.document;
  const drawn = () => [...page.querySelectorAll(".plot")].map((plot) => plot.querySelectorAll(".scatterlayer .trace").length);
  const settled = () => new Promise((resolve) => setTimeout(resolve, 200));
  const found = { names: [...page.querySelectorAll("#charts h3")].map((name) => name.textContent), wide: page.body.scrollWidth };
  found.back = view.getComputedStyle(page.body).backgroundColor;
  await settled();
  found.lines = [drawn()];
  for (const box of [1, 1, 0]) {
    page.querySelectorAll("#runs input")[box].click();
    await settled();
    found.lines.push(drawn());
  }
  const plots = [...page.querySelectorAll(".plot")], edge = (node) => node.getBoundingClientRect().right;
  found.overhang = Math.max(...plots.map((plot) => edge(plot.querySelector(".main-svg")) - edge(plot)));
  document.querySelector("iframe").width = %d;  // turned: charts would be redrawn with the next frame, but none comes here
  found.narrow = page.documentElement.scrollWidth;
  document.querySelector("pre").textContent = JSON.stringify(found);
};
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_a_reader_sees_the_curves_and_hides_a_run(runs, width, dark):
    report.write([runs / "one", runs / "two"], runs / "report.html")
    (runs / "reader.html").write_text(READER % ("report.html", width, width - 60))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    options += ["--allow-file-access-from-files", f"--user-data-dir={runs / 'browser'}", "--virtual-time-budget=20000"]
    command = [BROWSER, *options, f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom"]
    done = subprocess.run([*command, f"file://{runs / 'reader.html'}"], capture_output=True, text=True, timeout=120)
    found = json.loads(html.unescape(re.search("<pre>(.+)</pre>", done.stdout).group(1)))
    assert found["names"] == ["loss", "disc_auc", "tokens_per_second", "seconds_left", "probe_f1"]
    assert found["wide"] <= width  # no sideways scrolling
    assert found["overhang"] <= 0.5 and found["narrow"] <= width - 60
    assert max(map(int, re.findall(r"\d+", found["back"]))) < 60 if dark else found["back"] == "rgb(255, 255, 255)"
    both, one = [2] * 5, [1] * 5
    assert found["lines"] == [both, one, both, one]


def test_a_directory_without_a_run(tmp_path):
    with pytest.raises(UserError, match="no figures are there to report"):
        command.main([f"--workdir={tmp_path}"])


def leveldb_log(data: bytes):
    """The records of a log in LevelDB's format (its doc/log_format.md), after the 7-byte header that wandb puts before it."""
    block, at, record = 32768, 0, b""
    while at < len(data):
        if block - (at + 7) % block < 7:  # too little is left of the block for another header
            at += block - (at + 7) % block
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole one, or the last part of one
            yield record
            record = b""


def wandb_history(workdir) -> dict[int, dict[str, float]]:
    """The figures of each step, in the files that `wandb sync` would send."""
    from wandb.proto import wandb_internal_pb2

    found = {}
    for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
        for data in leveldb_log(path.read_bytes()[7:]):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.HasField("history"):
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                found.setdefault(row.pop("step"), {}).update({k: v for k, v in row.items() if "/" in k})
    return found


def test_weights_and_biases_gets_every_figure(tmp_path, monkeypatch):
    """Offline, the file that `wandb sync` would send, read back record by record; a resumed run goes on under its id."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    from etils import epath

    workdir, ids = epath.Path(tmp_path), []
    for start in (0, 2):
        writer = writers.WeightsAndBiases("p", workdir, start, {"seed": 7})
        for step in (start + 1, start + 2):
            writer.write(step, {"loss": step / 4})
        writer.write(start + 2, {"eval/disc_auc": 0.5})  # an evaluation that is made up for
        writer.close()
        ids.append((workdir / "wandb_id").read_text())
        time.sleep(1.1)  # a folder is named by the second
    assert ids[0] == ids[1]
    assert all(ids[0] in path.name for path in tmp_path.glob("wandb/offline-run-*/*.wandb"))
    found = wandb_history(tmp_path)
    evaluated = {"eval/disc_auc": 0.5}
    assert found == {step: {"train/loss": step / 4} | (evaluated if step % 2 == 0 else {}) for step in (1, 2, 3, 4)}


def test_weights_and_biases_that_cannot_be_reached(tmp_path, monkeypatch):
    import wandb

    def refuse(**options):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    from etils import epath

    with pytest.raises(UserError, match=r"wandb_project='p': UsageError: No API key configured\.; WANDB_MODE=offline"):
        writers.WeightsAndBiases("p", epath.Path(tmp_path), 0, {})


def test_weights_and_biases_that_is_not_there(monkeypatch):
    monkeypatch.setattr(writers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"config.reporting.wandb_project='p' needs an extra: pip install .electra_jax.wandb.."
    ):
        writers.require_wandb("p")
    writers.require_wandb("")
