"""The packaged model's tokenizer: one token a character."""

from tokenizers import Tokenizer, decoders, models, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
CHARACTERS = ("\n", *map(chr, range(32, 127)))  # the line's end and printable ASCII


def character_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer of one token a character; adds <s> in front, knows </s>, <pad> and <unk>.

    Args:
      max_length: Longest row that the model can read, tokens.

    Returns:
      transformers' fast tokenizer; `save_pretrained` writes a plain tokenizer.json.
    """
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *CHARACTERS))}
    # BPE without merges leaves single characters, and needs no regular expression to do it.
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
