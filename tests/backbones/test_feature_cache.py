"""Features of a frozen vision tower on disk: the same bits for every reader, computed once."""

import copy
import json
import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from families import CONFIGS, Bare, llava, make
from safetensors import safe_open
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    Gemma3ImageProcessorPil,
    Idefics3Config,
    Idefics3ImageProcessorPil,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    PixtralImageProcessorPil,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
)
from visual import encoded, prompts_of, tokenizer_for

from alignlab import InputError
from alignlab.adapters import Full, LoRA
from alignlab.backbones import Backbone, featurecache, featurestore, open_backbone
from alignlab.backbones.featurecache import cache_features
from alignlab.backbones.patches import patch_features
from alignlab.batch import Turn
from alignlab.certificate.children import preload, run_children
from alignlab.data import Scenes
from alignlab.experiment.config import digest, resolve
from alignlab.experiment.run import run
from alignlab.modules.parted import PARTS


@contextmanager
def computed():
    """Rows that vision towers have computed meanwhile, by what goes through their first layer."""
    rows = []

    def note(module, given, output):
        if type(module).__name__.endswith("VisionEmbeddings"):
            rows.append(len(output))

    hook = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        yield rows
    finally:
        hook.remove()


def frozen(path, features=None, **settings):
    backbone = Backbone(str(path), features=None if features is None else str(features), **settings).eval()
    backbone.parts["vision_tower"].requires_grad_(False)
    return backbone


def shards(folder):
    return sorted(Path(folder).glob("*/*.safetensors"))


def rows_of(folder):
    return sum(len(safe_open(shard, "pt").keys()) for shard in shards(folder))


def test_every_reader_gets_the_same_bits_and_each_picture_is_computed_once(tiny_path, examples, tmp_path):
    plain, cached = frozen(tiny_path), frozen(tiny_path, tmp_path)
    tokens, prompts = encoded(plain, examples), prompts_of(plain, examples)
    readers = (
        lambda each: each.hidden(tokens),
        lambda each: each.hidden(tokens, features=each.features(tokens)),
        lambda each: each.embed(prompts),
        lambda each: patch_features(each, tokens),
        lambda each: each.generate_ids(prompts, max_new_tokens=3),
    )
    with torch.no_grad():
        expected = [reader(plain) for reader in readers]
        with computed() as rows:
            found = [reader(cached) for _ in range(2) for reader in readers]
    assert tokens.num_images.sum() == 4  # of three pictures, which are computed once each
    assert rows == [3]
    assert all(torch.equal(one, other) for one, other in zip(found, expected * 2, strict=True))


def test_a_later_process_reads_what_one_kept_and_only_what_is_asked_of_the_tower_is_kept(tiny_path, examples, tmp_path):
    first = frozen(tiny_path, tmp_path)
    tokens = encoded(first, examples)
    with torch.no_grad():
        expected = first.hidden(tokens)
    assert not shards(tmp_path)
    first.save(tmp_path / "model" / "files")
    [shard] = shards(tmp_path)
    with safe_open(shard, "pt") as file:
        assert {file.get_tensor(name).shape for name in file.keys()} == {(1, 37, 32)}  # one hidden state of all
        assert "weights" in json.loads(file.metadata()["made_of"])
    second = frozen(tiny_path, tmp_path)
    with computed() as rows, torch.no_grad():
        assert torch.equal(second.hidden(tokens), expected)
    assert rows == []


def test_what_is_never_flushed_is_written_when_nothing_holds_it_any_more(tiny_path, examples, tmp_path):
    store = featurestore.FeatureStore(tmp_path, {"weights": "w"})
    store.put({"a": torch.ones(2), "b": torch.zeros(2)})
    del store
    again = featurestore.FeatureStore(tmp_path, {"weights": "w"})
    assert {name: row.tolist() for name, row in again.get(["a", "b", "c"]).items()} == {"a": [1, 1], "b": [0, 0]}
    assert not featurestore.FeatureStore(tmp_path, {"weights": "v"}).get(["a"])


