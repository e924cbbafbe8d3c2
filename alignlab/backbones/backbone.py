"""Backbone: one interface over the vision-language models of transformers."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.adapters import has_adapters
from alignlab.backbones import blind, drawing, dynamic, patches, regressing, vlm
from alignlab.backbones.answers import Answers, apart, is_causal, joined, masks_given, one_prompt, takes_masks
from alignlab.backbones.encoding import Encoder
from alignlab.backbones.featurecache import CachedTower, cache_features
from alignlab.backbones.parts import parts_of
from alignlab.backbones.saving import TOKENIZER, beneath, read_tokenizer, save_adapted, save_tokenizer
from alignlab.backbones.vocabulary import VisualVocabulary, add_visual_tokens
from alignlab.batch import Tokens
from alignlab.errors import InputError
from alignlab.functional import supervised, upcast
from alignlab.modules.parted import PARTS, Attention, Dtype, Part, Parted, evaluating, start_of
from alignlab.modules.tokenizer import PictureTokenizer


@dataclass(frozen=True)
class Output:
    """What a forward pass gives.

    Args:
        logits: (B, T, V), or (M, V) at the M positions asked for.
        hidden: (B, T, D), the decoder's last states, after its final norm.
    """

    logits: Tensor
    hidden: Tensor


class Backbone(Parted):
    """A vision-language model: vision tower, projector and language model, with its processor.

    Any directory that ``AutoModelForImageTextToText`` and ``AutoProcessor`` load; parts, placeholders and
    capabilities are read off the model, not off its name. All parts train until an adapter says otherwise, but for
    those that were saved with adapters: these are frozen, and their adapters with them.

    Beside the parts there may be a visual tokenizer, which is read and saved with them, and set by assigning it. Once
    it has a merger for the language model, or is ``discrete``, the language model reads of each picture the patches
    that it keeps, and no others.

    Args:
        path: Name of a packaged checkpoint, a directory, or a hub name.
        fresh: Parts to start from random weights, drawn from torch's global generator.
        take: Parts to take from other backbones of the same shape, part -> path.
        dtype: The parameters' type.
        attention: The attention implementation of transformers.
        max_length: Longest sequence in tokens; None: no limit.
        features: A folder in which a frozen vision tower's features are kept, of any towers and for any number of
            trainings; see ``featurecache``. None: they are computed each time.

    Raises:
        InputError: The directory is missing or holds no such model, a part does not fit, or the vision tower's features
            cannot be kept by picture.
    """

    feature_cache: CachedTower | None = None
    logit_scale = None
    logit_bias = None
    """The logarithm of the scale, and the bias, that its cosines were trained with: it has none."""

    def __init__(
        self,
        path: str = "scenes-parts",
        *,
        fresh: Sequence[Part] = (),
        take: Mapping[Part, str] | None = None,
        dtype: Dtype = "float32",
        attention: Attention = "sdpa",
        max_length: int | None = None,
        features: str | None = None,
    ) -> None:
        super().__init__()
        self.path, self.start = path, start_of(path, fresh, take)
        settings = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
        self.model = vlm.read(path, settings) if set(fresh) != set(PARTS) else vlm.draw(path, settings)
        if fresh and set(fresh) != set(PARTS):
            self.transplant(parts_of(vlm.draw(path, settings)), fresh, "fresh")
        for part, donor in (take or {}).items():
            self.transplant(vlm.giving(donor, part, settings), (part,), f"take from {donor}")
        self.base, before = beneath(path)
        self.changed = before | {*fresh, *(take or ())}
        self.encoder = Encoder.load(path, max_length=max_length)
        self.visual_tokenizer: PictureTokenizer | None = None
        if (tokenizer := read_tokenizer(path, self.model)) is not None:
            self.visual_tokenizer = tokenizer
        elif self.encoder.visual is not None:
            raise InputError(
                f"backbone.path: {path} has words for {self.encoder.visual.num_codes} visual codes, but the visual "
                f"tokenizer that makes and decodes them is missing; put {TOKENIZER}/ back into a directory of all that "
                "was saved or exported, which hub names cannot give"
            )
        if features is not None:
            self.feature_cache = cache_features(self, features)
        self.train()  # transformers loads models in evaluation mode

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "visual_tokenizer" and value is not None:
            patches.check_fits(self, value)
        super().__setattr__(name, value)

    @property
    def parts(self) -> dict[str, nn.ModuleList]:
        """The modules of each part; the projector is what stands between the vision tower and the decoder."""
        return parts_of(self.model)

    @property
    def head(self) -> nn.Module:
        return self.model.get_output_embeddings()

    @property
    def device(self) -> torch.device:
        return self.model.device

    def transplant(self, donor: Mapping[str, nn.ModuleList], parts: Sequence[Part], who: str) -> None:
        if adapted := [part for part in parts if has_adapters(self.parts[part])]:
            raise InputError(f"backbone: {who}: the {adapted[0]} of {self.path} has adapters, which fit no other one")
        super().transplant(donor, parts, who)

    def forward(self, tokens: Tokens, *, logits_at: Tensor | None = None, features: Any = None) -> Output:
        """Run the model once.

        Args:
            tokens: B sequences.
            logits_at: (B, T) bool; the LM head runs on these M positions only. None: everywhere.
            features: Result of ``features``, so that several passes encode the pictures once.
        """
        hidden = self.hidden(tokens, features=features)
        states = hidden if logits_at is None else hidden[logits_at]
        return Output(logits=self._head(states), hidden=hidden)

    def hidden(self, tokens: Tokens, *, features: Any = None) -> Tensor:
        """The decoder's last states (B, T, D), after its final norm, without the LM head.

        Where pictures are read through the visual tokenizer, or ``features`` is a ``dynamic.Reading``, zero at dropped
        patches and padding: ``dynamic.whole``.
        """
        if features is None and dynamic.reads_kept(self) and tokens.image_mask.any():
            features = dynamic.read(self, tokens)
        if not isinstance(features, dynamic.Reading):
            return self._states(tokens, features)
        short, places = dynamic.shortened(tokens, features, self.encoder.pad_id)
        return dynamic.whole(self._states(short, None), tokens, features, places)

    def _states(self, tokens: Tokens, features: Any) -> Tensor:
        # The mask is always passed: without one, transformers reads gapped positions as packed sequences.
        output = self.model.base_model(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            use_cache=False,
            **self._encoded(tokens, features),
        )
        return output.last_hidden_state

    def features(self, tokens: Tokens, *, tape: list[Any] | None = None) -> Any:
        """Encode the pictures alone, in a form for ``hidden``; None where there are none or the family cannot share.

        Args:
            tape: What a vision tower that does not train gives for these pictures: filled where it is empty, else read
                in place of running the tower, though the projector be another by now.
        """
        if not self._shares_features or not tokens.num_images.any():
            return None
        pictures = {key: value for key, value in tokens.vision.items() if key in self.image_arguments}
        with self._taping(tape):
            if dynamic.reads_kept(self):
                return dynamic.read(self, tokens)
            return self.model.get_image_features(**pictures, return_dict=True)

    def answers(self, chosen: Tokens, rejected: Tokens, prompt_lengths: Tensor) -> Answers:
        """Two answers to each of B prompts, for ``answer_logps``.

        Prompt and pictures are computed once for both answers where that is exact: with an attention that takes a mask
        of who looks at whom, in decoders that see all before them, by position ids. Else each answer has its own.

        Args:
            chosen: Prompts with the one answer at their end.
            rejected: The same prompts, and pictures, with the other.
            prompt_lengths: (B,) long, real tokens before the answers.
        """
        if self.may_join(chosen, rejected, prompt_lengths):
            positions = self._positions(chosen), self._positions(rejected)
            one = joined(chosen, rejected, prompt_lengths, positions, self.encoder.pad_id, self.model.dtype)
            if self._joins(one, chosen):
                return one
        return apart(chosen, rejected, prompt_lengths)

    def may_join(self, chosen: Tokens, rejected: Tokens, prompt_lengths: Tensor) -> bool:
        """Whether ``answers`` computes prompts once, as far as the sequences decide it."""
        reach = blind.horizon(self.model.get_decoder())
        width = chosen.input_ids.shape[1] + rejected.input_ids.shape[1]
        within = reach is None or width <= reach
        return within and not dynamic.reads_kept(self) and one_prompt(chosen, rejected, prompt_lengths)

    def answer_logps(self, answers: Answers, *, features: Any = None) -> Tensor:
        """Log-probabilities of the chosen and of the rejected answers, (2, B), sums in nats; 0 of an empty one.

        The LM head runs on the states that predict their tokens alone; float32, or wider logits' type.

        Args:
            features: Result of ``features``, of the pictures of the prompts.
        """
        passes = zip(answers.sequences, answers.logits_at, strict=True)
        states = torch.cat([self.hidden(tokens, features=features)[at] for tokens, at in passes])
        logits = self._wide_logits(states)  # (M, V)
        return answers.sums(logits[answers.states, answers.targets] - logits.logsumexp(-1)[answers.states])

    def label_logits(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """The logit of one token each, (...), of states (..., D) and ids (...), without those of the others.

        In float32, or wider states' type, whatever the LM head's.
        """
        head = self.head
        if type(head) is not nn.Linear:  # an adapter's, say
            return upcast(self._head(hidden)).gather(-1, ids[..., None]).squeeze(-1)
        logits = (upcast(hidden) * upcast(head.weight[ids])).sum(-1)
        return self._capped(logits if head.bias is None else logits + upcast(head.bias[ids]))

    @torch.no_grad()
    def label_gains(self, tokens: Tokens, hidden: Tensor, blind_states: Tensor, *, everywhere: bool = False) -> Tensor:
        """How much larger each label's logit is than where less is seen of the pictures; without gradient.

        Args:
            tokens: B sequences of T tokens.
            hidden: (B, T, D), their states.
            blind_states: Result of ``label_states`` for the sequences that see less, (M, D).
            everywhere: Those are of all positions; where there is no label, the token of id 0 is looked up.

        Returns:
            (B, T - 1), float32 or wider, as ``functional.logit_gain``; 0 at other positions than those looked at, and
            in rows without pictures, where both passes are the same but for rounding and dropout.
        """
        labels, kept = tokens.labels[:, 1:], _looked_at(tokens, everywhere)
        ids = labels[kept].clamp(min=0)  # (M,)
        difference = self.label_logits(hidden[:, :-1][kept], ids) - self.label_logits(blind_states, ids)
        gains = difference.new_zeros(labels.shape).masked_scatter(kept, difference)
        return gains * tokens.image_mask.any(1, keepdim=True)

    def label_states(self, tokens: Tokens, *, everywhere: bool = False) -> Tensor:
        """The states that predict the labels, (M, D), row by row.

        Args:
            tokens: B sequences of T tokens.
            everywhere: Of all B (T - 1) positions that predict anything.
        """
        return self.hidden(tokens)[:, :-1][_looked_at(tokens, everywhere)]

    def without_images(
        self, tokens: Tokens, *, features: Any = None, hidden: Tensor | None = None, whole: bool = False
    ) -> Tokens:
        """The same text for a pass that cannot look at the pictures, its positions unchanged.

        Hidden positions are left out, which is exact: what they hold reaches no other. One that predicts a label stays
        without being looked at, so it still knows its own patch, and where nothing precedes it, how its attention is
        implemented. Where leaving out is inexact, as in decoders that count places (sliding windows over shorter
        stretches than the sequence), all stay and are masked.

        Args:
            tokens: B sequences of T tokens.
            features: Result of ``features``.
            hidden: (B, T) bool, other positions to hide than all of the pictures'.
            whole: Mask everywhere, so that all T positions have a state.

        Returns:
            Sequences for ``hidden``, which need no features besides; labels are predicted in the order of ``tokens``.

        Raises:
            InputError: Pictures are read through a visual tokenizer.
        """
        dynamic.check_hides(self, "without_images")
        hidden = tokens.image_mask if hidden is None else hidden
        positions, reach = self._positions(tokens), blind.horizon(self.model.get_decoder())
        if not whole and (reach is None or tokens.input_ids.shape[1] <= reach):
            short = blind.shortened(tokens, hidden, positions, self.encoder.pad_id, features)
            if short is not None:
                return short
        return blind.masked(tokens, hidden, positions, self._encoded(tokens, features))

    def embed(self, tokens: Tokens) -> Tensor:
        """State of every sequence's last real token, (B, D), not normalised; padding may stand on either side."""
        length = tokens.attention_mask.shape[1]
        last = length - 1 - tokens.attention_mask.flip(1).argmax(1)
        return self.hidden(tokens)[torch.arange(len(tokens), device=last.device), last]

    def generate(self, tokens: Tokens, *, max_new_tokens: int) -> list[str]:
        """Greedy answers to prompts padded on the left (``encoder.prompts``), special tokens stripped."""
        return self.encoder.decode(self.generate_ids(tokens, max_new_tokens=max_new_tokens))

    @torch.no_grad()
    def generate_ids(self, tokens: Tokens, *, max_new_tokens: int) -> Tensor:
        """The tokens of greedy answers, (B, L) long, none of them visual; behind an answer's end there is padding."""
        tokens = self.read_prompts(tokens)
        visual = self.encoder.visual
        ids = self.model.generate(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self.encoder.pad_id,
            logits_processor=None if visual is None else [drawing.Never(visual)],
            **tokens.vision,
        )
        return ids[:, tokens.input_ids.shape[1] :]

    def read_prompts(self, tokens: Tokens) -> Tokens:
        """What ``generate`` reads of prompts padded on the left: of pictures, the patches that are kept."""
        if not (dynamic.reads_kept(self) and tokens.image_mask.any()):
            return tokens
        return dynamic.shortened(tokens, dynamic.read(self, tokens), self.encoder.pad_id, side="left")[0]

    def ended(self, ids: Tensor) -> Tensor:
        """Whether generated answers (B, L) came to their end, (B,) bool, or were cut at the length they may have."""
        ends = self.model.generation_config.eos_token_id
        ends = self.encoder.tokenizer.eos_token_id if ends is None else ends
        return torch.isin(ids, torch.tensor(ends, device=ids.device)).any(1)

    def patch_features(self, tokens: Tokens) -> Tensor:
        """The vision tower's features as the projector is given them, (P, N, C); see ``patches.patch_features``."""
        return patches.patch_features(self, tokens)

    def pixels(self, tokens: Tokens) -> Tensor:
        """The pictures as the vision tower sees them, (P, 3, H, W) in [0, 1]; see ``patches.pixels``."""
        return patches.pixels(self, tokens)

    def add_visual_tokens(self) -> VisualVocabulary:
        """Give words to start and end of a picture and to the visual tokenizer's codes; see ``vocabulary``.

        From then on start and end stand around every picture. Where the tokens are there already, nothing happens.
        """
        num_codes = 0 if self.visual_tokenizer is None else self.visual_tokenizer.num_codes
        return add_visual_tokens(self, num_codes)

    def picture_sequences(self, prompts: Tokens, codes: Tensor, counts: Tensor, *, drop: Tensor) -> Tokens:
        """Prompts with the codes of a picture each behind them, to be trained on; see ``drawing.picture_sequences``."""
        return drawing.picture_sequences(self, prompts, codes, counts, drop=drop)

    def feature_sequences(self, prompts: Tokens, *, drop: Tensor) -> Tokens:
        """Prompts with a picture's placeholders each behind them; see ``regressing.feature_sequences``."""
        return regressing.feature_sequences(self, prompts, drop=drop)

    def draw(
        self,
        prompts: Tokens,
        *,
        guidance: float = 4.0,
        top_k: int = 50,
        temperature: float = 1.0,
        min_new_tokens: int = 1,
        max_new_tokens: int | None = None,
        seed: int | None = None,
    ) -> drawing.Drawing:
        """Draw a picture after each prompt: sample codes up to the end token, and decode them.

        Classifier-free guidance as LaVIT has it (Jin et al. 2023, https://arxiv.org/abs/2309.04669, and its code), with
        start alone as the unconditional branch.

        With a ``ContinuousTokenizer`` there are no codes: each token's features are predicted, and go through the
        projector as the next input, as many as the tokenizer has. There nothing is sampled or guided, and all arguments
        but the prompts are without effect.

        Args:
            prompts: P prompts padded on the left (``encoder.prompts``).
            guidance: w in log p_u + w (log p_c - log p_u); 1: none.
            top_k: The likeliest codes among which is drawn; 0: all.
            temperature: What log-probabilities are divided by; 0: the likeliest code is taken.
            min_new_tokens: Least number of codes of a picture.
            max_new_tokens: Largest number; None: N.
            seed: Of the samples, whatever torch's global generator has drawn; None: that generator.

        Raises:
            InputError: There is no tokenizer whose codes have tokens, or a number is out of range.
        """
        if self.visual_tokenizer is None:
            raise InputError(f"backbone: {self.path} draws no pictures: it has no visual tokenizer")
        if not self.visual_tokenizer.writes_codes:
            return regressing.draw(self, prompts)
        longest = self.visual_tokenizer.num_patches if max_new_tokens is None else max_new_tokens
        sampling = drawing.Sampling(guidance, top_k, temperature, min_new_tokens, longest)
        return drawing.draw(self, prompts, sampling, seed=seed)

    def save(self, folder: Path | str, *, dtype: Dtype | None = None) -> None:
        """Write a directory that plain transformers loads (safetensors), in ``dtype`` if given.

        With adapters, a small one that is read beside the model they were trained from; see ``save_adapted``. A visual
        tokenizer is written into ``visual_tokenizer/`` beside either, in its own type.
        """
        if self.feature_cache is not None:
            self.feature_cache.flush()  # what was trained and judged is read by others from now on
        save_tokenizer(self.visual_tokenizer, Path(folder))
        if has_adapters(self.model):
            self.encoder.processor.save_pretrained(folder)
            save_adapted(self, Path(folder), self.base, dtype)
            return
        weights = self.model.state_dict()
        if dtype is not None:
            weights = {key: value.to(getattr(torch, dtype)) for key, value in weights.items()}
        self.model.save_pretrained(folder, state_dict=weights)
        self.encoder.processor.save_pretrained(folder)

    @cached_property
    def _shares_features(self) -> bool:
        return "mm_encoder_outputs" in signature(self.model.forward).parameters

    @contextmanager
    def _taping(self, tape: list[Any] | None) -> Iterator[None]:
        tower = self.model.get_encoder(modality="image")
        if tape is None or any(parameter.requires_grad for parameter in tower.parameters()):
            yield
        elif tape:
            given, cached = iter(tape), vars(tower).get("forward")
            tower.forward = lambda *arguments, **named: copy.copy(next(given))  # some models write into what they get
            try:
                yield
            finally:
                del tower.forward
                if cached is not None:
                    tower.forward = cached
        else:
            hook = tower.register_forward_hook(lambda module, given, output: tape.append(copy.copy(output)))
            try:
                yield
            finally:
                hook.remove()

    def _joins(self, one: Answers, chosen: Tokens) -> bool:
        """Whether the decoder heeds the masks of sequences with both answers, and has no rules of its own besides.

        Found out once for texts and once for pictures, in each mode, by what its parts are given.
        """
        decoder, kind = self.model.get_decoder(), (bool(one.sequences[0].image_mask.any()), self.training)
        if decoder.config._attn_implementation not in ("sdpa", "eager"):
            return False
        if kind not in self._joinable:
            # A compiled layer does not notice who watches it.
            eager = torch.compiler.set_stance("force_eager")
            with eager, torch.no_grad(), torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                with masks_given(decoder) as given:
                    self.hidden(one.sequences[0])
                heeded = takes_masks(one.sequences[0].attention_mask, given)
                with masks_given(decoder) as given:
                    self.hidden(chosen)
            self._joinable[kind] = heeded and is_causal(chosen, given)
        return self._joinable[kind]

    @cached_property
    def _joinable(self) -> dict[tuple[bool, bool], bool]:
        return {}

    def _wide_logits(self, states: Tensor) -> Tensor:
        """Logits in float32 or the states' wider type, in which a plain head multiplies, too: half loses too much."""
        head = self.head
        if type(head) is not nn.Linear:  # an adapter's, say
            return upcast(self._head(states))
        with torch.autocast(states.device.type, enabled=False):
            if head.weight.dtype == upcast(states).dtype:
                return self._head(upcast(states))
            bias = None if head.bias is None else upcast(head.bias)
            return self._capped(nn.functional.linear(upcast(states), upcast(head.weight), bias))

    @cached_property
    def image_arguments(self) -> frozenset[str]:
        """The keywords of ``vision`` that the model encodes pictures from."""
        # A model may pass on by keyword what its base model names.
        methods = (self.model.get_image_features, self.model.base_model.get_image_features)
        return frozenset(name for method in methods for name in signature(method).parameters) - {"kwargs"}

    def _encoded(self, tokens: Tokens, features: Any) -> dict[str, Any]:
        """The vision inputs, with features in place of pictures where there are some."""
        if features is None:
            return dict(tokens.vision)
        # What places pictures among positions, such as their grids, is needed still.
        vision = {key: value for key, value in tokens.vision.items() if not key.startswith("pixel_")}
        return vision | {"mm_encoder_outputs": {"image": features}}

    def _positions(self, tokens: Tokens) -> Tensor:
        """The position ids that the model gives whole sequences: (B, T), or (3, B, T) where they are of three axes."""
        count = getattr(self.model.base_model, "get_rope_index", None)
        if count is not None and tokens.image_mask.any():
            known = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, **tokens.vision}
            return count(**{key: value for key, value in known.items() if key in signature(count).parameters})[0]
        return torch.arange(tokens.input_ids.shape[1], device=tokens.input_ids.device).expand_as(tokens.input_ids)

    def _head(self, states: Tensor) -> Tensor:
        return self._capped(self.head(states))

    def _capped(self, logits: Tensor) -> Tensor:
        return _bounded(logits, self._cap)

    @cached_property
    def _cap(self) -> float | None:
        """The bound that the model puts on its logits; some families' configs name one that they do not use.

        Raises:
            InputError: The model does something else with what its head gives.
        """
        # Not padding, whose embedding may be 0, of which all heads make the same.
        end = self.encoder.tokenizer.eos_token_id
        text = torch.full((1, 2), self.encoder.pad_id if end is None else end, device=self.device)
        with evaluating(self), torch.no_grad():
            official = self.model(input_ids=text, attention_mask=torch.ones_like(text), use_cache=False).logits
            states = self.model.base_model(input_ids=text, attention_mask=torch.ones_like(text), use_cache=False)
            logits = self.head(states.last_hidden_state)
        named = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        for cap in (None, named):
            if torch.allclose(_bounded(logits, cap), official, rtol=1e-3, atol=1e-4, equal_nan=True):
                return cap
        raise InputError(
            f"backbone.path: {type(self.model).__name__} of {self.path} gives other logits than its head, which it "
            "scales, say; alignlab runs the head on few positions, and does not know how to do the same"
        )


def _looked_at(tokens: Tokens, everywhere: bool) -> Tensor:
    """The positions that predict a label, or all that predict anything, (B, T - 1) bool."""
    kept = supervised(tokens.labels)
    return torch.ones_like(kept) if everywhere else kept


def _bounded(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else torch.tanh(logits / cap) * cap
