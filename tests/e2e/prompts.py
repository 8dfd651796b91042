"""Long prompts, made here: worked sums and log lines from a seeded generator."""

from random import Random

from transformers import PreTrainedTokenizerBase

STATIONS = ("Alder", "Birch", "Cedar", "Dogwood", "Elm", "Fir", "Ginkgo", "Hazel")


def worked_sum(rng: Random, step: int) -> str:
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    return f"Step {step}: {a} times {b} is {a * b}, and {a} plus {b} is {a + b}."


def log_line(rng: Random, step: int) -> str:
    hour, minute = divmod(step % 1440, 60)
    station, level = rng.choice(STATIONS), rng.randint(0, 500)
    state = "rising" if level > 250 else "falling"
    return f"At {hour:02d}:{minute:02d} the gauge at {station} read {level} millimetres, {state}."


def make_text(seed: int, lines: int) -> str:
    """`lines` sentences; another seed differs from the first words on."""
    rng = Random(seed)
    body = (rng.choice((worked_sum, log_line))(rng, step) for step in range(1, lines + 1))
    return f"{rng.choice(STATIONS)} notebook {seed}, kept by hand.\n" + "\n".join(body)


def make_prompt(tokenizer: PreTrainedTokenizerBase, seed: int, tokens: int) -> list[int]:
    """Exactly `tokens` token ids. A line is always longer than ten tokens."""
    return tokenizer(make_text(seed, lines=tokens // 10 + 1))["input_ids"][:tokens]
