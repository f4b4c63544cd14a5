"""Sweeps: the plan, what their figures say, and that a killed one ends with the same bytes."""

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
import yaml
from PIL import Image
from tiny import tiny_components, tiny_unet
from tiny_data import SLICE

from guided_diffusers import TextToImagePipeline
from guided_diffusers.cli.drawing import make_scheduler
from guided_diffusers.evaluation import Judge, JudgeConfig, Reference, read_images
from guided_diffusers.evaluation.metrics import Metrics
from guided_diffusers.evaluation.sweep import (
    PipelineSampler,
    Point,
    SweepSpec,
    finalists,
    pareto_front,
    points_of,
    run_sweep,
    spread,
    verdict,
)
from guided_diffusers.evaluation.sweep.figures import draw_figures

SPEC = {
    "checkpoint": "tiny",
    "data": str(SLICE),
    "images": 12,
    "steps": [2],
    "batch_size": 5,
    "resamples": 20,
    "seed_sets": 2,
    "arms": {
        "plain": {"guidance": [{"term": "ClassifierFreeGuidance"}], "scales": [1, 2]},
        "interval": {
            "guidance": [{"term": "ClassifierFreeGuidance"}],
            "scales": [3],
            "intervals": [[0.5, None]],
        },
        "projected": {"guidance": [{"term": "ProjectedGuidance", "momentum": 0.0}], "scales": [2]},
    },
    "finals": {"baseline": "plain", "arms": 1, "steps": [2, 3], "images": 15},
}


class Pooled:
    """A feature network of its own: pixels, averaged over blocks."""

    name = "pooled"

    def __call__(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


def spec(tmp_path, **changes):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**SPEC, **changes}, sort_keys=False))
    return SweepSpec.read(path)


@pytest.fixture
def equipment():
    pipeline = TextToImagePipeline(**tiny_components())
    data = read_images(SLICE)
    judge = Judge(JudgeConfig(image_size=16, width=4)).eval()
    reference = Reference(Pooled()(data.images.float() / 127.5 - 1))
    metrics = Metrics(network=Pooled(), reference=reference, judge=judge, resamples=20)
    sampler = PipelineSampler(pipeline, make_scheduler)
    return sampler, metrics, partial(sampler.prompts, data)


def record(arm, distance, agreement, flops=1.0, scale=1.0, seed=0):
    point = Point(
        arm=arm, guidance=[{"term": "X", "scale": scale}], scheduler="ddim", steps=2, images=3, seed=seed
    )
    figures = {"KD": {"value": distance}, "agreement": {"value": agreement}}
    return {"point": point.to_dict(), "figures": figures, "compute": {"flops": flops}}


