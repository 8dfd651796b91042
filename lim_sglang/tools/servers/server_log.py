"""Why a server ended, from its log: the exception that Python printed, in one line, before what others said of it.

Several processes write one log. An exception is found by its place, not by its name: it is the first line without
indentation after the frames of a traceback, and its message goes on until something else begins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# uvicorn's word for a port that somebody took while the model was loaded; what SGLang says later only follows from it.
PORT_LOST = "error while attempting to bind on address"
LONGEST = 500  # characters of a line for the user

# What stands before the text of a line: colours, the ranks of torchrun, the bars of an exception group.
_DECORATION = re.compile(r"\x1b\[[0-9;]*m|^\[rank\d+\]: ?|^\s*\| (?:\| )*|^\s*\+ (?=Exception Group)")
_TIMESTAMP = re.compile(r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[^\]]*\] ?")
_HEADER = re.compile(r"(?:^|: |\s)(?:Exception Group )?Traceback \(most recent call last\):$")
_FRAME = re.compile(r'^\s+File ".*", line \d+(?:, in .*)?$')
_CAUSED = "The above exception was the direct cause of the following exception:"
_HANDLED = "During handling of the above exception, another exception occurred:"
_LINKS = {_CAUSED: "caused by", _HANDLED: "while handling"}
_RAISED = re.compile(r"^[A-Za-z_][\w.<>]*(?::(?: |$)|$)")
_PLACE_IN_KERNEL = re.compile(r": at \d+:\d+:$")  # Triton: source up to a caret follows, then the reason
_ERROR_INSIDE = re.compile(r"\berror\s*:", re.I)

# What ends a message, beside a line with a time: other loggers, warnings, progress bars, a process's last words.
_OTHER = re.compile(
    r"^(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)[: ]|^\[?[IWEF]\d{4} \d\d:|^\d{4}-\d\d-\d\d[ T]\d\d:\d\d|^\S+\.py:\d+: "
    r"|(?:it/s|s/it)\]|^Process \S+:$|^Exception (?:ignored )?in\b|^Fatal Python error|^Killed$|^\+-|^usage: "
)
_EXCEPTION_LINE = re.compile(r"^(?:\S+: )?(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Refused)\b(?::|$)")
_ARGPARSE_LINE = re.compile(r"^\S+(?: \S+)?: error: ")
_CRASH_LINE = re.compile(r"^Fatal Python error: |^\s*what\(\): ")  # of the interpreter, of C++
# What is added after the cause: said by a process that noticed another one's end.
_AFTERMATH = re.compile(
    r"sigquit|Initialization failed|scheduler .*died|kill_process_tree|No live scheduler|^EOFError|^SystemExit"
    r"|^(?:\w+\.)*(?:CancelledError|KeyboardInterrupt|BrokenPipeError|ConnectionResetError)\b"
    r"|^Fatal Python error: Aborted",
    re.I,
)
# Of a process that a signal ended, as the kernel does when memory is short; SIGQUIT and SIGTERM are SGLang's own.
_KILLED_LINE = re.compile(r" crashed with exit code -(?!3\b|15\b)\d")
_NOISE = re.compile(r"^\s*$|^\s|(?:it/s|s/it)\]|^Traceback|Warning|resource_tracker|leaked |^Killed$")


@dataclass(frozen=True)
class _Line:
    """One line of the log.

    Attributes:
        timed: a logger wrote it, with a time that is left out of ``text``.
        begins: it belongs to no message before it.
    """

    text: str
    timed: bool = False
    begins: bool = False


@dataclass
class _Chain:
    """Exceptions that were raised from one another, the first one first, and how the last came from the one before."""

    told: list[str]
    link: str = ""
    ignored: bool = False  # Python says so
    in_passing: bool = False  # what a logger may have told of something that was dealt with

    def first_hand(self) -> list[str]:
        return [] if self.ignored else [text for text in self.told if not _AFTERMATH.search(text)]

    def line(self) -> str:
        """The last exception, with the first one that led to it where it does not quote that itself."""
        kept = self.first_hand() or self.told
        last, root = kept[-1], kept[0]
        if root.partition(": ")[2] in last:
            return last
        half = LONGEST // 2 - 15
        return f"{last[:half]}; {self.link} {root[:half]}"


def meaningful_line(lines: Sequence[str]) -> str:
    """The line of a server log that tells why it ended: the last exception that is not an aftermath."""
    found = [_read(line) for line in lines]
    texts = [line.text for line in found]
    lost = [text for text in texts if PORT_LOST in text]
    chains = _exceptions(found)
    first_hand = [chain.line() for chain in chains if chain.first_hand() and not chain.in_passing]
    killed = [text for text in texts if _KILLED_LINE.search(text)]
    in_passing = [chain.line() for chain in chains if chain.first_hand() and chain.in_passing]
    plain = [text for text in texts if not _NOISE.search(text) and not _AFTERMATH.search(text)]
    crashes = [text for text in texts if " crashed with exit code " in text]
    causes = [chain.line() for chain in chains]
    anything = [text for text in texts if text.strip()]
    for group in (lost, first_hand, killed, in_passing, crashes, causes, plain, anything):
        if group:
            return group[-1].strip().removeprefix("lim-sglang: error: ")[:LONGEST]
    return ""


def _read(line: str) -> _Line:
    plain = _DECORATION.sub("", line)
    text = _TIMESTAMP.sub("", plain)
    return _Line(text, text != plain, text != plain or bool(_OTHER.search(text)))


def _exceptions(lines: Sequence[_Line]) -> list[_Chain]:
    """Every exception of the log in its order, of a traceback or on a line of its own."""
    chains: list[_Chain] = []
    before, position = _Line(""), 0  # the last line that is not blank, outside tracebacks
    while position < len(lines):
        text = lines[position].text
        if _HEADER.search(text) or _FRAME.match(text):
            ignored = before.text.startswith("Exception ignored in")
            in_passing = before.timed and bool(_HEADER.match(text))
            told, position = _raised(lines, position)
            if told and chains and (link := _LINKS.get(before.text)):
                chains[-1].told.append(told)
                chains[-1].link = link
            elif told:
                chains.append(_Chain([told], ignored=ignored, in_passing=in_passing))
            before = _Line("")
            continue
        before = lines[position] if text.strip() else before
        position += 1
        if any(kind.match(text) for kind in (_EXCEPTION_LINE, _ARGPARSE_LINE, _CRASH_LINE)):
            chains.append(_Chain([text.strip()]))
    return chains


def _raised(lines: Sequence[_Line], start: int) -> tuple[str, int]:
    """The exception of the traceback at ``start`` in one line, empty where none is told; the place after it."""
    end = start + 1
    while end < len(lines) and not lines[end].begins and (not (text := lines[end].text).strip() or text[0].isspace()):
        end += 1
    if end == len(lines) or lines[end].begins or not _RAISED.match(lines[end].text):
        return "", end
    message = [lines[end].text]
    for line in lines[end + 1 :]:
        if line.begins or line.text in _LINKS or _HEADER.search(line.text):
            break
        message.append(line.text)
    return _joined(message), end + len(message)


def _joined(message: Sequence[str]) -> str:
    """A message in one line, without a kernel's source, and with the line that it calls an error if it is long."""
    rest = list(message[1:])
    if _PLACE_IN_KERNEL.search(message[0]):
        carets = [number for number, line in enumerate(rest) if line.strip() == "^"]
        rest = rest[carets[-1] + 1 :] if carets else rest
    whole = " ".join(" ".join([message[0], *rest]).split()).removesuffix(":")
    inside = next((line.strip() for line in rest if _ERROR_INSIDE.search(line)), "")
    if len(whole) <= LONGEST or not inside or whole.index(" ".join(inside.split())) < LONGEST // 2:
        return whole
    half = LONGEST // 2 - 5
    return f"{message[0][:half]} ... {inside[:half]}"
