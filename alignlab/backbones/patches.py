"""patches: what a vision-language model's projector is given of each picture, and the pictures as it sees them."""

from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from alignlab.batch import Tokens
from alignlab.errors import InputError
from alignlab.functional import upcast
from alignlab.modules.parted import evaluating
from alignlab.modules.tokenizer import PictureTokenizer

if TYPE_CHECKING:
    from alignlab.backbones.backbone import Backbone


def patch_features(backbone: "Backbone", tokens: Tokens) -> Tensor:
    """The vision tower's features, as the projector is given them, (P, N, C), in the order of the pictures.

    Without gradient where the tower does not train.

    Raises:
        InputError: There is no picture, or pictures are not of one number of patches each.
    """
    return encoded(backbone, tokens)[0]


def encoded(backbone: "Backbone", tokens: Tokens) -> tuple[Tensor, Any]:
    """``patch_features``, and what the model makes of all of them, in its own form."""
    if not tokens.num_images.any():
        raise InputError("patch_features needs pictures, and these sequences have none")
    tower = backbone.model.get_encoder(modality="image")
    trains = any(parameter.requires_grad for parameter in tower.parameters())
    with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
        found, features = _projected(backbone, _pictures(backbone, tokens.vision))
    count, shown = int(tokens.num_images.sum()), int(tokens.image_mask.sum())
    if found.shape[0] != count or count * found.shape[1] != shown:
        raise InputError(
            f"backbone.path: {backbone.path} gives features {tuple(found.shape)} of {count} pictures with {shown} "
            "placeholders; patch features are of as many patches a picture as it has placeholders"
        )
    return found, features


def pixels(backbone: "Backbone", tokens: Tokens) -> Tensor:
    """The pictures as the vision tower sees them, (P, 3, H, W) in [0, 1], the processor's normalisation undone.

    Raises:
        InputError: Pictures come in another form, as patches, say.
    """
    values, count = tokens.vision.get("pixel_values"), int(tokens.num_images.sum())
    if not isinstance(values, Tensor) or values.dim() != 4 or values.shape[:2] != (count, 3):
        came = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"pixels needs pixel_values (P, 3, H, W) of {count} pictures, got {came}")
    made, values = backbone.encoder.image_processor, upcast(values)
    if made.do_normalize:
        mean, std = (values.new_tensor(each)[:, None, None] for each in (made.image_mean, made.image_std))
        values = values * std + mean
    if made.do_rescale:
        values = values / (255 * made.rescale_factor)
    return values.clamp(0, 1)


def projector_of(backbone: "Backbone") -> nn.Module:
    """The one module between vision tower and decoder.

    Raises:
        InputError: There are others beside it, or none.
    """
    modules = [each for each in backbone.parts["projector"] if any(True for _ in each.parameters())]
    if len(modules) != 1 or isinstance(modules[0], nn.ParameterList):
        raise _refused(backbone, "it has no one projector between vision tower and decoder")
    return modules[0]


def check_fits(backbone: "Backbone", tokenizer: PictureTokenizer) -> None:
    """Raise InputError unless a visual tokenizer reads what this backbone's vision tower gives of each picture.

    One that predicts features has to know the width of its states, too.
    """
    num_patches, dim = check_patchwise(backbone)
    if (tokenizer.num_patches, tokenizer.dim) != (num_patches, dim):
        raise InputError(
            f"backbone.visual_tokenizer: {backbone.path} gives {num_patches} patches of width {dim} a picture, and the "
            f"tokenizer reads {tokenizer.num_patches} of width {tokenizer.dim}"
        )
    width = state_width(backbone)
    if tokenizer.width not in (None, width):
        raise InputError(
            f"backbone.visual_tokenizer: {backbone.path} has states of width {width}, and the tokenizer predicts "
            f"features from states of width {tokenizer.width}"
        )


