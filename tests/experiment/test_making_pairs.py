"""Pairs of a backbone's own answers: what is asked and spoilt, what trl reads, what goes on after an interruption."""

import json
import shutil
from pathlib import Path

import pytest
import skimage
import torch
from datasets import Image as Picture
from datasets import load_dataset
from PIL import Image

from alignlab import InputError
from alignlab.backbones import Backbone, DualEncoder
from alignlab.backbones.tiny import write_tiny_dual
from alignlab.batch import Example, Turn
from alignlab.data import AlignmentData, Corruption, DiffusionNoise, LlavaJson, MoCo, Scenes, diffusion_noise
from alignlab.data.corruptions import generator_for
from alignlab.experiment.checking import plain
from alignlab.experiment.pairaudit import show
from alignlab.experiment.pairs import ANSWERS, PROVENANCE, PairSettings, make_pairs, overridden, settings_from
from alignlab.experiment.record import locked

SIZES = {"num_train": 24, "num_val": 6, "num_test": 1, "num_compositional": 1}
SETTINGS = PairSettings(corruption=DiffusionNoise(step=800), max_new_tokens=20, batch_size=7)
MADE_OF = {"model": "scenes-vlm", "data": "the lab"}


@pytest.fixture(scope="module")
def backbone():
    return Backbone("scenes-vlm").train()


@pytest.fixture(scope="module")
def lab():
    return Scenes(**SIZES, caption_noise=0.5)  # so that training captions are wrong, and the truth is not theirs


def make(backbone, data, folder, settings=SETTINGS, **others):
    return make_pairs(backbone, data, settings, folder, **{"provenance": MADE_OF, **others})


