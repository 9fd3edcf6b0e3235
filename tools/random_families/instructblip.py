"""InstructBLIP in the sizes of Salesforce/instructblip-vicuna-7b, and tiny."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

from random_families import RandomFamily

# The tokenizer of the real one begins a prompt with </s> too.
SPECIALS = ("<unk>", "<s>", "</s>", "[PAD]", "<image>", "<video>")
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")

SIZES = {
    "tiny": {
        "num_query_tokens": 8,
        "vision_config": {
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": 32,
            "patch_size": 8,
        },
        "qformer_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "vocab_size": 128,
        },
        "text_config": {
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "vocab_size": 352,
            "max_position_embeddings": 512,
        },
    },
    "7b": {
        "num_query_tokens": 32,
        "vision_config": {
            "hidden_size": 1408,
            "intermediate_size": 6144,
            "num_hidden_layers": 39,
            "num_attention_heads": 16,
            "image_size": 224,
            "patch_size": 14,
        },
        "qformer_config": {"vocab_size": 30523},
        "text_config": {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32064,
            "max_position_embeddings": 2048,
        },
    },
}


def _preprocessor(config: Any) -> dict[str, Any]:
    size = config.vision_config.image_size
    return {
        "image_processor_type": "BlipImageProcessor",
        "processor_class": "InstructBlipProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "rescale_factor": 1 / 255,
        "resample": 3,
        "size": {"height": size, "width": size},
    }


def _processor(config: Any) -> dict[str, Any]:
    return {"processor_class": "InstructBlipProcessor", "num_query_tokens": config.num_query_tokens}


def _write_qformer_tokenizer(folder: Path, config: Any) -> None:
    """A lower-case WordPiece of single characters and fillers, as BERT's file has it."""
    letters, marks = string.ascii_lowercase + string.digits, string.punctuation
    tokens = [*BERT_SPECIALS, *letters, *marks, *(f"##{letter}" for letter in letters)]
    size = config.qformer_config.vocab_size
    tokens += [f"filler{number}" for number in range(size - len(tokens))]
    vocab = {token: number for number, token in enumerate(tokens)}
    around = {token: {"id": token, "ids": [vocab[token]], "tokens": [token]} for token in ("[CLS]", "[SEP]")}
    first, last = ({"SpecialToken": {"id": token, "type_id": 0}} for token in around)
    words = {"Sequence": {"id": "A", "type_id": 0}}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    normalizer = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    files = {
        "tokenizer.json": {
            "version": "1.0",
            # Files keep what was last set; transformers does not obey it.
            "truncation": {"direction": "Left", "max_length": 16, "strategy": "LongestFirst", "stride": 0},
            "padding": None,
            "added_tokens": [
                {"id": vocab[token], "content": token, **flags, "special": True} for token in BERT_SPECIALS
            ],
            "normalizer": {"type": "BertNormalizer", **normalizer},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [first, words, last],
                "pair": [first, words, last],
                "special_tokens": around,
            },
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": vocab,
            },
        },
        "tokenizer_config.json": {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": True,
            "bos_token": "[DEC]",
            "model_max_length": 512,
            "truncation_side": "left",
        },
    }
    (folder / "qformer_tokenizer").mkdir(exist_ok=True)
    for name, content in files.items():
        text = json.dumps(content, indent=2) + "\n"
        (folder / "qformer_tokenizer" / name).write_text(text, encoding="utf-8")


FAMILY = RandomFamily(
    config_class="InstructBlipConfig",
    sizes={name: {"image_token_index": SPECIALS.index("<image>"), **size} for name, size in SIZES.items()},
    specials=SPECIALS,
    bos="</s>",
    eos="</s>",
    pad="[PAD]",
    preprocessor=_preprocessor,
    processor=_processor,
    chat_template=None,
    adds_bos=True,
    write_more=_write_qformer_tokenizer,
)
