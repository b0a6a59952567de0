"""`trajscore list`: what can be named on the command line."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from trajscore.cli.app import Json, lists, print_json, print_parts
from trajscore.cli.parameters import takes
from trajscore.options.groups import MetricsFileOptions


@lists.command("metrics")
@takes(MetricsFileOptions)
def list_metrics(options: MetricsFileOptions, as_json: Json = False) -> None:
    """Every metric: name, direction, unit, columns it reads, source and meaning."""
    from trajscore.metrics import known_metrics
    from trajscore.ranking.terminal import metric_list

    metrics = known_metrics(options.metrics_file).values()
    if as_json:
        facts = ("name", "direction", "unit", "columns", "source", "meaning")
        lines = [{fact: getattr(metric, fact) for fact in facts} for metric in metrics]
        more = [{"kind": metric.kind, "parameters": parameters_of(metric)} for metric in metrics]
        print_json({"metrics": [line | rest for line, rest in zip(lines, more, strict=True)]})
        return
    print_parts(metric_list(metrics))


@lists.command("presets")
def list_presets(as_json: Json = False) -> None:
    """Every preset of `select` and `mask`: the flags that it stands for, meaning and source."""
    from trajscore.masking.presets import MASK_PRESETS, needs_mask
    from trajscore.options import as_flags
    from trajscore.selection.presets import PRESETS, needs
    from trajscore.selection.terminal import preset_list

    presets = [
        {**asdict(preset), "command": command, "flags": as_flags(preset.settings), "needs": needs_of(preset)}
        for command, table, needs_of in (("select", PRESETS, needs), ("mask", MASK_PRESETS, needs_mask))
        for preset in table.values()
    ]
    if as_json:
        print_json({"presets": presets})
        return
    print_parts(preset_list(presets))


@lists.command("exporters")
def list_exporters(as_json: Json = False) -> None:
    """Every trainer that `export` writes for: what it takes, and what is written."""
    from trajscore.exporters.table import EXPORTERS
    from trajscore.exporters.terminal import exporter_list

    facts = [
        {
            "name": each.name,
            "trainer": each.trainer,
            "token_weights": each.token_weights,
            "signed_weights": each.signed_weights,
            "sample_weights": list(each.sample_weights),
            "meaning": each.meaning,
        }
        for each in EXPORTERS.values()
    ]
    if as_json:
        print_json({"exporters": facts})
        return
    print_parts(exporter_list(EXPORTERS.values()))


@lists.command("rules")
def list_rules(as_json: Json = False) -> None:
    """Every rule of `mask`: name, hard or soft, options, columns it reads, source and meaning."""
    from trajscore.masking.rules import RULES
    from trajscore.masking.terminal import reads, rule_list

    if as_json:
        facts = ("name", "kind", "soft", "source", "meaning")
        lines = [{fact: getattr(rule, fact) for fact in facts} for rule in RULES.values()]
        more = [{"columns": reads(rule), "parameters": parameters_of(rule)} for rule in RULES.values()]
        print_json({"rules": [line | rest for line, rest in zip(lines, more, strict=True)]})
        return
    print_parts(rule_list())


def parameters_of(named: Any) -> dict[str, Any]:
    """What a metric or rule can be given: default and meaning by name."""
    return {each.name: {"default": each.default, "meaning": each.meaning} for each in named.parameters}
