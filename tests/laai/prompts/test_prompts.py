"""Prompts split exactly where the answer starts, whatever the tokenizer; batches that line up."""

import functools

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from laai.errors import UserError
from laai.models.loading import load_model
from laai.prompts.batches import IGNORE, Prompt, collate
from laai.prompts.templates import Template
from laai.tasks.examples import Example, Task

CORPUS = [
    "Q: hot\nA: cold\n\nQ: big\nA: small\n\n",
    "Answer with the opposite. Translate into French: été, naïve, forêt, Zürich, 日本, Москва, 🙂\n",
    "the quick brown fox jumps over the lazy dog 0123456789 New Zealand Czech Republic, Bosnia and Herzegovina.",
] * 20
ANSWERS = ["cold", "New Zealand", "été", "日本語", "🙂🙃", "42", "a-b (c)", "Bosnia and Herzegovina"]
TASK = Task("opposites", (Example("hot", "cold"), Example("big", "small")), instruction="Write the opposite.")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_level(vocabulary=600):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet)
    return core, trainer


def crossing():
    """Byte-level BPE without any split into words: it learns tokens such as `A: c` that span the boundary."""
    core, trainer = byte_level(700)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return core, trainer


def metaspace():
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    core.decoder = decoders.Metaspace(prepend_scheme="first", split=True)
    return core, trainers.UnigramTrainer(vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>")


def word_piece():
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer(lowercase=False)
    core.pre_tokenizer, core.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return core, trainers.WordPieceTrainer(vocab_size=500, special_tokens=SPECIAL)


TOKENIZERS = {"byte_level": byte_level, "crossing": crossing, "metaspace": metaspace, "word_piece": word_piece}


@functools.cache
def tokenizer(name):
    if name == "default":
        return load_model("default").tokenizer
    core, trainer = TOKENIZERS[name.removesuffix("+bos")]()
    core.train_from_iterator(CORPUS, trainer)
    if name.endswith("+bos"):
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    made = PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **tokens)
    made.chat_template = CHATML
    return made


LOSSLESS = ["default", "byte_level", "crossing", "byte_level+bos"]  # decoding gives back the very text
ALL = [*LOSSLESS, "metaspace", "metaspace+bos", "word_piece"]


def decode(name, ids):
    return tokenizer(name).decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("style", ["plain", "chat"])
@pytest.mark.parametrize("name", ALL)
def test_the_prompt_is_the_one_the_model_has_to_answer(name, style, answer):
    """The suffix starts at the last token of the prompt as it is tokenised alone, and the rest is the answer."""
    template = Template(tokenizer(name), TASK, style)
    for shots in ((), TASK.examples):
        text = template.prompt_text("big", shots)
        alone = tokenizer(name).encode(text, add_special_tokens=style == "plain")
        prompt = template.encode("big", shots, answer)
        assert list(prompt.prompt) == alone
        assert prompt.suffix[0] == alone[-1]
        assert template.encode("big", shots) == Prompt(tuple(alone[:-1]), (alone[-1],))
        assert len(prompt.answer) >= 1
        assert prompt.suffix[1:] == prompt.answer
        if name in LOSSLESS:
            ending = (" " if style == "plain" else "") + answer + template.terminator
            assert decode(name, prompt.prefix + prompt.suffix) == decode(name, alone) + ending
            assert decode(name, prompt.answer) == ending
        bare = template.encode("big", shots, answer, terminate=False)
        assert bare.prompt == prompt.prompt
        if name in LOSSLESS:
            assert decode(name, prompt.answer).removesuffix(template.terminator) == decode(name, bare.answer)


@pytest.mark.parametrize("name", ["byte_level", "default", "metaspace"])
def test_answers_are_tokenised_in_their_context(name):
    """Where no token spans the boundary the whole text is tokenised as it always would be."""
    template = Template(tokenizer(name), TASK)
    whole = tokenizer(name).encode(template.prompt_text("big") + " cold\n")
    assert list(template.encode("big", answer="cold").prompt + template.encode("big", answer="cold").answer) == whole


def test_a_token_that_spans_the_boundary_is_not_used():
    template, spanning = Template(tokenizer("crossing"), TASK), 0
    for example in TASK.examples:
        text = template.prompt_text(example.input)
        whole = tokenizer("crossing").encode(f"{text} {example.output}\n")
        prompt = template.encode(example.input, answer=example.output)
        spanning += whole[: len(prompt.prompt)] != list(prompt.prompt)
        assert decode("crossing", prompt.answer) == f" {example.output}\n"
    assert spanning, "this tokenizer is here because it has such tokens"


def test_an_end_token_that_the_tokenizer_appends_stays_out_of_the_prompt():
    core = Tokenizer.from_str(tokenizer("byte_level").backend_tokenizer.to_str())
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    assert made.encode("x")[-1] == 2
    expected = Template(tokenizer("byte_level+bos"), TASK).encode("big", TASK.examples, "cold")
    assert Template(made, TASK).encode("big", TASK.examples, "cold") == expected
    with pytest.raises(UserError, match="no tokens"):
        Template(made, TASK).encode_text("")