@pytest.fixture(scope="module")
def built(backbone, lab, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "pairs"
    return folder, make(backbone, lab, folder)


def rows(folder, split="train"):
    files = {split: str(folder / f"{split}.parquet")}
    return load_dataset("parquet", data_files=files, split=split, cache_dir=str(folder.parent / "cache"))


def test_answers_are_greedy_with_the_picture_and_with_its_noise(backbone, lab, built):
    examples = {example.id: example for example in lab.examples("train")}
    for row in list(rows(built[0]))[:6]:
        prompts = backbone.encoder.prompts([examples[row["id"]].conversation[:1]])
        chosen = backbone.eval().generate(prompts, max_new_tokens=20)
        pixels = prompts.vision["pixel_values"]
        pixels.copy_(diffusion_noise(pixels.clone(), 800, generator=generator_for(0, row["id"])))
        rejected = backbone.generate(prompts, max_new_tokens=20)
        assert [row[side][0]["content"][0]["text"] for side in ("chosen", "rejected")] == [*chosen, *rejected]
        assert chosen != rejected
    backbone.train()


def test_a_backbone_comes_back_in_its_mode_and_generates_without_dropout(backbone, built):
    assert backbone.training and built[1].kept > 0


def test_the_audit_adds_up_and_tells_the_truth(lab, built):
    folder, audit = built
    for split, each in audit.splits.items():
        table, examples = rows(folder, split), {example.id: example for example in lab.examples(split)}
        assert each.asked == len(examples) == each.kept + sum(each.dropped.values()) and each.kept == len(table)
        known = {"better": 0, "equal": 0, "worse": 0}
        for row in table:
            known[row["quality"]] += 1
            prompt, example = row["prompt"][0]["content"][1]["text"], examples[row["id"]]
            for question in example.questions:
                if question.text == prompt:  # by hand: right is the answer of the scene, nothing else
                    right = [row[side][0]["content"][0]["text"] == question.answer for side in ("chosen", "rejected")]
                    assert row["quality"] == ("equal" if right[0] == right[1] else "better" if right[0] else "worse")
        assert each.truth == pytest.approx({name: count / each.kept for name, count in known.items()})
        words = [len(row["rejected"][0]["content"][0]["text"].split()) for row in table]
        assert each.lengths["rejected"]["mean"] == pytest.approx(sum(words) / len(words))  # a word is a token here
        assert each.lengths["rejected"]["cut"] == 0 and max(words) < 20
    assert audit.splits["train"].truth["better"] > 0.5  # a trained model sees less through noise
    assert json.loads((folder / PROVENANCE).read_text())["audit"]["val"]["kept"] == audit.splits["val"].kept


def test_answers_that_were_cut_make_no_pair_unless_they_are_kept(backbone, lab, tmp_path):
    short = {**vars(SETTINGS), "max_new_tokens": 6}  # answers to questions end before, captions do not
    dropping = make(backbone, lab, tmp_path / "dropping", PairSettings(**short)).splits["train"]
    keeping = make(backbone, lab, tmp_path / "keeping", PairSettings(**{**short, "keep_cut": True})).splits["train"]
    assert keeping.dropped["cut"] == 0 < dropping.dropped["cut"] == keeping.kept - dropping.kept
    words = [len(row["rejected"][0]["content"][0]["text"].split()) for row in rows(tmp_path / "keeping")]
    assert keeping.lengths["rejected"]["cut"] == pytest.approx(sum(count == 6 for count in words) / len(words))
    assert 0 < keeping.lengths["rejected"]["cut"] < 1
    for row in rows(tmp_path / "dropping"):
        assert max(len(row[side][0]["content"][0]["text"].split()) for side in ("chosen", "rejected")) < 6


def test_files_hold_pictures_places_and_types(lab, built):
    folder, _ = built
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == [
        PROVENANCE, "train.parquet", "val.parquet",
    ]  # fmt: skip
    assert not (folder / ANSWERS).exists()
    table = rows(folder)
    assert table.features["images"].feature == Picture()
    examples = {example.id: example for example in lab.examples("train")}
    for row in table:
        (picture,), (image, question) = row["images"], row["prompt"][0]["content"]
        assert picture.tobytes() == examples[row["id"]].images[0].tobytes()
        assert image == {"type": "image", "text": None} and question["type"] == "text"
        assert [row[side][0]["role"] for side in ("prompt", "chosen", "rejected")] == ["user", "assistant", "assistant"]


def test_provenance_says_what_decides(built):
    known = json.loads((built[0] / PROVENANCE).read_text())
    assert known["model"] == "scenes-vlm" and known["data"] == "the lab" and known["splits"] == {"train": 24, "val": 6}
    assert known["settings"]["corruption"] == {
        "class_path": "DiffusionNoise", "init_args": {"step": 800, "num_steps": 1000},
    }  # fmt: skip
    assert {len(known[f"{what}_fingerprint"]) for what in ("model", "tokenizer", "image")} == {16}


def test_pairs_do_not_depend_on_the_batch_size(backbone, lab, built, tmp_path):
    make(backbone, lab, tmp_path / "other", PairSettings(**{**vars(SETTINGS), "batch_size": 24}))
    assert list(rows(tmp_path / "other")) == list(rows(built[0]))


def test_another_seed_spoils_otherwise(backbone, lab, built, tmp_path):
    make(backbone, lab, tmp_path / "other", PairSettings(**{**vars(SETTINGS), "seed": 1}))
    said = [{row["id"]: row["rejected"] for row in rows(folder)} for folder in (built[0], tmp_path / "other")]
    assert said[0] != said[1]


class Interrupt(Exception):
    pass


def test_an_interrupted_folder_is_unfinished_and_is_gone_on_with(backbone, lab, built, tmp_path):
    folder = tmp_path / "pairs"

    def interrupt(what, done, total):
        if done >= 14:
            raise Interrupt

    with pytest.raises(Interrupt):
        make(backbone, lab, folder, on_progress=interrupt)
    assert [path.name for path in folder.iterdir() if path.name != ".lock"] == [ANSWERS]
    lines = (folder / ANSWERS).read_text().splitlines()
    assert len(lines) == 15
    tampered = json.loads(lines[1]) | {"rejected": "from the file"}
    lines[1] = json.dumps(tampered)
    (folder / ANSWERS).write_text("\n".join(lines) + '\n{"split": "tra')  # a line that was interrupted
    seen = []
    audit = make(backbone, lab, folder, on_progress=lambda *progress: seen.append(progress))
    assert seen == [("answering train", 21, 24), ("answering train", 24, 24), ("answering val", 6, 6)]
    expected = {row["id"]: row for row in rows(built[0])}
    told = {row["id"]: row for row in rows(folder)}
    changed = {id for id in told if told[id] != expected.get(id)}
    assert changed == {tampered["id"]} and told[tampered["id"]]["rejected"][0]["content"][0]["text"] == "from the file"
    assert audit.splits["val"] == built[1].splits["val"]


@pytest.mark.parametrize("filter", ["raw", "clean"])
def test_the_official_filter_can_be_had_from_end_to_end(backbone, lab, tmp_path, filter):
    settings = PairSettings(**{**vars(SETTINGS), "drop_equal": filter})

    def interrupt(what, done, total):
        raise Interrupt

    with pytest.raises(Interrupt):
        make(backbone, lab, tmp_path, settings, on_progress=interrupt)
    head, *answers = (tmp_path / ANSWERS).read_text().splitlines()
    said = [("red</s>", "red"), ("a\nb", "c")]
    answers = [
        json.loads(line) | {"chosen": chosen, "rejected": rejected, "chosen_cut": False, "rejected_cut": False}
        for line, (chosen, rejected) in zip(answers, said, strict=False)
    ]
    (tmp_path / ANSWERS).write_text("\n".join([head, *map(json.dumps, answers), ""]))
    audit = make(backbone, lab, tmp_path, settings).splits["train"]
    told = {row["id"]: [row[side][0]["content"][0]["text"] for side in ("chosen", "rejected")]
            for row in rows(tmp_path)}  # fmt: skip
    first, second = (answer["id"] for answer in answers)
    # Equal once cleaned, which SeVa does not notice; and a line break, which it takes out with nothing in its place.
    assert told.get(first) == (["red", "red"] if filter == "raw" else None)
    assert told[second] == (["ab", "c"] if filter == "raw" else ["a\nb", "c"])
    assert audit.dropped["equal_after_cleaning"] == (filter == "clean")


def test_a_finished_folder_is_read_and_another_provenance_refused(backbone, lab, built, tmp_path):
    folder = tmp_path / "pairs"
    shutil.copytree(built[0], folder)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.*")}
    audit = make(backbone, lab, folder, on_progress=lambda *_: pytest.fail("something was computed"))
    assert audit == built[1] and before == {path: path.stat().st_mtime_ns for path in folder.glob("*.*")}
    for settings in ({"seed": 1}, {"corruption": MoCo()}, {"max_new_tokens": 8}):
        with pytest.raises(InputError, match="is there already, finished, and differs in settings; choose another"):
            make(backbone, lab, folder, PairSettings(**{**vars(SETTINGS), **settings}))
    with pytest.raises(InputError, match="differs in data"):
        make(backbone, lab, folder, provenance={**MADE_OF, "data": "others"})
    with pytest.raises(InputError, match="differs in model_fingerprint"):
        make(Backbone("scenes-parts"), lab, folder)
    (folder / PROVENANCE).unlink()
    (folder / ANSWERS).write_text('{"model": "another"}\n')
    with pytest.raises(InputError, match="unfinished, and differs in format, version"):
        make(backbone, lab, folder)
    assert (folder / ANSWERS).read_text() == '{"model": "another"}\n'


def test_what_is_no_folder_of_pairs_is_left_alone(backbone, lab, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    for folder in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(InputError, match="holds something else than pairs"):
            make(backbone, lab, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_second_process_is_kept_out(backbone, lab, tmp_path):
    with locked(tmp_path / "pairs"), pytest.raises(InputError, match="another process is at work"):
        make(backbone, lab, tmp_path / "pairs")


def test_a_changed_corruption_of_ones_own_is_another(backbone, lab, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = "from alignlab.data import Corruption\n\n\nclass Turned(Corruption):\n    {}\n"
    (tmp_path / "turning_pictures.py").write_text(source.format("pass"))
    import turning_pictures

    settings = PairSettings(turning_pictures.Turned(), num_examples=2, max_new_tokens=4)
    make(backbone, lab, tmp_path / "pairs", settings)
    (tmp_path / "turning_pictures.py").write_text(source.format("angle = 90"))
    with pytest.raises(InputError, match="finished, and differs in corruption_source"):
        make(backbone, lab, tmp_path / "pairs", settings)


class Chats(AlignmentData):
    """Conversations with a history, two pictures, none; ids that come in both splits."""

    supplies = ("conversation",)

    def __init__(self, pictures):
        super().__init__()
        red, blue = pictures
        history = (
            Turn("system", ("describe the image .",)),
            Turn("user", ("there is", red, "above a", blue, ".")), Turn("assistant", ("a red circle .",)),
            Turn("user", ("how many circles are there ?",)), Turn("assistant", ("two",)),
        )  # fmt: skip
        text = (Turn("user", ("what color is a circle ?",)), Turn("assistant", ("red",)))
        single = (Turn("user", (blue, "describe the image .")), Turn("assistant", ("a circle .",)))
        kinds = [Example("a", history), Example("b", text), Example("c", single)]
        self.kept = {"train": kinds, "val": [Example("a", single)]}

    def examples(self, split):
        return self.kept[split]


def test_histories_several_pictures_and_texts_alone(backbone, tmp_path):
    lab = Scenes(**SIZES).examples("val")
    data = Chats([lab[0].images[0], lab[1].images[0]])
    settings = PairSettings(corruption=DiffusionNoise(step=999), max_new_tokens=12, min_tokens=0, keep_cut=True)
    audit = make(backbone, data, tmp_path / "pairs", settings)
    train = audit.splits["train"]
    assert train.asked == 3 and train.dropped["no_picture"] == 1 and train.truth == {}
    by_id = {row["id"]: row for split in ("train", "val") for row in rows(tmp_path / "pairs", split)}
    assert set(by_id) == {"train/a", "c", "val/a"} and {row["quality"] for row in by_id.values()} == {None}
    row = by_id["train/a"]
    assert [turn["role"] for turn in row["prompt"]] == ["system", "user", "assistant", "user"]
    assert [part["text"] or part["type"] for part in row["prompt"][1]["content"]] == [
        "there is", "image", "above a", "image", ".",
    ]  # fmt: skip
    assert [picture.tobytes() for picture in row["images"]] == [lab[index].images[0].tobytes() for index in (0, 1)]
    prompts = backbone.eval().encoder.prompts([data.kept["train"][0].conversation[:-1]])
    assert row["chosen"][0]["content"][0]["text"] == backbone.generate(prompts, max_new_tokens=12)[0]
    from trl.data_utils import prepare_multimodal_messages  # every picture finds its place

    shown = prepare_multimodal_messages(row["prompt"], images=row["images"])[1]["content"]
    assert shown[1]["image"] is row["images"][0] and shown[3]["image"] is row["images"][1]
    show(audit)


def test_where_nothing_is_kept_there_is_no_file(backbone, lab, tmp_path, capsys):
    audit = make(backbone, lab, tmp_path / "pairs", PairSettings(**{**vars(SETTINGS), "min_tokens": 1000}))
    assert audit.kept == 0 and audit.splits["val"].lengths == {} == audit.splits["val"].truth
    assert sorted(path.name for path in (tmp_path / "pairs").glob("[!.]*")) == [PROVENANCE]
    show(audit)
    assert "an answer is too short" in capsys.readouterr().out


def test_data_that_have_changed_are_refused(backbone, lab, tmp_path):
    pictures = [example.images[0] for example in lab.examples("val")[:2]]
    data = Chats(pictures)

    def interrupt(what, done, total):
        raise Interrupt

    with pytest.raises(Interrupt):
        make(backbone, data, tmp_path / "pairs", PairSettings(min_tokens=0), on_progress=interrupt)
    data.kept["train"].reverse()
    with pytest.raises(InputError, match="the data have changed: example . of train is no longer"):
        make(backbone, data, tmp_path / "pairs", PairSettings(min_tokens=0))
    assert not (tmp_path / "pairs" / PROVENANCE).exists()


def test_a_dual_encoder_is_refused(lab, tmp_path):
    from transformers import CLIPConfig

    write_tiny_dual(tmp_path / "clip", CLIPConfig)
    with pytest.raises(InputError, match="needs? a backbone that generates text, but .* is a dual encoder"):
        make(DualEncoder(str(tmp_path / "clip")), lab, tmp_path / "pairs")
    assert not (tmp_path / "pairs").exists()


def test_settings_come_from_plain_data_and_go_there():
    assert settings_from({}) == PairSettings() and plain(PairSettings())["corruption"]["class_path"] == "DiffusionNoise"
    assert settings_from(plain(PairSettings(corruption=MoCo(size=48)))).corruption == MoCo(size=48)
    given = {"corruption": {"class_path": "PatchMask", "init_args": {"share": 0.25}}, "num_examples": 5}
    assert settings_from(given).corruption.share == 0.25 and settings_from({"corruption": "Flip"}).num_examples is None


def test_a_corruption_that_cannot_be_told_is_refused(backbone, lab, tmp_path):
    class Hidden(Corruption):
        def __init__(self, strength: float = 1.0):
            self._strength = strength

    with pytest.raises(InputError, match="pairs.corruption: Hidden has to keep its arguments under their names"):
        make(backbone, lab, tmp_path / "pairs", PairSettings(corruption=Hidden()))
    assert not (tmp_path / "pairs").exists()


def test_overrides_lie_over_the_defaults():
    assert overridden([]) == PairSettings()
    assert overridden(["pairs.corruption.step=800", "pairs.seed=3"]) == PairSettings(DiffusionNoise(step=800), seed=3)
    assert overridden(["pairs.corruption=MoCo", "pairs.corruption.size=48"]).corruption == MoCo(size=48)
    with pytest.raises(InputError, match="MoCo has no argument 'step'"):
        overridden(["pairs.corruption=MoCo", "pairs.corruption.step=48"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"corruption": "DiffusionNoize"}, "no corruption 'DiffusionNoize'; did you mean 'DiffusionNoise'"),
        ({"corruption": "Scenes"}, "Scenes is a data module, not a corruption"),
        ({"corruption": {"class_path": "DiffusionNoise", "init_args": {"steps": 3}}}, "no argument 'steps'"),
        ({"corruption": {"class_path": "DiffusionNoise", "init_args": {"step": 1000}}}, "needs 0 <= step < num_steps"),
        ({"drop_equal": "never"}, "expected one of clean, raw"),
        ({"num_examples": 0}, "pairs.num_examples must be at least 1, got 0"),
        ({"min_tokens": -1}, "pairs.min_tokens must be at least 0"),
        ({"temperature": 1.0}, "has no argument 'temperature'"),
    ],
)
def test_bad_settings_are_one_message(given, message):
    with pytest.raises(InputError, match=message):
        settings_from(given)


def test_trl_trains_on_the_file(backbone, lab, built, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import DPOConfig, DPOTrainer

    backbone.save(tmp_path / "model")
    model, reference = (AutoModelForImageTextToText.from_pretrained(tmp_path / "model") for _ in range(2))
    arguments = DPOConfig(
        output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, gradient_checkpointing=False, max_steps=2,
        per_device_train_batch_size=4, learning_rate=1e-3, report_to="none", save_strategy="no", logging_steps=1,
        max_length=None, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    trainer = DPOTrainer(model, reference, arguments, train_dataset=rows(built[0]), processing_class=processor)
    trainer.train()
    first, second = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert first["loss"] == pytest.approx(0.6931, abs=1e-4)  # ln 2: the policy is still the reference
    assert second["loss"] != pytest.approx(0.6931, abs=1e-4)
    row = rows(built[0])[0]  # what it reads is, token by token, what was asked and answered here
    example = next(each for each in lab.examples("train") if each.id == row["id"])
    said = [Turn("assistant", (row[side][0]["content"][0]["text"],)) for side in ("chosen", "rejected")]
    ours = backbone.encoder.conversations([("a", (example.conversation[0], turn)) for turn in said])
    theirs = trainer.data_collator([row])
    for side in range(2):
        kept, own = theirs["attention_mask"][side].bool(), ours.attention_mask[side].bool()
        assert torch.equal(theirs["input_ids"][side][kept], ours.input_ids[side][own])
        answer = ours.labels[side][own] != -100
        assert torch.equal(theirs["completion_mask"][side][kept].bool(), answer)


def write_llava_next(folder: Path) -> None:
    """A random LLaVA-NeXT with the lab's words, whose pictures are cut into one to four tiles and an overview."""
    from transformers import (
        AutoConfig,
        AutoModelForImageTextToText,
        AutoProcessor,
        LlavaNextConfig,
        LlavaNextImageProcessorPil,
        LlavaNextProcessor,
    )  # fmt: skip

    from alignlab.backbones import locate

    lab, config = AutoProcessor.from_pretrained(locate("scenes-vlm")), AutoConfig.from_pretrained(locate("scenes-vlm"))
    grid = [[48, 96], [96, 48], [96, 96]]
    pictures = LlavaNextImageProcessorPil(
        image_grid_pinpoints=grid, size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}
    )
    template = lab.chat_template or lab.tokenizer.chat_template
    LlavaNextProcessor(
        pictures, lab.tokenizer, patch_size=8, vision_feature_select_strategy="default", chat_template=template,
        image_token="<image>", num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    settings = {name: getattr(config, name) for name in ("vision_config", "text_config", "image_token_index")}
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(
        LlavaNextConfig(**settings, image_grid_pinpoints=grid, vision_feature_layer=-1)
    ).save_pretrained(folder)


@pytest.mark.parametrize("corruption", [DiffusionNoise(step=999), MoCo()], ids=str)
def test_pairs_of_photographs_by_a_family_that_cuts_them_into_tiles(corruption, tmp_path):
    write_llava_next(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    records = []
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "camera.png"):
        shutil.copy(Path(skimage.__file__).parent / "data" / name, tmp_path / "photos")
        turns = [("human", "<image>\ndescribe the image ."), ("gpt", "a circle .")]
        turns = [{"from": role, "value": value} for role, value in turns]
        records.append({"id": name, "image": name, "conversations": turns})
    (tmp_path / "data.json").write_text(json.dumps(records))
    data = LlavaJson(path=str(tmp_path / "data.json"), image_folder=str(tmp_path / "photos"), test_fraction=0.0)

    backbone, settings = Backbone(str(tmp_path / "model")), {"max_new_tokens": 6, "min_tokens": 0, "keep_cut": True}
    audit = make(backbone, data, tmp_path / "pairs", PairSettings(corruption=corruption, **settings))
    assert sum(each.asked for each in audit.splits.values()) == 5 and audit.kept > 0
    make(backbone, data, tmp_path / "alone", PairSettings(corruption=corruption, batch_size=1, **settings))
    for split in (split for split, each in audit.splits.items() if each.kept):
        together = rows(tmp_path / "pairs", split)
        for row in together:
            shown = Image.open(tmp_path / "photos" / row["id"])
            assert row["images"][0].size == shown.size and row["images"][0].mode == "RGB"
        assert list(together) == list(rows(tmp_path / "alone", split))
    raw = rows(tmp_path / "pairs").cast_column("images", [Picture(decode=False)])
    for row in raw:  # a plain photograph keeps its file's bytes
        path = tmp_path / "photos" / row["id"]
        assert (row["images"][0]["bytes"] == path.read_bytes()) == (Image.open(path).mode == "RGB")
