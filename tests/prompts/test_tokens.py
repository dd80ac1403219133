"""Prompts → groups: parity with transformers, laws of prefixes, masks and windows."""

import io
import json
import time

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmrl.engine import automata
from vlmrl.prompts import tokens
from vlmrl.tiny import make
from vlmrl.types import UserError

SHOT = "<|vision_start|><|image_pad|><|vision_end|>"
SMALL, LARGE = 28 * 28, 28 * 28 * 100
GEOMETRIES = [tokens.Geometry(14, 2, 2, 56), tokens.Geometry(14, 2, 2, 112)]
GRIDS = [(8, 8), (2, 2), (4, 4), (10, 6), (2, 40), (38, 2), (8, 10), (16, 18)]
BUCKETS = tokens.Buckets((16, 64, 256), (8, 64, 256), (1, 2, 4), (1, 4, 16, 64))


def png(height, width, seed=0, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    make.make(path)
    return path


@pytest.fixture(scope="session")
def processor(directory):
    return tokens.load_processor(directory, min_pixels=SMALL, max_pixels=LARGE)


def pieces(processor, text):
    ids = processor.tokenizer.encode(text, add_special_tokens=False)
    return [processor.token_bytes[i] for i in ids]


def row(ids, name="r", **changes):
    ids = np.array(ids, np.int32)
    positions = tokens.mrope([len(ids)], [])
    text = np.full(len(ids), -1, np.int32)
    return tokens.Encoded(ids, positions, text, (), name)._replace(**changes)


# -- the tiny model's files ------------------------------------------------------------


def test_tiny_is_the_same_twice(directory, tmp_path):
    make.make(tmp_path)
    for file in directory.iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes(), file.name


def test_tiny_config_is_read_by_transformers(directory):
    from transformers import Qwen2_5_VLConfig

    config = Qwen2_5_VLConfig.from_pretrained(directory)
    text = config.text_config
    assert (
        text.rope_parameters["mrope_section"]
        == (make.TEXT["rope_parameters"]["mrope_section"])
    )
    head_dim = text.hidden_size // text.num_attention_heads
    assert sum(text.rope_parameters["mrope_section"]) == head_dim // 2
    assert config.vision_config.out_hidden_size == text.hidden_size
    assert text.vocab_size <= 512 and config.tie_word_embeddings
    assert config.vision_config.window_size == 56
    assert config.to_dict() == Qwen2_5_VLConfig(**config.to_dict()).to_dict()


def test_tags_and_letters_merge_as_in_the_family(processor):
    assert pieces(processor, "<answer>A</answer>") == [
        b"<", b"answer", b">A", b"</", b"answer", b">"
    ]  # fmt: skip
    assert pieces(processor, ".</think>\n<answer>") == [
        b".</", b"think", b">\n", b"<", b"answer", b">"
    ]  # fmt: skip
    assert pieces(processor, "<think>The")[:2] == [b"<", b"think"]
    assert pieces(processor, "</think><answer>")[2] == b"><"


def test_every_scene_word_is_one_token(processor):
    found = make.words([make.TAGS, *make.corpus()], make._pretokenizer())
    assert len(found) > 60
    vocab = processor.tokenizer.get_vocab()
    assert not [w for w in found if w not in vocab]
    for word in found:
        text = word.replace("Ġ", " ")
        assert pieces(processor, text) == [text.encode()], text


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=st.characters(codec="utf-8", exclude_characters="<")))
def test_token_bytes_spell_the_text(processor, text):
    import unicodedata

    assert b"".join(pieces(processor, text)).decode() == (
        unicodedata.normalize("NFC", text)
    )


def test_chat_template_is_chatml(processor):
    user = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Why?"}]
    text = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": user}, {"role": "assistant", "content": "So."}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{SHOT}{SHOT}Why?<|im_end|>\n"
        "<|im_start|>assistant\nSo.<|im_end|>\n<|im_start|>assistant\n"
    )
    text = processor.tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be."}], tokenize=False
    )
    assert text == "<|im_start|>system\nBe.<|im_end|>\n"


def test_banned_and_end_tokens(processor):
    texts = {
        processor.token_bytes[i].decode() for i in np.flatnonzero(processor.banned)
    }
    assert texts == set(tokens.NEVER_SAMPLED)
    ends = [processor.token_bytes[i] for i in processor.end_ids]
    assert ends == [b"<|im_end|>", b"<|endoftext|>"]
    assert not processor.banned[list(processor.end_ids)].any()


