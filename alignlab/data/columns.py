"""columns: which column of a table is which field of an example, and the example that a row makes."""

from collections.abc import Mapping, Sequence
from typing import Any

from alignlab.batch import Content, Example, Part, Turn
from alignlab.errors import InputError

FIELDS = {
    "image": "the picture or pictures",
    "question": "what is asked about it",
    "answer": "the right answer",
    "messages": "a whole conversation",
    "captions": "one caption or a list of them",
    "query": "what searches",
    "target": "what is to be found",
    "negatives": "what is not to be found",
    "id": "what the example is called",
    "group": "what examples that are right for each other share",
}

ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}
MARKER = "<image>"

Pictures = Mapping[str, Sequence[Part]]
"""The pictures of a row, by column."""


class Columns:
    """Columns by the fields that they fill.

    Args:
        columns: Field -> the name of its column, or several, one after the other.
        there: The columns of the table.
        shown: Those that hold pictures.
        caption_prompt: What asks for a caption.
    """

    def __init__(
        self,
        columns: Mapping[str, str | Sequence[str]],
        there: Sequence[str],
        shown: Sequence[str],
        caption_prompt: str,
    ) -> None:
        if unknown := [field for field in columns if field not in FIELDS]:
            known = ", ".join(f"{field} ({what})" for field, what in FIELDS.items())
            raise InputError(f"data.columns: there is no field {unknown[0]!r}; there are {known}")
        self.of = {field: (names,) if isinstance(names, str) else tuple(names) for field, names in columns.items()}
        self.used = tuple(dict.fromkeys(name for names in self.of.values() for name in names))
        if lacking := [name for name in self.used if name not in there]:
            raise InputError(f"data.columns: there is no column {lacking[0]!r}; there are {', '.join(there)}")
        for field, other in (("question", "answer"), ("query", "target"), ("negatives", "target")):
            if field in self.of and other not in self.of:
                raise InputError(f"data.columns: {field} goes with {other}, which has no column")
        if "messages" in self.of and "answer" in self.of:
            raise InputError("data.columns: messages and answer both make the conversation; name one of them")
        self.shown = tuple(name for name in self.used if name in shown or name in self.of.get("image", ()))
        self.texts = tuple(name for name in self.used if name not in self.shown)
        self.prompt = caption_prompt
        if not self.supplies:
            raise InputError("data.columns: none of answer, messages, captions, and target with query is named")

    @property
    def supplies(self) -> tuple[str, ...]:
        """The fields of Example that every row fills."""
        given = self.of.keys()
        talks = given & {"messages", "answer", "captions"}
        pairs = "target" in given and given & {"query", "image"} or given >= {"captions", "image"}
        found = [("conversation", talks), ("query", pairs), ("target", pairs), ("captions", "captions" in given)]
        found += [(field, field in given) for field in ("negatives", "group")]
        return tuple(field for field, fills in found if fills)

    def example(self, id: str, row: Mapping[str, Any], pictures: Pictures, source: str) -> Example:
        """The example of a row.

        Raises:
            InputError: A cell is not what its field needs.
        """
        images = tuple(part for name in self.of.get("image", ()) for part in pictures[name])
        captions = tuple(text for cell in self._cells("captions", row) for text in _texts("captions", cell))
        fields: dict[str, Any] = {"captions": captions}
        if "messages" in self.of:
            fields["conversation"] = conversation(row[self.of["messages"][0]], images)
        elif "answer" in self.of:
            question = tuple(_text("question", cell) for cell in self._cells("question", row)) or (self.prompt,)
            fields["conversation"] = _asked((*images, *question), _text("answer", row[self.of["answer"][0]]))
        elif captions:
            fields["conversation"] = _asked((*images, self.prompt), captions[0])
        if "target" in self.supplies:
            fields["query"] = self._content("query", row, pictures) if "query" in self.of else images
            fields["target"] = self._content("target", row, pictures) if "target" in self.of else captions[:1]
            if lacking := [field for field in ("query", "target") if not fields[field]]:
                raise InputError(f"its {lacking[0]} is empty")
        fields["negatives"] = tuple(
            each for name in self.of.get("negatives", ()) for each in self._each(name, row, pictures)
        )
        group = "\n".join(str(cell) for cell in self._cells("group", row))
        named = [str(cell) for cell in self._cells("id", row) if cell is not None]
        return Example("-".join(named) or id, group=group, source=source, **fields)

    def _cells(self, field: str, row: Mapping[str, Any]) -> list[Any]:
        return [row[name] for name in self.of.get(field, ())]

    def _content(self, field: str, row: Mapping[str, Any], pictures: Pictures) -> Content:
        """The columns of a field, one after the other; cells with nothing in them are left out."""
        parts: list[Part] = []
        for name in self.of[field]:
            if name in self.shown:
                parts += pictures[name]
            elif row[name]:
                parts.append(_text(field, row[name]))
        return tuple(parts)

    def _each(self, name: str, row: Mapping[str, Any], pictures: Pictures) -> list[Content]:
        """The contents of a column of negatives: one a text or a picture."""
        if name in self.shown:
            return [(picture,) for picture in pictures[name]]
        return [(text,) for text in _texts("negatives", row[name])] if row[name] else []


