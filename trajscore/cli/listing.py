"""`trajscore list`: what can be named on the command line."""

from __future__ import annotations

from trajscore.cli.app import Json, lists, print_json, print_parts


@lists.command("metrics")
def list_metrics(as_json: Json = False) -> None:
    """Every metric: name, direction, unit, columns it reads, source and meaning."""
    from trajscore.metrics import METRICS
    from trajscore.reporting.terminal import metric_list

    if as_json:
        facts = ("name", "direction", "unit", "columns", "source", "meaning")
        print_json({"metrics": [{fact: getattr(metric, fact) for fact in facts} for metric in METRICS.values()]})
        return
    print_parts(metric_list())


@lists.command("rules")
def list_rules(as_json: Json = False) -> None:
    """Every rule of `mask`: name, hard or soft, options, columns it reads, source and meaning."""
    from trajscore.policies.masks import RULES
    from trajscore.reporting.masking import reads, rule_list

    if as_json:
        facts = ("name", "kind", "soft", "source", "meaning")
        lines = [{fact: getattr(rule, fact) for fact in facts} for rule in RULES.values()]
        more = [{"columns": reads(rule), "options": dict(rule.defaults)} for rule in RULES.values()]
        print_json({"rules": [line | rest for line, rest in zip(lines, more, strict=True)]})
        return
    print_parts(rule_list())