def test_padded_vocabulary_is_banned(directory, tmp_path):
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    size = config["text_config"]["vocab_size"]
    config["text_config"]["vocab_size"] = size + 5
    (tmp_path / "config.json").write_text(json.dumps(config))
    padded = tokens.load_processor(tmp_path)
    assert padded.banned[size:].all() and padded.token_bytes[size:] == (b"",) * 5
    config["text_config"]["vocab_size"] = size - 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"at most {size - 1} ids .* {size}"):
        tokens.load_processor(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        tokens.load_processor(tmp_path)


# -- encode ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(112, 112), (20, 300), (97, 61), (500, 30)])
def test_patches_are_those_of_the_resized_image(processor, size):
    """The definition by hand: bicubic resize, (x / 255 − mean) / std, patches of a
    merge unit together, each as (channel, time, row, column)."""
    data = png(*size)
    picture = processor.cut(data, "x")
    _, rows, cols = picture.grid
    assert rows % 2 == cols % 2 == 0
    assert SMALL <= rows * cols * 14 * 14 <= LARGE
    image = Image.open(io.BytesIO(data)).resize((cols * 14, rows * 14), Image.BICUBIC)
    values = np.asarray(image, np.float64) / 255
    values = (values - make.IMAGES["image_mean"]) / make.IMAGES["image_std"]
    for p in (0, 1, 2, 3, len(picture.patches) - 1):
        unit, a, b = p // 4, p // 2 % 2, p % 2
        r, c = unit // (cols // 2) * 2 + a, unit % (cols // 2) * 2 + b
        want = values[r * 14 : r * 14 + 14, c * 14 : c * 14 + 14].transpose(2, 0, 1)
        got = picture.patches[p].reshape(3, 2, 14, 14)
        np.testing.assert_allclose(got[:, 0], want, atol=1e-5)
        np.testing.assert_array_equal(got[:, 0], got[:, 1])


def test_images_are_cut_once_and_the_cache_is_bounded(directory):
    small = tokens.load_processor(directory, cache_bytes=700_000)  # two scenes
    files = [png(112, 112, seed) for seed in range(3)]
    first = small.cut(files[0], "")
    assert small.cut(bytes(bytearray(files[0])), "") is first
    small.cut(files[1], "")
    small.cut(files[0], "")
    small.cut(files[2], "")  # pushes out the least recently used: files[1]
    assert small.cut(files[0], "") is first
    again = small.cut(files[1], "")
    np.testing.assert_array_equal(again.patches, small.cut(files[1], "").patches)
    assert small.cut(files[0], "").key == first.key


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_other_image_modes_are_read(processor, mode):
    assert processor.cut(png(56, 56, mode=mode), "x").grid == (1, 4, 4)


def test_encode_puts_images_in(processor):
    text = f"Is{SHOT}{SHOT} red?"
    e = tokens.encode(processor, (text, [png(56, 84), png(28, 28)]), name="e")
    n = 2 * 3 + 1
    assert len(e.ids) == len(pieces(processor, text)) - 2 + n
    assert (e.ids == processor.image_id).sum() == n
    np.testing.assert_array_equal(e.image[e.image >= 0], np.arange(n))
    assert [p.grid for p in e.pictures] == [(1, 4, 6), (1, 2, 2)]
    # Is <vs> (2 × 3 from 2: next 5) <ve> <vs> (one at 7) <ve> …
    want = [[0] * 3, [1] * 3]
    want += [[2, 2 + r, 2 + c] for r in range(2) for c in range(3)]
    want += [[i] * 3 for i in range(5, 11)]
    np.testing.assert_array_equal(e.positions[:, : len(want)].T, want[: len(e.ids)])


@pytest.mark.parametrize("text", ["none", SHOT * 2])
def test_placeholders_must_match_images(processor, text):
    with pytest.raises(UserError, match="example e7: .* per image, got .* 1 images"):
        tokens.encode(processor, (text, [png(28, 28)]), name="e7")


def test_bad_images_name_the_example(processor):
    for data in (b"not an image", png(1, 500)):
        with pytest.raises(UserError, match="example e8 image 0: the image"):
            tokens.encode(processor, (SHOT, [data]), name="e8")


def test_encoding_costs_a_few_times_what_decoding_the_image_does(processor):
    """The least of twenty turns each, in CPU time: 2.6 times was measured."""
    files = [png(112, 112, seed) for seed in range(20)]

    def least(run):
        seconds = []
        for file in files:
            start = time.process_time()
            run(file)
            seconds.append(time.process_time() - start)
        return min(seconds)

    def decode(file):
        return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))

    encode = least(lambda file: tokens.encode(processor, (SHOT, [file])))
    assert encode < 20 * least(decode)