def test_default_model_has_one_and_several_token_answers():
    template = Template(tokenizer("default"), TASK)
    lengths = {answer: len(template.encode("big", answer=answer, terminate=False).answer) for answer in ANSWERS}
    assert lengths["cold"] == 1
    assert lengths["New Zealand"] == 2
    assert lengths["日本語"] > 2


def test_plain_text_is_as_documented():
    template = Template(tokenizer("byte_level"), TASK)
    assert template.prompt_text("wet") == "Write the opposite.\n\nQ: wet\nA:"
    assert template.prompt_text("wet", TASK.examples[:1]) == "Write the opposite.\n\nQ: hot\nA: cold\n\nQ: wet\nA:"
    bare = Template(tokenizer("byte_level"), Task("t", TASK.examples, input_prefix="", answer_prefix="=>"))
    assert bare.prompt_text("wet") == "wet\n=>"


def test_chat_text_is_the_templates_own():
    template = Template(tokenizer("default"), TASK, "chat")
    turns = [("system", TASK.instruction), ("user", "hot"), ("assistant", "cold"), ("user", "wet")]
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    assert template.prompt_text("wet", TASK.examples[:1]) == text + "<|im_start|>assistant\n"
    assert template.terminator == tokenizer("default").eos_token == "<|im_end|>"
    prompt = template.encode("wet", answer="dry")
    assert prompt.answer[-1] == tokenizer("default").eos_token_id
    assert prompt.prefix[0] == tokenizer("default").convert_tokens_to_ids("<|im_start|>")


def chat_tokenizer(chat, **special):
    core = Tokenizer.from_str(tokenizer("byte_level").backend_tokenizer.to_str())
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **special)
    made.chat_template = chat
    return made


def test_a_chat_answer_ends_as_the_template_ends_a_turn():
    both = chat_tokenizer(CHATML, eos_token="</s>")
    assert Template(both, TASK, "chat").terminator == "<|im_end|>"  # which is not the end token here
    plain = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert Template(chat_tokenizer(plain, eos_token="</s>"), TASK, "chat").terminator == "</s>"
    with pytest.raises(UserError, match="ends no turn"):
        Template(chat_tokenizer(plain), TASK, "chat")


def test_refusals():
    with pytest.raises(UserError, match="plain, chat"):
        Template(tokenizer("byte_level"), TASK, "poem")
    with pytest.raises(UserError, match="no chat template"):
        Template(chat_tokenizer(None, eos_token="</s>"), TASK, "chat")
    with pytest.raises(UserError, match="no tokens"):
        Template(tokenizer("byte_level"), TASK).encode_text("")


PROMPTS = [Prompt((5, 6, 7), (8, 9)), Prompt((), (10, 11, 12, 13)), Prompt((14,), (15,))]


def test_collate_meets_in_the_middle():
    batch = collate(PROMPTS, pad=0)
    assert batch.prefix_ids.tolist() == [[5, 6, 7], [0, 0, 0], [0, 0, 14]]
    assert batch.prefix_mask.tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 1]]
    assert batch.suffix_ids.tolist() == [[8, 9, 0, 0], [10, 11, 12, 13], [15, 0, 0, 0]]
    assert batch.suffix_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch.labels.tolist() == [[9, *[IGNORE] * 3], [11, 12, 13, IGNORE], [IGNORE] * 4]
    assert batch.rows.tolist() == [0, 1, 2]
    assert batch.prompt_lengths.tolist() == [4, 1, 2]
    assert all(tensor.dtype == torch.int64 for tensor in batch)
    assert collate(PROMPTS, pad=3, rows=[7, 8, 9]).rows.tolist() == [7, 8, 9]


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[::-1], PROMPTS[:1], PROMPTS[1:2], [PROMPTS[1]] * 2])
def test_each_label_is_the_token_after_its_position(prompts):
    batch = collate(prompts, pad=0)
    assert batch.prefix_ids.shape == (len(prompts), max(len(p.prefix) for p in prompts))
    for row, prompt in enumerate(prompts):
        real = batch.suffix_ids[row][batch.suffix_mask[row].bool()]
        assert real.tolist() == list(prompt.suffix)
        assert batch.prefix_ids[row][batch.prefix_mask[row].bool()].tolist() == list(prompt.prefix)
        for j, label in enumerate(batch.labels[row].tolist()):
            assert label == (prompt.suffix[j + 1] if j + 1 < len(prompt.suffix) else IGNORE)


def test_an_answer_with_a_line_break_needs_a_chat():
    """In a plain prompt the break ends the answer: it could never be an exact match."""
    broken = Example("hot", "cold\nvery", None)
    with pytest.raises(UserError, match="line break"):
        Template(tokenizer("byte_level"), TASK).encode("hot", answer=broken.output)
    with pytest.raises(UserError, match="line break"):
        Template(tokenizer("byte_level"), TASK).encode("big", [broken])
    chat = Template(tokenizer("default"), TASK, "chat")
    assert "cold\nvery" in chat.prompt_text("big", [broken])
