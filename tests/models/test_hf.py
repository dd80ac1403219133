"""Checkpoints on disk: written and read back bit for bit; broken ones refused."""

import json
import re
import shutil
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import kit
from vlmrl import sharding
from vlmrl.models import assemble, files, hf, quant, registry, weights
from vlmrl.models.api import linear
from vlmrl.run import checkpoint
from vlmrl.types import UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A directory with the toy's config and the tiny model's tokenizer, no weights."""
    path = tmp_path_factory.mktemp("source")
    (path / "config.json").write_text(json.dumps(kit.config()))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((registry.TINY / name).read_bytes())
    return path


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """The toy as a checkpoint; tests copy what they break."""
    path = tmp_path_factory.mktemp("whole") / "checkpoint"
    return hf.save(path, kit.model(), kit.params(), source)


@pytest.fixture
def copy(whole, tmp_path):
    """A checkpoint of one's own, and its tensors."""
    for file in whole.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path, load_file(tmp_path / "model.safetensors")


def equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, p in wanted.items():
        assert found[name].dtype == p.dtype, name
        a, b = np.asarray(found[name]), np.asarray(p)
        assert a.shape == b.shape and a.tobytes() == b.tobytes(), name


def complaint(path, match):
    """Loading fails with one line that says `match`."""
    with pytest.raises(UserError, match=match) as caught:
        weights.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- what is right ---------------------------------------------------------------------


def test_saved_is_what_is_loaded(whole, source):
    model, params = weights.load(whole)
    assert model.config == kit.model().config
    equal(params, kit.params())
    sides = {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {f.name for f in whole.iterdir()} == sides | {"model.safetensors"}
    for name in sides:
        assert (whole / name).read_bytes() == (source / name).read_bytes()
    assert model.size == sum(p.size for p in params.values())


def test_files_can_be_read_by_others(whole):
    for file in whole.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o044 == 0o044, file.name


def test_load_save_load_is_bit_equal(copy, tmp_path):
    path, tensors = copy
    model, params = weights.load(path)
    again = hf.save(tmp_path / "again", model, params, path)
    found = load_file(again / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, x in tensors.items():
        assert found[name].dtype == x.dtype and found[name].tobytes() == x.tobytes()
    equal(weights.load(again)[1], params)


def test_bfloat16_stays_bfloat16(source, tmp_path):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), kit.params())
    path = hf.save(tmp_path / "half", kit.model(), params, source)
    assert path.joinpath("model.safetensors").stat().st_size < 1.1 * 2 * sum(
        p.size for p in params.values()
    )
    equal(weights.load(path, dtype=jnp.bfloat16)[1], params)
    equal(weights.load(path)[1], {n: p.astype(jnp.float32) for n, p in params.items()})


def test_shards_are_written_and_read(source, tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "SHARD", 60_000)
    path = hf.save(tmp_path / "sharded", kit.model(), kit.params(), source)
    files = sorted(f.name for f in path.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * kit.model().size
    for name, file in index["weight_map"].items():
        assert name in load_file(path / file)
    equal(weights.load(path)[1], kit.params())


def test_names_of_newer_transformers_are_the_same(copy):
    path, tensors = copy

    def renamed(name):
        name = re.sub("^visual", "model.visual", name)
        return re.sub("^model.(?=embed|layers|norm)", "model.language_model.", name)

    changed = {renamed(n): x for n, x in tensors.items()}
    assert not changed.keys() & tensors.keys()
    save_file(changed, path / "model.safetensors")
    equal(weights.load(path)[1], kit.params())


def test_a_tied_head_that_is_stored_again_is_ignored(copy):
    path, tensors = copy
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
    save_file(tensors | head, path / "model.safetensors")
    equal(weights.load(path)[1], kit.params())


def test_parameters_go_where_they_are_told(whole):
    mesh = sharding.make_mesh(data=-1)
    places = sharding.param_shardings(mesh, kit.model().table)
    _, params = weights.load(whole, shardings=places)
    assert all(p.sharding == places[n] for n, p in params.items())
    equal(params, kit.params())


# -- what is wrong ---------------------------------------------------------------------


def test_a_missing_tensor_is_named(copy):
    path, tensors = copy
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path / "model.safetensors")
    said = complaint(path, "missing: model.layers.1.mlp.up_proj.weight; unknown: none")
    assert str(path) in said


