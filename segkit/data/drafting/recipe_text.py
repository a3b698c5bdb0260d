"""Write a recipe as commented YAML."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_./][\w./ -]*(?<! )")
# Characters that YAML does not allow, or takes for the end of a line.
_NOT_YAML = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_WORDS = {"null", "true", "false", "~"}
_WIDTH = 110


def write_value(value: Any) -> str:
    """Return a value as YAML on one line; texts have quotes where YAML would read something else."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{write_value(key)}: {write_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(write_value, value)) + "]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.isascii() and value.lower() not in _WORDS:
        return value
    return _NOT_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def write_section(key: str, values: Mapping[str, Any], why: Mapping[str, str], indent: str = "") -> list[str]:
    """Return the lines of a section with a comment after each key that has one.

    Parameters
    ----------
    why
        {"section": comment, "section.key": comment}.
    """
    lines = [*comment(why[key], indent)] if key in why else []
    lines.append(f"{indent}{key}:")
    for name, value in values.items():
        note = why.get(f"{key}.{name}")
        line = f"{indent}  {name}: {write_value(value)}"
        if len(line) > _WIDTH and isinstance(value, Sequence) and not isinstance(value, str):
            if all(isinstance(each, int) for each in value):
                lines += textwrap.wrap(line, _WIDTH, subsequent_indent=f"{indent}    ")
            else:
                lines += [f"{indent}  {name}:", *(f"{indent}    - {write_value(each)}" for each in value)]
        elif len(line) > _WIDTH and isinstance(value, Mapping):
            lines.append(f"{indent}  {name}:")
            lines += [f"{indent}    {write_value(each)}: {write_value(of)}" for each, of in value.items()]
        else:
            lines.append(line + (f"{' ' * max(1, 34 - len(line))}# {note}" if note else ""))
    return lines


def comment(text: str, indent: str = "") -> list[str]:
    """Return a text as lines of a comment."""
    lines, width = [""], _WIDTH - len(indent) - 2
    for word in _NOT_YAML.sub("\ufffd", text).split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [f"{indent}# {line}" for line in lines]
