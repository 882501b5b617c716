"""The networks of the coverage sweep: the smallest of every module of timm, and Hugging Face families.

python benchmarks/architectures.py       # the timm names anew, by the count of their parameters
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from models import build

TIMM = """
    beit_base_patch16_224 cait_xxs24_224 coat_tiny convit_tiny convmixer_1024_20_ks9_p14 cpubone_nano
    crossvit_tiny_240 cs3darknet_focus_s csatv2 cspnext_tiny davit_tiny deepseek_vit_412m
    deit_tiny_patch16_224 densenet121 dla60x_c dpn107 edgenext_xx_small efficientformer_l1
    efficientformerv2_s0 efficientvim_m1 efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw fasternet_t0
    fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m ghostnet_050 gmlp_ti16_224 halonet_h1
    hardcorenas_b hgnetv2_b0 hiera_tiny_224 hrnet_w18_small iformer_t inception_next_atto
    inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small legacy_seresnet18 legacy_xception levit_128s
    lowformer_b0 mobilenetv3_small_050 mobilenetv5_base mobilevit_xxs mvitv2_tiny
    naflexvit_base_patch16_parfac_gap nasnetalarge nest_tiny nextvit_small pit_ti_224 pnasnet5large
    poolformerv2_s12 pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50
    resnest14d resnetv2_18 rexnet_100 sam2_hiera_tiny samvit_base_patch16_224 selecsls60 sequencer2d_s
    shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_cr_tiny_224
    swinv2_tiny_window8_256 test_byobnet test_coatnet test_convnext test_efficientnet test_mambaout
    test_nfnet test_resnet test_vit test_vit_relpos tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m
    twins_svt_small vgg11 visformer_tiny vit_tiny_patch16_dinov3_qkvb vit_tiny_r_s16_p8_224
    vitamin_small_224 volo_d1_224 xception41p xcit_nano_12_p8_224
""".split()


def _hugging_face() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """{name: (model class, configuration class, a small configuration)}."""
    vit = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96}
    tower = {**vit, "image_size": 64, "patch_size": 8}
    stages = {"depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "embed_dim": 24, "window_size": 4}
    return {
        "vit": ("ViTForImageClassification", "ViTConfig", tower),
        "deit": ("DeiTForImageClassification", "DeiTConfig", tower),
        "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", {**tower, "mlp_ratio": 2}),
        "dinov2_registers": (
            "Dinov2WithRegistersForImageClassification",
            "Dinov2WithRegistersConfig",
            {**tower, "mlp_ratio": 2, "num_register_tokens": 4},
        ),
        "beit": ("BeitForImageClassification", "BeitConfig", tower),
        "swin": ("SwinForImageClassification", "SwinConfig", {**stages, "image_size": 64, "patch_size": 2}),
        "swinv2": (
            "Swinv2ForImageClassification",
            "Swinv2Config",
            {**stages, "image_size": 64, "patch_size": 2},
        ),
        "convnext": (
            "ConvNextForImageClassification",
            "ConvNextConfig",
            {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1], "image_size": 64},
        ),
        "segformer": (
            "SegformerForImageClassification",
            "SegformerConfig",
            {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4]},
        ),
        "mobilevit": (
            "MobileViTForImageClassification",
            "MobileViTConfig",
            {
                "hidden_sizes": [24, 32, 48],
                "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 96],
                "image_size": 64,
            },
        ),
        "levit": (
            "LevitForImageClassification",
            "LevitConfig",
            {
                "hidden_sizes": [32, 48, 64],
                "num_attention_heads": [2, 3, 4],
                "depths": [1, 1, 1],
                "image_size": 224,
            },
        ),
        "poolformer": (
            "PoolFormerForImageClassification",
            "PoolFormerConfig",
            {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]},
        ),
        "resnet": (
            "ResNetForImageClassification",
            "ResNetConfig",
            {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]},
        ),
        "clip": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {**tower, "projection_dim": 10}),
        "siglip": ("SiglipVisionModel", "SiglipVisionConfig", tower),
        "segformer_segmentation": (
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            {
                "hidden_sizes": [16, 32, 48, 64],
                "depths": [1, 1, 1, 1],
                "num_attention_heads": [1, 2, 3, 4],
                "decoder_hidden_size": 32,
            },
        ),
        "yolos": (
            "YolosForObjectDetection",
            "YolosConfig",
            {**vit, "image_size": [64, 64], "patch_size": 8, "num_detection_tokens": 10},
        ),
        "dpt": (
            "DPTForSemanticSegmentation",
            "DPTConfig",
            {
                **tower,
                "num_hidden_layers": 4,
                "backbone_out_indices": [0, 1, 2, 3],
                "neck_hidden_sizes": [16, 24, 32, 48],
                "fusion_hidden_size": 32,
            },
        ),
    }


HUGGING_FACE = _hugging_face()


def build_any(name: str) -> tuple[Any, Any]:
    """A network in evaluation mode, random weights, and a batch of two images.

    What a segmenter, a detector or an image tower returns is averaged to one number per class.
    """
    import torch

    side = 224
    if name.startswith("hf:"):
        model, side = _of_hugging_face(name.removeprefix("hf:"))
    else:
        model = build(f"timm:{name}")
        channels, side, _ = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))
        images = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            if model(images).ndim != 2:
                model = _averaged(model, lambda y: y.flatten(1, -2).mean(1))
        return model, images
    return model, torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def _of_hugging_face(name: str) -> tuple[Any, int]:
    import torch
    import transformers
    from torchvision_shim import import_torchvision

    import_torchvision()
    torch.manual_seed(0)
    model_class, config_class, fields = HUGGING_FACE[name]
    config = getattr(transformers, config_class)(**fields)
    side = fields.get("image_size", 64)
    model = getattr(transformers, model_class)(config).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.75, 1.25)

    def scores(output: Any) -> Any:
        for field in ("logits", "image_embeds", "pooler_output"):
            y = getattr(output, field, None)
            if y is not None:
                break
        if y.ndim == 4:
            return y.mean((2, 3))
        return y.mean(1) if y.ndim == 3 else y

    return _averaged(model, scores), side[0] if isinstance(side, list) else side


def _averaged(model: Any, scores: Callable[[Any], Any]) -> Any:
    import torch

    class Averaged(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return scores(self.network(images))

    return Averaged().eval()


def smallest() -> list[str]:
    """The name of the smallest network of every module of timm, counted without making its weights."""
    import timm
    import torch

    names = set()
    for module in timm.list_modules():
        sizes = {}
        for name in timm.list_models(module=module):
            with torch.device("meta"):
                sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
        names |= {min(sizes, key=lambda n: sizes[n])} if sizes else set()
    return sorted(names)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(*smallest())
