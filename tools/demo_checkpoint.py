"""The demo checkpoint as a folder: tokenizer, model shape, prompt layout, and the files that transformers reads."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from demo_rules import REFUSAL_OPENERS, SAFE_WORD, UNSAFE_WORD, VERDICT_QUESTION, training_sentences
from drawn_world import SIZE
from make_random_checkpoint import write_json

PAD, START, END = "<|pad|>", "<|im_start|>", "<end_of_utterance>"
FAKE, GLOBAL, IMAGE, UNKNOWN = "<fake_token_around_image>", "<global-img>", "<image>", "<unk>"
SPECIALS = (PAD, START, END, FAKE, GLOBAL, IMAGE, UNKNOWN)
PATCH, SCALE = 12, 2
IMAGE_TOKENS = (SIZE // PATCH // SCALE) ** 2
IMAGE_PREFIX = f"{START}User:{FAKE}{GLOBAL}{IMAGE * IMAGE_TOKENS}{FAKE}"
ASSISTANT = f"{END}\nAssistant:"

CHAT_TEMPLATE = (
    "<|im_start|>"
    "{%- for message in messages -%}"
    "{%- set parts = [{'type': 'text', 'text': message['content']}]"
    " if message['content'] is string else message['content'] -%}"
    "{{- message['role'] | capitalize -}}"
    "{{- ':' if parts[0]['type'] == 'image' else ': ' -}}"
    "{%- for part in parts -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>' -}}"
    "{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}"
    "{{- '<end_of_utterance>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the byte-level BPE on the world's sentences; any other text still encodes, byte by byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=1,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # The turn markers are plain words too.
    tokenizer.train_from_iterator([*training_sentences(), "User: ", "Assistant: ", "\n"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=[FAKE, GLOBAL, IMAGE],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Idefics3ForConditionalGeneration:
    """A model of the demo's shape with random weights."""
    torch.manual_seed(seed)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = Idefics3Config(
        vision_config={
            "hidden_size": 192,
            "intermediate_size": 576,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": SIZE,
            "patch_size": PATCH,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            **special,
        },
        scale_factor=SCALE,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=True,
        **special,
    )
    config.architectures = ["Idefics3ForConditionalGeneration"]
    model = Idefics3ForConditionalGeneration(config)
    # Twice as fast as the fused kernel for sequences as short as these, on the CPU.
    model.set_attn_implementation("eager")
    return model


def _draft_settings() -> dict[str, Any]:
    return {
        "judge_template": "{request} " + VERDICT_QUESTION,
        "verdict": {"safe": SAFE_WORD, "unsafe": UNSAFE_WORD},
        "refusal_phrases": [opener.rstrip(",:") for opener, _ in REFUSAL_OPENERS],
    }


def write_checkpoint(
    folder: Path, model: Idefics3ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Write every file next to its target first, then rename each into place."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        stage = Path(name)
        state = {key: value.to(torch.float16) for key, value in model.state_dict().items()}
        model.save_pretrained(stage, state_dict=state)
        config = json.loads((stage / "config.json").read_text(encoding="utf-8"))
        config["dtype"] = "float16"
        for part in ("text_config", "vision_config"):
            config[part]["dtype"] = "float16"
        config.pop("_pad_token_id", None)
        write_json(stage / "config.json", config)
        tokenizer.save_pretrained(stage)
        settings = json.loads((stage / "tokenizer_config.json").read_text(encoding="utf-8"))
        # The spelling that older versions of transformers read too.
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "processor_class": "Idefics3Processor"}
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
        settings.pop("backend", None)
        write_json(stage / "tokenizer_config.json", settings)
        (stage / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
        half = [0.5, 0.5, 0.5]
        edge = {"longest_edge": SIZE}
        write_json(
            stage / "preprocessor_config.json",
            {
                "image_processor_type": "Idefics3ImageProcessor",
                "processor_class": "Idefics3Processor",
                "do_convert_rgb": True,
                "do_resize": True,
                "do_rescale": True,
                "do_normalize": True,
                "do_pad": True,
                "do_image_splitting": False,
                "image_mean": half,
                "image_std": half,
                "rescale_factor": 1 / 255,
                "resample": 1,
                "size": edge,
                "max_image_size": edge,
            },
        )
        write_json(
            stage / "processor_config.json",
            {"processor_class": "Idefics3Processor", "image_seq_len": IMAGE_TOKENS},
        )
        GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            do_sample=False,
            max_new_tokens=32,
        ).save_pretrained(stage)
        # A draft for a new folder: settings that somebody chose stay.
        if not (folder / "safecode.json").exists():
            write_json(stage / "safecode.json", _draft_settings())
        for path in sorted(stage.iterdir()):
            if path.is_file():
                path.chmod(0o644)
                os.replace(path, folder / path.name)
            else:
                shutil.rmtree(path)