def test_no_more_waits_in_memory_than_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(featurestore, "SHARD", 100)
    store = featurestore.FeatureStore(tmp_path, {})
    for number in range(7):
        store.put({str(number): torch.full((10,), float(number))})  # 40 bytes
    assert len(shards(tmp_path)) == 2
    assert [float(store.get([str(number)])[str(number)][0]) for number in range(7)] == [*range(7)]


def run_config(path, *, train, features=None):
    data = {"num_train": 16, "num_val": 8, "num_test": 8, "batch_size": 8}
    evaluators = [
        {"class_path": "CaptionAccuracy", "init_args": {"num_examples": 4, "max_new_tokens": 3, "num_pictures": 1}},
        {"class_path": "Retrieval", "init_args": {"num_examples": 8}},
    ]
    return resolve({
        "objective": "MLE",
        "backbone": {"path": str(path), "fresh": ["projector"], "features": features},
        "adapter": {"class_path": "Full", "init_args": {"parts": train}},
        "data": {"class_path": "Scenes", "init_args": data},
        "trainer": {"max_steps": 5, "log_every_n_steps": 1, "limit_val_batches": 1},
        "evaluators": evaluators,
        "wandb": {"mode": "disabled"},
        "seed": 3,
    })  # fmt: skip


def outcome(folder):
    """The curve, but for its times, the scores and the trained weights."""
    curve = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if "loss" in key or key == "step"} for line in curve]
    scores = json.loads((folder / "metrics.json").read_text())["scores"]
    return kept, scores, (folder / "backbone" / "model.safetensors").read_bytes()


def test_losses_weights_and_scores_of_a_run_are_the_same_bits_without_and_with_an_empty_and_a_full_folder(
    tiny_path, tmp_path
):
    train, counts, found = ["projector", "language_model"], {}, {}
    for name, features in (("without", None), ("empty", str(tmp_path / "f")), ("full", str(tmp_path / "f"))):
        with computed() as rows:
            run(run_config(tiny_path, train=train, features=features), tmp_path / name)
        counts[name], found[name] = sum(rows), outcome(tmp_path / name)
    assert found["without"] == found["empty"] == found["full"]
    assert len(found["full"][0]) > 5
    # 16 + 8 + 8 pictures, and the two, and one of them alone, that are tried out; without: each time they are shown
    assert counts["empty"] <= 32 + 3 and counts["full"] == 3 and counts["without"] > 56
    assert rows_of(tmp_path / "f") == counts["empty"] - 3


def test_the_folder_is_no_part_of_a_configs_digest(tiny_path):
    digests = {digest(run_config(tiny_path, train=["projector"], features=each)) for each in (None, "a", "b")}
    assert len(digests) == 1


@pytest.mark.parametrize("change", ["weights", "dtype", "attention", "corruption", "processor", "autocast"])
def test_what_is_made_otherwise_is_not_taken_for_the_same(change, tiny_path, examples, tmp_path):
    picture = examples[0].query[0]
    first = frozen(tiny_path, tmp_path)

    def hidden(backbone, shown):
        tokens = backbone.encoder.prompts([(Turn("user", (shown, "what")),)])
        with torch.no_grad(), torch.autocast("cpu", enabled=change == "autocast" and backbone is not first):
            return backbone.hidden(tokens)

    hidden(first, picture)
    first.feature_cache.flush()
    settings = {"dtype": {"dtype": "bfloat16"}, "attention": {"attention": "eager"}}.get(change, {})
    other, plain = frozen(tiny_path, tmp_path, **settings), frozen(tiny_path, **settings)
    for each in (other, plain):
        if change == "weights":
            with torch.no_grad():
                next(each.parts["vision_tower"].parameters())[0] += 1e-3
        if change == "processor":
            each.encoder.image_processor.image_mean = [0.4, 0.5, 0.5]
    if change == "corruption":
        picture = noised(picture)
    with computed() as rows:
        assert torch.equal(hidden(other, picture), hidden(plain, picture))
    assert rows == [1, 1]


def noised(picture):
    changed = picture.copy()
    corner = picture.width - 1, picture.height - 1
    changed.putpixel(corner, tuple(255 - each for each in picture.getpixel(corner)))
    return changed


