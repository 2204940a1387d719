"""Prompts in, answers out: one batched generation."""

from collections.abc import Sequence

from jaxtune.language_model import LanguageModel
from jaxtune.quickstart.tasks import LONGEST, prompt, solve


def ask(model: LanguageModel, prompts: Sequence[str], *, max_new_tokens: int) -> list[str]:
    """What the model says after each prompt, greedily, all prompts at once.

    Args:
      model: As it is at this moment; it carries its tokenizer.
      prompts: Texts of any lengths.
      max_new_tokens: Upper bound of each answer, tokens.

    Returns:
      The answers, without prompt, special tokens and outer spaces.
    """
    tokenizer = model.carried.tokenizer
    rows = [list(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    tokens = model.generate(rows, max_new_tokens=max_new_tokens, do_sample=False)
    answers = tokens[:, max(map(len, rows)) :]
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


def right_answers(model: LanguageModel, questions: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether the model answers each question, a task and a word, exactly right."""
    prompts = [prompt(task, word) for task, word in questions]
    answers = ask(model, prompts, max_new_tokens=2 * LONGEST + 2)
    pairs = zip(questions, answers, strict=True)
    return [answer == solve(task, word) for (task, word), answer in pairs]
