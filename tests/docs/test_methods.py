"""The page of methods names what can be typed, and every method that has a preset, rule or metric is on it."""

from __future__ import annotations

import re

from tests.helpers.paths import ROOT
from trajscore.masking.presets import MASK_PRESETS
from trajscore.masking.rules import BY, RULES
from trajscore.metrics import METRICS, parse_metric
from trajscore.options import parse_named
from trajscore.selection.presets import PRESETS

PAGE = (ROOT / "docs" / "reference" / "methods.md").read_text("utf-8")


def test_names_on_the_page_exist() -> None:
    spans = set(re.findall(r"`([^`]+)`", PAGE))
    names = {span for span in spans if re.fullmatch(r"[a-z][a-z0-9_-]*(,[a-z0-9_]+=[^ ]+)?", span)}
    commands = {"trace", "skills", "grade", "report", "mask", "select"}
    known = {*METRICS, *RULES, *PRESETS, *MASK_PRESETS, *commands, "correct", "pass_rate"}
    for name in sorted(names):
        named = parse_named("page", name)
        assert named.name in known, name
        if named.name in METRICS:
            parse_metric(name)
        elif named.given:
            rule = RULES[named.name]
            assert all(key in {each.name for each in rule.parameters} for key in named.given), name
            assert named.given.get("by", "js") in BY


def test_every_source_is_on_the_page() -> None:
    said = [each.source for each in METRICS.values()] + [each.source for each in RULES.values()]
    said += [each.source for each in (*PRESETS.values(), *MASK_PRESETS.values())]
    sources = {number for source in said for number in re.findall(r"arXiv (\d{4}\.\d{5})", source)}
    missing = sorted(number for number in sources if number not in PAGE)
    assert not missing
