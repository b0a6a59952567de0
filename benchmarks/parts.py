"""What a part costs in a folder of many: seconds per 500 parts of one row each, up to 10,000, in a local folder and on s3://.

Only the folder works: the tables are ready, and nothing is scored. The object store is a server of its protocol on this machine
(`moto`), which holds everything in memory, so its times say how cost grows, not what a real one takes. Prints a table. Each 500
is followed by a control outside the folder: a file of a part's size, written and synced a hundred times. A disk that other work
slows down shows there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from trajscore.scores import Manifest, ScoreFolder, read_manifest

STEP = 500
_CONTROLS = 100


def _table(number: int) -> pa.Table:
    columns = {"id": [str(number)], "status": ["ok"], "n_tokens": pa.array([5], pa.uint32())}
    return pa.table({**columns, "student_rank": [[1, 2, 3, 4, 5]]})


def _manifest() -> Manifest:
    return Manifest(settings={"model": "m", "part_rows": 1}, environment={}, input_columns=["id"])


def _control(folder: Path) -> float:
    """Seconds for a file of a part's size, written and synced."""
    began = time.perf_counter()
    for _ in range(_CONTROLS):
        with (folder / "control").open("wb") as handle:
            handle.write(b"0" * 3000)
            handle.flush()
            os.fsync(handle.fileno())
    return time.perf_counter() - began


def measure(where: str, parts: int) -> list[tuple[float, float]]:
    """Seconds of each 500 parts, and of the control after it."""
    found = []
    with tempfile.TemporaryDirectory() as beside, ScoreFolder(where, _manifest()) as folder:
        began = time.perf_counter()
        for number in range(parts):
            folder.write_part(_table(number), number)
            if (number + 1) % STEP == 0:
                found.append((time.perf_counter() - began, _control(Path(beside))))
                began = time.perf_counter()
        folder.finish()
    if read_manifest(where).rows != parts:
        raise RuntimeError("parts are missing")
    return found


@contextmanager
def _bucket() -> Iterator[str]:
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ENDPOINT_URL": f"http://{host}:{port}".replace("0.0.0.0", "127.0.0.1"), **names}  # noqa: S104
    fsspec.filesystem("s3").mkdir("bucket")
    try:
        yield "s3://bucket/scores"
    finally:
        server.stop()


def _print(what: str, found: list[tuple[float, float]]) -> None:
    print(f"\n{what}\n\n| parts | s per {STEP} | control, s per {_CONTROLS} |\n|---:|---:|---:|")
    for number, (seconds, control) in enumerate(found, 1):
        print(f"| {number * STEP:,} | {seconds:.2f} | {control:.3f} |")
    if len(found) > 1:
        middle = statistics.median(seconds for seconds, _ in found)
        print(f"\nlast / second: {found[-1][0] / found[1][0]:.2f}; median {middle:.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=10_000, help="of the local folder; default 10000")
    parser.add_argument("--remote-parts", type=int, default=10_000, help="on s3://; default 10000")
    parser.add_argument("--folder", help="where the local one is made; default: a temporary folder")
    parser.add_argument("--quick", action="store_true", help="1,000 parts in place of 10,000")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.parts = arguments.remote_parts = 2 * STEP
    if arguments.parts:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            _print("local folder", measure(f"{folder}/scores", arguments.parts))
    if arguments.remote_parts:
        with _bucket() as where:
            _print("object store", measure(where, arguments.remote_parts))


if __name__ == "__main__":
    main()
