"""docs/lecture/lecture.md is true: Python runs, quotations are code, pictures are drawn as it says."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from laws.mixture import MIXTURE
from PIL import Image

from guided_diffusers import NoiseLevel
from guided_diffusers.core.exact import GaussianMixture
from guided_diffusers.models.evidence import log_likelihood

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TEXT = (DOCS / "lecture" / "lecture.md").read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```|`[^`\n]*`", "code", TEXT, flags=re.DOTALL)
LINKS = sorted(set(re.findall(r"(?<!!)\[[^\]]+\]\(((?!http)[^)]+)\)", PROSE)))
PICTURES = re.findall(r"^!\[[^\]]+\]\((\.\./images/\S+\.png)\)\\\n(.*)", TEXT, flags=re.MULTILINE)

SCRIPTED = [(path, words) for path, words in PICTURES if words.startswith("Made by `python ")]
SWEPT = [(path, words) for path, words in PICTURES if words.startswith("Made by `guided-diffusers sweep")]
DRAWN = [
    pytest.param(Path(path).stem, marks=[pytest.mark.slow] * ("latents" in path or "scales" in path))
    for path, _ in PICTURES
    if "/lecture-" in path
]
"""The lecture's own; those of the shipped checkpoint take longer."""


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)


def test_the_python_runs_in_order():
    """As one program; each block but the first and those that only define something asserts."""
    scope: dict[str, Any] = {}
    for number, block in enumerate(blocks()):
        exec(compile(block, f"lecture.md, block of Python {number}", "exec"), scope)
    assert sum("assert " in block for block in blocks()) == len(blocks()) - 1
    level = NoiseLevel(alpha=0.8, sigma=0.6)
    x, labels = scope["randn"](5, 2), torch.tensor([0, 1, 2, 1, 0])
    assert scope["close"](scope["denoise"](x, level), MIXTURE.denoised(x, level.alpha, level.sigma))
    assert scope["close"](
        scope["denoise"](x, level, labels), MIXTURE.denoised(x, level.alpha, level.sigma, labels)
    )
    exact = MIXTURE.log_posterior(x, level.alpha, level.sigma).gather(1, labels[:, None])[:, 0]
    assert scope["close"](scope["log_prob"](x, level, labels), exact)
    assert not scope["close"](0.0, 1e-6), "close() must be able to say no"


class TestQuotations:
    def test_each_is_what_stands_at_its_lines(self, load_script):
        links = load_script("docs/lecture/links")
        assert links.complaints(TEXT) == []
        assert len(links.quotations(TEXT)) == TEXT.count("#L") > 30

    def test_code_that_moved_is_followed_and_code_that_changed_is_not(self, load_script, tmp_path):
        links, file = load_script("docs/lecture/links"), tmp_path / "a" / "b.py"
        file.parent.mkdir()
        file.write_text("def f(x):\n    y = x\n    return y\n")
        block = "```py\ny = x\nreturn y\n```\n"
        page = f"At [`b.py:2`](../../a/b.py#L2) `y = x`\nand [`b.py:2`](../../a/b.py#L2-L3)\n{block}"
        assert links.complaints(page, tmp_path) == []

        file.write_text("import z\n\n\n" + file.read_text())
        assert [text.split(":")[0] for text in links.complaints(page, tmp_path)] == [
            "a/b.py#L2-L2",
            "a/b.py#L2-L3",
        ]
        assert all("[5]: run with --write" in text for text in links.complaints(page, tmp_path))
        moved = links.refreshed(page, tmp_path)
        assert moved == page.replace("L2", "L5").replace("L3", "L6").replace("b.py:2", "b.py:5")
        assert links.complaints(moved, tmp_path) == []

        file.write_text(file.read_text().replace("return y", "return 2 * y"))
        [wrong] = links.complaints(moved, tmp_path)
        assert "a/b.py#L5: its quoted code is not there: 'y = x'" in wrong
        assert links.refreshed(moved, tmp_path) == moved

    def test_a_link_to_a_line_without_code_is_refused(self, load_script, tmp_path):
        [wrong] = load_script("docs/lecture/links").complaints("[here](../../../a/b.py#L7)", tmp_path)
        assert "no code follows" in wrong