def test_decode_leaves_end_tokens_out(processor):
    ids = processor.tokenizer.encode(
        "So it is red.<|im_end|>", add_special_tokens=False
    )
    assert tokens.decode(processor, np.array(ids)) == "So it is red."


@pytest.mark.parity
@pytest.mark.parametrize(
    "shots", [[], [(56, 84)], [(56, 84), (28, 28)], [(20, 300)] * 3]
)
@pytest.mark.parametrize("between", ["", " red"])
def test_ids_and_positions_are_those_of_transformers(processor, shots, between):
    torch = pytest.importorskip("torch")
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

    text = "Is there" + between.join([SHOT] * len(shots)) + " one?"
    e = tokens.encode(processor, (text, [png(*s, seed=i) for i, s in enumerate(shots)]))
    parts = text.split("<|image_pad|>")
    whole = parts[0]
    for picture, part in zip(e.pictures, parts[1:], strict=True):
        count = picture.tokens
        whole += "<|image_pad|>" * count + part
    ids = processor.tokenizer(whole, return_tensors="pt").input_ids
    np.testing.assert_array_equal(e.ids, ids[0].numpy())

    class Model:  # get_rope_index reads nothing but the config
        config = Qwen2_5_VLConfig()
        get_vision_position_ids = Qwen2_5_VLModel.get_vision_position_ids

    want, _ = Qwen2_5_VLModel.get_rope_index(
        Model(),
        ids,
        (ids == processor.image_id).int(),
        torch.tensor([p.grid for p in e.pictures]) if shots else None,
    )
    np.testing.assert_array_equal(e.positions, want[:, 0].numpy())


# -- windows ---------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("grid", GRIDS)
def test_windows_hold_every_patch_once(grid, geometry):
    w = tokens.windows((1, *grid), geometry)
    n, unit = grid[0] * grid[1], geometry.merge**2
    assert sorted(w.index[w.mask]) == list(range(n))
    lengths = w.mask.sum(1)
    np.testing.assert_array_equal(w.mask, np.arange(w.mask.shape[1]) < lengths[:, None])
    assert len({tuple(p) for p in w.positions[w.mask]}) == n
    span = geometry.window // geometry.patch
    cells = w.positions // span
    for k, length in enumerate(lengths):  # a window is one cell of the window grid
        assert length % unit == 0 and len({tuple(c) for c in cells[k, :length]}) == 1
    units = w.index.reshape(-1, unit)[w.order]  # raster merged token m = patches 4m…
    np.testing.assert_array_equal(units, np.arange(n).reshape(-1, unit))


