"""captions: pictures with several captions each, in the formats of COCO, of Flickr30k and of Karpathy's split."""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Unpack

from alignlab.batch import Example
from alignlab.data.base import AlignmentData, Split
from alignlab.data.coco import CAPTION, IMAGE, read_annotations
from alignlab.data.files import check_pictures, picture_folder, read_json, read_text
from alignlab.data.loading import Loading
from alignlab.data.records import Made, Packed, by_hash, check_fractions, checked, drawn
from alignlab.errors import InputError

Per = Literal["caption", "picture"]

KARPATHY: Mapping[str, Split] = {"train": "train", "restval": "train", "val": "val", "test": "test"}


class Captioned(NamedTuple):
    """A picture's name within the folder, its split where the format knows it, and its captions."""

    name: str
    split: str
    captions: list[str]


class Captions(AlignmentData):
    """Pictures with captions; a subclass reads them and says how they are split.

    A validation or test example is a picture with all its captions, the first of which is its target and its answer; so
    is a training example ``per`` picture. Per caption, each caption of a picture is the answer and target of a training
    example of its own; these share a ``group``, so that they are no negatives of each other.
    """

    supplies: ClassVar[tuple[str, ...]] = ("conversation", "query", "target", "captions", "group")

    source = "captions"
    """The data set, for scores by source."""

    def __init__(self, *, image_folder: str, per: Per, **loading: Unpack[Loading]) -> None:
        super().__init__(**loading)
        self.folder = picture_folder(image_folder)
        self.per = per
        self.records = Packed()
        self.places: dict[Split, Sequence[int]] = {}
        self.said: dict[Split, Sequence[int]] = {}

    def hold(self, records: Iterable[Captioned], places: Mapping[Split, Sequence[int]]) -> None:
        """Take the records, and where those of each split stand among them; look for the pictures."""
        names, counts = [], []
        for record in records:
            names.append(record.name)
            counts.append(len(record.captions))
            self.records.append(record)
        check_pictures(self.folder, names, self.unreadable)
        numbers = {split: [1] * len(some) for split, some in places.items()}
        if self.per == "caption":
            numbers["train"] = [counts[place] for place in places.get("train", ())]
        for split, some in places.items():
            rounds = list(_rounds(numbers[split]))
            self.places[split] = array("L", [some[entry] for entry, _ in rounds])
            self.said[split] = array("L", [number for _, number in rounds])

    def examples(self, split: Split) -> Sequence[Example]:
        return Made(partial(self._at, split), range(len(self.places.get(split, ()))))

    def _at(self, split: Split, index: int) -> Example:
        number = self.said[split][index]
        name, _, captions = self.records[self.places[split][index]]
        said, picture = captions[number], self.folder / name
        return Example.answering(
            name if split != "train" or self.per == "picture" else f"{name}#{number}",
            picture,
            self.caption_prompt,
            said,
            query=(picture,),
            target=(said,),
            captions=(said, *captions[:number], *captions[number + 1 :]),
            group=name,
            source=self.source,
        )


