"""`get_chat_template`: a copy with a template, the names of messages, and what ends a turn."""

import json

import pytest
import transformers

from jaxtune import get_chat_template
from jaxtune.data.template_texts import BY_NAME, FAMILIES
from tests.jaxtune.data.chats import real_tokenizer
from tests.jaxtune.data.test_tokenize import state_of
from tests.jaxtune.data.words import make_tokenizer

CHAT = [
    {"role": "user", "content": " What is 2 + 2?"},
    {"role": "assistant", "content": "It is **4**.\n\nnaïve 日本 🙂 "},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long"},
]
SYSTEM = [{"role": "system", "content": "Be kind."}, *CHAT]
# A real tokenizer, names that mean its owner's template, and the ids that end an answer.
OWNERS = {
    "llama3.2": (("llama-3.1", "llama-3.2", "llama-3.3", "llama-31"), [128009]),
    "gemma": (("gemma", "gemma2"), [107, 108]),
    "mistral_v3": (("mistral",), [2]),
    "llama2": (("llama",), [2]),
}


def rendered(tokenizer, chat=CHAT, **options):
    return tokenizer.apply_chat_template(chat, tokenize=False, **options)


@pytest.mark.parametrize("name", sorted(OWNERS.keys() - {"gemma"}))
def test_a_family_keeps_its_owners_template(assets, name):
    original = real_tokenizer(assets, name)
    names, closing = OWNERS[name]
    for asked in names[:: len(names) - 1 or 1]:
        chosen = get_chat_template(original, chat_template=asked)
        assert chosen is not original
        assert chosen.chat_template == original.chat_template
        row = chosen.apply_chat_template(CHAT, return_dict=False)
        assert row == original.apply_chat_template(CHAT, return_dict=False)
        assert row[-len(closing) :] == closing


@pytest.mark.parametrize("name", OWNERS)
@pytest.mark.parametrize("prompt", [False, True])
def test_the_short_template_writes_what_the_owners_does(assets, name, prompt):
    original = real_tokenizer(assets, name)
    chosen = get_chat_template(make_tokenizer(), chat_template=OWNERS[name][0][0])
    special = {"bos_token": original.bos_token, "eos_token": original.eos_token}
    chats = [CHAT, CHAT[:1]] if name in ("gemma", "mistral_v3") else [CHAT, CHAT[:1], SYSTEM]
    for chat in chats:
        options = {"add_generation_prompt": prompt, "date_string": "26 Jul 2024", **special}
        assert rendered(chosen, chat, **options) == rendered(original, chat, **options)


def test_the_ids_of_llama_3_and_gemma_are_those_that_their_owners_publish(assets):
    """The model cards' formats, spelt in ids."""
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    llama = get_chat_template(real_tokenizer(assets, "llama3.2"), "llama-3")
    opened, closed, newlines, end = 128006, 128007, 271, 128009
    user = [opened, 882, closed, newlines, 13347, end]
    assert llama.apply_chat_template(chat, return_dict=False) == [
        *(128000, *user, opened, 78191, closed, newlines, 9906, end)
    ]
    gemma = get_chat_template(real_tokenizer(assets, "gemma"), "gemma")
    assert gemma.chat_template == real_tokenizer(assets, "gemma").chat_template
    # Unsloth swaps the names of <eos> and <end_of_turn>, and with them their ids.
    assert (gemma.eos_token, gemma.eos_token_id) == ("<end_of_turn>", 107)
    assert gemma.apply_chat_template(chat, return_dict=False) == [
        *(2, 106, 1645, 108, 2151, 107, 108, 106, 2516, 108, 4521, 107, 108)
    ]