def test_an_unknown_tensor_is_named(copy):
    path, tensors = copy
    tensors["visual.blocks.7.norm1.weight"] = np.ones(32, np.float32)
    save_file(tensors, path / "model.safetensors")
    said = complaint(path, "missing: none; unknown: visual.blocks.7.norm1.weight")
    assert str(path) in said


def test_many_names_are_cut_short(copy):
    path, tensors = copy
    kept = {n: x for n, x in tensors.items() if not n.startswith("visual")}
    save_file(kept, path / "model.safetensors")
    complaint(path, "missing: visual.* and [0-9]+ more; unknown: none")


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.bias",
        "visual.blocks.1.attn.qkv.weight",
        "visual.patch_embed.proj.weight",
        "model.norm.weight",
    ],
)
def test_a_tensor_of_the_wrong_shape_is_named(copy, name):
    path, tensors = copy
    shape = tensors[name].shape
    wrong = np.zeros((shape[0] + 1, *shape[1:]), np.float32)
    save_file(tensors | {name: wrong}, path / "model.safetensors")
    said = complaint(path, re.escape(f"got {list(wrong.shape)}"))
    assert "model.safetensors" in said and name in said and str(list(shape)) in said


def test_a_flat_tensor_of_the_right_size_is_wrong_too(copy):
    path, tensors = copy
    name = "model.layers.0.mlp.down_proj.weight"
    save_file(tensors | {name: tensors[name].ravel()}, path / "model.safetensors")
    complaint(path, f"tensor {name}: .*expected shape")


def test_a_transposed_tensor_is_wrong_too(copy):
    path, tensors = copy
    name = "model.layers.1.mlp.down_proj.weight"
    turned = np.ascontiguousarray(tensors[name].T)
    save_file(tensors | {name: turned}, path / "model.safetensors")
    complaint(path, f"tensor {name}: .*expected shape")


@pytest.mark.parametrize("size", [0, 4, 1000, -1])
def test_a_truncated_file_is_named(copy, size):
    path, _ = copy
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    said = complaint(path, "not a whole safetensors file")
    assert str(file) in said


def test_a_tensor_stored_twice(copy):
    path, tensors = copy
    name = "visual.blocks.0.norm1.weight"
    save_file(tensors | {"model." + name: tensors[name]}, path / "model.safetensors")
    complaint(path, "stored twice")


def sharded(path, tensors):
    names = sorted(tensors)
    for i, part in enumerate((names[:9], names[9:])):
        save_file({n: tensors[n] for n in part}, path / f"part{i}.safetensors")
    (path / "model.safetensors").unlink()
    where = {n: f"part{int(i >= 9)}.safetensors" for i, n in enumerate(names)}
    return {"weight_map": where}


def test_a_missing_shard_is_named(copy):
    path, tensors = copy
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps(sharded(path, tensors)))
    equal(weights.load(path)[1], kit.params())
    (path / "part1.safetensors").unlink()
    assert str(path) in complaint(path, "weights file part1.safetensors is missing")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_named(copy, text):
    path, _ = copy
    (path / "model.safetensors.index.json").write_text(text)
    complaint(path, "model.safetensors.index.json")


def test_no_weights_at_all(copy):
    path, _ = copy
    (path / "model.safetensors").unlink()
    complaint(path, "weights file model.safetensors is missing")


def test_an_index_that_lacks_a_tensor(copy):
    path, tensors = copy
    index = sharded(path, tensors)
    name = "visual.merger.ln_q.weight"
    file = index["weight_map"].pop(name)
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    complaint(path, f"index.json: has no entry for tensor {name} of {file}")


