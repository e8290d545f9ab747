"""Tables of diffusers' names and those of the original Stable Diffusion code (LDM; SGM for SDXL), from block counts.

LDM numbers all blocks of a UNet consecutively: ``input_blocks.4.1`` is the attention of SDXL's
``down_blocks.1.attentions.0``. The tables mirror ``diffusers.loaders.single_file_utils``
(``convert_ldm_unet_checkpoint``, ``convert_ldm_vae_checkpoint``, ``convert_open_clip_checkpoint``) in both directions.
They hold names of modules; inside a module, both codes use the same names.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

# Module of diffusers -> module of LDM.
Names = dict[str, str]

_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
}
_SIZE_EMBEDDING = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
_SHORTCUT = "conv_shortcut"  # present in blocks whose input and output differ in width
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    _SHORTCUT: "skip_connection",
}
_VAE_RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {_SHORTCUT: "nin_shortcut"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_TEXT_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_UNBIASED = re.compile(r"attn[12]\.to_[qkv]$")
_TRANSFORMER = tuple(f"norm{i}" for i in (1, 2, 3)) + ("ff.net.0.proj", "ff.net.2")
_TRANSFORMER += tuple(f"attn{i}.{part}" for i in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0"))


@dataclasses.dataclass(frozen=True)
class UNetLayout:
    """Block counts of a UNet2DConditionModel whose up blocks mirror its down blocks.

    Attributes:
      layers: ResNet blocks of each down block, ``layers_per_block``; each up block has one more.
      depths: transformer blocks per attention, one number for each level; 0 for a level without attention.
      size_embedding: whether the UNet takes SDXL's size conditions.
    """

    layers: int
    depths: tuple[int, ...]
    size_embedding: bool = False

    @property
    def levels(self) -> int:
        """The number of ``down_blocks``."""
        return len(self.depths)

    @property
    def middle_depth(self) -> int:
        """The number of transformer blocks of the middle block, which always has attention."""
        return self.depths[-1] or 1


def unet_layout(names: Iterable[str]) -> UNetLayout:
    """Infers the layout from diffusers' names of modules or tensors; those of the attentions alone suffice.

    Raises:
      ValueError: no name belongs to a down block or an up block.
    """
    pattern = re.compile(
        r"(down|up)_blocks\.(\d+)\.(?:resnets|attentions)\.(\d+)(?:\.transformer_blocks\.(\d+))?|(add_embedding)\."
    )
    matches = [match for match in map(pattern.match, names) if match]
    blocks = [(match[1], int(match[2]), int(match[3]), match[4]) for match in matches if match[1]]
    if not blocks:
        raise ValueError("none of the names belongs to a UNet's down_blocks or up_blocks")
    levels = 1 + max(block for _, block, _, _ in blocks)
    depths = [0] * levels
    for side, block, _, inner in blocks:
        if inner is not None:
            level = block if side == "down" else levels - 1 - block
            depths[level] = max(depths[level], int(inner) + 1)
    layers = max(layer + (side == "down") for side, _, layer, _ in blocks)
    return UNetLayout(layers, tuple(depths), any(match[5] for match in matches))


def ldm_unet_layout(keys: Iterable[str]) -> UNetLayout:
    """Infers the layout from LDM's keys of a UNet, whose levels end at the downsamplers (``op``).

    Raises:
      ValueError: there is no downsampler that separates the levels.
    """
    keys = list(keys)
    ends = [int(match[1]) for key in keys if (match := re.fullmatch(r"input_blocks\.(\d+)\.0\.op\.weight", key))]
    if not ends or min(ends) < 2:
        raise ValueError("no downsampler (input_blocks.N.0.op.weight)")
    layers = min(ends) - 1
    depths = [0] * (len(ends) + 1)
    for key in keys:
        match = re.match(r"input_blocks\.(\d+)\.1\.transformer_blocks\.(\d+)\.", key)
        level = (int(match[1]) - 1) // (layers + 1) if match else len(depths)
        if level < len(depths):
            depths[level] = max(depths[level], int(match[2]) + 1)
    return UNetLayout(layers, tuple(depths), any(key.startswith("label_emb.") for key in keys))


def unet_modules(layout: UNetLayout) -> Names:
    """Lists all modules of a UNet outside its attentions, and each attention as a whole."""
    names = dict(_UNET_ENDS) | (_SIZE_EMBEDDING if layout.size_embedding else {})
    layers = layout.layers
    levels = layout.levels

    def add(block: str, layer: int, place: str, attends: bool) -> None:
        names.update(_inside(f"{block}.resnets.{layer}", f"{place}.0", _UNET_RESNET))
        if attends:
            names[f"{block}.attentions.{layer}"] = f"{place}.1"

    # Down blocks.
    for level, depth in enumerate(layout.depths):
        first = level * (layers + 1) + 1
        for layer in range(layers):
            add(f"down_blocks.{level}", layer, f"input_blocks.{first + layer}", depth > 0)
        if level < levels - 1:
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{first + layers}.0.op"
    # Middle block.
    for resnet in (0, 1):
        names |= _inside(f"mid_block.resnets.{resnet}", f"middle_block.{2 * resnet}", _UNET_RESNET)
    names["mid_block.attentions.0"] = "middle_block.1"
    # Up blocks.
    for block, depth in enumerate(reversed(layout.depths)):
        first = block * (layers + 1)
        for layer in range(layers + 1):
            add(f"up_blocks.{block}", layer, f"output_blocks.{first + layer}", depth > 0)
        if block < levels - 1:  # The upsampler follows the ResNet block and, where there is one, the attention.
            place = f"output_blocks.{first + layers}.{2 if depth else 1}"
            names[f"up_blocks.{block}.upsamplers.0.conv"] = f"{place}.conv"
    return names


def vae_modules(levels: int, layers: int) -> Names:
    """Lists all modules of an AutoencoderKL; LDM numbers the decoder's levels in reverse order."""
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for side in ("encoder", "decoder"):
        for diffusers, ldm in (("conv_in", "conv_in"), ("conv_norm_out", "norm_out"), ("conv_out", "conv_out")):
            names[f"{side}.{diffusers}"] = f"{side}.{ldm}"
        for resnet in (0, 1):
            place = f"{side}.mid.block_{resnet + 1}"
            names |= _inside(f"{side}.mid_block.resnets.{resnet}", place, _VAE_RESNET)
        names |= _inside(f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1", _VAE_ATTENTION)
    for level in range(levels):
        down = f"encoder.down_blocks.{level}"
        up = f"decoder.up_blocks.{levels - 1 - level}"
        for layer in range(layers):
            names |= _inside(f"{down}.resnets.{layer}", f"encoder.down.{level}.block.{layer}", _VAE_RESNET)
        for layer in range(layers + 1):
            names |= _inside(f"{up}.resnets.{layer}", f"decoder.up.{level}.block.{layer}", _VAE_RESNET)
        if level < levels - 1:
            names[f"{down}.downsamplers.0.conv"] = f"encoder.down.{level}.downsample.conv"
        if level > 0:
            names[f"{up}.upsamplers.0.conv"] = f"decoder.up.{level}.upsample.conv"
    return names


def open_clip_modules(layers: int) -> Names:
    """Lists all modules of a CLIPTextModel except those that OpenCLIP stores in another form.

    These are the input projections of the attentions, which OpenCLIP stores as one matrix, and two tensors that are not
    modules there (``positional_embedding``, ``text_projection``).
    """
    names = {"text_model.embeddings.token_embedding": "token_embedding", "text_model.final_layer_norm": "ln_final"}
    for layer in range(layers):
        place = f"transformer.resblocks.{layer}"
        names |= _inside(f"text_model.encoder.layers.{layer}", place, _TEXT_LAYER)
    return names


def unet_keys(layout: UNetLayout) -> tuple[set[str], set[str]]:
    """Returns the required and the optional keys of a UNet under LDM's names; shortcuts are optional."""
    names = unet_modules(layout)
    # The attentions, and the number of transformer blocks of each.
    attentions = {name: layout.middle_depth for name in names if name == "mid_block.attentions.0"}
    for level, depth in enumerate(layout.depths):
        blocks = (f"down_blocks.{level}.attentions.", f"up_blocks.{layout.levels - 1 - level}.attentions.")
        attentions |= {name: depth for name in names if name.startswith(blocks)}
    # All modules, with those inside the attentions.
    modules = [place for name, place in names.items() if name not in attentions]
    for name, depth in attentions.items():
        inner = [f"transformer_blocks.{i}.{part}" for i in range(depth) for part in _TRANSFORMER]
        modules += [f"{names[name]}.{part}" for part in ("norm", "proj_in", "proj_out", *inner)]
    return _with_leaves(modules)


def vae_keys(levels: int, layers: int) -> tuple[set[str], set[str]]:
    """Returns the required and the optional keys of an AutoencoderKL, as `unet_keys`."""
    return _with_leaves(vae_modules(levels, layers).values())


def open_clip_keys(layers: int, projection: bool) -> tuple[set[str], set[str]]:
    """Returns the required and the optional keys of an OpenCLIP text tower, as `unet_keys`."""
    required, _ = _with_leaves(open_clip_modules(layers).values())
    fused = {f"transformer.resblocks.{i}.attn.in_proj_{leaf}" for i in range(layers) for leaf in ("weight", "bias")}
    tensors = {"positional_embedding"} | ({"text_projection"} if projection else set())
    return (required | fused | tensors) - {"token_embedding.bias"}, set()


def clip_keys(layers: int) -> tuple[set[str], set[str]]:
    """Returns the required and the optional keys of a CLIPTextModel, under transformers' names with ``text_model.``."""
    parts = [part for part in _TEXT_LAYER] + [f"self_attn.{part}_proj" for part in "qkv"]
    modules = [f"text_model.encoder.layers.{layer}.{part}" for layer in range(layers) for part in parts]
    required, _ = _with_leaves([*modules, "text_model.final_layer_norm"])
    embeddings = {f"text_model.embeddings.{part}_embedding.weight" for part in ("token", "position")}
    return required | embeddings, set()


def renamed(name: str, names: Mapping[str, str]) -> str | None:
    """Replaces the longest head of a module's or tensor's name that is in the table; returns None if no head is."""
    head = name
    while head and head not in names:
        head = head.rpartition(".")[0]
    return names[head] + name[len(head) :] if head else None


def inverse(names: Names) -> dict[str, str]:
    """Returns the table from LDM's modules to diffusers'."""
    return {place: name for name, place in names.items()}


def count(keys: Iterable[str], pattern: str) -> int:
    """Returns one more than the largest number that the pattern's group matches in the keys; 0 if no key matches."""
    return max((int(match[1]) + 1 for key in keys if (match := re.match(pattern, key))), default=0)


def _inside(name: str, place: str, parts: Mapping[str, str]) -> Names:
    """Lists the parts of a module by their names inside it."""
    return {f"{name}.{ours}": f"{place}.{theirs}" for ours, theirs in parts.items()}


def _with_leaves(modules: Iterable[str] | Sequence[str]) -> tuple[set[str], set[str]]:
    """Returns the required and the optional keys of LDM's modules."""
    required = set()
    optional = set()
    for module in modules:
        leaves = {f"{module}.weight"} if _UNBIASED.search(module) else {f"{module}.weight", f"{module}.bias"}
        keys = optional if module.endswith(("skip_connection", "nin_shortcut")) else required
        keys.update(leaves)
    return required, optional
