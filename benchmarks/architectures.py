"""The networks of the coverage sweep: the smallest of every module of timm, and Hugging Face families.

python benchmarks/architectures.py       # the timm names anew, by the count of their parameters
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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


#: Networks of timm that are built smaller than their smallest name: too large for the time or the memory.
SMALLER: dict[str, dict[str, Any]] = {
    "deepseek_vit_412m": {"img_size": 224, "depth": 4},
    "gemma4_vit_167m": {"img_size": 224, "depth": 4},
    "qwen3_vit_88m": {"img_size": 224},
    "sequencer2d_s": {"layers": (1, 1, 2, 1)},
}


class Family(NamedTuple):
    """A Hugging Face architecture.

    Attributes:
        model: the class.
        config: its configuration's class.
        fields: a small configuration; a pair in it is another configuration's class and fields.
        side: of its images, where the configuration does not say.
    """

    model: str
    config: str
    fields: dict[str, Any]
    side: int = 64


def _hugging_face() -> dict[str, Family]:
    vit = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96}
    tower = {**vit, "image_size": 64, "patch_size": 8}
    stages = {"depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "embed_dim": 24, "window_size": 4}
    four = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}
    attends = {**four, "num_attention_heads": [1, 2, 3, 4]}
    names = ["stage1", "stage2", "stage3", "stage4"]

    def resnet(stages: list[str], kind: str = "ResNetConfig") -> tuple[str, dict[str, Any]]:
        return kind, {**four, "embedding_size": 16, "layer_type": "basic", "out_features": stages}

    transformer = {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "num_queries": 10,
    }
    detr = {**transformer, "use_timm_backbone": False, "backbone_config": resnet(names[3:])}
    families = {
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
        "detr": ("DetrForObjectDetection", "DetrConfig", detr, 128),
        "conditional_detr": ("ConditionalDetrForObjectDetection", "ConditionalDetrConfig", detr, 128),
        "table_transformer": ("TableTransformerForObjectDetection", "TableTransformerConfig", detr, 128),
        "deformable_detr": (
            "DeformableDetrForObjectDetection",
            "DeformableDetrConfig",
            {**detr, "backbone_config": resnet(names[1:])},
            128,
        ),
        "dab_detr": (
            "DabDetrForObjectDetection",
            "DabDetrConfig",
            {**{k: v for k, v in detr.items() if k != "d_model"}, "hidden_size": 32},
            128,
        ),
        "rt_detr": (
            "RTDetrForObjectDetection",
            "RTDetrConfig",
            {
                **transformer,
                "backbone_config": resnet(names[1:], "RTDetrResNetConfig"),
                "encoder_layers": 1,
                "encoder_hidden_dim": 32,
                "encoder_in_channels": [32, 48, 64],
                "decoder_in_channels": [32, 32, 32],
                "hidden_expansion": 0.5,
            },
            128,
        ),
        "maskformer": (
            "MaskFormerForInstanceSegmentation",
            "MaskFormerConfig",
            {
                "backbone_config": resnet(names),
                "decoder_config": ("DetrConfig", detr),
                "fpn_feature_size": 32,
                "mask_feature_size": 32,
            },
            128,
        ),
        "upernet": (
            "UperNetForSemanticSegmentation",
            "UperNetConfig",
            {
                "backbone_config": ("ConvNextConfig", {**four, "out_features": names}),
                "hidden_size": 32,
                "use_auxiliary_head": False,
            },
            128,
        ),
        "beit_segmentation": (
            "BeitForSemanticSegmentation",
            "BeitConfig",
            {**tower, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "use_auxiliary_head": False},
        ),
        "mobilevit_segmentation": (
            "MobileViTForSemanticSegmentation",
            "MobileViTConfig",
            {
                "hidden_sizes": [24, 32, 48],
                "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 96],
                "image_size": 128,
            },
        ),
        "glpn": ("GLPNForDepthEstimation", "GLPNConfig", {**attends, "decoder_hidden_size": 16}, 128),
        "depth_anything": (
            "DepthAnythingForDepthEstimation",
            "DepthAnythingConfig",
            {
                "backbone_config": (
                    "Dinov2Config",
                    {
                        **vit,
                        "num_hidden_layers": 4,
                        "mlp_ratio": 2,
                        "image_size": 56,
                        "out_features": names,
                        "reshape_hidden_states": False,
                    },
                ),
                "reassemble_hidden_size": 48,
                "neck_hidden_sizes": [16, 24, 32, 48],
                "fusion_hidden_size": 16,
                "head_hidden_size": 8,
            },
            56,
        ),
        "convnextv2": ("ConvNextV2ForImageClassification", "ConvNextV2Config", {**four, "image_size": 64}),
        "focalnet": (
            "FocalNetForImageClassification",
            "FocalNetConfig",
            {"embed_dim": 16, "depths": [1, 1, 2, 1], "image_size": 64},
        ),
        "regnet": (
            "RegNetForImageClassification",
            "RegNetConfig",
            {**four, "embedding_size": 16, "groups_width": 8},
        ),
        "bit": (
            "BitForImageClassification",
            "BitConfig",
            {
                "embedding_size": 16,
                "hidden_sizes": [32, 64, 96, 128],
                "depths": [1, 1, 1, 1],
                "num_groups": 8,
            },
        ),
        "pvt": ("PvtForImageClassification", "PvtConfig", {**attends, "image_size": 64}),
        "pvt_v2": ("PvtV2ForImageClassification", "PvtV2Config", {**attends, "image_size": 64}),
        "mobilenet_v2": (
            "MobileNetV2ForImageClassification",
            "MobileNetV2Config",
            {"depth_multiplier": 0.25, "image_size": 64},
        ),
        "mobilevitv2": (
            "MobileViTV2ForImageClassification",
            "MobileViTV2Config",
            {"width_multiplier": 0.25, "image_size": 64, "n_attn_blocks": [1, 1, 1]},
        ),
        "swiftformer": (
            "SwiftFormerForImageClassification",
            "SwiftFormerConfig",
            {"depths": [1, 1, 2, 1], "embed_dims": [16, 32, 48, 64]},
        ),
        "hiera": (
            "HieraForImageClassification",
            "HieraConfig",
            {"embed_dim": 16, "depths": [1, 1, 2, 1], "image_size": [64, 64], "num_heads": [1, 2, 4, 8]},
        ),
        "data2vec_vision": ("Data2VecVisionForImageClassification", "Data2VecVisionConfig", tower),
        "vit_msn": ("ViTMSNForImageClassification", "ViTMSNConfig", tower),
        "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {**tower, "num_register_tokens": 2}),
    }
    return {name: Family(*entry) for name, entry in families.items()}


HUGGING_FACE = _hugging_face()


def build_any(name: str) -> tuple[Any, Any]:
    """A network in evaluation mode, random weights, and a batch of two images.

    What a segmenter, a detector, an estimator of depth or an image tower returns is averaged to one number
    per class.
    """
    import torch

    if name.startswith("hf:"):
        model, side = _of_hugging_face(name.removeprefix("hf:"))
        return model, torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    fields = SMALLER.get(name, {})
    model = build(f"timm:{name}", **fields)
    channels, side, _ = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))
    side = fields.get("img_size", side)
    images = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if model(images).ndim != 2:
            model = _averaged(model, lambda y: y.flatten(1, -2).mean(1))
    return model, images


def _of_hugging_face(name: str) -> tuple[Any, int]:
    import torch
    import transformers
    from torchvision_shim import import_torchvision

    import_torchvision()
    torch.manual_seed(0)
    family = HUGGING_FACE[name]

    def configured(kind: str, fields: dict[str, Any]) -> Any:
        fields = {k: configured(*v) if isinstance(v, tuple) else v for k, v in fields.items()}
        return getattr(transformers, kind)(**fields)

    model = getattr(transformers, family.model)(configured(family.config, family.fields)).eval()
    side = family.fields.get("image_size", family.side)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.75, 1.25)

    def scores(output: Any) -> Any:
        fields = ("logits", "class_queries_logits", "image_embeds", "pooler_output", "predicted_depth")
        y = next(y for y in (getattr(output, field, None) for field in fields) if y is not None)
        if y is getattr(output, "predicted_depth", None):
            y = y[:, None]
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
