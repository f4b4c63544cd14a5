"""The benchmarks run, at the smallest sizes, and their arithmetic is right; no figure is judged here."""

import argparse
import importlib
import json
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image as PILImage
from tiny import tiny_autoencoder
from tiny_data import parquet, slices

from guided_diffusers import TextToImagePipeline, pretrained
from guided_diffusers.evaluation import labelled, read_images
from guided_diffusers.hub import CardFacts
from guided_diffusers.hub.card import card_files
from guided_diffusers.store.checkpoints import shipped

ROOT = Path(__file__).parents[2]
NAMES = ["boot", "bag"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder as training/data/fashion_mnist.py makes it, with dark boots and bright bags."""
    folder = tmp_path_factory.mktemp("fashion")
    generator = torch.Generator().manual_seed(0)
    for split, rows in (("train", 64), ("test", 20)):
        labels = [row % 2 for row in range(rows)]
        pixels = (
            torch.randint(100, (rows, 32, 32), generator=generator)
            + 150 * torch.tensor(labels)[:, None, None]
        )
        columns = {
            "label": labels,
            "name": [NAMES[label] for label in labels],
            "text": [[NAMES[label], f"a {NAMES[label]}"] for label in labels],
        }
        parquet(folder / f"{split}.parquet", pixels.byte(), **columns)
    return folder


def test_a_ratio_is_the_median_over_pairs(load_script):
    pairs = load_script("speed/pairs")
    times = pairs.PairedTimes(first_s=[2.0, 3.0, 40.0], second_s=[1.0, 2.0, 10.0])
    ratio = times.ratio()
    assert ratio.value == 2.0 and (ratio.low, ratio.high) == (1.5, 4.0) and ratio.count == 3
    assert times.report(bound=3.9)["within_bound"] is False
    assert times.report(bound=4.1)["within_bound"] is True


def test_pairs_alternate(load_script):
    calls = []
    times = load_script("speed/pairs").time_pairs(
        lambda: calls.append("a"), lambda: calls.append("b"), pairs=4, warmup=1
    )
    assert "".join(calls) == "ab" + "abba" * 2
    assert len(times.first_s) == len(times.second_s) == 4


@pytest.mark.slow
def test_inference_speed(load_script):
    """On tiny random weights: equal latents, guidance on exactly the steps asked for, all ratios."""
    script = load_script("speed/inference_speed")
    arguments = argparse.Namespace(
        size="tiny",
        checkpoint=None,
        batch_size=1,
        steps=5,
        guided_steps=2,
        guidance_scale=3.0,
        pairs=2,
        compile=False,
        only=None,
        device="cpu",
        dtype="float32",
    )
    results = script.measure(arguments)
    assert results["largest_difference"] <= 1e-4
    assert results["guided_steps"] == 2
    assert results["network_calls"] == 2 + 5 + 2  # prompt and negative prompt; steps; the decoder's two parts
    assert set(script.BOUNDS) < set(results)


def test_inference_speed_in_half_precision_compares_what_is_left_of_equality(load_script):
    script = load_script("speed/inference_speed")
    theirs = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert script.check_agreement(theirs, theirs, exact=True) == 0
    assert script.check_agreement(1.02 * theirs, theirs, exact=False) == pytest.approx(0.02, rel=0.02)
    for exact in (True, False):
        with pytest.raises(SystemExit, match="differ by"):
            script.check_agreement(1.1 * theirs, theirs, exact)


def test_training_step(load_script, data):
    script = load_script("speed/training_step")
    arguments = argparse.Namespace(
        data=data, size="tiny", batch_size=2, pairs=2, block_steps=2, warmup_steps=1, rows=16
    )
    assert script.measure(arguments)["over_bare_step"]["ratio"]["count"] == 2


def test_training_speed_counts_the_steps_of_turns(load_script, tmp_path):
    """Steps outside a turn, or cut by its edges, count not; parts and the rest make up a step."""
    script, turns = load_script("speed/training_speed"), load_script("speed/turns")
    one = turns.Script("ours", ["true"], {}, tmp_path / "ours.jsonl")
    other = turns.Script("theirs", ["true"], {}, tmp_path / "theirs.jsonl")
    parts = {"backward": 0.3, "data (beside)": 5.0}
    for each, step in ((one, 0.5), (other, 1.0)):
        ends = [1.0 + step * number for number in range(9)]
        lines = [json.dumps({"end": end, "parts": parts if end > 2 else {"backward": 9.0}}) for end in ends]
        each.timings.write_text("\n".join(lines))
        each.turns.extend([turns.Turn(1.9, 4.1), turns.Turn(2.9, 5.1)])
    summary = script.summary(one, batch_size=8)
    assert summary["images_per_second"] == 16
    assert summary["step_ms"] == {"backward": 300, "data (beside)": 5000, "the rest": 200}
    assert turns.step_pairs(other, one).ratio().value == 2


def test_stopwatch_counts_a_part_within_itself_once(load_script, tmp_path):
    stopwatch = load_script("speed/stopwatch").Stopwatch(tmp_path / "steps.jsonl")
    sleep = stopwatch.timed("forward", lambda: time.sleep(0.05))
    stopwatch.timed("forward", sleep)()
    stopwatch.timed("optimizer", lambda: None)()
    (line,) = (tmp_path / "steps.jsonl").read_text().splitlines()
    assert 0.05 <= json.loads(line)["parts"]["forward"] < 0.1


def test_checkpoint_is_measured_and_described(load_script, run_script, data, tmp_path):
    """Judge, measures, picture and card, each by its command."""
    models = load_script("speed/models")
    size = models.Size(widths=(32, 32), layers=1, latent_size=8, text_width=32, vae_widths=(8, 8, 8))
    pipeline = TextToImagePipeline(**models.random_components(size), default_guidance=2.0)
    pipeline.save_pretrained(tmp_path / "tiny-32")
    run = tmp_path / "run"
    run.mkdir()
    training = {"batch_size": 64, "learning_rate": 5e-4, "learning_rate_schedule": "cosine"}
    training |= {"mixed_precision": "no", "ema_half_life_images": 25_000.0, "output_dir": "/somewhere/run"}
    (run / "config.json").write_text(json.dumps({"training": training}))
    (run / "log.jsonl").write_text('{"images": 50, "seconds": 1}\n{"images": 120000, "seconds": 600.0}\n')

    def command(name, *options):
        threads = () if name == "card" else ("--threads", 1)
        run_script(f"studies/fashion_32/{name}", *options, *threads)

    judge, results, card = tmp_path / "judge.safetensors", tmp_path / "tiny-32.json", tmp_path / "tiny-32.md"
    command("judge", "--data", data, "--output", judge, "--epochs", 8, "--batch-size", 16, "--width", 4)
    options = ["--gammas", 0, 1, "--images-per-class", 2, "--steps", 2, "--batch-size", 3, "--grid-images", 2]
    options += ["--data", data, "--judge", judge, "--run", f"denoiser={run}"]
    command(
        "measure",
        "--checkpoint",
        tmp_path / "tiny-32",
        *options,
        "--output",
        results,
        "--grid",
        tmp_path / "grid.png",
    )
    first = json.loads(results.read_text())
    command(
        "measure",
        "--checkpoint",
        tmp_path / "tiny-32",
        *options,
        "--rows-from",
        results,
        "--output",
        results,
    )
    assert json.loads(results.read_text())["rows"] == first["rows"]
    weak, network = tmp_path / "weak-32", pipeline.unet
    auto = [{"term": "AutoGuidance", "null": True, "scale": 2.0}]
    components = {**pipeline.components, "weak_unet": network}
    TextToImagePipeline(**components, default_guidance=auto).save_pretrained(weak)
    again = [*options[options.index("--images-per-class") : -2], "--gammas", 1, "--training-from", results]
    command("measure", "--checkpoint", weak, *again, "--output", tmp_path / "weak.json")
    by_weak = json.loads((tmp_path / "weak.json").read_text())
    assert [row["default"] for row in by_weak["rows"]] == [False, True]
    assert by_weak["training"] == first["training"] and by_weak["rows"][1]["guidance"][0]["null"]
    command("card", "--results", results, "--output", card)

    measured = json.loads(results.read_text())
    assert [row["guidance"][0]["scale"] for row in measured["rows"]] == [0, 1, 2]
    assert [row["default"] for row in measured["rows"]] == [False, False, True]
    assert measured["real"]["sharpness"]["value"] == 1 and measured["real"]["variance_within_class"] == 1
    assert measured["real"]["agreement"]["value"] == measured["judge"]["test_accuracy"]["value"]
    assert measured["training"]["denoiser"]["config"]["training"]["output_dir"] == "run"
    assert PILImage.open(tmp_path / "grid.png").height > 2 * 96
    described = ModelCard.load(card)
    assert described.data.license == "apache-2.0" and described.data.pipeline_tag == "text-to-image"
    agreement = 100 * measured["rows"][2]["agreement"]["value"]
    assert f"| **γ = 2 (default)** | {agreement:.1f}%" in described.text
    assert "saw 120,000 images in 10 minutes, 200 a second" in described.text


def test_images_do_not_depend_on_the_batch(load_script, data):
    models = load_script("speed/models")
    size = models.Size(widths=(32, 32), layers=1, latent_size=8, text_width=32, vae_widths=(8, 8, 8))
    pipeline = TextToImagePipeline(**models.random_components(size))
    pipeline.set_progress_bar_config(disable=True)
    captions = labelled.captions_by_class(read_images(data / "test.parquet"))
    assert captions == [["boot", "a boot"], ["bag", "a bag"]]
    guidance = importlib.import_module("guided_diffusers.guidance").ClassifierFreeGuidance(2.0)
    made = [
        labelled.generate(
            pipeline,
            captions,
            guidance=guidance,
            images_per_class=3,
            num_inference_steps=2,
            batch_size=batch_size,
            seed=1,
        )
        for batch_size in (6, 4)
    ]
    assert made[0].labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (made[0].images.int() - made[1].images.int()).abs().max() <= 1
    assert made[0].images.float().std() > 1


def draws_text(name):
    index = json.loads((pretrained(name) / "model_index.json").read_text())
    return index["_class_name"] == "TextToImagePipeline"


def test_the_facts_of_a_checkpoint_fill_its_card_on_the_hub(run_script, tmp_path):
    """`card.py --facts` writes what `push` takes; they were the same facts before the study wrote them."""
    path = ROOT / "model_cards" / "fashion-32.json"
    options = ["--results", path, "--output", tmp_path / "card.md", "--facts", tmp_path / "card.json"]
    run_script("studies/fashion_32/card", *options)
    facts, results = CardFacts.read(tmp_path / "card.json"), json.loads(path.read_text())
    default = next(row for row in results["rows"] if row["default"])
    figures = {"agreement", "sharpness", "sharpness_laplacian", "variance_within_class"}
    assert set(facts.evaluation["figures"]) == figures
    assert facts.evaluation["figures"]["agreement"] == default["agreement"]
    assert facts.images_seen == sum(run["images_seen"] for run in results["training"].values())
    assert len(facts.recipe) == len(results["training"])
    files = card_files(pretrained("fashion-32"), "alice/fashion-32", tmp_path / "card.json")
    card = files["README.md"].decode()
    assert f"| agreement | {default['agreement']['value']:.3f} |" in card and "weak_unet" in card


@pytest.mark.parametrize(
    "results",
    [ROOT / "model_cards" / f"{name}.json" for name in shipped() if draws_text(name)],
    ids=lambda path: path.stem,
)
def test_shipped_card(load_script, results):
    """A card in the repository is what the command makes of its figures, and they are what was asked for."""
    measured = json.loads(results.read_text())
    names = ("guidance", "sampler", "pictures")
    beside = [results.with_name(f"{results.stem}-{name}.json") for name in names]
    extras = [path if path.is_file() else None for path in beside]
    picture = f"../docs/images/{results.stem}-grid.png"
    card = load_script("studies/fashion_32/card").card(measured, picture, results.name, *extras)
    assert results.with_suffix(".md").read_text() == card
    assert (ROOT / "docs" / "images" / f"{results.stem}-grid.png").is_file()
    assert measured["judge"]["test_accuracy"]["value"] >= 0.9
    default = next(row for row in measured["rows"] if row["default"])
    plain = [row for row in measured["rows"] if row["guidance"][0]["term"] == "ClassifierFreeGuidance"]
    scales = {row["guidance"][0]["scale"]: row for row in plain if len(row["guidance"]) == 1}
    assert {0, 1, 1.5, 2, 3, 5, 8} <= set(scales)
    assert all(row["images"] == 1000 for row in measured["rows"])
    assert default["agreement"]["value"] >= 0.97 and scales[1]["agreement"]["value"] >= 0.85
    assert 0.9 <= default["sharpness"]["value"] <= 1.1


def test_features_are_compared_and_a_point_is_measured_once(run_script, tmp_path, capsys):
    """Every arm on real images; the second run reads the first one's points, another autoencoder does not."""
    folder, output = slices(tmp_path / "data"), tmp_path / "features.json"
    torch.manual_seed(0)
    tiny_autoencoder().save_pretrained(tmp_path / "vae")
    options = ["--autoencoder", tmp_path / "vae", "--data", folder, "--runs", tmp_path / "runs"]
    options += ["--labels", 10, 30, "--steps", 2, 3, "--batch-size", 4, "--seeds", 0, 1]
    options += ["--output", output, "--cache", tmp_path / "cache"]
    script = run_script("studies/autoencoders/features", *options)
    printed, results = capsys.readouterr().out, json.loads(output.read_text())
    assert len(results["points"]) == 12 and results["test_images"] == 64
    assert {row["seeds"] for row in results["summary"]} == {2}
    assert "| | 10 labels | 30 labels |" in printed and printed.count("±") == 6
    script.main()
    assert json.loads(output.read_text())["points"] == results["points"]
    tiny_autoencoder(norm_num_groups=2).save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="measured with another autoencoder"):
        script.main()


