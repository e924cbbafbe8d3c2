"""wording: numbers, intervals and settings as a report says them."""

from alignlab.study.statistics import Interval

MINUS = "\N{MINUS SIGN}"


def score(interval: Interval | None) -> str:
    """A mean with its half width: 0.912 ± 0.021."""
    if interval is None:
        return "n/a"
    digits = _digits(interval.mean)
    half = "n/a" if interval.half_width is None else f"{interval.half_width:.{digits}f}"
    return f"{interval.mean:.{digits}f} ± {half}"


def signed(value: float) -> str:
    """A difference with its sign: +0.021."""
    text = f"{value:+.{_digits(value)}f}"
    return text.replace("-", MINUS) if float(text) else "0.000"


def _digits(value: float) -> int:
    """Behind the point, fewer of numbers with many before it."""
    return 3 if abs(value) < 1000 else 1 if abs(value) < 10_000 else 0


def bounds(interval: Interval) -> str:
    """The ends of a difference's interval: [+0.003, +0.039]."""
    if interval.low is None or interval.high is None:
        return "n/a"
    return f"[{signed(interval.low)}, {signed(interval.high)}]"


def number(value: float | None) -> str:
    """A count with thin spaces between thousands, as it reads in every language."""
    return "n/a" if value is None else f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def count(amount: int, noun: str) -> str:
    """One pair, two pairs, in digits."""
    return f"{amount} {noun}" if amount == 1 else f"{amount} {noun}s"


def setting(value: object) -> str:
    """A config value as YAML would have it, on one line."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
