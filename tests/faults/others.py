"""Others at work on the same files: a second process, a reader, somebody who changes the corpus or the model."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections import Counter
from pathlib import Path

import polars as pl

import trajscore as ts
from tests.faults.kills import Scored, Tally, contents, finish, wait_for_file
from tests.faults.machines import Shards
from tests.faults.processes import said_clearly
from tests.faults.scores import check_parts, check_same
from tests.faults.world import World
from trajscore.errors import UsageError
from trajscore.io.atomic import unfinished_name

_FORMAT = {"format": "pt"}
_HELD = "is scoring into this folder"


def several_at_once(scored: Scored, processes: int, folder: Path, tally: Tally) -> None:
    """Processes that start together on one folder: one scores, the others say that it does."""
    shutil.rmtree(folder, ignore_errors=True)
    running = [scored.start(folder) for _ in range(processes)]
    statuses = [each.wait() for each in running]
    assert 0 in statuses, [each.said for each in running]
    for each in running:
        if each.wait() != 0:  # one that came when all was done finds nothing to do
            said_clearly(each, _HELD)
    check_same(folder, scored.undisturbed, scored.exact)
    tally.other["processes started at once on one folder"] += processes


def one_while_another(scored: Scored, folder: Path, draw: random.Random, tally: Tally) -> None:
    """A process that comes while another one is in the middle, which holds still meanwhile."""
    shutil.rmtree(folder, ignore_errors=True)
    first = scored.start(folder)
    wait_for_file(first, folder, r"part-\d+\.parquet", draw.choice((1, 2, 3)))
    first.freeze()
    names = {path.name for path in folder.iterdir()}
    second = scored.start(folder)
    said_clearly(second, _HELD, "Wait for it, or choose another --out")
    assert {path.name for path in folder.iterdir()} == names, "the second one changed something"
    first.send(signal.SIGCONT)
    assert first.wait() == 0, first.said
    check_same(folder, scored.undisturbed, scored.exact)
    tally.other["processes that came while another one scored"] += 1


def shards_at_once(shards: Shards, folder: Path, tally: Tally) -> None:
    """The same shard twice, and a merge while a shard works."""
    shutil.rmtree(folder, ignore_errors=True)
    first = shards.start(folder, 0)
    wait_for_file(first, folder, r"part-\d+\.parquet", 1)
    first.freeze()
    again, merging = shards.start(folder, 0), shards.merge(folder)
    again.wait(), merging.wait()
    said_clearly(again, _HELD)
    said_clearly(merging, _HELD)
    others = [shards.start(folder, number) for number in range(1, shards.of)]
    assert [each.wait() for each in others] == [0] * len(others), [each.said for each in others]
    merging = shards.merge(folder)
    said_clearly(merging, _HELD)
    first.send(signal.SIGCONT)
    assert first.wait() == 0, first.said
    assert shards.merge(folder).wait() == 0
    check_same(folder, shards.undisturbed)
    tally.other["the same shard twice, and a merge while a shard works"] += 1


def reading_meanwhile(scored: Scored, folder: Path, tally: Tally) -> None:
    """Somebody who reads while a run writes sees whole parts only: the first rows of the finished scores."""
    shutil.rmtree(folder, ignore_errors=True)
    expected = ts.scan(scored.undisturbed).collect()
    running = scored.start(folder)
    # The second part comes after the first was entered; the run holds still, so that there is something to read in any case.
    wait_for_file(running, folder, r"part-\d+\.parquet", 2)
    running.freeze()
    seen = ts.scan(folder).collect()
    assert seen.equals(expected.head(seen.height)), "half a part, or other rows"
    readings = int(seen.height < expected.height)
    running.send(signal.SIGCONT)
    while not running.has_ended():
        try:
            seen = ts.scan(folder).collect()
        except UsageError as error:
            if "no scores here" not in str(error) and "no finished part" not in str(error):
                raise
            continue
        assert seen.equals(expected.head(seen.height)), "half a part, or other rows"
        readings += seen.height < expected.height
    assert running.wait() == 0, running.said
    check_same(folder, scored.undisturbed, scored.exact)
    assert readings, "nothing was read while it was written"
    tally.other["readings of an unfinished folder"] += readings


def corpus_changed(world: World, scored: Scored, folder: Path, draw: random.Random, tally: Tally) -> None:
    """A run that was killed meets another corpus: every change is refused, and nothing in the folder changes."""
    _interrupted(scored, folder, draw)
    before = check_parts(folder)
    text = world.corpus.read_text("utf-8")
    lines = text.splitlines(keepends=True)
    changes = {
        "one letter": text.replace("e", "f", 1),
        "order": "".join([*lines[1:], lines[0]]),
        "a row more": text + lines[0].replace('"id": "', '"id": "more-'),
        "a row less": "".join(lines[:-1]),
        "emptied": "",
    }
    for what, changed in changes.items():
        world.corpus.write_text(changed, "utf-8")
        running = scored.start(folder)
        said_clearly(running, "corpus.jsonl: no rows" if what == "emptied" else "input.", status=(2,))
        tally.other[f"corpus changed between runs: {what}"] += 1
    world.corpus.write_text(text, "utf-8")
    assert check_parts(folder) == before
    finish(scored, folder, before, tally)


def model_changed(world: World, folder: Path, draw: random.Random, tally: Tally) -> None:
    """A run that was killed meets other weights under the model's name; then NaN in the weights."""
    import torch
    from safetensors.torch import load_file, save_file

    model = world.folder / "model"
    shutil.copytree(world.student, model)
    scored = world.scored(
        "hf, own copy of the model", lambda out: world.launcher.fork(*world.arguments(out, student=model))
    )
    _interrupted(scored, folder, draw)
    weights = model / "model.safetensors"
    whole, tensors = weights.read_bytes(), load_file(weights)
    name = max(tensors, key=lambda each: tensors[each].numel())
    save_file({**tensors, name: tensors[name] * 1.001}, weights, _FORMAT)
    running = scored.start(folder)
    said_clearly(running, "student.weights_sha256", status=(2,))
    tally.other["weights changed between runs"] += 1
    # The first layer is whole no more, then one token's embedding, which is also its row of the head.
    layer, embedding = "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"
    save_file({**tensors, layer: tensors[layer] * torch.nan}, weights, _FORMAT)
    running = scored.start(folder.with_name("nan"))
    said_clearly(running, "gives NaN or infinity for every token")
    undisturbed = ts.scan(scored.undisturbed).select("input_ids", "positions", "status").collect()
    token, reached = _in_some_rows(undisturbed)
    one = torch.where(torch.arange(len(tensors[embedding]))[:, None] == token, torch.nan, tensors[embedding])
    save_file({**tensors, embedding: one}, weights, _FORMAT)
    running = scored.start(folder.with_name("nan"))
    said_clearly(running, "the output head has NaN or infinity", f"token id {token}")
    tally.other["NaN in the weights: stopped before the first row"] += 2
    # Beside a head of its own, a token's embedding spoils the rows that hold the token and no others.
    config = model / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text("utf-8")), "tie_word_embeddings": False}), "utf-8")
    save_file({**tensors, embedding: one, "lm_head.weight": tensors[embedding]}, weights, _FORMAT)
    refused = folder.with_name("nan")
    running = scored.start(refused)
    said_clearly(running, "rows were refused", "non_finite", "NaN or infinity", status=(3,))
    rows = ts.scan(refused).select("status", "student_surprisal").collect()
    assert (rows["status"] == "non_finite").to_list() == reached
    assert rows.filter(reached)["student_surprisal"].null_count() == sum(reached)
    assert ts.verify(refused).problems == []
    tally.other["NaN in the weights: rows refused"] += sum(reached)
    shutil.copy2(world.student / config.name, config)
    weights.write_bytes(whole)
    finish(scored, folder, check_parts(folder), tally)


