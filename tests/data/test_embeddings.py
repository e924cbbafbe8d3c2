"""A file of a teacher's embeddings: what is written is what training reads, and of no other data."""

import fcntl
import json
import pickle
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from alignlab import Example, InputError
from alignlab.backbones import Backbone
from alignlab.data import AlignmentData, LlavaPairs, Scenes
from alignlab.data.embeddings import Embeddings
from alignlab.experiment import embed as command
from alignlab.experiment.config import resolve
from alignlab.experiment.embed import embed
from alignlab.experiment.preflight import preflight
from alignlab.modules.fingerprints import weights_fingerprint

SIZES = {"num_train": 24, "num_val": 8, "num_test": 1, "num_compositional": 1, "batch_size": 8}
OBJECTIVE = """
from alignlab import Loss, Objective

class Distil(Objective):
    requires = ("target", "embedding")

    def loss(self, batch):
        mean = self.backbone.embed(batch.target).mean() * batch.embedding.mean()
        return Loss(mean, len(batch))
"""


def config(**settings):
    data = {"class_path": "Scenes", "init_args": {**SIZES, **settings}}
    return {"objective": "InfoNCE", "data": data, "trainer": {"accelerator": "cpu"}, "evaluators": []}


@pytest.fixture(scope="module")
def file(tmp_path_factory, tiny_path) -> Path:
    path = tmp_path_factory.mktemp("embeddings") / "targets.safetensors"
    assert embed(resolve(config()), path, str(tiny_path), batch_size=5) == 32
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_training_reads_what_the_teacher_wrote(file, tiny_path, workers):
    teacher = Backbone(str(tiny_path)).eval()
    data = Scenes(**SIZES, num_workers=workers, embeddings=str(file))
    oracle = data.examples("train")[0].embedding
    assert len(data.filled("train")[0].embedding) == 32 != len(oracle)
    data.connect(partial(teacher.encoder.batch, sequences=("target", "embedding")))
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in loader:
            with torch.no_grad():
                expected = teacher.embed(batch.target)
            torch.testing.assert_close(batch.embedding, expected, rtol=1e-4, atol=1e-5)


def test_a_file_says_what_it_was_made_of(file, tiny_path):
    with safe_open(file, framework="numpy") as opened:
        assert opened.get_slice("embeddings").get_shape() == [32, 32]
        said = opened.metadata()
    assert said["source"] == str(tiny_path) and said["data"].startswith("Scenes(seed=0, num_train=24")
    assert "batch_size" not in said["data"] and len(said["fingerprint"]) == 16


def test_an_open_file_goes_to_another_process(file):
    embeddings, example = Embeddings(file), Scenes(**SIZES).examples("train")[3]
    before = embeddings.of("train", example)
    assert pickle.loads(pickle.dumps(embeddings)).of("train", example) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, "made for another text of example 'train-0' .train., whose target here is 'a "),
        ({"num_train": 48}, "has no embedding of example 'train-24' .train.; the file is of Scenes.seed=0"),
        ({"num_val": 9}, "has no embedding of example 'val-8' .val.;.* alignlab embed CONFIG"),
        ({"caption_length": "short"}, "made for another text"),
    ],
)
def test_a_file_of_other_data_is_refused_before_training(file, tiny_path, settings, message):
    changed = config(**settings, embeddings=str(file)) | {"backbone": {"path": str(tiny_path)}}
    with pytest.raises(InputError, match=message):
        preflight(resolve(changed))


def test_a_file_makes_data_supply_embeddings(tmp_path, tiny_path, monkeypatch):
    (tmp_path / "distil_objective.py").write_text(OBJECTIVE)
    monkeypatch.syspath_prepend(str(tmp_path))
    Image.new("RGB", (24, 24)).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a large red circle ."}]
    records = [{"id": str(n), "image": "a.png", "conversations": turns} for n in range(4)]
    (tmp_path / "data.json").write_text(json.dumps(records))
    settings = {"path": str(tmp_path / "data.json"), "image_folder": str(tmp_path)}
    settings |= {"val_fraction": 0, "test_fraction": 0, "batch_size": 2}
    plain = {"class_path": "LlavaPairs", "init_args": settings}
    filled = {"class_path": "LlavaPairs", "init_args": settings | {"embeddings": str(tmp_path / "e.safetensors")}}
    whole = {**config(), "objective": "distil_objective.Distil", "backbone": {"path": str(tiny_path)}}
    with pytest.raises(InputError, match="data LlavaPairs supplies .*; it lacks embedding"):
        resolve({**whole, "data": plain})
    resolved = resolve({**whole, "data": filled})
    with pytest.raises(InputError, match="data.embeddings: there is no file .*e.safetensors; `alignlab embed`"):
        preflight(resolved)
    assert embed(resolved, tmp_path / "e.safetensors", str(tiny_path)) == 4
    preflight(resolved)
    assert "embedding" in LlavaPairs(**filled["init_args"]).supplies
    assert "embedding" not in LlavaPairs(**settings).supplies