def test_weights_that_change_while_they_are_in_use_are_noticed(tiny_path, examples, tmp_path):
    cached = frozen(tiny_path, tmp_path)
    tokens = prompts_of(cached, examples)
    with torch.no_grad():
        before = patch_features(cached, tokens)
        weight = next(cached.parts["vision_tower"].parameters())
        start = weight.clone()
        weight.mul_(1.5)
        assert not torch.equal(patch_features(cached, tokens), before)
        weight.data = start
        assert torch.equal(patch_features(cached, tokens), before)


@pytest.mark.parametrize("why", ["it trains", "it holds adapters", "it drops at random"])
def test_a_tower_that_does_not_stay_the_same_is_computed_and_a_warning_says_so_once(why, tiny_path, examples, tmp_path):
    cached = Backbone(str(tiny_path), features=str(tmp_path)).train()
    if why == "it holds adapters":
        LoRA(parts=("vision_tower",), rank=2).apply(cached)
    else:
        Full(parts=("vision_tower",) if why == "it trains" else ("projector",)).apply(cached)
    if why == "it drops at random":
        for module in cached.parts["vision_tower"].modules():
            if hasattr(module, "dropout"):
                module.dropout = 0.5
    tokens = prompts_of(cached, examples)
    with warnings.catch_warnings(record=True) as said, computed() as rows:
        warnings.simplefilter("always")
        outputs = [cached.hidden(tokens) for _ in range(2)]
    assert [str(each.message).count(why) for each in said if "backbone.features" in str(each.message)] == [1]
    assert len(rows) == 2
    if why == "it trains":
        outputs[0].sum().backward()
        assert all(p.grad is not None for p in list(cached.parts["vision_tower"].parameters())[:3])
    cached.feature_cache.flush()
    assert not shards(tmp_path)


def test_a_tower_that_trains_is_not_read_whole_at_each_step(tiny_path, examples, tmp_path, monkeypatch):
    cached, read = Backbone(str(tiny_path), features=str(tmp_path)).train(), []
    fingerprint = featurecache.weights_fingerprint
    monkeypatch.setattr(featurecache, "weights_fingerprint", lambda tower: read.append(tower) or fingerprint(tower))
    tokens = prompts_of(cached, examples)
    with pytest.warns(UserWarning, match="it trains"):
        cached.hidden(tokens).sum().backward()
    assert not read
    with torch.no_grad():
        cached.hidden(tokens)
    assert len(read) == 1


def test_pictures_are_looked_up_while_a_model_is_judged_whose_parts_all_could_train(tiny_path, examples, tmp_path):
    cached = Backbone(str(tiny_path), features=str(tmp_path)).eval()
    tokens = prompts_of(cached, examples)
    with warnings.catch_warnings(), computed() as rows:
        warnings.simplefilter("error")
        for _ in range(2):
            cached.generate_ids(tokens, max_new_tokens=2)
    assert rows == [2]


def test_a_tape_and_a_copy_of_the_backbone_go_on_looking_up(tiny_path, examples, tmp_path):
    cached, tape = frozen(tiny_path, tmp_path), []
    tokens = encoded(cached, examples)
    with torch.no_grad():
        expected = cached.hidden(tokens)
        for _ in range(2):
            features = cached.features(tokens, tape=tape)
            assert torch.equal(cached.hidden(tokens, features=features), expected)
        assert len(tape) == 1
        cached.feature_cache.flush()
        other = copy.deepcopy(cached)
        with computed() as rows:
            assert torch.equal(other.hidden(tokens), expected)
        assert rows == []
        next(other.parts["vision_tower"].parameters()).mul_(2)
        assert not torch.equal(other.hidden(tokens), expected)
        assert torch.equal(cached.hidden(tokens), expected)