def check_patchwise(backbone: "Backbone") -> tuple[int, int]:
    """Raise InputError unless some of a picture's patches can be left out of what the decoder reads.

    That takes a projector that maps each patch by itself to one position, position ids of one axis, and a decoder that
    does not look both ways within a picture. What the weights do is tried out on a picture; on the meta device, its
    shape alone.

    Returns:
        Patches N of a picture, and the width C of their features.
    """
    if backbone.head is None:
        raise _refused(backbone, "it has no language model that reads them")
    base = backbone.model.base_model
    if "mm_encoder_outputs" not in signature(backbone.model.forward).parameters:
        raise _refused(backbone, "it does not take the features of pictures in place of pictures")
    if hasattr(base, "get_rope_index"):
        raise _refused(backbone, "its position ids say where in a picture a patch is")
    if "token_type_ids" in signature(base.forward).parameters:
        raise _refused(backbone, "its decoder looks both ways within a picture")
    projector = projector_of(backbone)
    shown = Image.radial_gradient("L").convert("RGB")
    process = partial(backbone.encoder.image_processor, return_tensors="pt")
    picture, wide = process(images=[shown]), process(images=[shown.resize((512, 128))])
    if picture["pixel_values"].shape != wide["pixel_values"].shape:
        raise _refused(backbone, "a picture has more or fewer patches by its shape")
    device = backbone.model.device
    pictures = {key: each.to(device) for key, each in picture.items() if isinstance(each, Tensor)}
    with evaluating(backbone), torch.no_grad():
        try:
            found, given = _projected(backbone, _pictures(backbone, pictures))
            places = torch.arange(found.shape[1] - 1, -1, -1, device=device)
            turned = projector(found[:, places])
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise _refused(backbone, "its projector does not map patch by patch") from error
        pooled = given.pooler_output
        parts = [pooled] if isinstance(pooled, Tensor) else pooled
        rows = torch.cat([each.reshape(-1, each.shape[-1]) for each in parts])
        same = turned.shape[:2] == found.shape[:2] and rows.shape == turned.shape[1:]
        if not same or not (rows.is_meta or _close(turned[0, places], rows)):
            raise _refused(backbone, "its projector does not map patch by patch")
    return found.shape[1], found.shape[2]


def patch_grid(backbone: "Backbone", num_patches: int) -> tuple[tuple[int, int], int]:
    """How many patches stand below and beside each other in a picture, and a patch's side in pixels.

    Raises:
        InputError: Pictures are not of square patches.
    """
    picture = backbone.encoder.image_processor(images=[Image.new("RGB", (64, 64))], return_tensors="pt")
    height, width = picture["pixel_values"].shape[-2:]
    side = round((height * width / num_patches) ** 0.5)
    if height % side or width % side or height * width != num_patches * side**2:
        raise InputError(
            f"backbone.path: pictures of {backbone.path} have {height} x {width} pixels, which are not {num_patches} "
            "square patches; decode their pixels by another decoder than PatchPixels"
        )
    return (height // side, width // side), side


def state_width(backbone: "Backbone") -> int:
    """Width D of the decoder's states."""
    return backbone.model.config.get_text_config().hidden_size


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether two results of the same sums agree, but for rounding."""
    rounding = 3e-2 if other.element_size() < 4 else 1e-3
    return bool((one - other).abs().max() <= rounding * other.abs().max())


def _pictures(backbone: "Backbone", vision: Any) -> dict[str, Any]:
    return {key: value for key, value in vision.items() if key in backbone.image_arguments}


def _projected(backbone: "Backbone", pictures: dict[str, Any]) -> tuple[Tensor, Any]:
    """What the projector is given, and the model's own features."""
    given: list[Tensor] = []

    def note(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given.append((*arguments, *named.values())[0])

    hook = projector_of(backbone).register_forward_pre_hook(note, with_kwargs=True)
    try:
        features = backbone.model.get_image_features(**pictures, return_dict=True)
    finally:
        hook.remove()
    if len(given) != 1 or given[0].dim() != 3:
        raise _refused(backbone, "its projector does not map patch by patch")
    return given[0], features


def _refused(backbone: "Backbone", why: str) -> InputError:
    return InputError(
        f"backbone.path: {backbone.path}, a {type(backbone.model).__name__}, cannot read some of a picture's patches "
        f"alone: {why}; a visual tokenizer goes with a model such as LLaVA"
    )
