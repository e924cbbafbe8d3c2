"""running: how the layers of a backbone are run, which changes what they cost and not what they compute."""

from transformers import PreTrainedModel

from alignlab.errors import InputError
from alignlab.modules.parted import Parted, layers_of


def recompute_layers(backbone: Parted) -> None:
    """Keep no activations within layers while training: the backward pass computes them once more.

    Nothing else is trained by it, as frozen embeddings, since the recomputation needs no gradient of a layer's inputs.

    Raises:
        InputError: Its layers cannot.
    """
    for model in _outermost(backbone.model):
        try:
            model.activation_checkpointing_enable({"use_reentrant": False})
        except ValueError:
            raise InputError(
                f"backbone.gradient_checkpointing: {backbone.path} has a {type(model).__name__}, whose layers cannot be "
                "computed once more; leave it false"
            ) from None
        # Transformers lets embeddings ask for gradients, too, through which frozen towers would be run backwards.
        model.disable_input_require_grads()


def compile_layers(backbone: Parted) -> None:
    """Have ``torch.compile`` translate each layer when it is first run; names and weights stay as they are.

    Layers of one kind share what is compiled. Sizes are taken as changing from the start.
    """
    for layer in layers_of(backbone.model):
        layer.compile(dynamic=True)


def _outermost(model) -> list[PreTrainedModel]:
    if isinstance(model, PreTrainedModel):
        return [model]
    return [each for child in model.children() for each in _outermost(child)]
