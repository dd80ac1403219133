"""How the tests run: on 8 forced CPU devices, with compiled programs kept in `.cache/`,
and with every test that did not run listed at the end. `--quick` leaves out those
marked slow; `--all-must-run` makes what did not run a failure, except for what needs a
GPU.

Eight devices cost nothing measurable where a test uses one. Programs compiled by an
earlier run are read back from `.cache/jax`. They are compiled without LLVM's
optimisations, which take longer than what they save: most tests run a program once.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Before the first import of jax, in every worker.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests load nothing from a hub

PEERS = Path(os.environ.get("VLMRL_PEERS", Path.home() / ".cache/vlmrl/peers"))
AXE = Path(sys.prefix) / "axe/node_modules/axe-core/axe.min.js"
SERVING = ("torch", "fastapi", "uvicorn", "openai", "accelerate")

# What a marker needs: (is it here?, what brings it).
NEEDS = {
    "parity": (
        lambda: importlib.util.find_spec("torch") is not None,
        "needs torch: launch/local.sh test --all",
    ),
    "serve": (
        lambda: all(map(importlib.util.find_spec, SERVING)),
        "needs transformers serve's packages: launch/local.sh test --all",
    ),
    "libtpu": (
        lambda: importlib.util.find_spec("libtpu") is not None,
        "needs libtpu, TPU's compiler: launch/local.sh test --all",
    ),
    "gpu": (
        lambda: os.environ["JAX_PLATFORMS"].startswith(("cuda", "gpu")),
        "needs an NVIDIA GPU: JAX_PLATFORMS=cuda launch/local.sh test -m gpu",
    ),
    "slurm": (
        lambda: shutil.which("slurmctld") and shutil.which("slurmd"),
        "needs Debian's slurm-wlm: launch/local.sh test --all",
    ),
    "vllm": (
        (PEERS / "vllm" / "installed.txt").is_file,
        "needs vLLM: launch/local.sh test --all",
    ),
    "chromium": (
        lambda: shutil.which("chromium") is not None,
        "needs Debian's chromium: launch/local.sh test --all",
    ),
    "axe": (
        AXE.is_file,
        "needs npm's axe-core: launch/local.sh test --all",
    ),
}
LOCAL = ("gpu",)  # markers of what `test --all` does not bring

# Files that take minutes, the longest first. Workers take whole files in this order
# (`launch/local.sh`), so that none of them begins last, while other workers are idle.
LONG = (
    "main/test_stopped.py",
    "main/test_train.py",
    "test_layouts.py",
    "judges/test_served.py",
    "main/test_reproduce.py",
    "rl/test_loop.py",
    "main/test_demo.py",
    "main/test_plan.py",
    "engine/test_laws.py",
    "engine/test_continuous_batching.py",
    "engine/test_sharding.py",
    "eval/test_kernel.py",
    "models/test_qwen2_5_vl.py",
    "models/test_qwen3_vl.py",
    "models/test_internvl.py",
    "models/test_text.py",
    "launch/test_slurm.py",
    "models/test_big.py",
    "rl/test_update.py",
    "main/test_eval.py",
)


def pytest_addoption(parser):
    parser.addoption(
        "--quick",
        action="store_true",
        help="leave out the tests marked slow; `launch/local.sh test` does",
    )
    parser.addoption(
        "--all-must-run",
        action="store_true",
        help="fail if any test was skipped, deselected or expected to fail",
    )


def pytest_configure(config):
    config.deselected_tests = set()
    try:
        from hypothesis import settings
    except ImportError:
        return
    # The first example of a property compiles, and every run tries the same examples.
    settings.register_profile("vlmrl", deadline=None, derandomize=True)
    settings.load_profile("vlmrl")


def pytest_collection_modifyitems(config, items):
    order = {ROOT / "tests" / name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path, len(order)))
    quick = {"slow": (lambda: False, "takes long: launch/local.sh test --all")}
    needs = NEEDS | (quick if config.getoption("--quick") else {})
    for marker, (present, reason) in needs.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and not present():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


def could_have_run(rows):
    """Those of `did_not_run` that lacked nothing, or what `test --all` brings."""
    lacking = {NEEDS[marker][1] for marker in LOCAL}
    return [row for row in rows if row[1] not in lacking]


def did_not_run(config):
    """[(test, reason)] of this session. Tests that the caller deselected are named only
    if all must run."""
    stats = config.pluginmanager.get_plugin("terminalreporter").stats
    must = config.getoption("--all-must-run")
    rows = dict.fromkeys(config.deselected_tests if must else (), "deselected")
    for report in stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        rows[report.nodeid] = reason.removeprefix("Skipped: ")
    for report in stats.get("xfailed", []):
        rows[report.nodeid] = f"expected to fail: {report.wasxfail}"
    return sorted(rows.items())


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session, exitstatus):
    config = session.config
    if hasattr(config, "workeroutput"):  # an xdist worker
        config.workeroutput["deselected"] = sorted(config.deselected_tests)
        return
    left_out = could_have_run(did_not_run(config))
    if config.getoption("--all-must-run") and exitstatus == 0 and left_out:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    node.config.deselected_tests.update(
        getattr(node, "workeroutput", {}).get("deselected", [])
    )


def pytest_deselected(items):
    for item in items:
        item.config.deselected_tests.add(item.nodeid)


def pytest_terminal_summary(terminalreporter, config):
    rows = did_not_run(config)
    if not rows:
        return
    must = config.getoption("--all-must-run") and could_have_run(rows)
    terminalreporter.section(f"{len(rows)} did not run" + (": failure" if must else ""))
    for name, reason in rows:
        terminalreporter.line(f"did not run: {name} ({reason})")
