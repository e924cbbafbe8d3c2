"""teachers: what makes embeddings of contents: a backbone, or a model of sentence-transformers."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from alignlab.backbones import Backbone, DualEncoder
from alignlab.batch import Content
from alignlab.data.identity import words
from alignlab.errors import InputError
from alignlab.modules.fingerprints import weights_fingerprint


class Teacher(Protocol):
    """Makes embeddings.

    Args:
        name: What it was read from.
        fingerprint: Of its modules and weights.
    """

    name: str
    fingerprint: str

    def embed(self, contents: Sequence[Content]) -> Tensor:
        """Embeddings (B, E) float32 on the CPU, not normalised."""
        ...


class BackboneTeacher:
    """A backbone's embeddings, of texts and pictures; it is put in evaluation mode.

    Of a dual encoder whose texts a language model reads, they are that model's, of texts alone and before the adapter,
    which is what LLM2CLIP trains on.
    """

    def __init__(self, backbone: Backbone | DualEncoder, name: str) -> None:
        self.backbone, self.name = backbone.eval(), name
        self.fingerprint = weights_fingerprint(backbone)

    @torch.no_grad()
    def embed(self, contents: Sequence[Content]) -> Tensor:
        tokens = self.backbone.encoder.contents(contents).to(self.backbone.device)
        if isinstance(self.backbone, DualEncoder) and self.backbone.text_adapter is not None:
            if tokens.num_images.any():
                raise InputError(f"--model: {self.name} is to read texts here, but a target holds a picture")
            return self.backbone.read(tokens).float().cpu()
        return self.backbone.embed(tokens).float().cpu()


class SentenceTeacher:
    """A model of sentence-transformers: what it makes of the joined texts of a content.

    Args:
        name: Its directory, or its name on the hub.

    Raises:
        InputError: sentence-transformers is not installed, or there is no such model.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise InputError(
                f"--model {name} needs sentence-transformers, which is not installed: pip install 'alignlab[teacher]'"
            ) from None
        settings: dict[str, Any] = {"use_safetensors": True}
        try:
            self.model = SentenceTransformer(name, device=str(device), model_kwargs=settings)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"--model {name} cannot be read by sentence-transformers: {reason}") from None
        self.name = name
        self.fingerprint = weights_fingerprint(self.model)

    def embed(self, contents: Sequence[Content]) -> Tensor:
        texts = [words(content) for content in contents]
        if not all(texts):
            raise InputError(f"{self.name} reads text alone, but a target has none; a backbone reads pictures, too")
        encoded = self.model.encode(texts, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False)
        return encoded.float().cpu()