def test_the_plan_is_every_arm_over_its_scales_and_intervals(tmp_path):
    points = points_of(spec(tmp_path, steps=[2, 4]))
    assert len(points) == len({point.name for point in points}) == 2 * 4
    assert [point.arm for point in points[:4]] == ["plain"] * 4
    interval = next(point for point in points if point.arm == "interval")
    first = {"term": "ClassifierFreeGuidance", "scale": 3.0, "interval": [0.5, None]}
    assert interval.guidance == [first]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": [2]}, "unknown key 'stepz'"),
        ({"arms": {"a": {"guidance": [{"term": "X"}]}}}, r"scales of an arm is \[\]; allowed"),
        (
            {"arms": {"a": {"guidance": [{"term": "X", "scale": 2}], "scales": [1]}}},
            "first term of an arm is .*without scale",
        ),
        ({"arms": {}}, "arms is {}; allowed: at least one arm"),
        ({"distance": "euclid"}, "distance is 'euclid'"),
        ({"steps": []}, r"steps is \[\]"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        spec(tmp_path, **changes)


def test_the_front_is_what_nothing_beats_in_both():
    records = [record("a", 1, 0.5), record("a", 2, 0.9), record("b", 3, 0.8), record("b", 0.5, 0.4)]
    assert pareto_front(records, "KD", "agreement") == [3, 0, 1]


def test_finalists_are_the_baselines_best_and_the_best_others():
    records = [record("plain", 3, 0), record("plain", 2, 0), record("x", 5, 0), record("y", 1, 0)]
    assert [r["point"]["arm"] for r in finalists(records, "plain", 1, "KD")] == ["plain", "y"]
    assert finalists(records, "plain", 1, "KD")[0]["figures"]["KD"]["value"] == 2


def test_points_below_the_least_agreement_do_not_count():
    records = [record("plain", 3, 0.9), record("plain", 2, 0.5), record("x", 1, 0.5), record("y", 4, 0.9)]
    chosen = finalists(records, "plain", 2, "KD", min_agreement=0.8)
    assert [r["figures"]["KD"]["value"] for r in chosen] == [3, 4]
    with pytest.raises(ValueError, match="no point of plain"):
        finalists(records, "plain", 2, "KD", min_agreement=0.95)


def test_a_win_is_claimed_only_beyond_the_spread_and_at_no_more_flops():
    finals = [record("plain", 1.0, 0, flops=10), record("x", 0.8, 0, flops=10), record("y", 0.1, 0, flops=11)]
    outcome = verdict(finals, "plain", "KD", seed_range=0.1)
    assert outcome["winner"]["arm"] == "x" and outcome["claimed"]
    assert outcome["gain"] == pytest.approx(0.2) and outcome["flops_ratio"] == 1
    assert not verdict(finals, "plain", "KD", seed_range=0.3)["claimed"]
    alone = verdict(finals[:1], "plain", "KD", seed_range=0.0)
    assert alone["winner"] == alone["baseline"] and not alone["claimed"]


def test_the_spread_is_the_range_over_seeds():
    its = spread([record("a", value, 0, seed=seed) for seed, value in enumerate((3, 1, 2))], "KD")
    assert its["range"] == 2 and its["seeds"] == [0, 1, 2]


class Dying:
    """A sampler that is killed after so many batches."""

    def __init__(self, sampler, batches):
        self.sampler, self.left = sampler, batches

    def sample(self, *arguments):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return self.sampler.sample(*arguments)

    def compute(self, *arguments):
        return self.sampler.compute(*arguments)

    def identity(self):
        return self.sampler.identity()


@pytest.mark.filterwarnings("ignore:.*biased upwards")
@pytest.mark.slow
def test_a_killed_sweep_ends_with_the_same_bytes(tmp_path, equipment):
    sampler, metrics, prompts = equipment
    asked = spec(tmp_path)
    whole = run_sweep(asked, sampler, metrics, prompts, tmp_path / "whole")
    for _ in range(100):
        try:
            run_sweep(asked, Dying(sampler, 2), metrics, prompts, tmp_path / "parts")
            break
        except KeyboardInterrupt:
            continue
    results = [(tmp_path / name / "results.json").read_bytes() for name in ("whole", "parts")]
    assert results[0] == results[1]
    assert json.loads(results[0]) == json.loads(json.dumps(whole))
    assert len(whole["points"]) == 4 and len(whole["finals"]) == 4 and len(whole["seeds"]["values"]) == 2
    flops = {r["point"]["guidance"][0]["scale"]: r["compute"]["flops"] for r in whole["points"][:2]}
    assert flops[2.0] > 1.5 * flops[1.0]  # guidance doubles the denoiser's batch
    drawn = draw_figures(whole, tmp_path / "whole")
    grids = ["scales-plain.png", "scales-interval.png", "scales-projected.png", "steps.png"]
    assert [path.name for path in drawn] == ["trade-off.png", "compute.png", *grids]
    tall, short = (Image.open(tmp_path / "whole" / name).height for name in (grids[3], grids[1]))
    assert tall > 3.5 * short  # four rows, and one
    for name in ("plain-1-ddim-2steps-12images-seed0", "interval-3-in-0.5-inf-ddim-2steps-12images-seed0"):
        shutil.rmtree(tmp_path / "whole" / "images" / name)
    redrawn = [path.name for path in draw_figures(whole, tmp_path / "whole")]
    assert redrawn == ["trade-off.png", "compute.png", grids[0], *grids[2:]]


def test_equal_seeds_make_equal_images_where_guidance_is_equal(equipment):
    sampler, _, prompts_of = equipment
    prompts = prompts_of(4)
    point = Point(
        arm="a",
        guidance=[{"term": "ClassifierFreeGuidance", "scale": 2.0}],
        scheduler="ddim",
        steps=2,
        images=4,
        seed=0,
    )
    renamed = replace(point, arm="b")
    assert torch.equal(sampler.sample(point, prompts, [0, 1]), sampler.sample(renamed, prompts, [0, 1]))
    other = replace(point, seed=1)
    assert not torch.equal(sampler.sample(point, prompts, [0, 1]), sampler.sample(other, prompts, [0, 1]))


def test_another_sweep_is_not_continued(tmp_path, equipment):
    sampler, metrics, prompts = equipment
    small = spec(tmp_path, finals=None, arms={"plain": SPEC["arms"]["plain"]})
    run_sweep(small, sampler, metrics, prompts, tmp_path / "sweep")
    with pytest.raises(ValueError, match="holds a sweep of another spec.batch_size: 5, now 4"):
        run_sweep(replace(small, batch_size=4), sampler, metrics, prompts, tmp_path / "sweep")
    changed = {"plain": {**SPEC["arms"]["plain"], "guidance": [{"term": "CFGZeroStar"}]}}
    with pytest.raises(ValueError, match="another point of this name"):
        run_sweep(spec(tmp_path, finals=None, arms=changed), sampler, metrics, prompts, tmp_path / "sweep")


def test_a_sweep_grows_and_keeps_the_points_that_are_there(tmp_path, equipment):
    sampler, metrics, prompts = equipment
    small = spec(tmp_path, finals=None, arms={"plain": SPEC["arms"]["plain"]})
    first = run_sweep(small, sampler, metrics, prompts, tmp_path / "sweep")
    grown = spec(tmp_path, finals=None, arms={name: SPEC["arms"][name] for name in ("projected", "plain")})
    batches = Dying(sampler, 3)  # of the new point alone: 12 images, 5 at once
    results = run_sweep(grown, batches, metrics, prompts, tmp_path / "sweep")
    assert results["points"][1:] == first["points"] and batches.left == 0


def test_a_checkpoint_draws_with_the_weak_network_that_it_brings():
    """Of `evaluate --checkpoint`, whose point has the checkpoint's own guidance."""
    guidance = [{"term": "AutoGuidance", "scale": 2.0, "null": True}]
    weak = tiny_unet()
    own = TextToImagePipeline(**tiny_components(), weak_unet=weak, default_guidance=guidance)
    sampler = PipelineSampler(own, make_scheduler)
    settings = {"scheduler": "own", "steps": 2, "images": 1, "seed": 0}
    point = Point(arm="evaluate", guidance=own.config.default_guidance, **settings)
    assert sampler.guidance(point).weak.model is weak
    prompts = sampler.prompts(read_images(SLICE), 1)
    given = PipelineSampler(TextToImagePipeline(**tiny_components()), make_scheduler, weak)
    assert torch.equal(sampler.sample(point, prompts, [0]), given.sample(point, prompts, [0]))
    assert sampler.compute(point, prompts).forwards["weak_unet"] == 2