def test_an_interrupted_file_goes_on_where_it_stopped(file, tmp_path, tiny_path):
    resolved, output = resolve(config()), tmp_path / "targets.safetensors"

    def interrupt(what, done, total):
        if what == "embedding" and done == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(resolved, output, str(tiny_path), batch_size=5, on_progress=interrupt)
    partial_file = tmp_path / ".targets.safetensors.partial"
    assert not output.exists()
    partial_file.write_bytes(partial_file.read_bytes()[:-7])  # killed amid a row
    assert embed(resolved, output, str(tiny_path), batch_size=5) == 18
    assert output.read_bytes() == file.read_bytes() and not partial_file.exists()
    assert embed(resolved, output, str(tiny_path)) == 0


def test_what_was_begun_of_other_data_is_begun_anew(file, tmp_path, tiny_path):
    (tmp_path / ".e.safetensors.partial").write_bytes(b"something else" * 100)
    assert embed(resolve(config()), tmp_path / "e.safetensors", str(tiny_path), batch_size=5) == 32
    assert (tmp_path / "e.safetensors").read_bytes() == file.read_bytes()


def test_a_file_of_other_data_is_not_replaced(file, tmp_path, tiny_path):
    before = file.read_bytes()
    with pytest.raises(InputError, match="is there already, and is not what .* makes of these data"):
        embed(resolve(config(seed=1)), file, str(tiny_path))
    assert file.read_bytes() == before
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        embed(resolve(config()), tmp_path / "notes", str(tiny_path))
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_file_of_something_else_is_named(file, tmp_path):
    example = Scenes(**SIZES).examples("train")[0]
    (tmp_path / "cut").write_bytes(file.read_bytes()[:-4])
    with pytest.raises(InputError, match="cut cannot be read"):
        Embeddings(tmp_path / "cut").of("train", example)
    from safetensors.torch import save_file

    save_file({"embeddings": torch.zeros(2, 2)}, tmp_path / "other")
    with pytest.raises(
        InputError, match="other is no file that this alignlab's `alignlab embed` made: its format is not"
    ):
        Embeddings(tmp_path / "other").of("train", example)


class Twins(AlignmentData):
    supplies = ("target",)

    def examples(self, split):
        return [Example(id, target=(f"{id} of {split}",)) for id in ("a", "b", "b" if split == "val" else "c")]


def test_an_id_is_unique_within_a_split_alone():
    with pytest.raises(InputError, match="several examples of the val split are called 'b'"):
        command.Targets(Twins(), lambda what, done, total: None)


def test_a_file_that_another_process_writes_is_left_to_it(tmp_path, tiny_path):
    with (tmp_path / ".e.partial").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is writing .*e; wait for it"):
            embed(resolve(config()), tmp_path / "e", str(tiny_path))


class Fickle:
    """A teacher that goes wrong after its first batch."""

    name, fingerprint = "fickle", "0" * 16

    def __init__(self, later):
        self.later, self.calls = later, 0

    def embed(self, contents):
        self.calls += 1
        return torch.ones(len(contents), 3) if self.calls < 3 else self.later(len(contents))


@pytest.mark.parametrize(
    ("later", "message"),
    [
        (lambda n: torch.ones(n, 4), r"fickle made embeddings of shape \(8, 4\) of 8 targets, and of width 3 before"),
        (lambda n: torch.full((n, 3), torch.nan), "fickle made an embedding that is not finite, of the target 'a"),
    ],
)
def test_a_teacher_that_goes_wrong_is_stopped(monkeypatch, tmp_path, later, message):
    monkeypatch.setattr(command, "teacher_named", lambda name, experiment: Fickle(later))
    with pytest.raises(InputError, match=message):
        embed(resolve(config()), tmp_path / "e", "fickle", batch_size=8)
    assert not (tmp_path / "e").exists()


def test_a_sentence_transformers_model_teaches(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer

    words = sorted({word for example in Scenes(**SIZES).examples("train") for word in " ".join(example.target).split()})
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    shape = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words) + 5, **shape)).save_pretrained(tmp_path / "bert")
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    transformer = Transformer(str(tmp_path / "bert"))
    model = sentence_transformers.SentenceTransformer(modules=[transformer, Pooling(24)], device="cpu")
    model.save(str(tmp_path / "teacher"))

    output = tmp_path / "e.safetensors"
    assert embed(resolve(config()), output, str(tmp_path / "teacher"), batch_size=5) == 32
    data = Scenes(**SIZES, embeddings=str(output))
    texts = [" ".join(example.target) for example in data.examples("val")]
    expected = model.encode(texts, convert_to_tensor=True)
    found = torch.tensor([example.embedding for example in data.filled("val")])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_without_sentence_transformers_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "modules.json").write_text("[]")
    for name in (str(tmp_path / "teacher"), "all-MiniLM-L6-v2"):
        with pytest.raises(
            InputError, match=r"--model .* needs sentence-transformers.*pip install 'alignlab\[teacher\]'"
        ):
            embed(resolve(config()), tmp_path / "e", name)


def test_a_fingerprint_is_of_the_weights(tiny_path):
    one, other = Backbone(str(tiny_path)), Backbone(str(tiny_path))
    assert weights_fingerprint(one) == weights_fingerprint(other)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    assert weights_fingerprint(one) != weights_fingerprint(other)