class TestPictures:
    @pytest.mark.parametrize("path", [path for path, _ in PICTURES])
    def test_it_is_there_and_small(self, path: str):
        assert (DOCS / "lecture" / path).is_file()
        assert (DOCS / "lecture" / path).stat().st_size < 300_000

    @pytest.mark.parametrize(("path", "words"), SCRIPTED, ids=lambda value: value.split()[0])
    def test_the_script_beneath_it_draws_it(self, path: str, words: str, load_script, monkeypatch):
        """It takes the command's options, and it or a module that it imports says the picture's name."""
        script, *arguments = re.findall(r"^Made by `python (\S+)\.py ([^`]+)`$", words)[0]
        arguments = arguments[0].split()
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        parse = argparse.ArgumentParser.parse_args

        def parse_and_stop(parser: argparse.ArgumentParser, *args: Any) -> None:
            raise Parsed(parse(parser, *args))

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        with pytest.raises(Parsed) as stopped:
            load_script(script.removeprefix("benchmarks/")).main()
        if script.startswith("docs/lecture/"):
            assert stopped.value.options.only == [Path(path).stem.removeprefix("lecture-")]
        else:
            name, _, kind = Path(path).stem.rpartition("-")
            options = stopped.value.options
            assert name in (options.output.stem, getattr(options, "checkpoint", None))
            assert re.search(rf'"{kind}"|-{kind}\.png', sources(ROOT / f"{script}.py"))

    @pytest.mark.parametrize(("path", "words"), SWEPT, ids=lambda value: value.split()[0])
    def test_the_sweep_beneath_it_draws_it(self, path: str, words: str):
        [(spec, name)] = re.findall(
            r"^Made by `guided-diffusers sweep (\S+) --output runs/sweep`: its `(\S+)`$", words
        )
        arms = yaml.safe_load((ROOT / spec).read_text(encoding="utf-8"))["arms"]
        figures = (ROOT / "src/guided_diffusers/evaluation/sweep/figures.py").read_text(encoding="utf-8")
        arm = name.removeprefix("scales-").removesuffix(".png")
        assert f'"{name}"' in figures or (arm in arms and 'f"scales-{arm}.png"' in figures)

    def test_every_picture_has_a_command(self):
        assert TEXT.count("![") == len(PICTURES) == len(SCRIPTED) + len(SWEPT)
        assert {f"../images/{path.name}" for path in (DOCS / "images").glob("lecture-*")} <= {
            p for p, _ in PICTURES
        }

    @pytest.mark.parametrize("name", DRAWN)
    @pytest.mark.slow
    def test_it_is_drawn_as_it_is_there(self, name: str, run_script, tmp_path):
        """With few points: of the committed picture's size, and neither blank nor the same as another."""
        few = ["--output", tmp_path, "--only", name.removeprefix("lecture-"), "--samples", 0.1]
        run_script("docs/lecture/pictures", *few)
        [drawn] = tmp_path.iterdir()
        committed = Image.open(DOCS / "images" / f"{name}.png")
        assert drawn.name == f"{name}.png" and Image.open(drawn).size == committed.size
        assert len(Image.open(drawn).convert("RGB").getcolors(100_000)) > 10


def sources(script: Path) -> str:
    """A script and the modules of its folder that it imports, in their own words."""
    text = script.read_text(encoding="utf-8")
    names = re.findall(r"^(?:from|import) (\w+)", text, flags=re.MULTILINE)
    helpers = [path for name in names if (path := script.with_name(f"{name}.py")).is_file()]
    return text + "".join(map(sources, helpers))