def test_an_index_that_names_a_tensor_in_the_wrong_file(copy):
    path, tensors = copy
    index = sharded(path, tensors)
    name = "model.norm.weight"
    assert index["weight_map"][name] == "part1.safetensors"
    index["weight_map"][name] = "part0.safetensors"
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    complaint(path, f"index.json: tensor {name} is not in part0.safetensors as it says")


def test_an_index_that_leads_out_of_the_directory(copy):
    path, tensors = copy
    index = sharded(path, tensors)
    index["weight_map"]["model.norm.weight"] = "../part1.safetensors"
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    complaint(path, "index.json: must be a JSON object whose 'weight_map'")


@pytest.mark.parametrize("cut", [1, 10_000])
def test_a_truncated_shard_names_file_and_tensor(copy, cut):
    path, tensors = copy
    index = sharded(path, tensors)
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    file = path / "part1.safetensors"
    file.write_bytes(file.read_bytes()[:-cut])
    said = complaint(path, r"tensor [\w.]+ ends at byte \d+, the file at \d+")
    assert str(file) in said


def test_bytes_that_belong_to_nobody(copy):
    path, _ = copy
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"xx")
    complaint(path, "not a whole safetensors file: 2 bytes follow the last tensor")


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ("{", "its header is not JSON"),
        ('{"a": 3}', "no valid entry"),
        ("[]", "no valid entry"),
        (
            '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
            "expected bytes 0 to 8",
        ),
        (
            '{"a": {"dtype": "X", "shape": [2], "data_offsets": [0, 8]}}',
            "no valid entry",
        ),
        (
            '{"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 4]}}',
            "expected bytes 0 to",
        ),
        (
            '{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},'
            ' "b": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}}',
            "tensor b, .* expected bytes 4 to 8, got 2 to 6",
        ),
        (
            '{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]},'
            ' "a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}',
            "tensor a is stored twice",
        ),
    ],
)
def test_headers_that_lie(copy, header, match):
    path, _ = copy
    text = header.encode()
    (path / "model.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + b"\0" * 8
    )
    complaint(path, match)


def test_weights_that_are_quantised_already(copy):
    path, tensors = copy
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(
        tensors | {name: tensors[name].astype(np.int8)}, path / "model.safetensors"
    )
    said = complaint(
        path, f"tensor {name}: expected one of F64, F32, F16, BF16, got I8"
    )
    assert "model.safetensors" in said


def test_pickled_weights_are_refused_and_never_opened(copy, tmp_path):
    path, _ = copy
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(
        b"cbuiltins\nexec\n(V" + f"open('{tmp_path}/ran', 'w')".encode() + b"\ntR."
    )
    said = complaint(path, "pytorch_model.bin: pickled weights can run code")
    kind = "Qwen2_5_VLForConditionalGeneration"
    assert (
        f'python -c "from transformers import {kind} as M; M.from_pretrained(' in said
    )
    assert str(path) in said and not (tmp_path / "ran").exists()


def test_code_of_a_checkpoint_is_never_run(copy):
    path, _ = copy
    (path / "mine.py").write_text(f"open({str(path / 'ran')!r}, 'w')")
    changed(path, auto_map={"AutoModel": "mine.Model", "AutoConfig": "mine.Config"})
    equal(weights.load(path)[1], kit.params())
    assert not (path / "ran").exists()


def test_a_config_that_contradicts_the_weights(copy):
    path, _ = copy
    for fields, match in (
        (
            {"text_config.num_hidden_layers": 3},
            r"missing: model.layers.2\..*unknown: no",
        ),
        ({"vision_config.depth": 1}, r"missing: none; unknown: visual.blocks.1\."),
        (
            {"text_config.intermediate_size": 65},
            "mlp.gate_proj.*expected .*got .*64, 48",
        ),
        (
            {"text_config.vocab_size": 513},
            "embed_tokens.weight: .*expected .*513",
        ),
        ({"tie_word_embeddings": False}, "missing: lm_head.weight; unknown: none"),
    ):
        changed(path, **fields)
        complaint(path, match)


