"""Real servers, `transformers serve` and vLLM, with a small random model made on the
spot."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import jax
import pytest

from vlmrl.client.http import Call, Client, Endpoint
from vlmrl.judges import chat
from vlmrl.judges.judge import JudgeItem, ask
from vlmrl.models import hf, registry

CONFIG = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 128,  # heads of 64: vLLM has no attention for small ones
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "tie_word_embeddings": True,
    "dtype": "float32",
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

VLLM = Path(os.environ.get("VLMRL_PEERS", Path.home() / ".cache/vlmrl/peers")) / "vllm"


def built(directory):
    """A directory with a random Qwen2 that speaks the tiny model's tokens."""
    start = directory / "start"
    start.mkdir()
    for name in (*TOKENIZER, "generation_config.json"):
        shutil.copy(registry.TINY / name, start / name)
    (start / "config.json").write_text(json.dumps(CONFIG))
    model = registry.read_model(start)
    hf.save(directory / "model", model, model.init(jax.random.key(0)), start)
    return directory / "model"


def served_by(name: str, model: str, port: int) -> tuple[list[str], dict[str, str]]:
    """(command, environment) of a server."""
    at = ["--host", "127.0.0.1", "--port", str(port)]
    if name == "transformers":
        words = [sys.executable, "-m", "transformers.cli.transformers", "serve", model]
        return [*words, *at, "--device", "cpu"], dict(os.environ)
    words = [str(VLLM / "bin/python"), "-m", "vllm.entrypoints.openai.api_server"]
    words += ["--model", model, "--dtype", "float32", "--max-model-len", "2048"]
    flags = dict(VLLM_CPU_KVCACHE_SPACE="1", VLLM_NO_USAGE_STATS="1")
    flags |= dict(VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="1")
    flags |= dict(LD_PRELOAD=str(VLLM / "lib/libiomp5.so"))
    return [*words, *at, "--enforce-eager"], dict(os.environ) | flags


@pytest.fixture(
    params=[
        pytest.param("transformers", marks=pytest.mark.serve),
        pytest.param("vllm", marks=pytest.mark.vllm),
    ]
)
def server(request, tmp_path):
    """(base URL, the model's name) of a server that answers."""
    model = str(built(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    words, env = served_by(request.param, model, port)
    with open(tmp_path / "log", "wb") as log:
        child = subprocess.Popen(
            words, stdout=log, stderr=log, env=env, start_new_session=True
        )
    try:
        end = time.monotonic() + 600
        while True:
            assert child.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            try:
                at = f"http://127.0.0.1:{port}/health"
                urllib.request.urlopen(at, timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        os.killpg(child.pid, signal.SIGTERM)  # vLLM's engine is a process of its own
        child.wait(60)


@pytest.mark.slow
def test_a_served_model_is_asked_and_every_item_has_its_verdict(server, tmp_path):
    """What a random model says is no verdict: each item is asked once more, then
    undecided with that reason; the same again sends nothing."""
    url, name = server
    todo = [
        JudgeItem(
            f"i{k}", "Where is it?", ("left", "right"), f"Case {k}. So left.", k % 2
        )
        for k in range(4)
    ]
    at, cache = Endpoint(url, name, attempt_seconds=120.0), tmp_path / "replies.jsonl"
    params = {"temperature": 0.0, "max_tokens": 12}
    with Client(at, cache=cache) as client:
        first = ask(chat.make(client, params=params), todo)
        assert client.spent.sent == 8
        assert client.spent.prompt_tokens > 8 * 300  # as the server counted them
        assert 8 <= client.spent.completion_tokens <= 8 * 12
        hello = [{"role": "user", "content": "Hello"}]
        twice = client.complete([Call(hello, params, k) for k in (0, 1)])
    assert [v.label for v in first] == ["undecided"] * 4
    assert {v.reason for v in first} == {"unreadable reply: it is not one JSON object"}
    assert twice[0].text == twice[1].text and not twice[0].error
    assert twice[0].finish in ("stop", "length")
    with Client(at, cache=cache) as client:
        assert repr(ask(chat.make(client, params=params), todo)) == repr(first)
        assert client.spent.sent == 0
