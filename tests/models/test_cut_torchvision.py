"""torchvision's families of classifiers, cut at all their blocks: composed stages are the whole.

    python -m pytest -m slow tests/models/test_cut_torchvision.py

Each family in its smallest form, random weights, small images.
"""

import pytest
import torch
from torchvision import models

from fula_fast.models import build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning"),
]

CUT = [
    ("alexnet", 64, 5),
    ("convnext_tiny", 32, 8),
    ("densenet121", 32, 4),
    ("efficientnet_b0", 32, 9),
    ("efficientnet_v2_s", 32, 8),
    ("googlenet", 32, 9),
    ("inception_v3", 75, 11),
    ("maxvit_t", 224, 4),
    ("mnasnet0_5", 32, 9),
    ("mobilenet_v2", 32, 19),
    ("mobilenet_v3_small", 32, 13),
    ("regnet_x_400mf", 32, 4),
    ("regnet_y_400mf", 32, 4),
    ("resnet18", 32, 8),
    ("resnext50_32x4d", 32, 16),
    ("shufflenet_v2_x0_5", 32, 16),
    ("squeezenet1_1", 32, 9),
    ("swin_t", 32, 8),
    ("swin_v2_t", 32, 8),
    ("vgg11", 32, 8),
    ("vgg11_bn", 32, 8),
    ("vit_b_32", 32, 12),
    ("wide_resnet50_2", 32, 16),
]
"""(model, side of its images, number of sites)."""

FAMILIES = sorted({name.rstrip("0123456789").partition("_")[0] for name, *_ in CUT})


def test_every_family_is_here():
    stems = tuple(name.rstrip("0123456789") for name in FAMILIES)
    others = [n for n in models.list_models(module=models) if not n.startswith(stems)]
    assert not others and len(CUT) >= 20


@torch.no_grad()
def perturbed(name: str, side: int):
    """The library's own model, without weights of zero: some blocks begin as an identity."""
    sized = {"vit": {"image_size": side}, "max": {"input_size": (side, side)}}
    auxiliary = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    options = sized.get(name[:3], {}) | auxiliary
    model = models.get_model(name, num_classes=10, **options).eval()
    for weight in model.parameters():
        weight += 0.02 * torch.randn_like(weight)
    return model, auxiliary


@pytest.mark.parametrize("name, side, sites", CUT, ids=[name for name, *_ in CUT])
@torch.no_grad()
def test_stages_compose_to_the_model(name, side, sites):
    torch.manual_seed(0)
    reference, options = perturbed(name, side)
    ours = build(f"torchvision:{name}", num_classes=10, input_shape=(3, side, side), **options)
    ours.eval().load_state(reference.state_dict())
    x = torch.rand(2, 3, side, side)
    wanted = reference(x)
    at = x
    for site in range(ours.num_sites):
        at = ours.run(at, site, site + 1)
        assert tuple(at.shape[1:]) == ours.site_shapes[site]
    assert float((ours.head(at) - wanted).abs().max() / wanted.abs().max()) < 1e-5
    assert ours.num_sites == sites
