"""units: seconds, bytes and counts in words."""

LENGTHS = ((86400.0, "days", 48 * 3600.0), (3600.0, "h", 100 * 60.0), (60.0, "min", 100.0))
"""Seconds of a unit, its name, and the seconds from which on it is used."""

PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def duration(seconds: float) -> str:
    """Seconds with up to three digits, from 100 s on in minutes, hours or days: 12.3 min."""
    for size, name, least in LENGTHS:
        if seconds >= least:
            return f"{_digits(seconds / size)} {name}"
    return f"{_digits(seconds)} s" if seconds >= 0.001 else "less than 0.001 s"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def scaled(value: float) -> str:
    """A number with three digits and the prefix of its unit: 12.3 T."""
    for factor, prefix in PREFIXES:
        if value >= 0.9995 * factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def count(value: float) -> str:
    """A number of things: 1,310 or 12.3 M."""
    if value >= 999_999.5:
        return scaled(value)
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def size(num_bytes: float) -> str:
    """Bytes in GiB or MiB."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