def test_a_tied_head_that_differs_contradicts_the_config(copy):
    path, tensors = copy
    head = tensors["model.embed_tokens.weight"].copy()
    head[-1, -1] += 1
    save_file(tensors | {"lm_head.weight": head}, path / "model.safetensors")
    complaint(path, "lm_head.weight differs from model.embed_tokens.weight, but tie_w")


def changed(path, **fields):
    raw = kit.config()
    for name, value in fields.items():
        part = raw
        *parts, last = name.split(".")
        for key in parts:
            part[key] = dict(part[key])
            part = part[key]
        if value is None:
            del part[last]
        else:
            part[last] = value
    (path / "config.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        (
            {"model_type": "llava"},
            "model_type 'llava' is not supported; supported: .*qwen2_5_vl",
        ),
        ({"model_type": None}, "model_type 'None' is not supported"),
        ({"text_config.hidden_size": None}, "field 'hidden_size' is missing"),
        (
            {"vision_config.hidden_size": None},
            r"field 'vision_config\.hidden_size' is missing",
        ),
        ({"vision_config": None}, r"field 'vision_config\.[a-z_]+' is missing"),
        (
            {"text_config.hidden_act": "gelu"},
            "field 'hidden_act': expected 'silu', got 'gelu'",
        ),
        (
            {"text_config.rope_parameters.rope_type": "longrope"},
            "rope type 'longrope' is not supported; supported: default, mrope, dynamic",
        ),
        (
            {"text_config.rope_parameters.mrope_section": [2, 2, 3]},
            r"mrope_section \[2, 2, 3\] must sum to half the head width, 6",
        ),
        (
            {"text_config.use_sliding_window": True},
            "'use_sliding_window': expected false",
        ),
    ],
)
def test_a_config_that_is_wrong(copy, fields, match):
    path, _ = copy
    changed(path, **fields)
    assert str(path / "config.json") in complaint(path, match)


@pytest.mark.parametrize("text", ["{", "[]", "3", "", '{"model_type": ["x"]}'])
def test_a_config_that_is_not_json_or_no_object(copy, text):
    path, _ = copy
    (path / "config.json").write_text(text)
    assert "config.json" in complaint(path, "config.json")


def test_directories_that_are_none(tmp_path):
    complaint(tmp_path / "nowhere", "no such directory")
    complaint(tmp_path, "holds no config.json")


# -- where models come from ------------------------------------------------------------


@pytest.fixture
def hub(whole, tmp_path, monkeypatch):
    """A cache of huggingface_hub that holds org/toy; the hub itself is out of reach."""
    from huggingface_hub import constants

    home = tmp_path / "models--org--toy"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("a" * 40)
    shutil.copytree(whole, home / "snapshots" / ("a" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return home


def test_a_hub_id_is_read_from_the_cache(hub):
    model, params = weights.load("org/toy")
    equal(params, kit.params())
    assert registry.read_model("org/toy").table == model.table
    assert registry.resolve("org/toy").name == "a" * 40
    equal(weights.load("org/toy@main")[1], kit.params())


@pytest.mark.parametrize("name", ["org/other", "org/toy@" + "b" * 40])
def test_a_hub_id_that_cannot_be_had_is_one_line(hub, name):
    said = complaint(name, "no such directory, and not from the hub: ")
    assert name.partition("@")[0] in said


def test_parameters_in_orbax_format_load_sharded(source, tmp_path):
    """What `vlmrl convert --format orbax` makes: side files and checkpoints/."""
    path = shutil.copytree(source, tmp_path / "toy")
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), kit.params())
    checkpoint.save(path / "checkpoints", 0, {"params": half})()
    assert registry.resolve(path) == path
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    places = sharding.param_shardings(mesh, kit.model().table)
    _, params = weights.load(path, dtype=None, shardings=places)
    equal(params, half)
    assert all(p.sharding == places[n] for n, p in params.items())
    equal(weights.load(path)[1], {n: p.astype(jnp.float32) for n, p in half.items()})


