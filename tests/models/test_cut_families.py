"""timm's families, cut at all their blocks: composed stages are the whole model.

    python -m pytest -m slow tests/models/test_cut_families.py

Each family in its smallest form (fewer layers where it has no small one), random weights.
"""

import pytest
import torch

from fula_fast.errors import FulaError
from fula_fast.models import build

pytestmark = pytest.mark.slow

_VIT = {"depth": 2, "embed_dim": 48, "num_heads": 3}

CUT = [
    ("resnet10t", 64, {}, 4),
    ("convnext_atto", 64, {}, 4),
    ("deit_tiny_patch16_224", 64, {"depth": 2}, 2),
    ("mobilenetv3_small_050", 64, {}, 6),
    ("regnetx_002", 64, {}, 13),
    ("vgg11", 64, {}, 8),
    ("resnetv2_18", 64, {}, 4),
    ("repghostnet_050", 64, {}, 10),
    ("ghostnet_050", 64, {}, 10),
    ("starnet_s050", 64, {}, 4),
    ("mixer_s32_224", 224, {}, 8),
    ("repvit_m0_9", 64, {}, 4),
    ("beit_base_patch16_224", 64, _VIT, 2),
    ("eva02_tiny_patch14_224", 56, {"depth": 2}, 2),
    ("efficientnet_lite0", 64, {}, 7),
    ("fasternet_t0", 64, {}, 4),
    ("hgnetv2_b0", 64, {}, 4),
    ("mobilevit_xxs", 64, {}, 5),
    ("poolformer_s12", 64, {}, 4),
    ("edgenext_xx_small", 64, {}, 4),
    ("mambaout_femto", 64, {}, 4),
    ("shvit_s1", 64, {}, 3),
    ("skresnet18", 64, {}, 8),
    ("rexnet_100", 64, {}, 17),
    ("ese_vovnet19b_dw", 64, {}, 4),
    ("dla34", 64, {}, 6),
    ("densenet121", 64, {}, 4),
    ("tiny_vit_5m_224", 64, {}, 4),
    ("pvt_v2_b0", 64, {}, 4),
    ("swiftformer_xs", 64, {}, 4),
    ("efficientformer_l1", 224, {}, 4),
    ("efficientformerv2_s0", 224, {}, 4),
    ("fastvit_t8", 64, {}, 4),
    ("inception_next_atto", 64, {}, 4),
    ("levit_128s", 224, {}, 3),
    ("cait_xxs24_224", 64, {"depth": 2}, 2),
    ("convit_tiny", 64, {"depth": 4, "local_up_to_layer": 2}, 4),
    ("coatnet_pico_rw_224", 224, {}, 4),
    ("gcvit_xxtiny", 224, {}, 4),
    ("hiera_tiny_224", 224, {}, 12),
    (
        "swin_tiny_patch4_window7_224",
        56,
        {"embed_dim": 24, "window_size": 7, "depths": (1, 1, 1), "num_heads": (1, 2, 4)},
        3,
    ),
    ("swinv2_tiny_window8_256", 64, {"embed_dim": 24, "depths": (1, 1), "num_heads": (1, 2)}, 2),
    ("resnest14d", 64, {}, 4),
    ("res2net50_26w_4s", 64, {}, 16),
    ("darknet17", 64, {}, 5),
    ("hardcorenas_a", 64, {}, 7),
    ("focalnet_tiny_srf", 64, {}, 4),
]
"""(model, side of its images, options, number of sites)."""

UNCUT = [
    ("xcit_nano_12_p16_224", 64, {}, "is still used behind it"),
    ("selecsls42", 64, {}, "gives no tensor of shape"),
    ("mvitv2_tiny", 64, {}, "gives no tensor of shape"),
    ("crossvit_9_240", 240, {}, "gives no tensor of shape"),
    ("pit_ti_224", 64, {}, "gives no tensor of shape"),
    ("coat_tiny", 64, {}, "no known names"),
]
"""(model, side, options, what is said of it)."""


@torch.no_grad()
def timms(timm, name: str, side: int, options: dict):
    """The library's own model, without weights of zero: some begin with a head that is."""
    fixed = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
    sizes = {"img_size": side} if fixed else {}
    model = timm.create_model(name, num_classes=10, in_chans=3, **sizes, **options).eval()
    for weight in model.parameters():
        weight += 0.02 * torch.randn_like(weight)
    return model


def test_forty_families_are_cut():
    assert len({name for name, *_ in CUT}) >= 40


@pytest.mark.parametrize("name, side, options, sites", CUT, ids=[name for name, *_ in CUT])
@torch.no_grad()
def test_stages_compose_to_the_model(name, side, options, sites):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    reference = timms(timm, name, side, options)
    ours = build(f"timm:{name}", num_classes=10, input_shape=(3, side, side), **options).eval()
    ours.load_state(reference.state_dict())
    assert ours.num_sites == sites
    x = torch.rand(2, 3, side, side)
    wanted = reference(x)
    at = x
    for site in range(sites):
        at = ours.run(at, site, site + 1)
        assert tuple(at.shape[1:]) == ours.site_shapes[site]
    error = (ours.head(at) - wanted).abs().max() / wanted.abs().max()
    assert float(error) < 1e-5


@pytest.mark.parametrize("name, side, options, said", UNCUT, ids=[name for name, *_ in UNCUT])
def test_what_is_no_chain_says_why(name, side, options, said):
    pytest.importorskip("timm")
    with pytest.raises(FulaError, match=said):
        build(f"timm:{name}", num_classes=10, input_shape=(3, side, side), **options)
