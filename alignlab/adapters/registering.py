"""registering: makes PLoRA a method that peft knows; what it does to peft's private tables is here alone."""

import peft
from packaging.version import Version
from peft.utils import peft_types

from alignlab.errors import InputError

SUPPORTED = ("0.21", "0.23")
"""From the first up to, but without, the second: what PLoRA overrides is private to peft."""


def add_type(name: str) -> peft.PeftType:
    """Add a member to peft's enumeration of methods, which it offers no way to extend.

    A process that has not done so cannot read such adapters (KeyError), so none takes them for LoRA.

    Raises:
        InputError: The installed peft is another than those that this was tried with, or has such a method.
    """
    low, high = map(Version, SUPPORTED)
    if not low <= Version(peft.__version__) < high:
        raise _unsupported("")
    try:
        member = str.__new__(peft.PeftType, name)
        member._name_, member._value_, member.__objclass__ = name, name, peft.PeftType
        member._sort_order_ = len(peft.PeftType)
        if name in peft.PeftType.__members__:
            raise ValueError(f"it has a method {name} already")
        setattr(peft.PeftType, name, member)
        peft.PeftType._member_map_[name] = peft.PeftType._value2member_map_[name] = member
        peft.PeftType._member_names_.append(name)
        if peft.PeftType(name) is not member or member not in list(peft.PeftType):
            raise ValueError("its enumeration of methods cannot be extended")
    except (AttributeError, TypeError, ValueError) as error:
        raise _unsupported(f" ({error})") from None
    return member


def register(name: str, config: type[peft.PeftConfig], model: type[peft.tuners.tuners_utils.BaseTuner]) -> None:
    """Tell peft which classes a method's adapters have.

    Raises:
        InputError: The installed peft takes no methods of others.
    """
    try:
        peft_types.register_peft_method(name=name.lower(), config_cls=config, model_cls=model, prefix=model.prefix)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unsupported(f" ({error})") from None


def _unsupported(why: str) -> InputError:
    low, high = SUPPORTED
    return InputError(
        f"PLoRA needs peft >={low},<{high}, whose inner parts it builds on; {peft.__version__} is installed{why}; "
        f'this would do: pip install "peft>={low},<{high}"'
    )
