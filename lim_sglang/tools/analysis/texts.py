"""Windows of token ids from text files, or from documentation that Python carries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class TextError(RuntimeError):
    """Text that cannot be used; the message is one line with the fix."""


def read_texts(files: Sequence[str | Path]) -> str:
    """The files' text in the order given, one behind the other; without files, Python's own help topics.

    Raises:
        TextError: a file cannot be read or is not UTF-8, or this Python carries no help topics.
    """
    if files:
        return "\n\n".join(decoded(f"--text {file}", Path(file).read_bytes) for file in files)
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise TextError("this Python carries no documentation to calibrate on; name text files with --text") from error
    return "\n\n".join(topics[name] for name in sorted(topics))


def cut_windows(tokenizer: Any, text: str, context: int, count: int, samples: int) -> list[list[int]]:
    """Up to ``count`` windows of ``context`` tokens, spread evenly over the text.

    A window begins with what the tokenizer puts before a text, such as a begin-of-sequence token. There are fewer
    windows where the text is too short for windows that end at least ``samples`` tokens apart.

    Raises:
        TextError: the text does not fill one window.
    """
    begin = tokenizer.bos_token_id
    opening = [begin] if begin is not None and tokenizer("a")["input_ids"][:1] == [begin] else []
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    length = context - len(opening)
    spare = len(ids) - length
    if spare < 0:
        raise TextError(
            f"the text has {len(ids)} tokens: expected at least {length}, one window of --context {context}; give more "
            "text with --text, or lower --context"
        )
    last = min(count, 1 + spare // samples) - 1
    starts = [spare * number // max(1, last) for number in range(last + 1)]
    return [opening + ids[start : start + length] for start in starts]


def decoded(source: str, read: Callable[[], bytes]) -> str:
    """What ``read`` gives, as text.

    Raises:
        TextError: it cannot be read or is not UTF-8; the message names ``source``.
    """
    try:
        return read().decode()
    except OSError as error:
        raise TextError(f"{source}: {error.strerror}; name a readable text file") from error
    except UnicodeDecodeError as error:
        raise TextError(f"{source}: byte {error.start} is not UTF-8; convert the text to UTF-8") from error
