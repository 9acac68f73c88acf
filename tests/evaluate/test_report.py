"""Verdicts, pictures and the page: the bar is applied as said, files are real PNGs, the page is sound HTML."""

import base64
import html.parser

import numpy as np
import pytest
from PIL import Image

from lapa_jax.core import config as config_lib
from lapa_jax.core.files import write_json
from lapa_jax.evaluate import metric_words, provenance, report
from lapa_jax.evaluate.latent_actions import verdicts
from lapa_jax.evaluate.report import Section
from lapa_jax.plots import frames as plots
from lapa_jax.plots import mosaic

GOOD = {
    "psnr": 20.0,
    "psnr_gain": 1.5,
    "swap_gap": 0.4,
    "perplexity": 6.0,
    "codebook_utilization": 1.0,
    "action_probe_r2": 0.5,
    "action_probe_r2_untrained": 0.2,
    "action_probe_r2_reference": 0.9,
}


def levels(metrics) -> dict[str, str]:
    return {v.metric: v.level for v in verdicts.judge(metrics, 8)}


def test_a_good_model_gets_no_warning():
    assert "poor" not in levels(GOOD).values()
    assert levels(GOOD)["action_probe_r2"] == "good" and levels(GOOD)["psnr"] == "note"


@pytest.mark.parametrize(
    "change",
    [
        {"psnr_gain": -0.1},
        {"swap_gap": 0.1},
        {"perplexity": 4.0},
        {"codebook_utilization": 0.875},
        {"action_probe_r2": 0.44},
        {"action_probe_r2_untrained": 0.4},
    ],
)
def test_each_bar_can_be_missed(change):
    poor = [v.metric for v in verdicts.judge({**GOOD, **change}, 8) if v.level == "poor"]
    assert poor == [next(iter(change)).removesuffix("_untrained")]


def test_collapse_is_named():
    (line,) = verdicts.judge({"perplexity": 1.0}, 8)
    assert line.level == "poor" and "COLLAPSE" in line.words


def test_verdicts_name_the_positions():
    of_each = {"codebook_utilization_position_0": 1.0, "codebook_utilization_position_3": 0.25,
               "largest_code_share_position_0": 0.5, "largest_code_share_position_3": 0.95}  # fmt: skip
    judged = {v.metric: v for v in verdicts.judge({**GOOD, "codebook_utilization": 0.625, **of_each}, 8)}
    assert judged["codebook_utilization"].level == "poor" and "position 3: 25%" in judged["codebook_utilization"].words
    assert judged["collapse"].shown == "position 3" and judged["collapse"].level == "poor"
    of_each = {"perplexity_position_0": 7.0, "perplexity_position_1": 4.7, "perplexity_least": 4.7}
    judged = {v.metric: v for v in verdicts.judge({**GOOD, **of_each}, 8)}
    assert judged["perplexity"].level == "poor"
    assert judged["perplexity"].words.endswith("at each position); position 1: 4.70")
    mirrored = {v.metric: v for v in verdicts.judge({**GOOD, **of_each}, 8, mirrored=True)}
    assert mirrored["perplexity"].words.startswith(judged["perplexity"].words)
    assert "--config.data.augment=None" in mirrored["perplexity"].words
    assert verdicts.judge(GOOD, 8, mirrored=True) == verdicts.judge(GOOD, 8)


def test_high_usage_without_meaning_is_poor():
    judged = verdicts.judge({**GOOD, "perplexity": 7.9, "action_probe_r2": -0.02}, 8)
    words = {v.metric: v for v in judged}
    assert words["perplexity"].level == "good" and words["action_probe_r2"].level == "poor"
    assert "say nothing linear about the action" in words["action_probe_r2"].words


def test_absent_metrics_get_no_line():
    assert levels({"psnr": 20.0, "swap_gap": None}) == {"psnr": "note"}


def test_mosaic_puts_frames_in_their_places():
    frames = np.zeros((2, 3, 4, 5, 3), np.uint8)
    frames[1, 2] = 255
    whole = mosaic.mosaic(frames, gap=1)
    assert whole.shape == (2 * 5 - 1, 3 * 6 - 1, 3)
    assert (whole[:4, :5] == 0).all() and (whole[5:, 12:] == 1).all() and (whole[4] == 1).all()


def test_what_changes_drops_what_all_codes_share():
    shared = np.random.default_rng(0).random((2, 1, 8, 8, 3))
    decoded = np.repeat(shared, 4, axis=1)
    decoded[0, 1, 2, 3] += 0.08
    changed, scale = mosaic.what_changes(decoded)
    assert scale > 1 and np.allclose(changed[1], 0.5) and (changed[0, 1, 2, 3] > 0.9).all()