def test_a_visual_tokenizer_reads_features_that_are_kept(tiny_path, examples, tmp_path):
    plain, cached = frozen(tiny_path), frozen(tiny_path, tmp_path)
    tokens = encoded(plain, examples)
    for each in (plain, cached):
        each.visual_tokenizer = tokenizer_for().eval()
    gradients = []
    for each in (plain, cached, cached):
        with computed() as rows:
            torch.manual_seed(0)
            each.zero_grad()
            each.hidden(tokens).square().mean().backward()
        gradients.append([p.grad.clone() for p in each.parameters() if p.grad is not None])
    assert rows == [] and len(gradients[0]) > 20
    for other in gradients[1:]:
        assert all(torch.equal(one, two) for one, two in zip(gradients[0], other, strict=True))


def fill(path, folder, half):
    """In a process of its own: the features of some pictures, half of which the other process computes, too."""
    torch.set_num_threads(1)
    cached, split = frozen(path, folder), Scenes(num_train=64).examples("train")
    with torch.no_grad():
        for start in range(8 * half, 8 * half + 16, 2):
            shown = [(Turn("user", (split[index].query[0], "what")),) for index in (start, start + 1)]
            cached.hidden(cached.encoder.prompts(shown))
            cached.feature_cache.flush()
    return {}


def test_two_processes_at_once_fill_one_folder(tiny_path, tmp_path):
    preload()
    run_children(fill, [(tiny_path, tmp_path, half) for half in range(2)])
    plain, cached, split = frozen(tiny_path), frozen(tiny_path, tmp_path), Scenes(num_train=64).examples("train")
    tokens = plain.encoder.prompts([(Turn("user", (split[index].query[0], "what")),) for index in range(24)])
    with torch.no_grad(), computed() as rows:
        assert torch.equal(cached.hidden(tokens), plain.hidden(tokens))
    assert rows == [24]  # the plain one's
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("damage", ["cut", "zeros", "foreign"])
def test_a_damaged_shard_is_set_aside_and_its_features_are_computed_again(damage, tiny_path, examples, tmp_path):
    first = frozen(tiny_path, tmp_path)
    tokens = encoded(first, examples)
    with torch.no_grad():
        expected = first.hidden(tokens)
        first.feature_cache.flush()
        [shard] = shards(tmp_path)
        content = shard.read_bytes()
        foreign = content.replace(b"alignlab vision features", b"alignlab answer features")
        shard.write_bytes({"cut": content[:-9], "zeros": bytes(len(content)), "foreign": foreign}[damage])
        second = frozen(tiny_path, tmp_path)
        with pytest.warns(UserWarning, match="its features are computed again"):
            assert torch.equal(second.hidden(tokens), expected)
        assert shard.with_name(f"{shard.name}.damaged").exists() and not shard.exists()
        second.feature_cache.flush()
        with computed() as rows:
            assert torch.equal(frozen(tiny_path, tmp_path).hidden(tokens), expected)
    assert rows == [2, 1]  # what is tried out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
def test_a_full_disk_stops_nothing_but_the_keeping(tiny_path, examples, tmp_path, monkeypatch):
    first, plain = frozen(tiny_path, tmp_path), frozen(tiny_path)
    tokens = encoded(plain, examples)
    monkeypatch.setattr(featurestore.secrets, "token_hex", lambda count: "full")
    with torch.no_grad():
        first.hidden(tokens)
        [store] = first.feature_cache._stores.values()
        store.folder.mkdir(parents=True)
        os.symlink("/dev/full", store.folder / ".full.safetensors.partial")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(2):
                assert torch.equal(first.hidden(tokens), plain.hidden(tokens))
                first.feature_cache.flush()
    assert ["No space left" in str(each.message) for each in said] == [True]
    assert not shards(tmp_path) and not list(tmp_path.rglob("*.partial"))


def idefics3():
    family = CONFIGS["PaliGemma"]()
    return Idefics3Config(
        text_config=LlamaConfig(**LLAMA), image_token_id=1, scale_factor=1, pad_token_id=0,
        vision_config={**family.vision_config.to_dict(), "model_type": "idefics3_vision", "num_channels": 3},
    )  # fmt: skip


LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 40,
    "num_key_value_heads": 2, "pad_token_id": 0, "head_dim": 8,
}  # fmt: skip
SQUARE = {"height": 16, "width": 16}