@pytest.mark.parity
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("grid", GRIDS)
def test_windows_are_those_of_transformers(grid, geometry):
    torch = pytest.importorskip("torch")
    from transformers import vision_utils

    thw = torch.tensor([[1, *grid]])
    index, bounds = vision_utils.get_vision_window_index(
        thw, geometry.merge, geometry.window, geometry.patch
    )
    w = tokens.windows((1, *grid), geometry)
    unit = geometry.merge**2
    np.testing.assert_array_equal(w.index[w.mask][::unit] // unit, index.numpy())
    np.testing.assert_array_equal(np.cumsum(w.mask.sum(1)), bounds.numpy()[1:])
    where = vision_utils.get_vision_position_ids(thw, geometry.merge).numpy()
    np.testing.assert_array_equal(w.positions[w.mask], where[w.index[w.mask]])


# -- groups ----------------------------------------------------------------------------

IDS = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@given(st.lists(IDS, min_size=2, max_size=4))
def test_prefix_is_the_longest_common_run(lists):
    cut = tokens.shared_length([row(ids) for ids in lists], leave=1)
    assert all(ids[:cut] == lists[0][:cut] for ids in lists)
    assert all(len(ids) > cut for ids in lists)
    longer = [ids[: cut + 1] for ids in lists]
    if all(len(ids) > cut + 1 for ids in lists):
        assert any(a != longer[0] for a in longer)


@given(st.lists(st.integers(0, 4), max_size=4), st.integers(0, 40), st.booleans())
def test_prefix_never_ends_inside_an_image(gaps, change, tags):
    ids, image = [9], [-1]
    for gap in gaps:
        inner = [8] * 3
        ids += [9] * gap + ([7, *inner, 6] if tags else inner)
        image += [-1] * gap + [-1] * tags + [0] * 3 + [-1] * tags
    ids, image = np.array([*ids, 9]), np.array([*image, -1])
    other = ids.copy()
    other[change % len(ids)] = 5
    cut = tokens.shared_length([row(ids, image=image), row(other, image=image)])
    assert cut <= change % len(ids)
    assert not (image[max(cut - 1, 0) : cut + 1] >= 0).any()
    if tags and cut:  # not between the tag that opens and the one that closes
        opened, closed = (ids[:cut] == 7).sum(), (ids[:cut] == 6).sum()
        assert opened == closed


@settings(max_examples=40)
@given(st.lists(st.lists(IDS, min_size=2, max_size=2), min_size=1, max_size=3))
def test_groups_rebuild_their_rows(batch):
    g = tokens.group([[row(i) for i in r] for r in batch], GEOMETRIES[0], BUCKETS)
    assert g.vision is None
    for n, r in enumerate(batch):
        for k, ids in enumerate(r):
            b = 2 * n + k
            head, tail = g.prefix.mask[n], g.branches.mask[b]
            got = [*g.prefix.ids[n][head], *g.branches.ids[b][tail]]
            assert got == ids and tail[0]
            got = [*g.prefix.positions[n, 0][head], *g.branches.positions[b, 0][tail]]
            assert got == list(range(len(ids)))
            assert (np.diff(head.astype(int)) <= 0).all()


def test_single_rows_are_all_prefix(processor):
    files = [png(56, 84), png(28, 28)]
    rows = [
        [tokens.encode(processor, (f"Is{SHOT}{SHOT}", files))],
        [tokens.encode(processor, (f"{SHOT} red", files[:1]))],
        [tokens.encode(processor, ("There", []))],
    ]
    g = tokens.group(rows, processor.geometry, BUCKETS)
    assert g.branches is None and g.prefix.ids.shape == (3, 16)
    m = g.vision.order.shape[-1]
    assert g.vision.patches.shape == (3, 2, 4, 16, 1176) and m == 16
    np.testing.assert_array_equal(g.prefix.image[0][2:8], np.arange(6))
    assert g.prefix.image[0][10] == m
    assert (g.prefix.image[2] == -1).all()
    np.testing.assert_array_equal(g.vision.mask.sum((2, 3)), [[24, 4], [24, 0], [0, 0]])
    # following `image` and `order` leads from a token to its four patches
    flat = g.vision.patches.reshape(3, 2, -1, 4, 1176)
    for e, (n, i, t) in zip([rows[0][0]] * 2, [(0, 0, 4), (0, 1, 10)], strict=True):
        index = g.prefix.image[n, t]
        assert index // m == i
        got = flat[n, i, g.vision.order[n, i, index % m]]
        want = e.pictures[i].patches.reshape(-1, 4, 1176)[index % m]
        np.testing.assert_array_equal(got, want)


def test_every_array_has_the_batch_axis_first(processor):
    """A slice along axis 0 of all arrays of a batch is the batch of those groups."""
    files = [png(56, 84)]
    rows = [
        [tokens.encode(processor, (f"{SHOT}{word}{end}", files)) for end in " .:"]
        for word in (" red", " blue", " left")
    ]
    one = BUCKETS._replace(prefix=(32,), branch=(8,))
    whole = tokens.group(rows, processor.geometry, one)
    for i in range(3):
        alone = tokens.group(rows[i : i + 1], processor.geometry, one)

        def part(x, i=i):
            each = len(x) // 3
            return x[i * each : (i + 1) * each]

        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(part, whole), alone)


def test_captions_share_the_prefix_up_to_the_image(processor):
    shot = [png(112, 112)]
    texts = [f"So it is{SHOT}{tail}" for tail in (" red?", " blue?", " a cross?")]
    rows = [tokens.encode(processor, (t, shot)) for t in texts]
    g = tokens.group([rows], processor.geometry, BUCKETS)
    assert g.prefix.mask.sum() == 3 + 1 + 16 + 1  # words, tag, image, tag
    np.testing.assert_array_equal(
        g.branches.positions[0, :, 0], g.prefix.positions.max() + 1
    )
    early = tokens.encode(processor, (f"So it{SHOT} red?", shot))
    g = tokens.group([[rows[0], early]], processor.geometry, BUCKETS)
    assert g.prefix.mask.sum() == 2
    assert (g.branches.image[:, :20] >= 0).sum() == 32