def test_pictures_are_pngs(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.random((3, 16, 16, 3)).astype(np.float32)
    codes, r2 = rng.integers(0, 9, (4, 8)), [0.5, -0.1, 0.3]
    action, means = rng.normal(size=(20, 3)), rng.normal(size=(4, 8, 3))
    means[0, 0] = np.nan
    files = [
        plots.reconstructions(tmp_path / "a.png", (frames * 255).astype(np.uint8), frames, frames - 0.2),
        plots.code_gallery(tmp_path / "b.png", frames, frames[:, None].repeat(2, axis=1), ["0123", "1111"]),
        plots.code_histograms(tmp_path / "c.png", codes, [1.0, 2.0, 3.0, 4.0]),
        plots.probe_scatter(tmp_path / "d.png", action, action, r2),
        plots.code_action_heatmap(tmp_path / "e.png", means),
        plots.code_action_arrows(tmp_path / "f.png", action[:4, :2], np.arange(4), list("abcd")),
    ]
    for file in files:
        with Image.open(file) as picture:
            assert picture.format == "PNG" and np.asarray(picture.convert("RGB")).std() > 5
    assert sorted(p.name for p in tmp_path.iterdir()) == [f.name for f in files]


def test_page_is_well_formed_and_escapes(tmp_path):
    judged = verdicts.judge({**GOOD, "swap_gap": 0.0}, 8)
    Image.new("RGB", (3, 2)).save(tmp_path / "there.png")
    sections = [Section("Pictures <1>", "a & b", ("a.png", "there.png"), (("head", "x"), ("1", "2")), {"v.mp4": "<c>"})]
    run = {"about": [("commit", "<abc>")], "compared": ("configs/laq.py", [("model.dim", "1024 -> <16>")])}
    path = report.write(tmp_path / "report.html", title="run <x>", subtitle="s", verdicts=judged, sections=sections,
                        **run)  # fmt: skip
    text = path.read_text()
    open_tags, images = [], []

    class Check(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            images.extend(value for name, value in attributes if tag == "img" and name == "src")
            if tag not in ("meta", "img"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Check().feed(text)
    assert open_tags == [] and images[0] == "a.png"
    assert base64.b64decode(images[1].removeprefix("data:image/png;base64,")) == (tmp_path / "there.png").read_bytes()
    assert "&lt;abc&gt;" in text and "1024 -&gt; &lt;16&gt;" in text and "1 key differs from configs/laq.py" in text
    assert "<figcaption>&lt;c&gt;</figcaption>" in text and 'video src="v.mp4"' in text
    assert "run &lt;x&gt;" in text and "Not good enough yet" in text and "http" not in text


def test_metrics_of_parts_are_folded_away_and_all_have_a_sentence(tmp_path):
    names = ["psnr", "perplexity_position_3", "bridge/action_mse_0", "loss_commitment", "largest_code_share_q"]
    judged = [report.Verdict(name, "1", report.NOTE, "") for name in names]
    judged.append(report.Verdict("action_mse_2", "9", report.POOR, "own words"))
    path = report.write(tmp_path / "x.html", title="t", subtitle="s", verdicts=judged, sections=[])
    whole, _, parts = path.read_text().partition("<details>")
    assert "3 figures of single code positions" in parts and "</td><td></td>" not in whole + parts
    assert all(f"<code>{name}</code>" in whole for name in ("psnr", "loss_commitment", "action_mse_2"))
    assert "bridge: mean squared error of actions, normalised: dimension 0" in parts
    assert "effective number of codes in use at a code position: position 3" in parts
    assert metric_words.of("a metric of somebody's own") == ""


def test_a_probe_on_few_pairs_is_no_verdict():
    few = {**GOOD, "action_probe_r2": -1.0, "action_probe_pairs": 34.0}
    probe = next(v for v in verdicts.judge(few, 8) if v.metric == "action_probe_r2")
    assert probe.level == "note" and "34 pairs, too few" in probe.words
    assert levels({**few, "action_probe_pairs": 1000.0})["action_probe_r2"] == "poor"


def test_the_head_names_the_run_and_what_differs_from_the_published_config(root, tmp_path):
    config = config_lib.load(f"{root}/configs/laq.py", ["--config.model.dim=512"])
    write_json(tmp_path / "config.json", config_lib.to_json(config))
    command = ["launch/train.py", "--config", "configs/laq.py:tiny", "--config.model.dim=512"]
    write_json(tmp_path / "env.json", {"command": command, "git": {"commit": "abc", "changed": True}})
    about = {"step": 7, "data": "shards", "split": "val", "tokenizer": "f" * 64, "data_fingerprint": "e" * 64}
    rows = dict(provenance.rows(tmp_path, about))
    assert rows["commit"] == "abc, with changes" and rows["trained by"] == " ".join(command)
    assert rows["weights"] == "f" * 12 and rows["run"].endswith("step 7") and "machine" not in rows
    assert provenance.config_differences(tmp_path) == ("configs/laq.py", (("model.dim", "1024 -> 512"),))


@pytest.mark.parametrize("given", ["mine.py", "/tmp/laq_of_others.py", None])
def test_only_configs_of_the_package_are_run_to_compare_with(tmp_path, given):
    """env.json is data: a config that it names is a program of who knows whom."""
    (tmp_path / "mine.py").write_text("raise SystemExit('it ran')")
    write_json(tmp_path / "config.json", {"name": "x"})
    write_json(tmp_path / "env.json", {"command": ["train.py", "--config", str(tmp_path / given)] if given else []})
    assert provenance.config_differences(tmp_path) == ("", ())


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_never_scrolls_sideways(browser, tmp_path, width):
    """With metrics, fingerprints, commands, tables and images that are wider than a phone."""
    Image.new("RGB", (1600, 200), "navy").save(tmp_path / "wide.png")
    table = tuple(tuple(f"column_{i}_of_many" for i in range(14)) for _ in range(3))
    long = [(f"a_key_that_is_rather_long_{i}.of_a_group", "x" * 300) for i in range(3)]
    judged = [report.Verdict(f"action_probe_r2_delta_untrained_{i}", "0.123", "poor", "words " * 20) for i in range(3)]
    path = report.write(tmp_path / "page.html", title="r" * 90, subtitle="s" * 200, verdicts=judged,
                        sections=[Section("t", "words", ("wide.png",), table)], about=long,
                        compared=("configs/laq.py", long))  # fmt: skip
    page = browser.open(path, width)
    page.check()
    assert page.requests() == [path.as_uri()], "all that it shows lies in it"
    height = "document.querySelector('details').getBoundingClientRect().height"
    folded = page.run(height)
    page.media(printed=True)
    assert page.run(height) > folded + 50, "paper cannot be unfolded"
