"""extrapolating: from shapes of few layers to the whole model, by a straight line in their numbers."""

from collections.abc import Sequence
from dataclasses import replace

from alignlab.backbones.depth import Depths
from alignlab.experiment.probing import Probe


def few_layers(whole: Depths) -> tuple[tuple[int, int], ...]:
    """Layers of language model and vision tower to try: a base, one more of the first, one more of the second."""
    least = whole.least_vision
    return (1, least), (2, least), (1, least + 1)


def straight_line(probes: Sequence[Probe], whole: Depths) -> tuple[Probe, str | None]:
    """What the whole model takes.

    Operations, weights and bytes are linear in the layers. Seconds are so but for what else the machine does: where
    start or slopes of their line are not positive, they are those of the operations at the rate of the largest shape.

    Args:
        probes: Of the shapes of ``few_layers``, in their order.

    Returns:
        What was found, its seconds positive; and a note, where these were found in the second way.
    """
    base, text, vision = probes
    (base_text, base_vision), *_ = few_layers(whole)
    # Layers that a batch does not run, as a vision tower's on texts alone, take no time.
    slopes = [each - base if each.flops > base.flops else replace(each - base, seconds=0.0) for each in (text, vision)]
    found = base + slopes[0] * (whole.text - base_text) + slopes[1] * (whole.vision - base_vision)
    start = base - slopes[0] * base_text - slopes[1] * base_vision
    rising = all(slope.seconds > 0 for slope in slopes if slope.flops > 0)
    if rising and start.seconds > 0:
        return found, None
    largest = max(probes, key=lambda each: each.flops)
    note = "the seconds of the few layers lie on no rising line, as on a busy machine, so the time is the exact number "
    note += f"of FLOPs at the rate of the largest shape tried ({largest.seconds:.3g} s)"
    return replace(found, seconds=found.flops * largest.seconds / largest.flops), note