def test_groups_refuse_what_is_not_one(processor):
    a, b = (
        tokens.encode(processor, (SHOT, [png(28, 28, s)]), name=f"e{s}") for s in (1, 2)
    )
    with pytest.raises(UserError, match="the same images .* that of example e2"):
        tokens.group([[a, b]], processor.geometry, BUCKETS)
    with pytest.raises(UserError, match="expected 2 rows .* got 1"):
        tokens.group([[a, a], [b]], processor.geometry, BUCKETS)
    with pytest.raises(UserError, match="at least one group"):
        tokens.group([], processor.geometry, BUCKETS)
    long = row(range(300), name="e3")
    with pytest.raises(UserError, match="e3: prefix length: .* 256, got 300"):
        tokens.group([[long]], processor.geometry, BUCKETS)
    with pytest.raises(UserError, match="e1: windows of an image: .* 0, got 1"):
        tokens.group([[a]], processor.geometry, BUCKETS._replace(windows=(0,)))


def test_completions_are_branches_after_the_prompt(processor):
    shot = [png(112, 112)]
    text = "<think>The circle is red.</think>\n<answer>A</answer>"
    prompts = [
        tokens.encode(processor, (f"{SHOT}{q}", shot)) for q in (" red?", " blue?")
    ]
    new = processor.tokenizer.encode(text, add_special_tokens=False)
    want = [*new, processor.end_ids[0]]
    alone, mask = tokens.completion_rows(
        processor, [[(p, text)] for p in prompts], BUCKETS
    )
    assert (alone.branches.mask == mask).all()
    both, learn = tokens.completion_rows(
        processor, [[(p, text) for p in prompts]], BUCKETS
    )
    assert both.prefix.mask.sum() == 18
    for k in range(2):
        np.testing.assert_array_equal(alone.branches.ids[k][mask[k]], want)
        np.testing.assert_array_equal(both.branches.ids[k][learn[k]], want)
        np.testing.assert_array_equal(
            both.branches.positions[k][:, learn[k]],
            alone.branches.positions[k][:, mask[k]],
        )
        assert alone.branches.positions[k, 0, 0] == prompts[k].positions.max() + 1
        extra = both.branches.mask[k] & ~learn[k]
        assert extra.sum() == len(prompts[k].ids) - 18
    with pytest.raises(UserError, match="completion without image"):
        tokens.completion_rows(processor, [[(prompts[0], SHOT)]], BUCKETS)


def test_completions_are_tokenised_apart_from_the_prompt(processor):
    """`>` + `A` is one token when tokenised whole; after a prompt that ends in `>` the
    sampler can only write `A`."""
    prompt = tokens.encode(processor, ("<answer>", []))
    g, mask = tokens.completion_rows(processor, [[(prompt, "A</answer>")]], BUCKETS)
    first = g.branches.ids[0][mask[0]][0]
    assert processor.token_bytes[first] == b"A"


# -- automata --------------------------------------------------------------------------

PATTERNS = (b"</answer>", b"</think>", b"<answer", b"answer>")
CUTS = [b">A", b"><", b".</", b"</", b"<", b"/", b">", b"answer", b"think", b"ans", b""]
CUTS += [
    b"wer>",
    b"</think>\n<answer>",
    b"k></answer></answer>",
    b"a",
    b"n",
    b"s",
    b"x",
]


@settings(max_examples=200)
@given(st.lists(st.sampled_from(range(len(CUTS))), max_size=14))
def test_automaton_finds_what_bytes_find(stream):
    a = automata.automaton(CUTS, PATTERNS)
    state, text = 0, b""
    for v in stream:
        before, text = len(text), text + CUTS[v]
        for k, pattern in enumerate(PATTERNS):
            # an occurrence that ends inside this token
            start = max(before - len(pattern) + 1, 0)
            found = text.find(pattern, start) >= 0
            assert bool(a.hits[v, state] >> k & 1) == found
            ended = bool(CUTS[v]) and text.endswith(pattern)
            assert bool(a.ends[v, state] >> k & 1) == ended
        state = a.table[v, state]


def test_automaton_of_a_large_vocabulary_is_quick():
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 14, 152_000)
    vocabulary = [rng.bytes(n) for n in sizes]
    start = time.perf_counter()
    a = automata.automaton(vocabulary, PATTERNS)
    assert time.perf_counter() - start < 10  # see the report: well below 3 s alone
    assert a.table.shape == a.hits.shape == a.ends.shape and a.table.dtype == np.int16


def test_automaton_refuses_bad_patterns():
    for patterns in ((), (b"",), (b"x",) * 9):
        with pytest.raises(UserError, match="1 to 8 non-empty patterns"):
            automata.automaton(CUTS, patterns)
