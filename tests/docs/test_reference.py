"""The reference has a page a module, whose formulas are those of the docstrings. `make docs` builds it."""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace

import pytest

pytest.importorskip("latex2mathml")
pytest.importorskip("mkdocs")
reference = importlib.import_module("reference")


def test_every_public_module_has_a_page():
    names = reference.public_modules()
    assert {"guided_diffusers.guidance.projected", "guided_diffusers.sampling"} <= set(names)
    assert all(inspect.getdoc(importlib.import_module(name)) for name in names)


@pytest.mark.parametrize(
    ("part", "html"),
    [
        ("<pre><code>x_t = alpha x_0 + sigma eps</code></pre>", "x<sub>t</sub> = α x<sub>0</sub> + σ ε"),
        ("<code>|D_cond|^2</code>", "|D<sub>cond</sub>|<sup>2</sup>"),
        ("q(x_{t-1} | x_t)", "q(x<sub>{t-1}</sub> | x<sub>t</sub>)"),
        ("<code>sum_k z_k = sigma^2</code>", "∑<sub>k</sub> z<sub>k</sub> = σ<sup>2</sup>"),
        ("the sum of num_train_timesteps, v_prediction", "the sum of num_train_timesteps, v_prediction"),
        ("<code>alpha</code>", "<code>alpha</code>"),
        ("<pre><code>guidance = Term(scale=alpha)</code></pre>", "guidance = Term(scale=alpha)"),
        ('<a href="alpha">alpha</a>', '<a href="alpha">alpha</a>'),
    ],
)
def test_formulas_are_set_and_code_is_not(part: str, html: str):
    assert html in reference.typeset(part)


def test_latex_becomes_mathml():
    file = SimpleNamespace(src_uri="docs/page.md")
    latex = r'<p><span class="arithmatex">\(\gamma &lt; 1\)</span></p>'
    html = reference.on_page_content(latex, SimpleNamespace(file=file))
    assert html.startswith("<p><math") and "arithmatex" not in html
    assert reference.on_page_markdown("a\\\nb\n```sh\na \\\nb\n```\n") == "a  \nb\n```sh\na \\\nb\n```\n"