def test_published_templates_give_their_published_texts(assets):
    """Eleven templates of the hub, as text and stop word, with what they are known to write."""
    file = assets / "chat_templates" / "llamacpp_test_cases.json"
    chat = [
        {"role": "system", "content": "You are a helpful assistant"},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi there"},
        {"role": "user", "content": "Who are you"},
        {"role": "assistant", "content": "   I am an assistant   "},
        {"role": "user", "content": "Another question"},
    ]
    shown = 0
    for case in json.loads(file.read_text()):
        tokenizer = make_tokenizer()
        chosen = get_chat_template(tokenizer, (case["template"], "eos_token"))
        names = {"bos_token": case["bos_token"], "eos_token": case["eos_token"]}
        expected = case["expected_jinja"] or case["expected"]
        try:
            text = rendered(chosen, chat, add_generation_prompt=True, **names)
        except transformers.utils.chat_template_utils.jinja2.TemplateError:
            continue  # It takes no system message.
        shown += text == expected
    assert shown >= 8


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_each_name_renders_questions_and_answers_in_order(name):
    chosen = get_chat_template(make_tokenizer(), chat_template=name)
    text = rendered(chosen)
    places = [text.index(message["content"].strip()) for message in CHAT]
    assert places == sorted(places)
    prompt = rendered(chosen, CHAT[:1], add_generation_prompt=True)
    assert text.startswith(prompt)


def test_names_belong_to_one_family():
    assert len(BY_NAME) == sum(len(family.names) for family in FAMILIES)


@pytest.mark.parametrize("name", ["chatml", "llama-3"])
def test_the_tokenizer_is_not_changed(name):
    tokenizer = make_tokenizer(words=("<|eot_id|>",))
    before = state_of(tokenizer)
    chosen = get_chat_template(tokenizer, chat_template=name)
    assert state_of(tokenizer) == before
    assert chosen.eos_token != tokenizer.eos_token == "</s>"


def test_a_stop_word_that_is_none_of_the_vocabulary_names_eos(tmp_path):
    tokenizer = make_tokenizer()
    chosen = get_chat_template(tokenizer, "chatml")
    assert (chosen.eos_token, chosen.eos_token_id) == ("<|im_end|>", 1)
    assert len(chosen) == len(tokenizer)
    assert chosen("a <|im_end|>")["input_ids"] == [0, 3, 1]
    chosen.save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.eos_token_id == 1
    assert rendered(loaded) == rendered(chosen)
    plain = get_chat_template(tokenizer, "chatml", map_eos_token=False)
    assert (plain.eos_token, plain.eos_token_id) == ("</s>", 1)
    known = get_chat_template(make_tokenizer(words=("<|eot_id|>",)), "llama-3", map_eos_token=False)
    assert known.eos_token == "</s>"
    own = get_chat_template(tokenizer, ("{{ messages[0]['content'] }}<stop>", "<stop>"))
    assert (own.eos_token, own.eos_token_id) == ("<stop>", 1)


@pytest.mark.parametrize("name", ["chatml", "llama-3.1", "gemma", "mistral", "alpaca"])
def test_mapped_names_are_read_and_standard_ones_too(name):
    mapping = {"role": "from", "content": "value", "user": "human", "assistant": "gpt"}
    chosen = get_chat_template(make_tokenizer(), name, mapping=mapping)
    sharegpt = [
        {"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]}
        for m in CHAT
    ]
    expected = rendered(get_chat_template(make_tokenizer(), name))
    assert rendered(chosen, sharegpt) == rendered(chosen) == expected


def test_a_system_message_is_put_before_conversations_without_one():
    chosen = get_chat_template(make_tokenizer(), "chatml", system_message="Be kind.")
    assert rendered(chosen) == rendered(chosen, SYSTEM)
    assert rendered(chosen).count("Be kind.") == 1
    other = [{"role": "system", "content": "Be wild."}, *CHAT]
    assert "Be kind." not in rendered(chosen, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chat_template": "lama"}, r"`chat_template` must be one of \['alpaca', .*got 'lama'"),
        ({"chat_template": ("{{ a }}", "")}, r"must be a name, or a pair of texts"),
        ({"chat_template": ("{% if %}", "eos_token")}, r"must be a jinja template; jinja says"),
        ({"mapping": {"rolle": "from"}}, r"`mapping` must give names for .* got \{'rolle'"),
        ({"patch_saving": False}, r"`patch_saving` must be True"),
        (
            {"chat_template": "gemma", "system_message": "a"},
            r"`system_message` needs a chat template that takes one; .*not supported",
        ),
    ],
)
def test_refuses_what_is_no_template(arguments, message):
    with pytest.raises(ValueError, match=message):
        get_chat_template(make_tokenizer(), **arguments)


def test_generation_marks_are_taken():
    text = "{% for m in messages %}{% generation %}{{ m.content }}{%- endgeneration -%}{% endfor %}"
    assert get_chat_template(make_tokenizer(), (text, "eos_token")).chat_template == text
