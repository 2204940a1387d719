"""A tokenizer whose every id is plain to see: words split at spaces."""

import tokenizers
import transformers

WORDS = ["<s>", "</s>", "<unk>", *"abcdefgh"]


def make_tokenizer(
    *, adds_bos=True, adds_eos=False, bos="<s>", eos="</s>", unk="<unk>", words=(), **special
):
    vocabulary = {word: number for number, word in enumerate([*WORDS, *words])}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> " * adds_bos + "$A" + " </s>" * adds_eos,
        special_tokens=[("<s>", 0), ("</s>", 1)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, unk_token=unk, **special
    )
