"""vocabulary: the tokens that stand for pictures in a text: start, end and the codes of a visual tokenizer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from alignlab.adapters import has_adapters
from alignlab.errors import InputError

if TYPE_CHECKING:
    from alignlab.backbones.backbone import Backbone

START, END, CODE = "<visual_start>", "<visual_end>", "<visual_{}>"


@dataclass(frozen=True)
class VisualVocabulary:
    """The ids of the visual tokens of a text tokenizer.

    Args:
        start: Before a picture.
        end: Behind it.
        first: Of code 0; the others follow.
        num_codes: K.
    """

    start: int
    end: int
    first: int
    num_codes: int

    @classmethod
    def of(cls, tokenizer: Any) -> Self | None:
        """That of a tokenizer; None: it has none.

        Raises:
            InputError: The codes' ids do not follow one another.
        """
        start, end, first = tokenizer.convert_tokens_to_ids([START, END, CODE.format(0)])
        if {None, tokenizer.unk_token_id} & {start, end, first}:
            return None
        beyond = first + 1
        while tokenizer.convert_ids_to_tokens(beyond) == CODE.format(beyond - first):
            beyond += 1
        own = [token for token in tokenizer.get_added_vocab() if token.startswith(CODE.split("{")[0])]
        if len(own) != 2 + beyond - first:
            raise InputError(f"the text tokenizer has {len(own) - 2} visual codes, whose ids do not follow one another")
        return cls(start, end, first, beyond - first)

    def ids(self, codes: Tensor) -> Tensor:
        """The ids of codes, both (...) long."""
        return codes + self.first

    def codes(self, ids: Tensor) -> Tensor:
        """The codes of ids, both (...) long."""
        return ids - self.first

    def among(self, ids: Tensor) -> Tensor:
        """Which ids (...) are those of codes."""
        return (ids >= self.first) & (ids < self.first + self.num_codes)

    def tokens(self, size: int, device: torch.device) -> Tensor:
        """Which of ``size`` ids are visual, (size,) bool."""
        ids = torch.arange(size, device=device)
        return self.among(ids) | (ids == self.start) | (ids == self.end)


def add_visual_tokens(backbone: "Backbone", num_codes: int) -> VisualVocabulary:
    """Give the text tokenizer start, end and codes, and the language model rows for them, unless they are there.

    New rows are drawn as the old ones are: normal, with mean and deviation of each column, from torch's global
    generator. The tokens are special: decoding leaves them out.

    Raises:
        InputError: There are no codes, or others are there, or the language model has adapters.
    """
    known = backbone.encoder.visual
    if known is not None and known.num_codes == num_codes:
        return known
    if known is not None:
        raise InputError(
            f"backbone: {backbone.path} has tokens for {known.num_codes} visual codes, and the visual tokenizer has "
            f"{num_codes}; begin with a backbone that has none"
        )
    if num_codes < 1:
        raise InputError("backbone: add_visual_tokens needs a visual tokenizer with codes; give it a quantizer first")
    if has_adapters(backbone.parts["language_model"]):
        raise InputError(
            f"backbone: the language model of {backbone.path} has adapters, which fit no larger vocabulary; call "
            "add_visual_tokens before the adapter, in an earlier stage, say"
        )
    tokenizer = backbone.encoder.tokenizer
    tokenizer.add_tokens([START, END, *map(CODE.format, range(num_codes))], special_tokens=True)
    visual = VisualVocabulary.of(tokenizer)
    _extend(backbone.model, max(visual.first + num_codes, visual.end + 1), tokenizer.convert_tokens_to_ids(START))
    backbone.encoder.visual = visual
    backbone.changed = backbone.changed | {"language_model"}
    return visual


def _extend(model: Any, size: int, first: int) -> None:
    """Give a model's vocabulary at least ``size`` tokens, those from ``first`` on new."""
    maps = {id(each.weight): each for each in _maps(model)}.values()
    trains = [each.weight.requires_grad for each in maps]
    if size > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(size, mean_resizing=False)
    maps = {id(each.weight): each for each in _maps(model)}.values()
    for each, training in zip(maps, trains, strict=True):
        each.requires_grad_(training)
        if not each.weight.is_meta:
            _draw(each, first)


def _maps(model: Any) -> tuple[nn.Module, nn.Module]:
    return model.get_input_embeddings(), model.get_output_embeddings()


@torch.no_grad()
def _draw(each: nn.Module, first: int) -> None:
    for values in (each.weight, getattr(each, "bias", None)):
        if values is not None:
            old, new = values[:first].float(), values[first:]
            mean, deviation = old.mean(0), old.std(0)
            new.copy_(torch.randn(new.shape, device=new.device) * deviation + mean)
