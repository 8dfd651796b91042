"""Windows of token ids: where they lie, what opens them, and text that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lim_sglang.tools.analysis.texts import TextError, cut_windows, read_texts

BEGIN = 1


class WordTokenizer:
    """A number per word, the word itself; ``BEGIN`` in front of every text if there is such a token."""

    def __init__(self, bos_token_id: int | None = None, adds_it: bool = True) -> None:
        self.bos_token_id = bos_token_id
        self.opening = [bos_token_id] if bos_token_id is not None and adds_it else []

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> Any:
        ids = [ord(word) if len(word) == 1 else int(word) for word in text.split()]
        return {"input_ids": [*self.opening, *ids] if add_special_tokens else ids}


def numbers(count: int) -> str:
    return " ".join(str(number) for number in range(1000, 1000 + count))


def test_windows_reach_from_one_end_of_the_text_to_the_other() -> None:
    windows = cut_windows(WordTokenizer(), numbers(100), context=20, count=5, samples=4)
    assert windows == [list(range(start, start + 20)) for start in (1000, 1020, 1040, 1060, 1080)]


@pytest.mark.parametrize(("words", "expected"), [(20, [0]), (23, [0]), (24, [0, 4]), (31, [0, 5, 11])])
def test_short_text_gives_fewer_windows_whose_samples_do_not_overlap(words: int, expected: list[int]) -> None:
    windows = cut_windows(WordTokenizer(), numbers(words), context=20, count=5, samples=4)
    assert [window[0] - 1000 for window in windows] == expected


def test_a_begin_token_opens_every_window_if_the_tokenizer_adds_it() -> None:
    windows = cut_windows(WordTokenizer(BEGIN), numbers(100), context=20, count=3, samples=4)
    assert windows == [[BEGIN, *range(start, start + 19)] for start in (1000, 1040, 1081)]
    assert cut_windows(WordTokenizer(BEGIN, adds_it=False), numbers(20), 20, 1, 4) == [[*range(1000, 1020)]]


def test_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(TextError, match="text has 19 tokens: expected at least 20, one window of --context 20"):
        cut_windows(WordTokenizer(), numbers(19), context=20, count=1, samples=4)


def test_files_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("first")
    (tmp_path / "a").write_text("naïve")
    assert read_texts([tmp_path / "b", str(tmp_path / "a")]) == "first\n\nnaïve"
    assert len(read_texts([])) > 300_000, "without files: Python's documentation, several windows of any size"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin1").write_bytes("abc é".encode("latin-1"))
    for path, expected in ((tmp_path / "none", "No such file"), (tmp_path / "latin1", "byte 4 is not UTF-8")):
        with pytest.raises(TextError, match=f"--text {path}: .*{expected}"):
            read_texts([path])
