"""Short chat templates of the common conventions, and the names they go by.

A family's tokenizer usually carries its owner's template, which is the better one: `Family.fits`
tells it. The texts here serve tokenizers without one (base models').
"""

import dataclasses

EOS = "eos_token"  # as a stop word: the tokenizer's own EOS

_LOOP = "{%- for message in messages %}"
_END = "{%- endfor %}"
_PROMPT = "{%- if add_generation_prompt %}"

_CHATML = (
    f"{_LOOP}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    f"{_END}{_PROMPT}"
    "{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_LLAMA_3 = (
    "{{- bos_token }}"
    f"{_LOOP}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}"
    f"{_END}{_PROMPT}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
# From Llama 3.1 on, a system turn with two dates opens every conversation.
_LLAMA_3_1 = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set system = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\n' "
    "+ 'Cutting Knowledge Date: December 2023\\nToday Date: 26 Jul 2024\\n\\n' "
    "+ system + '<|eot_id|>' }}"
) + _LLAMA_3.removeprefix("{{- bos_token }}")
# Mistral's and Llama 2's: no header opens the answer, EOS closes it.
_INST = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}"
    "{%- set system = messages[0]['content'] + '\\n\\n' %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set system = '' %}{%- endif %}"
    f"{_LOOP}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate user/assistant/user/assistant/...') }}{%- endif %}"
    "{%- if message['role'] == 'user' %}"
    "{{- '[INST] ' + (system if loop.first else '') + message['content'] + '[/INST]' }}"
    "{%- else %}{{- ' ' + message['content'] | trim + eos_token }}{%- endif %}"
    f"{_END}"
)
_LLAMA_2 = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set system = '<<SYS>>\\n' + messages[0]['content'] | trim + '\\n<</SYS>>\\n\\n' %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    f"{_LOOP}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate user/assistant/user/assistant/...') }}{%- endif %}"
    "{%- if message['role'] == 'user' %}"
    "{{- bos_token + '[INST] ' + ((system if loop.first else '') + message['content']) | trim "
    "+ ' [/INST]' }}"
    "{%- else %}{{- ' ' + message['content'] | trim + ' ' + eos_token }}{%- endif %}"
    f"{_END}"
)
_GEMMA = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}"
    "{{- raise_exception('System role not supported') }}{%- endif %}"
    f"{_LOOP}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate user/assistant/user/assistant/...') }}{%- endif %}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
    f"{_END}{_PROMPT}"
    "{{- '<start_of_turn>model\\n' }}{%- endif %}"
)
# Gemma 3 puts the system message before the first question.
_GEMMA_3 = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}"
    "{%- set system = messages[0]['content'] + '\\n\\n' %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set system = '' %}{%- endif %}"
    f"{_LOOP}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate user/assistant/user/assistant/...') }}{%- endif %}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{- '<start_of_turn>' + role + '\\n' + (system if loop.first else '') "
    "+ message['content'] | trim + '<end_of_turn>\\n' }}"
    f"{_END}{_PROMPT}"
    "{{- '<start_of_turn>model\\n' }}{%- endif %}"
)
_PHI_3 = (
    f"{_LOOP}"
    "{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    f"{_END}{_PROMPT}"
    "{{- '<|assistant|>\\n' }}{%- endif %}"
)
_ZEPHYR = (
    f"{_LOOP}"
    "{{- '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    f"{_END}{_PROMPT}"
    "{{- '<|assistant|>\\n' }}{%- endif %}"
)


def _headed(user: str, assistant: str, between: str) -> str:
    """Turns that open with a line of plain text; a system message stands alone at the start."""
    return (
        "{{- bos_token }}"
        f"{_LOOP}"
        "{%- if message['role'] == 'user' %}"
        f"{{{{- '{user}' + message['content'] + '{between}' }}}}"
        "{%- elif message['role'] == 'assistant' %}"
        f"{{{{- '{assistant}' + message['content'] + eos_token + '{between}' }}}}"
        "{%- elif message['role'] == 'system' %}"
        "{{- message['content'] + '\\n\\n' }}"
        "{%- else %}{{- raise_exception('roles are system, user and assistant') }}{%- endif %}"
        f"{_END}{_PROMPT}"
        f"{{{{- '{assistant}' }}}}{{%- endif %}}"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A convention of chat templates.

    Attributes:
      names: What it is asked for by, the first one its own.
      text: The short template.
      stop_word: What closes the assistant's turn; `EOS`: the tokenizer's EOS.
      present: What a tokenizer's own template holds, if it is of this convention.
      absent: What such a template does not hold.
      renames_eos: EOS may take the name of a stop word that the vocabulary lacks.
    """

    names: tuple[str, ...]
    text: str
    stop_word: str = EOS
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    renames_eos: bool = False

    def fits(self, template: str | None) -> bool:
        """True for a tokenizer's own template of this convention."""
        return bool(
            template
            and self.present
            and all(text in template for text in self.present)
            and not any(text in template for text in self.absent)
        )


_HEADER, _DATE = "<|start_header_id|>", "Cutting Knowledge Date"
_TURN, _NO_SYSTEM = "<start_of_turn>", "System role not supported"

FAMILIES = (
    Family(names=("chatml",), text=_CHATML, stop_word="<|im_end|>", renames_eos=True),
    Family(
        names=("llama-3", "llama3"),
        text=_LLAMA_3,
        stop_word="<|eot_id|>",
        present=(_HEADER,),
        absent=(_DATE,),
    ),
    Family(
        names=(
            *("llama-3.1", "llama-31", "llama3.1", "llama31", "llama-3.2", "llama-32", "llama3.2"),
            *("llama-3.3", "llama-33", "llama3.3"),
        ),
        text=_LLAMA_3_1,
        stop_word="<|eot_id|>",
        present=(_HEADER, _DATE),
    ),
    Family(names=("mistral",), text=_INST, present=("[INST]",), absent=("<<SYS>>",)),
    Family(names=("llama", "llama-2", "llama2"), text=_LLAMA_2, present=("[INST]", "<<SYS>>")),
    Family(
        names=("gemma", "gemma2", "gemma-2"),
        text=_GEMMA,
        stop_word="<end_of_turn>",
        present=(_TURN, _NO_SYSTEM),
    ),
    Family(
        names=("gemma-3", "gemma3"),
        text=_GEMMA_3,
        stop_word="<end_of_turn>",
        present=(_TURN,),
        absent=(_NO_SYSTEM,),
    ),
    Family(
        names=("qwen-2.5", "qwen-25", "qwen25", "qwen2.5"),
        text=_CHATML,
        stop_word="<|im_end|>",
        present=("<|im_start|>", "<|im_end|>"),
        absent=("<think>",),
    ),
    Family(
        names=("qwen-3", "qwen3"),
        text=_CHATML,
        stop_word="<|im_end|>",
        present=("<|im_start|>", "<|im_end|>", "<think>"),
    ),
    Family(
        names=("phi-3", "phi-35", "phi-3.5"),
        text=_PHI_3,
        stop_word="<|end|>",
        present=("<|user|>", "<|end|>"),
    ),
    Family(names=("zephyr",), text=_ZEPHYR),
    Family(names=("vicuna",), text=_headed("USER: ", "ASSISTANT: ", "\\n")),
    Family(
        names=("alpaca",),
        text=_headed("### Instruction:\\n", "### Response:\\n", "\\n\\n"),
    ),
    Family(names=("unsloth",), text=_headed(">>> User: ", ">>> Assistant: ", "\\n")),
)
BY_NAME = {name: family for family in FAMILIES for name in family.names}