def _in_some_rows(rows: pl.DataFrame) -> tuple[int, list[bool]]:
    """A token that a model reads before it predicts a scored one in some rows only, and in which."""
    read = [
        set(row["input_ids"][: row["positions"][-1]]) if row["status"] == "ok" else set[int]()
        for row in rows.iter_rows(named=True)
    ]
    within = Counter(token for each in read for token in each)
    token = min(within, key=lambda each: (abs(within[each] - len(read) / 2), each))
    return token, [token in each for each in read]


def _interrupted(scored: Scored, folder: Path, draw: random.Random) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    running = scored.start(folder)
    wait_for_file(running, folder, r"part-\d+\.parquet", draw.choice((1, 2, 3)))
    running.send(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL, running.said


def containers_at_once(world: World, scored: Scored, folder: Path, tally: Tally) -> None:
    """Containers in which every process has the same number: one scores and the others say so; of writers the last one wins."""
    several_at_once(world.contained(scored), 3, folder, tally)
    for written in world.writers(scored.undisturbed, {"select", "export"}):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        running = [written.contained(folder) for _ in range(4)]
        assert [each.wait() for each in running] == [0] * 4, [each.said for each in running]
        assert contents(folder) == contents(written.undisturbed), f"{written.what}: other files than one process writes"
        left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        assert not left, left
        tally.other[f"containers that wrote one output at once ({written.what})"] += 4


def dead_container_without_locks(world: World, scored: Scored, folder: Path, tally: Tally) -> None:
    """Nobody can tell from outside that a container's process is dead: --break-lock takes its folder, a plain run does not."""
    shutil.rmtree(folder, ignore_errors=True)
    running = world.launcher.fork(*world.arguments(folder), locks=False, contained=True)
    wait_for_file(running, folder, r"part-\d+\.parquet", 2)
    running.send(signal.SIGKILL)
    running.wait()
    before = check_parts(folder)
    running = world.launcher.run(*world.arguments(folder), locks=False, contained=True)
    said_clearly(running, _HELD, "--break-lock")
    assert check_parts(folder, before) == before
    running = world.launcher.run(*world.arguments(folder, "--break-lock"), locks=False, contained=True)
    assert running.wait() == 0, running.said
    check_same(folder, scored.undisturbed, scored.exact, leaves=True)
    tally.other["locks of dead containers, without flock, that --break-lock took"] += 1


def foreign_files(scored: Scored, folder: Path, draw: random.Random, tally: Tally) -> None:
    """A stale lock, a part of another run under the name of the next one, a foreign file under it, a folder as lock."""
    _interrupted(scored, folder, draw)
    before = check_parts(folder)
    (folder / ".lock").write_text("4711 another-machine")
    missing = [path.name for path in sorted(scored.undisturbed.glob("part-*")) if not (folder / path.name).exists()]
    wrong = scored.undisturbed / "part-00000.parquet"
    shutil.copy(wrong, folder / missing[0])
    pl.DataFrame({"id": ["foreign"]}).write_parquet(folder / missing[-1])
    unfinished_name(folder / missing[-2]).write_bytes(b"half")
    finish(scored, folder, before, tally)
    shutil.copy(wrong, folder / "part-00002.parquet")
    running = scored.start(folder)
    said_clearly(running, "part-00002.parquet", "changed since it was written")
    (folder / "part-00002.parquet").unlink()
    (folder / ".lock").unlink()
    (folder / ".lock").mkdir()
    running = scored.start(folder)
    said_clearly(running, "cannot be written")
    (folder / ".lock").rmdir()
    finish(scored, folder, None, tally)
    tally.other["stale locks and foreign parts"] += 1