# -- every process reads its share -----------------------------------------------------


def test_a_mesh_reads_every_byte_once(whole, monkeypatch):
    """Rows are split over the devices, whatever the parameters' own sharding; what
    doesn't divide is padded."""
    monkeypatch.setattr(assemble, "SMALL", 0)
    rows: dict = {}
    plain = files.read

    def spy(stored, start=0, stop=None):
        found = plain(stored, start, stop)
        rows.setdefault(stored.name, []).append(found.nbytes)
        return found

    monkeypatch.setattr(files, "read", spy)
    mesh = sharding.make_mesh(data=1, fsdp=3, devices=jax.devices()[:3])
    places = sharding.param_shardings(mesh, kit.model().table)
    _, params = weights.load(whole, shardings=places)
    monkeypatch.undo()
    equal(params, kit.params())
    sizes = {n: t.nbytes for n, t in files.list_tensors(whole).items()}
    assert {n: sum(x) for n, x in rows.items()} == sizes
    assert len(rows["model.layers.0.self_attn.k_proj.weight"]) == 3
    split = [p for p in params.values() if not p.sharding.is_fully_replicated]
    assert len(split) >= 10


def test_rows_are_read_alone(whole):
    t = files.list_tensors(whole)["model.layers.1.mlp.down_proj.weight"]
    everything = load_file(t.file)[t.name]
    np.testing.assert_array_equal(files.read(t), everything)
    np.testing.assert_array_equal(files.read(t, 3, 7), everything[3:7])
    assert files.read(t, 90, 96).shape == (0, everything.shape[1])


def test_8_bits_need_an_extra(whole, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="'int8' needs qwix.*extra 'quant'"):
        weights.load(whole, quantize="int8")
    with pytest.raises(UserError, match="'int3' is not supported; supported: int8"):
        weights.load(whole, quantize="int3")


def test_8_bits_are_rounded_per_output(whole):
    """Symmetric, by the largest magnitude."""
    mesh = sharding.make_mesh(data=1, fsdp=2, devices=jax.devices()[:2])
    places = sharding.param_shardings(mesh, kit.model().table)
    _, params = weights.load(whole, quantize="int8", shardings=places)
    for name, p in kit.model().table.items():
        exact = np.asarray(kit.params()[name])
        if not linear(p):
            np.testing.assert_array_equal(params[name], exact)
            continue
        small = params[name]
        assert small.values.dtype == jnp.int8 and small.values.shape == p.shape
        assert small.values.sharding == places[name]
        kept = quant.output_axes(p, layers=True)
        axes = tuple(i for i in range(len(p.shape)) if i not in kept)
        scale = np.abs(exact).max(axes, keepdims=True) / 127
        np.testing.assert_allclose(small.scale, scale, rtol=0.01)
        error = np.abs(np.asarray(small.astype(jnp.float32)) - exact)
        assert (error <= 0.51 * np.asarray(small.scale)).all(), name


# -- no half-written directory ---------------------------------------------------------


def test_an_export_that_fails_leaves_nothing(source, tmp_path, monkeypatch):
    target = tmp_path / "out"

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", full)
        with pytest.raises(OSError, match="No space"):
            hf.save(target, kit.model(), kit.params(), source)
    assert not target.exists()
    # A second try is not in the way of what the first one left.
    hf.save(target, kit.model(), kit.params(), source)
    assert [f.name for f in tmp_path.iterdir()] == ["out"]
    equal(weights.load(target)[1], kit.params())


def test_an_export_without_a_source_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        hf.save(tmp_path / "out", kit.model(), kit.params(), tmp_path / "nowhere")
    assert not any(tmp_path.iterdir())


def test_an_export_never_overwrites(whole, source):
    before = (whole / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        hf.save(whole, kit.model(), kit.params(), source)
    assert (whole / "model.safetensors").read_bytes() == before
