"""Regular expressions on one word of a text whose words are divided by blanks.

Our field has the arguments joined; a rule of auditd asks about one of them. An expression is
rewritten so that it cannot match across a blank, and ``^`` and ``$`` mean the ends of the word.
"""

from __future__ import annotations

from typing import Final

_NEVER: Final = "[^\\x00-\\xff]"
_QUANTIFIERS: Final = "*+{"
_PLAIN_CLASSES: Final = "dwS"
"""Letters that make classes behind a backslash, none of which has the blank."""


class Unlimited(ValueError):
    """An expression that cannot be limited to a word; ``str()`` says by what."""


class _Rewriter:
    """Reads an expression once and writes it twice: for a match that begins the word, and not.

    ``^`` holds in the first and never in the second. It is taken only where nothing can be matched
    before it.
    """

    def __init__(self, source: str, *, dot_is_newline: bool) -> None:
        self.source = source
        self.at = 0
        self.dot = "[^ ]" if dot_is_newline else "[^ \\n]"
        self.first: list[str] = []
        self.later: list[str] = []
        self.to_end = False
        self.has_choice = False
        self.has_caret = False

    def put(self, text: str) -> None:
        self.first.append(text)
        self.later.append(text)

    def rewrite(self) -> None:
        leading = True
        groups: list[tuple[bool, bool]] = []  # leading, and whether ^ was seen, at each (
        seen = False
        while self.at < len(self.source):
            char = self.source[self.at]
            following = self.source[self.at + 1 : self.at + 2]
            if char == "^":
                if not leading or following in tuple("*+?{"):
                    raise Unlimited("a ^ that something can come before")
                self.first.append("")
                self.later.append(_NEVER)
                seen = self.has_caret = True
                self.at += 1
                continue
            if char == "(":
                if following == "?" and not self.source.startswith("(?:", self.at):
                    raise Unlimited("flags and names of groups")
                groups.append((leading, seen))
                seen = False
                self.put("(?:")
                self.at += 3 if following == "?" else 1
                continue
            if char == "|":
                leading = groups[-1][0] if groups else True
                self.has_choice |= not groups
                self.put("|")
                self.at += 1
                continue
            if char == ")":
                if seen and following and following in _QUANTIFIERS:
                    raise Unlimited("a ^ that is repeated")
                seen |= groups.pop()[1] if groups else False
                self.put(")")
                self.at += 1
            elif char == "$":
                if following or self.has_choice:
                    raise Unlimited("a $ that is not the end")
                self.to_end = True
                self.at += 1
            elif char == "[":
                self.put(self.character_class())
            elif char == "\\":
                if not following or (following.isalnum() and following not in _PLAIN_CLASSES):
                    raise Unlimited(f"\\{following}")
                self.put(char + following)
                self.at += 2
            elif char <= " ":
                raise Unlimited("a blank")
            else:
                self.put(self.dot if char == "." else char)
                self.at += 1
            leading = False

    def character_class(self) -> str:
        """Read a class, from its ``[``, and return it without the blank."""
        start = self.at + 1
        negated = self.source.startswith("^", start)
        start += negated
        at = start
        while at < len(self.source) and (self.source[at] != "]" or at == start):
            char, following = self.source[at], self.source[at + 1 : at + 2]
            if char == "[" and following == ":":
                raise Unlimited("[[: :]]")
            if char == "\\":
                if not following or (following.isalnum() and following not in "dw"):
                    raise Unlimited(f"\\{following}")
                at += 1
            elif char <= " ":
                raise Unlimited("a blank")
            at += 1
        inner = self.source[start:at]
        self.at = at + 1
        if inner.startswith("]"):  # which is itself only in the first place
            inner = "\\" + inner
        return f"[^ {inner}]" if negated else f"[{inner}]"


def word_regex(source: str, *, ignore_case: bool, dot_is_newline: bool) -> bytes:
    """Return the expression that matches whole words in which ``source`` matches a part.

    Raises Unlimited. ``source`` is one that RE2 takes.
    """
    rewriter = _Rewriter(source, dot_is_newline=dot_is_newline)
    rewriter.rewrite()
    first, later = "".join(rewriter.first), "".join(rewriter.later)
    behind = "" if rewriter.to_end else "[^ ]*"
    if rewriter.has_caret:
        made = f"(?:(?:{first})|[^ ]+(?:{later})){behind}"
    else:
        made = f"[^ ]*(?:{first}){behind}"
    return f"(?{'i' if ignore_case else ''}:{made})".encode()
