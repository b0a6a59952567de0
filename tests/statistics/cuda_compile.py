"""The compiled reductions for a GPU of compute capability 9.0, made on a machine without one: kernels counted and assembled.

Run by `make test-cuda-compile` in an environment of its own with PyTorch's CUDA build; neither a device nor a driver is
asked. It shows that inductor fuses each reduction into as few kernels as are expected and that ptxas takes them without
spilling registers. How fast they are shows a GPU only (`benchmarks/gpu_smoke.py`).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from trajscore.statistics import blocks, pairs

ROWS, BLOCK = blocks.CUDA_ROWS, blocks.CUDA_BLOCK

REDUCTIONS: dict[str, tuple[Callable[..., torch.Tensor], int, int]] = {
    "one model": (blocks.block_pure, 1, 1),
    "two models": (pairs._sums_pure, 2, 1),
    "Jensen-Shannon": (pairs._js_pure, 2, 1),
}
"""Name -> (what is compiled, models, most kernels expected)."""


class Kernel(NamedTuple):
    """A kernel's name, its configurations, the fewest registers spilled by one of them in bytes, and how often it loads."""

    name: str
    configurations: int
    spilled: int
    loads: int


def pretend_a_device() -> Any:
    """An H100's properties for inductor and triton; returns triton's target."""
    from torch._inductor.runtime.hints import DeviceProperties
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    target = GPUTarget("cuda", 90, 32)

    class Driver:
        """As much of a driver as compiling asks for."""

        def get_current_target(self) -> Any:
            return target

        def get_current_device(self) -> int:
            return 0

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cuda", 0)

    driver.set_active(Driver())
    known = {
        "type": "cuda", "index": 0, "multi_processor_count": 132, "cc": 90, "major": 9, "warp_size": 32,
        "regs_per_multiprocessor": 65_536, "max_threads_per_multi_processor": 2048, "max_threads_per_block": 1024,
    }  # fmt: skip
    fields = {name: value for name, value in known.items() if name in DeviceProperties._fields}
    properties = DeviceProperties(**fields)  # type: ignore[arg-type]
    mock.patch.object(DeviceProperties, "create", return_value=properties).start()
    mock.patch("torch.cuda.get_device_properties", return_value=properties).start()
    mock.patch("torch.cuda.get_device_capability", return_value=(9, 0)).start()
    mock.patch("torch.cuda.current_device", return_value=0).start()
    return target


def code_of(function: Callable[..., torch.Tensor], models: int) -> str:
    """What inductor writes for a function of logits and targets' logits of each model, targets, and the block's first entry."""
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        logits = [torch.empty(ROWS, BLOCK, device="cuda") for _ in range(models)]
        own = [torch.empty(ROWS, device="cuda") for _ in range(models)]
        whole = {"dtype": torch.int64, "device": "cuda"}
        inputs = (*logits, *own, torch.empty(ROWS, **whole), torch.empty((), **whole))  # type: ignore[call-overload]
        traced = make_fx(function, decomposition_table=select_decomp_table(), tracing_mode="real")(*inputs)
    # Whether there is a device that triton can use.
    usable = mock.patch("torch._inductor.scheduler.has_triton", return_value=True)
    with usable, V.set_debug_handler(DebugContext()), V.set_fake_mode(mode):
        graph = GraphLowering(traced, example_inputs=inputs)
        with V.set_graph_handler(graph):
            graph.run(*inputs)
            written = graph.codegen()[0]
    return str(getattr(written, "value", written))


def kernels_of(code: str, target: Any) -> Iterator[Kernel]:
    """Every kernel of a generated module, assembled in each of its configurations."""
    import triton
    from triton.compiler import ASTSource

    for name, written in re.findall(r"async_compile\.triton\('(\w+)', '''(.*?)''', device_str", code, re.DOTALL):
        path = Path(tempfile.mkdtemp()) / f"{name}.py"
        source = written.replace("triton_helpers.set_driver_to_gpu()", "")
        path.write_text(source)  # triton reads a kernel's source from its file
        scope: dict[str, Any] = {"__name__": name, "__file__": str(path)}
        exec(compile(source, path, "exec"), scope)  # noqa: S102 - inductor's own code
        tuner = scope[name]
        spilled = []
        for configuration in tuner.configs:
            constants = {**tuner.triton_meta.get("constants", {}), **configuration.kwargs}
            made = ASTSource(tuner.fn, tuner.triton_meta["signature"], constants, tuner.triton_meta["configs"][0])
            options = {"num_warps": configuration.num_warps, "num_stages": configuration.num_stages}
            spilled.append(_spilled(triton.compile(made, target=target, options=options).asm["ptx"]))
        yield Kernel(name, len(tuner.configs), min(spilled), len(re.findall(r"tl\.load\(", source)))


def _spilled(ptx: str) -> int:
    """Bytes that ptxas stores because registers do not suffice."""
    import triton

    (assembler,) = (Path(triton.__file__).parent / "backends/nvidia/bin").glob("ptxas")
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        words = [str(assembler), "-v", "--gpu-name=sm_90a", file.name, "-o", "/dev/null"]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stderr
    return sum(map(int, re.findall(r"(\d+) bytes spill stores", said)))


def main() -> None:
    """Compile, print, and fail where there are more kernels than expected or none without spilling."""
    if torch.version.cuda is None:
        sys.exit("this needs PyTorch's CUDA build; run `make test-cuda-compile`")
    target, wrong = pretend_a_device(), list[str]()
    print(f"torch {torch.__version__}, sm_90, {ROWS} rows x {BLOCK} entries\n")
    print("| reduction | kernels | loads | configurations | bytes spilled |\n|---|---:|---:|---:|---:|")
    for name, (function, models, most) in REDUCTIONS.items():
        found = list(kernels_of(code_of(function, models), target))
        loads, configurations = sum(each.loads for each in found), sum(each.configurations for each in found)
        spilled = sum(each.spilled for each in found)
        print(f"| {name} | {len(found)} | {loads} | {configurations} | {spilled} |", flush=True)
        if not 1 <= len(found) <= most:
            wrong.append(f"{name}: {len(found)} kernels, at most {most} were expected")
        if spilled:
            wrong.append(f"{name}: registers do not suffice in any configuration")
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
