"""`jaxtune chat`: questions from the terminal or a pipe, answers while they are made."""

import sys
from collections.abc import Iterator
from typing import Any

from jaxtune import TextStreamer, get_chat_template, runtime
from jaxtune.cli.chat_options import Chat
from jaxtune.cli.loading import load
from jaxtune.console import say
from jaxtune.data.rendering import ChatTemplate, TemplateRefusal
from jaxtune.generation.settings import stop_ids
from jaxtune.language_model import LanguageModel
from jaxtune.machine import first_line, probe

PROMPT = "> "
COMMANDS = "/reset forgets what was said, /quit ends."
MARK = "jaxtune"  # stands for an answer, to see what the template writes after one


def run(options: Chat) -> int:
    """Answer until the questions end.

    Args:
      options: Of the command line.

    Returns:
      The exit status.

    Raises:
      ValueError: The model, the adapter or an option does not serve.
      OSError: There is no such model.
    """
    say(first_line(probe()))
    runtime.use_compile_cache()
    model, tokenizer = load(
        options.model,
        options.base,
        max_seq_length=options.max_seq_length,
        dtype=options.dtype,
        load_in_4bit=options.load_in_4bit,
        kernels=options.kernels,
        local_files_only=options.local_files_only,
    )
    if tokenizer is None:
        raise ValueError(
            f"a chat needs a tokenizer; neither {options.model} nor its base has the files of one. "
            "Copy tokenizer.json and tokenizer_config.json there."
        )
    if options.chat_template is not None:
        tokenizer = get_chat_template(tokenizer, options.chat_template)
    talk = Conversation(model, tokenizer, options)
    say(*talk.first_lines(), COMMANDS)
    for line in questions():
        if line == "/quit":
            break
        if line == "/reset":
            talk.reset()
            say("Forgotten.")
        elif line.startswith("/") and " " not in line and line[1:].isalpha():
            say(f"There is no {line}. {COMMANDS}")
        elif line:
            talk.ask(line)
    return 0


def questions() -> Iterator[str]:
    """The lines of the terminal or the pipe, without blanks at their ends; ends with them."""
    shown = PROMPT if sys.stdin.isatty() else ""
    while True:
        try:
            yield input(shown).strip()
        except EOFError:
            say()
            return


class Conversation:
    """What was said so far.

    Attributes:
      messages: Questions and answers; empty where there is no chat template.
    """

    def __init__(self, model: LanguageModel, tokenizer: Any, options: Chat) -> None:
        """Begin with nothing said but what the system is told.

        Raises:
          ValueError: A system message, and no template that takes it.
        """
        self._model, self._tokenizer, self._options = model, tokenizer, options
        has_one = bool(getattr(tokenizer, "chat_template", None))
        self._template = ChatTemplate(tokenizer) if has_one else None
        if options.system is not None and self._template is None:
            raise ValueError(
                "--system needs a chat template, and the tokenizer has none. Add --chat-template "
                "chatml, or the name of the template that the model was trained with."
            )
        self._stops = self._stop_ids()
        self.reset()

    def reset(self) -> None:
        """Forget all but what the system is told."""
        system = self._options.system
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def first_lines(self) -> list[str]:
        """What a user should know of this model."""
        if self._template is not None:
            return ["", "Ask something."]
        return [
            "",
            "The tokenizer has no chat template: each line is continued as it stands, and nothing "
            "is remembered. For a chat pass --chat-template with the name of one.",
        ]

    def ask(self, line: str) -> None:
        """Print the answer to a question, and remember both.

        A question that is too long is said to be, and forgotten; so is one whose answer is
        interrupted.
        """
        try:
            asked = [*self.messages, {"role": "user", "content": line}]
            ids = self._ids(line, asked)
            room = self._model.config.max_position_embeddings - len(ids)
            if room < 1:
                say(
                    f"That makes {len(ids)} tokens, and the model takes {len(ids) + room} with the "
                    "answer. Ask something shorter, or /reset forgets what was said."
                )
                return
            answer = self._answer(ids, min(self._options.max_new_tokens, room))
        except TemplateRefusal as error:
            say(f"The chat template refuses this: {error}")
            return
        except KeyboardInterrupt:
            say("", "Stopped.")
            return
        if self._template is not None:
            self.messages = [*asked, {"role": "assistant", "content": answer}]

    def _ids(self, line: str, asked: list[dict[str, str]]) -> list[int]:
        if self._template is None:
            return list(self._tokenizer(line)["input_ids"])
        text = self._template.render(asked, {}, prompt=True)
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _answer(self, ids: list[int], most: int) -> str:
        options = self._options
        drawn = options.draws is not False
        made = self._model.generate(
            [ids],
            max_new_tokens=most,
            do_sample=options.draws,
            temperature=options.temperature if drawn else None,
            top_p=options.top_p if drawn else None,
            top_k=options.top_k if drawn else None,
            min_p=options.min_p if drawn else None,
            repetition_penalty=options.repetition_penalty,
            eos_token_id=self._stops or None,
            # Each question has draws of its own, and the same conversation the same answers.
            seed=options.seed + len(self.messages),
            streamer=TextStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True),
        )
        return self._tokenizer.decode(made[0][len(ids) :], skip_special_tokens=True)

    def _stop_ids(self) -> list[int]:
        """Ids that end an answer: the model's, the tokenizer's, and what the template puts there.

        A base model's files do not name the token that ends a turn, and its adapter learned it.
        """
        carried = self._model.carried
        found = stop_ids(None, carried.generation_config, carried.hf_config)
        found += [i for i in (self._tokenizer.eos_token_id,) if i is not None]
        if self._template is not None:
            said = [{"role": "user", "content": MARK}, {"role": "assistant", "content": MARK}]
            after = self._template.render(said, {}).rpartition(MARK)[2]
            closing = self._tokenizer(after, add_special_tokens=False)["input_ids"]
            special = set(self._tokenizer.all_special_ids)
            found += [i for i in closing[:1] if i in special]
        return sorted(set(found))
