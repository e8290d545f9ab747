"""The judges of `benchmarks.torch_peer`: a preference model that sees decoded images, and a latent reward model.

Both take latents, one timestep for all of them, and the tokens of a prompt for each. They encode these prompts again at
every step, as their references do.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import safetensors.torch
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

TIME_FEATURES = 256
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class PreferenceModel(nn.Module):
    """transformers' CLIPModel with the vision tower of the step-aware preference model, whose norms depend on t."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.clip = clip = transformers.CLIPModel(transformers.CLIPConfig(**config))
        width = clip.config.vision_config.hidden_size

        def modulation(chunks: int) -> nn.Module:
            return nn.Sequential(nn.SiLU(), nn.Linear(width, chunks * width))

        clip.t_embedder = nn.Module()
        clip.t_embedder.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        for layer in clip.vision_model.encoder.layers:
            layer.adaLN_modulation = modulation(6)
        clip.vision_model.adaLN_modulation = modulation(2)

    def forward(self, images: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Returns float32 scores [n] of images [n 3 H W] in [-1, 1] at timesteps [n] for tokens [n l]."""
        image = self._image_features(self._pixels(images), t)
        text = self.clip.text_model(input_ids=ids).pooler_output
        return _cosine(image, self.clip.text_projection(text), self.clip.logit_scale)

    def _pixels(self, images: Tensor) -> Tensor:
        side = self.clip.config.vision_config.image_size
        images = F.interpolate(images.float(), size=(side, side), mode="bicubic", align_corners=False)
        mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        return ((images / 2 + 0.5).clamp(0, 1) - mean) / std

    def _image_features(self, pixels: Tensor, t: Tensor) -> Tensor:
        vision = self.clip.vision_model
        dtype = self.clip.visual_projection.weight.dtype
        c = self.clip.t_embedder.mlp(_sinusoid(t).to(dtype))
        x = vision.pre_layrnorm(vision.embeddings(pixels.to(dtype)))
        for layer in vision.encoder.layers:
            chunks = layer.adaLN_modulation(c)[:, None].chunk(6, dim=-1)
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = chunks
            h = layer.layer_norm1(x) * (1 + scale_a) + shift_a
            x = x + gate_a * layer.self_attn(hidden_states=h, attention_mask=None)[0]
            x = x + gate_m * layer.mlp(layer.layer_norm2(x) * (1 + scale_m) + shift_m)
        shift, scale = vision.adaLN_modulation(c).chunk(2, dim=-1)
        return self.clip.visual_projection(vision.post_layernorm(x[:, 0]) * (1 + scale) + shift)


def _sinusoid(t: Tensor) -> Tensor:
    half = TIME_FEATURES // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, device=t.device) / half)
    angles = t.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _cosine(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Returns exp(logit_scale) · cos of features [n d], in float32."""
    return logit_scale.float().exp() * F.cosine_similarity(image.float(), text.float(), dim=-1)


class ImageJudge(nn.Module):
    """A decoder and a preference model; a whole pool is decoded at once.

    Args:
      folder: folder with ``vae`` and ``spm``.
      dtype: dtype of weights and activations.
    """

    def __init__(self, folder: Path, dtype: torch.dtype):
        super().__init__()
        decoder = getattr(diffusers, _config(folder / "vae")["_class_name"])
        self.vae = decoder.from_pretrained(folder / "vae", torch_dtype=dtype, local_files_only=True)
        self.spm = PreferenceModel(_config(folder / "spm")).to(dtype)
        # Kept in float32, as in ours, because bfloat16 would move every score by a percent.
        self.spm.clip.logit_scale.data = self.spm.clip.logit_scale.data.float()
        self.spm.clip.load_state_dict(safetensors.torch.load_file(folder / "spm" / "model.safetensors"))
        self.dtype = dtype

    def forward(self, latents: Tensor, t: int, ids: Tensor) -> Tensor:
        """Returns scores [n] of clean latents [n c h w] for tokens [n l]."""
        images = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.dtype)).sample
        return self.spm(images, torch.full((len(latents),), t, device=latents.device), ids)


class LatentJudge(nn.Module):
    """The latent reward model of LPO for SD 1.5: a UNet without its second half, and a text encoder of its own.

    Args:
      folder: folder with ``lrm``, as `benchmarks.contender.write_models` writes it.
      dtype: dtype of weights and activations.
    """

    def __init__(self, folder: Path, dtype: torch.dtype):
        super().__init__()
        folder = folder / "lrm"
        head = safetensors.torch.load_file(folder / "head.safetensors")
        self.guidance_scale = json.loads((folder / "judge.json").read_text(encoding="utf-8"))["guidance_scale"]
        self.unet = _first_half(folder / "unet").to(dtype)
        self.text_encoder = transformers.CLIPTextModel.from_pretrained(
            folder / "text_encoder", dtype=dtype, local_files_only=True
        )
        self.visual = nn.Parameter(head["visual_projection.weight"].float())
        self.text = nn.Parameter(head["text_projection.weight"].float())
        self.logit_scale = nn.Parameter(head["logit_scale"].float())
        self.empty = nn.Parameter(head["empty_ids"], requires_grad=False)
        self.dtype = dtype

    def forward(self, latents: Tensor, t: int, ids: Tensor) -> Tensor:
        """Returns scores [n] of noisy latents [n c h w] for tokens [n l]."""
        ids = torch.cat([ids, self.empty.expand_as(ids)])
        texts = self.text_encoder(input_ids=ids)
        text = texts.pooler_output[: len(latents)].float() @ self.text.T
        image = self._pooled(torch.cat([latents, latents]), t, texts.last_hidden_state) @ self.visual.T
        return _cosine(image, text, self.logit_scale)

    def _pooled(self, latents: Tensor, t: int, states: Tensor) -> Tensor:
        """Returns averages over space [n d] of all down blocks and of the middle block, whose average is guided."""
        unet = self.unet
        features = unet.time_proj(torch.full((len(latents),), t, device=latents.device))
        temb = unet.time_embedding(features.to(self.dtype))
        x = unet.conv_in(latents.to(self.dtype))
        outputs = []
        for block in unet.down_blocks:
            options = {"encoder_hidden_states": states} if getattr(block, "has_cross_attention", False) else {}
            x, layers = block(x, temb, **options)
            outputs.append(layers[len(block.resnets) - 1])
        outputs.append(unet.mid_block(x, temb, encoder_hidden_states=states))
        *stages, middle = (x.float().mean((2, 3)).chunk(2) for x in outputs)
        with_text, without = middle
        guided = without + self.guidance_scale * (with_text - without)
        return torch.cat([*(stage[0] for stage in stages), guided], dim=-1)


def _first_half(folder: Path) -> nn.Module:
    """Reads a UNet whose files hold its first half alone, and drops the rest."""
    unet = diffusers.UNet2DConditionModel.from_config(_config(folder))
    state = safetensors.torch.load_file(folder / "diffusion_pytorch_model.safetensors")
    missing, unknown = unet.load_state_dict(state, strict=False)
    rest = {name.partition(".")[0] for name in missing}
    if unknown or not rest <= {"up_blocks", "conv_norm_out", "conv_out"}:
        raise ValueError(f"{folder} is not the first half of a UNet: missing {sorted(rest)}, unknown {unknown}")
    unet.up_blocks = unet.conv_norm_out = unet.conv_out = None
    return unet


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))
