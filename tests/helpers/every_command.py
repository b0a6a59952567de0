"""One call of every command that works in a small folder, held against the command line's own table: a command that has none
fails whatever is asked of all.

Outputs are called `new`, with a suffix or without; the annotator's server and served models are at URL.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from tests.helpers.mask_files import write_mask
from tests.helpers.paths import DATA, MODELS
from tests.helpers.score_tables import random_rows, table, write_folder
from trajscore.cli.app import app
from trajscore.options import options_in
from trajscore.recipes.options import STEPS
from trajscore.scores import ScoreFolder, Shard, read_manifest, scan
from trajscore.skills.commands.profile import skill_profile

STUDENT = MODELS / "student"
_ASKED = "--annotator m --base-url URL"
CALLS: dict[str, str] = {
    "diff": "chosen.jsonl other.jsonl",
    "doctor": "--student STUDENT",
    "export": "mask.parquet --to trl --out new",
    "grade": "corpus.jsonl --reference-field answer --out new.jsonl",
    "inspect": "scores --worst 5 --out new.html",
    "list exporters": "",
    "list metrics": "",
    "list presets": "",
    "list rules": "",
    "mask": "scores --rule all --out new.parquet",
    "merge": "shards --max-refused 1",
    "report": "scores --replicates 200 --out new.html --csv new.csv",
    "run": "recipe.yaml",
    "score": "corpus.jsonl --student STUDENT --engine hf --part-rows 3 --out new",
    "select": "scores --metric rsr --where 'n_tokens > 1' --out new.parquet --decisions new.csv",
    "skills answer": "q.jsonl --student STUDENT --engine hf --max-tokens 8 --batch-size 4 --out new.jsonl",
    "skills begin": "q.jsonl --answers answers.jsonl --out new.jsonl",
    "skills catalogue": f"q.jsonl {_ASKED} --out new.json",
    "skills diagnose": f"answers.jsonl --skills skills.json {_ASKED} --out new.jsonl",
    "skills entropy": "answers.jsonl --scores scores --out new",
    "skills label": f"q.jsonl --skills skills.json {_ASKED} --out new.jsonl",
    "skills pass-rate": "answers.jsonl --scores scores --out new",
    "skills profile": "diagnosis.jsonl --replicates 200 --out new.json --chart new.svg",
    "skills synthesise": f"profile.json --skill-map map.jsonl {_ASKED} --out new.jsonl",
    "slurm": "--shards 2 -- corpus.jsonl --student STUDENT --out new",
    "trace": "scores --out new.csv",
    "verify": "scores",
}
"""By the words after `trajscore`; the rest of the line."""

_WITH = {"base_url": "--engine server", "teacher_base_url": "--teacher STUDENT"}
"""What a served model belongs to."""


def commands(group: Any = None, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its words, as the command line itself has it."""
    root: Any = group or typer.main.get_command(app)
    for name, command in root.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield before + name, command


def words(line: str, url: str = "") -> list[str]:
    """The words of a line with names in it."""
    return [word.replace("URL", url).replace("STUDENT", str(STUDENT)) for word in shlex.split(line)]


def lines_that_ask() -> dict[str, str]:
    """Every way in which a command asks a server: for each option of each command that is called `*base_url`, and for each such
    option of a recipe's steps; see `write_recipes`.
    """
    found = {}
    for name, command in commands():
        for flag, option in [(each.opts[0], each.name) for each in command.params if each.name.endswith("base_url")]:
            beside = _WITH[option] if name == "score" else ""
            line = f"{name} {CALLS[name].replace(_ASKED, '--annotator m')} {flag} URL {beside}"
            found[f"{name} {flag}"] = line
            if name == "score":  # which asks what the models are
                found[f"{name} {flag} --dry-run"] = f"{line} --dry-run --calibration-seconds 0.1"
    for step, options in STEPS.items():
        found |= {
            f"run {step} {name}": f"run {step}-{name}.yaml" for name in options_in(options) if name.endswith("base_url")
        }
    return found


def write_recipes(folder: Path, url: str, more: Mapping[str, Any]) -> None:
    """For each option of a step that is called `*base_url` a recipe with it, and with more options."""
    for step, options in STEPS.items():
        for name in [each for each in options_in(options) if each.endswith("base_url")]:
            flag, value = words(_WITH[name])
            given = {
                "data": "corpus.jsonl",
                "student": STUDENT,
                "out": "new",
                flag.removeprefix("--"): value,
                name: url,
                **more,
            }
            said = "".join(f"  {key}: {text}\n" for key, text in given.items())
            (folder / f"{step}-{name}.yaml").write_text(f"{step}:\n{said}")


def write_small_world(folder: Path, questions: int = 40) -> Path:
    """The files that the calls read."""
    rows = random_rows(200, seed=3)
    for row in rows:
        if row["status"] == "ok":
            row |= {"kl_student_teacher": row["student_entropy"], "teacher_sentence_logprob": [-0.5]}
    write_folder(folder / "scores", rows, extra=("kl_student_teacher", "teacher_sentence_logprob"))
    shutil.copy(STUDENT / "tokenizer.json", folder / "scores")
    _write_shards(folder / "shards", folder / "scores")
    write_mask(folder / "mask.parquet", [{"id": str(i), "input_ids": [1, 2], "labels": [-100, 2]} for i in range(500)])
    lines = (DATA / "trajectories.jsonl").read_text("utf-8").splitlines()[:9]
    for name, kept in (("corpus", lines), ("chosen", lines[:6]), ("other", lines[3:])):
        (folder / f"{name}.jsonl").write_text("\n".join(kept) + "\n", "utf-8")
    names = [f"prompt-{n}" for n in range(questions)]
    _write(folder / "q.jsonl", [{"prompt_id": name, "question": f"Start with {n}."} for n, name in enumerate(names)])
    answered = {
        "responses": ["one two three four"],
        "correct": [False],
        "finished": [False],
        "inference_entropy": [1.5],
    }
    asked = [{"question_id": name, "question": f"Start with {n}.", **answered} for n, name in enumerate(names)]
    _write(folder / "answers.jsonl", asked)
    _write(folder / "diagnosis.jsonl", [{"question_id": n, "status": "ok", "missing_skills": ["plus"]} for n in names])
    _write(
        folder / "map.jsonl",
        [{"question_id": name, "question": "Start.", "skills": ["plus"], "status": "ok"} for name in names],
    )
    (folder / "skills.json").write_text(json.dumps({"digits": ["plus"]}))
    skill_profile(folder / "diagnosis.jsonl", out=folder / "profile.json", replicates=20)
    steps = {"select": "metric: rsr\n  out: new.jsonl", "report": "replicates: 50\n  out: new.html"}
    (folder / "recipe.yaml").write_text(
        "".join(f"{step}:\n  scores: scores\n  {said}\n" for step, said in steps.items())
    )
    return folder


def _write_shards(folder: Path, scores: Path) -> None:
    """Two finished shards of the same scores that are to be merged."""
    manifest = dataclasses.replace(read_manifest(scores), parts=[], complete=False, rows_in=200)
    rows = scan(scores).collect().to_dicts()
    for index in range(2):
        with ScoreFolder(folder, manifest, shard=Shard(index, 2)) as shard:
            for number in shard.missing(len(rows)):
                shard.write_part(table(rows[4 * number : 4 * number + 4]), number)
            shard.finish()


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