def conversation(messages: Any, images: Sequence[Part]) -> tuple[Turn, ...]:
    """Turns of ``role`` and ``content``, or of ``from`` and ``value``, with the pictures in their places.

    A place is a block ``{"type": "image"}`` or an ``<image>`` in a text; where there is none, all pictures stand before
    the first question.

    Raises:
        InputError: It is something else, or there are not as many places as pictures.
    """
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise InputError(f"messages must be a list of role and content, got {messages!r}")
    turns = [(_role(message), _blocks(message)) for message in messages]
    roles = [role for role, _ in turns]
    asked = roles[1:] if roles[:1] == ["system"] else roles
    if not asked or asked != ["user", "assistant"] * (len(asked) // 2):
        raise InputError(f"turns must go user, assistant, user, assistant (after one system), got {', '.join(roles)}")
    places = sum(part is None for _, parts in turns for part in parts)
    if places not in (0, len(images)):
        raise InputError(f"its messages have {places} places for pictures, but there are {len(images)}")
    remaining = iter(images)
    filled = [(role, [next(remaining) if part is None else part for part in parts]) for role, parts in turns]
    first = roles.index("user")
    filled[first] = (filled[first][0], [*remaining, *filled[first][1]])
    if any(not parts for role, parts in filled if role == "assistant"):
        raise InputError("an answer of the assistant is empty")
    return tuple(Turn(role, tuple(parts)) for role, parts in filled)


def _role(message: Mapping[str, Any]) -> str:
    role = message.get("role") or message.get("from")
    if role not in ROLES:
        raise InputError(f"unknown role {role!r}; the roles are {', '.join(ROLES)}")
    return ROLES[role]


def _blocks(message: Mapping[str, Any]) -> list[str | None]:
    """The texts of a message, and None where a picture stands."""
    content = message.get("content") if message.get("content") is not None else message.get("value")
    if isinstance(content, str):
        first, *rest = (text.strip() for text in content.split(MARKER))
        blocks = [first, *(part for text in rest for part in (None, text))]
    elif isinstance(content, list) and all(isinstance(block, Mapping) for block in content):
        if other := [block.get("type") for block in content if block.get("type") not in ("text", "image")]:
            raise InputError(f"content is text and pictures, got a block of the type {other[0]!r}")
        blocks = [None if block["type"] == "image" else block.get("text") or "" for block in content]
    else:
        raise InputError(f"a message needs content, a text or a list of blocks, got {dict(message)!r}")
    return [block for block in blocks if block != ""]


def _asked(content: Content, answer: str) -> tuple[Turn, ...]:
    return (Turn("user", content), Turn("assistant", (answer,)))


def _text(field: str, cell: Any) -> str:
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return str(cell)  # an answer like 2, which a table holds as a number
    if not isinstance(cell, str) or not cell.strip():
        raise InputError(f"its {field} must be a text, got {cell!r}")
    return cell


def _texts(field: str, cell: Any) -> list[str]:
    cells = cell if isinstance(cell, list) else [cell]
    if not cells:
        raise InputError(f"its {field} are an empty list")
    return [_text(field, each) for each in cells]