def test_features_summary_is_the_mean_and_deviation_over_seeds(load_script):
    script = load_script("studies/autoencoders/features")
    points = [
        {"arm": arm, "labels": 5, "accuracy": value + shift}
        for shift, arm in enumerate(script.ARMS)
        for value in (0.1, 0.2, 0.3)
    ]
    rows = list(script.summary(points))
    assert [round(row["mean"], 6) for row in rows] == [0.2, 1.2, 2.2]
    assert rows[0]["deviation"] == pytest.approx(0.1)
    assert script.table({"summary": rows}).splitlines()[2] == "| linear probe | 20.0 ± 10.0 |"


def test_algorithm_1_comes_nearer_with_steps(run_script, tmp_path, capsys):
    output = tmp_path / "rows.json"
    run_script("studies/algorithm_1/measure", "--steps", 20, 60, "--samples", 200, "--output", output)
    rows = json.loads(output.read_text())
    assert [(row["variance_type"], row["steps"]) for row in rows] == [
        (kind, steps) for kind in ("fixed_small", "fixed_large") for steps in (20, 60)
    ]
    for few, many in (rows[:2], rows[2:]):
        assert few["algorithm_1"] > many["algorithm_1"] > many["exact_draws"]
        assert many["score_form"] == pytest.approx(many["conditional_model"], rel=1e-6)  # Bayes' rule
    assert "| fixed_large | 60 |" in capsys.readouterr().out