class Karpathy(Captions):
    """COCO or Flickr30k in Karpathy's split, from ``dataset_coco.json`` or ``dataset_flickr30k.json``.

        {"images": [{"filepath": "val2014", "filename": "a.jpg", "split": "train", "imgid": 0,
                     "sentences": [{"raw": "A dog runs.", "tokens": ["a", "dog", "runs"]}]}], "dataset": "coco"}

    A picture is ``image_folder/filepath/filename``; Flickr30k's have no ``filepath``. Karpathy and Fei-Fei 2015,
    https://arxiv.org/abs/1412.2306. Within val and test, pictures stand in the order of a hash of their names, so the
    first ones are a fair sample.

    Args:
        path: The JSON file.
        image_folder: What ``filepath`` is in.
        per: What a training example is: a picture, or each of its captions.
        restval: Train on the split ``restval``, too: COCO's validation pictures that are neither in val nor in test.
    """

    def __init__(
        self,
        *,
        path: str,
        image_folder: str,
        per: Per = "caption",
        restval: bool = True,
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(image_folder=image_folder, per=per, **loading)
        content = read_json(Path(path), "data.path")
        images = content.get("images") if isinstance(content, dict) else None
        if not isinstance(images, list):
            raise InputError(f"data.path: {path} has no list 'images'; Karpathy's format is an object with images")
        self.source = str(content.get("dataset", Path(path).stem))
        records = list(checked(images, _karpathy, path, "image"))
        names = [record.name for record in records]
        if len(set(names)) < len(names):
            raise InputError(f"{path}: two of its {len(names)} images have one filename")
        used = [record for record in records if restval or record.split != "restval"]
        by_split: defaultdict[Split, list[str]] = defaultdict(list)
        for record in used:
            by_split[KARPATHY[record.split]].append(record.name)
        self.hold(used, _places([record.name for record in used], by_split))


class Flickr30k(Captions):
    """Flickr30k as it is released: one file with five captions of each picture.

        1000092795.jpg#0\\tTwo young guys with shaggy hair look at their hands .

    Young et al. 2014, https://aclanthology.org/Q14-1006; the file is called ``results_20130124.token``.

    Args:
        path: The file of captions.
        image_folder: The folder of pictures.
        val: The pictures held out for validation: a file with a name (with or without ``.jpg``) on each line, or their
            share, drawn by a hash of their names and rounded up.
        test: The pictures held out for evaluation, in the same way.
        per: What a training example is: a picture, or each of its captions.
    """

    source = "flickr30k"

    def __init__(
        self,
        *,
        path: str,
        image_folder: str,
        val: float | str = 0.05,
        test: float | str = 0.05,
        per: Per = "caption",
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(image_folder=image_folder, per=per, **loading)
        shares = [0.0 if isinstance(each, str) else each for each in (val, test)]
        check_fractions("Flickr30k", *shares)
        said: defaultdict[str, list[str]] = defaultdict(list)
        lines = enumerate(read_text(Path(path), "data.path").splitlines(), start=1)
        for name, caption in checked(((n, line) for n, line in lines if line.strip()), _token, path, "caption"):
            said[name].append(caption)
        names = list(said)
        held = {
            split: _names(Path(each), f"data.{split}", names)
            for split, each in (("val", val), ("test", test))
            if isinstance(each, str)
        }
        if twice := sorted(set(held.get("val", ())) & set(held.get("test", ()))):
            raise InputError(f"{val} and {test} both name {len(twice)} picture(s), e.g. {twice[0]}")
        taken = {name for some in held.values() for name in some}
        rest = [name for name in names if name not in taken]
        places = drawn(rest, val=shares[0], test=shares[1], where=path)
        held |= {split: [rest[place] for place in some] for split, some in places.items() if split not in held}
        self.hold((Captioned(name, "", captions) for name, captions in said.items()), _places(names, held))


class CocoCaptions(Captions):
    """COCO's own file of captions, e.g. ``captions_train2017.json``, to train on.

        {"images": [{"id": 7, "file_name": "a.jpg", "width": 640, "height": 480}],
         "annotations": [{"image_id": 7, "caption": "A dog."}]}

    For what others report, see ``Karpathy``; ``CocoJson`` reads the instances, too, and is judged on.

    Args:
        path: The file of captions.
        image_folder: What the pictures' file names are relative to.
        val_fraction: Share of the pictures held out for validation, drawn by a hash of their names, rounded up.
        test_fraction: Share of the pictures held out for evaluation, drawn in the same way.
        per: What a training example is: a picture, or each of its captions.
    """

    source = "coco"

    def __init__(
        self,
        *,
        path: str,
        image_folder: str,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        per: Per = "caption",
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(image_folder=image_folder, per=per, **loading)
        check_fractions("CocoCaptions", val_fraction, test_fraction)
        images, said = read_annotations(path, "data.path", {"images": IMAGE, "annotations": CAPTION})
        texts: defaultdict[Any, list[str]] = defaultdict(list)
        for each in said:
            texts[each["image_id"]].append(each["caption"].strip())
        told = [Captioned(image["file_name"], "", texts[image["id"]]) for image in images if image["id"] in texts]
        if not told:
            raise InputError(f"{path}: none of its {len(images)} images has a caption among its annotations")
        names = [record.name for record in told]
        self.hold(told, drawn(names, val=val_fraction, test=test_fraction, where=path))


def _karpathy(image: Any) -> Captioned:
    if not isinstance(image, dict):
        raise InputError(f"it is a {type(image).__name__}, not an object")
    if not isinstance(image.get("filename"), str) or not image["filename"]:
        raise InputError(f"'filename' must be a text, got {image.get('filename')!r}")
    if image.get("split") not in KARPATHY:
        raise InputError(f"'split' must be one of {', '.join(KARPATHY)}, got {image.get('split')!r}")
    sentences = image.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        raise InputError(f"'sentences' must be a list of captions, got {sentences!r}")
    raw = [sentence.get("raw") if isinstance(sentence, dict) else None for sentence in sentences]
    if bad := [text for text in raw if not isinstance(text, str) or not text.strip()]:
        raise InputError(f"the 'raw' of a sentence must be a text, got {bad[0]!r}")
    name = "/".join(part for part in (image.get("filepath"), image["filename"]) if part)
    return Captioned(name, image["split"], [text.strip() for text in raw])


def _token(line: tuple[int, str]) -> tuple[str, str]:
    number, text = line
    where, tab, caption = text.partition("\t")
    name, mark, count = where.rpartition("#")
    if not (tab and mark and name and count.isdigit() and caption.strip()):
        raise InputError(f"line {number}: it must be 'picture.jpg#number', a tab and a caption, got {text!r}")
    return name, caption.strip()


def _names(path: Path, key: str, known: Sequence[str]) -> list[str]:
    """The pictures that a list names, as the captions name them."""
    of = dict.fromkeys(known) | {Path(name).stem: name for name in known}
    listed = [line.strip() for line in read_text(path, key).splitlines() if line.strip()]
    if unknown := [name for name in listed if name not in of]:
        raise InputError(f"{key}: {path} names {len(unknown)} picture(s) without a caption, e.g. {unknown[0]}")
    return [of[name] or name for name in listed]


def _places(names: Sequence[str], by_split: Mapping[Split, Sequence[str]]) -> dict[Split, array]:
    """Where the pictures of each split stand among all, in the order of a hash."""
    of = {name: place for place, name in enumerate(names)}
    return {split: array("L", [of[name] for name in by_hash(some)]) for split, some in by_split.items()}


def _rounds(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Which entry, and which of its captions: every entry's first one, then the second ones."""
    for number in range(max(counts, default=0)):
        yield from ((entry, number) for entry, count in enumerate(counts) if number < count)