class Parsed(Exception):  # noqa: N818  (what a script is stopped by)
    """A script's options, read and not used."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.options = options


class TestExactModels:
    def test_the_mixture_is_that_of_the_laws(self, load_script):
        mixture = load_script("docs/lecture/guidance").PLANE
        level, x = NoiseLevel(alpha=0.6, sigma=0.8), torch.linspace(-2, 2, 10).double().view(5, 2)
        labels = torch.tensor([0, 1, 2, 1, 0])
        for given in (None, labels):
            exact = MIXTURE.denoised(x, level.alpha, level.sigma, given)
            torch.testing.assert_close(mixture.denoise(x, level, given), exact)
        exact = MIXTURE.log_posterior(x, level.alpha, level.sigma).gather(1, labels[:, None])[:, 0]
        torch.testing.assert_close(mixture.log_prob(x, level, labels), exact)

    def test_a_class_of_several_components_is_their_mixture(self, load_script):
        modes = load_script("docs/lecture/guidance").MODES
        alone = GaussianMixture.of(modes.means[:3].tolist(), modes.deviations[:3].tolist())
        level, x = NoiseLevel(alpha=0.6, sigma=0.8), torch.linspace(-2, 2, 10).double().view(5, 2)
        zeros = torch.zeros(5, dtype=torch.int64)
        torch.testing.assert_close(modes.denoise(x, level, zeros), alone.denoise(x, level))
        both = modes.log_prob(x, level, zeros).exp() + modes.log_prob(x, level, zeros + 1).exp()
        torch.testing.assert_close(both, torch.ones(5, dtype=torch.float64))

    @pytest.mark.parametrize("steps", [8, 1000])
    def test_the_true_step_back_is_a_density_with_the_denoisers_mean(self, load_script, steps):
        """E[x_next | x_t] is the posterior's mean at E[x_0 | x_t], around which a reverse step draws."""
        theory = load_script("docs/lecture/theory")
        level, following = theory._around(theory.scheduler_of(steps), 0.8)
        sample = torch.tensor([[-0.2]], dtype=torch.float64)
        variance, mean = theory._posterior(theory.LINE.denoise(sample, level), sample, level, following)
        places = mean + torch.linspace(-15, 15, 6001, dtype=torch.float64) * variance**0.5
        density = theory.true_reverse(theory.LINE, places, sample, level, following)
        mass = density * (places[1] - places[0])
        assert mass.sum().item() == pytest.approx(1, abs=1e-6)
        assert (mass @ places).item() == pytest.approx(mean, abs=1e-6)
        assert (mass @ (places - mean) ** 2).item() >= variance * 0.999

    def test_importance_sampling_finds_the_linear_autoencoders_likelihood(self, load_script):
        model = load_script("docs/lecture/linear_vae").LinearVAE()
        images = model.draw(4, seed=1)
        errors = log_likelihood(model, images, 3000) - model.log_density(images)
        assert errors.abs().max() < 0.1


class TestWords:
    def test_formulas_are_whole_and_survive_markdown(self):
        """Markdown eats a backslash before punctuation, so none may be in a formula."""
        formulas = re.findall(r"^\$\$(.*)\$\$$", TEXT, flags=re.MULTILINE)
        assert len(formulas) == TEXT.count("$$") / 2 > 20
        prose = re.sub(r"\$\$.*?\$\$", "", PROSE)
        assert prose.count("$") % 2 == 0
        for formula in [*formulas, *re.findall(r"\$([^$]+)\$", prose)]:
            assert not re.search(r"\\[^a-zA-Z]|[<>*]", formula), formula
            assert formula.count("{") == formula.count("}") and formula.count("(") == formula.count(")"), (
                formula
            )
            assert formula.count(r"\left") - formula.count(r"\leftarrow") == formula.count(r"\right)"), (
                formula
            )

    def test_figures_with_intervals_are_those_of_the_cards(self):
        cards = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "model_cards").glob("*.md"))
        figures = re.findall(r"\d+\.\d+ \[\d+\.\d+, \d+\.\d+\]", TEXT)
        assert len(figures) == 7 and all(figure in cards for figure in figures)

    @pytest.mark.parametrize("link", LINKS)
    def test_links_lead_somewhere(self, link: str):
        path, _, anchor = link.partition("#")
        if path:
            assert (DOCS / "lecture" / path).exists()
            return
        headings = re.findall(r"^#+ (.+)$", TEXT, flags=re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in anchors

    def test_files_and_scripts_that_it_names_are_there(self):
        named = re.findall(r"`((?:training|benchmarks|docs)/[\w/]+\.py)`", TEXT)
        assert len(named) >= 4 and all((ROOT / path).is_file() for path in named)
