"""Writes the golden files of the towers: tiny random models of Hugging Face transformers, and what they compute.

  pip install 'lapa_jax[golden]'
  python tests/golden/make_towers.py

Needs torch, which the tests do not. Each folder `towers/<name>` gets `config.json` and safetensors as `save_pretrained`
writes them, and `expected.npz`: the inputs and the outputs in float32.
"""

import pathlib
import shutil

import numpy as np
import torch
import transformers as hf

HERE = pathlib.Path(__file__).resolve().parent / "towers"
STATISTICS = {"siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}

EPS = 0.01  # far from every default, so that a forgotten one shows


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """Parameters large enough that a forgotten bias, scale or norm shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight") or "lambda" in name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    return model.eval()


def write(name: str, model: torch.nn.Module, arrays: dict, shard: str = "1GB") -> None:
    shutil.rmtree(HERE / name, ignore_errors=True)
    model.save_pretrained(HERE / name, max_shard_size=shard)
    (HERE / name / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(HERE / name / "expected.npz", **arrays)
    for path in (HERE / name).iterdir():
        path.chmod(0o644)


@torch.no_grad()
def llama(name: str, shard: str, **options) -> None:
    config = hf.LlamaConfig(vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2, head_dim=4,
                            num_attention_heads=4, rms_norm_eps=EPS, **options)  # fmt: skip
    model = randomize(hf.LlamaForCausalLM(config))
    tokens = torch.randint(0, 48, (2, 9))
    mask = torch.ones_like(tokens)
    mask[1, 6:] = 0
    out = model(tokens, attention_mask=mask, output_hidden_states=True)
    arrays = {"tokens": tokens, "mask": mask.bool(), "hidden": out.hidden_states[-1], "logits": out.logits}
    write(name, model, {k: v.numpy() for k, v in arrays.items()}, shard)


@torch.no_grad()
def vision(name: str, model: torch.nn.Module, skip: int, sizes: tuple, shard: str = "1GB") -> None:
    """skip: the tokens before those of patches. sizes: (height, width) of the images."""
    model, arrays = randomize(model), {}
    mean, std = (torch.tensor(x) for x in STATISTICS[name.partition("_")[0]])
    for height, width in sizes:
        image = torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8)
        pixels = ((image / 255 - mean) / std).permute(0, 3, 1, 2)
        options = {"interpolate_pos_encoding": True} if name.startswith("siglip") else {}
        out = model(pixels, output_hidden_states=True, **options)
        size = f"{height}x{width}"
        arrays |= {f"image_{size}": image.numpy(), f"last_{size}": out.last_hidden_state[:, skip:].numpy(),
                   f"before_{size}": out.hidden_states[-2][:, skip:].numpy()}  # fmt: skip
    write(name, model, arrays, shard)


def main() -> None:
    llama("llama", "8KB", num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    llama("llama_tied", "1GB", num_key_value_heads=4, tie_word_embeddings=True)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "layer_norm_eps": EPS}
    siglip = hf.SiglipVisionConfig(intermediate_size=20, image_size=42, patch_size=14, **sizes)
    vision("siglip", hf.SiglipVisionModel(siglip), 0, ((42, 42), (56, 28), (47, 33)))
    # As so400m for 384 pixels, which are 27 patches of 14 and 6 pixels of border: here 3 of 14, and 5 pixels.
    border = hf.SiglipVisionConfig(intermediate_size=20, image_size=47, patch_size=14, **sizes)
    vision("siglip_border", hf.SiglipVisionModel(border), 0, ((47, 47), (60, 31)))
    dinov2 = hf.Dinov2Config(image_size=56, patch_size=14, mlp_ratio=2, **sizes)
    vision("dinov2", hf.Dinov2Model(dinov2), 1, ((56, 56), (28, 70), (61, 37)), "20KB")
    registers = hf.Dinov2WithRegistersConfig(image_size=20, patch_size=4, num_register_tokens=3, mlp_ratio=2, **sizes)
    vision("dinov2_registers", hf.Dinov2WithRegistersModel(registers), 4, ((20, 20), (12, 28), (15, 22)))


if __name__ == "__main__":
    main()