def llava_next():
    base, tiles = llava(LlamaConfig(**LLAMA)), [[16, 32], [32, 16]]
    return LlavaNextConfig(
        vision_config=base.vision_config, text_config=base.text_config, image_token_index=1,
        vision_feature_layer=[-2, -1], image_grid_pinpoints=tiles,
    )  # fmt: skip


FAMILIES = {
    "LLaVA": (lambda: llava(LlamaConfig(**LLAMA)), lambda: CLIPImageProcessorPil(size=SQUARE, crop_size=SQUARE)),
    "LLaVA-NeXT": (
        llava_next,
        lambda: LlavaNextImageProcessorPil(
            image_grid_pinpoints=[[16, 32], [32, 16]], size={"shortest_edge": 16}, crop_size=SQUARE
        ),
    ),
    "PaliGemma": (CONFIGS["PaliGemma"], lambda: SiglipImageProcessorPil(size=SQUARE)),
    "Gemma3": (CONFIGS["Gemma3"], lambda: Gemma3ImageProcessorPil(size=SQUARE)),
    "Idefics3": (
        idefics3,
        lambda: Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16}),
    ),
}


def bare(config, processor):
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    backbone = Bare(model)
    backbone.encoder = SimpleNamespace(image_processor=processor(), pad_id=0)
    return backbone.eval().requires_grad_(False)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_of_each_family_are_the_same_bits_from_disk(family, examples, tmp_path):
    plain, cached = (bare(*FAMILIES[family]) for _ in range(2))
    cached.feature_cache = cache_features(cached, str(tmp_path))
    shown = [examples[index].query[0] for index in range(3)]
    if family in ("LLaVA-NeXT", "Idefics3"):
        shown[1] = shown[1].resize((96, 48))
    made = cached.encoder.image_processor(images=shown, return_tensors="pt")
    given = {name: each for name, each in made.items() if name in cached.image_arguments}

    def features(backbone):
        found = backbone.model.get_image_features(**given, return_dict=True).pooler_output
        return [*found]

    expected = features(plain)
    with computed() as rows:
        found = [features(cached), features(cached)]
    assert len(rows) == 1 and (rows[0] == 3 if family in ("LLaVA", "PaliGemma", "Gemma3") else rows[0] > 3)
    for each in found:
        assert len(each) == len(expected) and all(map(torch.equal, each, expected))
    with computed() as rows:  # the picture in the middle has been seen in other company
        given = cached.encoder.image_processor(images=shown[1:2], return_tensors="pt")
        given = {name: each for name, each in given.items() if name in cached.image_arguments}
        alone = features(cached)
    assert rows == [] and torch.allclose(alone[0], expected[1], atol=1e-5) if family != "Idefics3" else rows == []


@pytest.mark.parametrize(
    ("family", "processor"),
    [
        ("Qwen2-VL", lambda: Qwen2VLImageProcessorPil(patch_size=4, min_pixels=64, max_pixels=256)),
        ("Pixtral", lambda: PixtralImageProcessorPil(size={"longest_edge": 16}, patch_size=8)),
    ],
)
def test_towers_whose_rows_are_patches_of_all_pictures_are_refused(family, processor, tmp_path):
    backbone = make(family)
    backbone.encoder.image_processor = processor()
    tower = backbone.model.get_encoder(modality="image")
    with pytest.raises(InputError, match="backbone.features: the vision tower of tiny, a .* leave features out"):
        cache_features(backbone, str(tmp_path / "f"))
    assert "forward" not in vars(tower) and not (tmp_path / "f").exists()


def test_a_dual_encoder_and_a_folder_that_cannot_be_are_refused(tiny_path, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="backbone.features: the folder .*file/f cannot be made"):
        open_backbone(str(tiny_path), features=str(tmp_path / "file" / "f"))
    with torch.device("meta"), pytest.raises(InputError, match="cannot be made"):
        open_backbone(str(tiny_path), features=str(tmp_path / "file" / "f"), fresh=PARTS)
    with pytest.raises(InputError, match="backbone.features: .* dual encoder"):
        open_backbone(str(tiny_path), text_tower=str(tiny_path), features=str(tmp_path / "f"))
    assert not (tmp_path / "f").exists()
