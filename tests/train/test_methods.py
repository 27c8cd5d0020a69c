"""Methods against literal formulas, counts of the paper and plain networks."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from timm.layers import DropPath
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import nn

from quant.fake import QuantLinear
from train import methods
from train.errors import TrainError
from train.methods import _parts

WIDTH, DEPTH, CLASSES = 16, 3, 5
ADAPTERS = [name for name in methods.names() if methods.get(name).has_adapter]


def vit(**changes):
    torch.manual_seed(7)
    arguments = {
        "img_size": 16, "patch_size": 8, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2, "num_classes": CLASSES,
        "init_values": 0.3, **changes,
    }  # fmt: skip
    return VisionTransformer(**arguments)


def tuned(name, *, stir=True, seed=3, model=None, **options):
    """A network with the method in it, its tensors stirred so that nothing is zero by accident."""
    model = vit() if model is None else model
    torch.manual_seed(seed)
    if methods.get(name).has_adapter:
        options = {"dim": 4, **options}
    methods.get(name).apply(model, **options)
    if stir:
        with torch.no_grad():
            for key, w in model.named_parameters():
                if key in methods.get(name).adapter_names(model):
                    w.copy_(torch.randn(w.shape) * 0.2)
    return model


@pytest.fixture
def images():
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_names_are_the_files_and_a_wrong_one_says_which_is_near():
    assert methods.names() == ["adaptformer", "full", "linear", "lora", "subspace"]
    with pytest.raises(TrainError, match=r"unknown method 'adaptfromer'.*adaptformer.*nearest: adaptformer") as caught:
        methods.get("adaptfromer")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "dim", "count"),
    [
        ("adaptformer", 1, 18_432), ("adaptformer", 8, 147_456), ("adaptformer", 32, 589_824), ("lora", 1, 36_864),
        ("lora", 8, 294_912), ("lora", 32, 1_179_648), ("linear", 0, 0), ("full", 0, 85_798_656),
    ],
)  # fmt: skip
def test_counts_are_those_of_the_paper_for_vit_b_and_those_of_a_real_network(name, dim, count):
    method = methods.get(name)
    assert method.parameters(768, 12, dim) == count
    with torch.device("meta"):
        model = VisionTransformer(num_classes=3)
        method.apply(model, dim=dim)
    own = dict(model.named_parameters())
    assert sum(own[key].numel() for key in method.trainable(model) if not key.startswith("head.")) == count


@pytest.mark.parametrize("head_bits", [32, 1])
@pytest.mark.parametrize("bits", [32, 2])
@pytest.mark.parametrize("name", methods.names())
def test_only_adapter_and_head_train_and_the_backbone_keeps_its_names_and_values(name, bits, head_bits):
    plain, method = vit(), methods.get(name)
    model = tuned(name, bits=bits, head_bits=head_bits)
    own = dict(model.named_parameters())
    for key, w in plain.named_parameters():
        if not key.startswith("head."):
            assert torch.equal(own[key], w), key
    trained = [key for key, w in own.items() if w.requires_grad]
    assert trained == method.trainable(model)
    if name == "full":
        assert trained == list(own)
    else:
        assert set(trained) == set(method.adapter_names(model)) | {key for key in own if key.startswith("head.")}
        assert not set(method.adapter_names(model)) & set(dict(plain.named_parameters()))
    assert isinstance(model.head, QuantLinear) == (head_bits == 1)
    assert (model.head.bias is None) == (head_bits == 1)
    low = [m for key, m in model.named_modules() if isinstance(m, QuantLinear) and key != "head"]
    expected = len(method.adapter_names(model)) if bits < 32 else 0
    assert len(low) == expected
    assert all(m.bits == bits for m in low)


@pytest.mark.parametrize("name", methods.names())
def test_a_tuned_network_can_be_pickled_and_copied(name, images):
    model = tuned(name, bits=1, head_bits=1).eval()
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(twin(images), model(images))
        assert [k for k, w in twin.named_parameters() if w.requires_grad] == methods.get(name).trainable(model)


@pytest.mark.parametrize("name", ADAPTERS)
def test_initial_values_are_the_papers(name, images):
    wide = {"embed_dim": 64, "num_heads": 4}
    plain, exact = vit(**wide), tuned(name, stir=False, model=vit(**wide), dim=32)
    assert torch.equal(exact.eval()(images), plain.eval()(images)), "up starts at zero: nothing changes yet"
    low = tuned(name, stir=False, model=vit(**wide), dim=32, bits=1)
    for branch in [m for m in low.modules() if isinstance(m, _parts.LowRank)]:
        assert branch.up.weight.abs().max() <= 0.002
        # normal of std .001 cut at two deviations: std .001 * sqrt(1 - 4 phi(2) / (2 Phi(2) - 1)) = .00088
        assert branch.up.weight.std().item() == pytest.approx(0.00088, rel=0.06)
        bound = 1 / math.sqrt(64)
        assert 0.97 * bound < branch.down.weight.abs().max() <= bound
        assert branch.down.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.06)
        assert branch.dropout.p == 0.1
        assert branch.down.bias is None
        assert branch.up.bias is None


def literal_block(block, x, adapter=None, scale=0.0):
    """A pre-norm block with LayerScale, written out."""
    x = x + block.ls1.gamma * block.attn(block.norm1(x))
    branch = torch.relu(x @ adapter[0].T) @ adapter[1].T if adapter else 0
    return x + block.ls2.gamma * block.mlp(block.norm2(x)) + scale * branch


def test_adaptformer_is_its_formula(images):
    scale = 2.5
    model = tuned("adaptformer", scale=scale).eval()
    plain = vit().eval()
    x = plain.pos_drop(torch.cat([plain.cls_token.expand(6, -1, -1), plain.patch_embed(images)], 1) + plain.pos_embed)
    with torch.no_grad():
        for i, block in enumerate(plain.blocks):
            twin = model.blocks[i].adapter
            x = literal_block(block, x, (twin.down.weight, twin.up.weight), scale)
        torch.testing.assert_close(model(images), plain.head(plain.norm(x)[:, 0]), rtol=1e-5, atol=1e-5)


def test_adaptformers_branch_is_not_under_drop_path_and_has_its_dropout_between_the_matrices():
    block = tuned("adaptformer", scale=3.0).blocks[0].train()
    block.drop_path1 = block.drop_path2 = DropPath(1 - 1e-9)  # drops everything that is under it
    x = torch.randn(2, 5, WIDTH)
    block.adapter.dropout.p = 0.0
    expected = x + 3.0 * block.adapter.up(torch.relu(block.adapter.down(x)))
    torch.testing.assert_close(block(x), expected)
    block.adapter.dropout.p = 1.0
    torch.testing.assert_close(block(x), x)
    block.adapter.dropout.p = 0.5
    block.adapter.down.weight.data.fill_(1.0)
    block.adapter.up.weight.data.copy_(torch.eye(4, WIDTH).T)
    hidden = block.adapter(torch.ones(50, WIDTH))[:, :4]
    assert set(hidden.unique().tolist()) == {0.0, 2.0 * WIDTH}, "dropped or doubled: before up, not after"


def test_lora_adds_to_queries_and_values_only():
    plain, model = vit().eval(), tuned("lora", scale=0.7).eval()
    x = torch.randn(2, 5, WIDTH)
    for before, after in zip(plain.blocks, model.blocks, strict=True):
        qkv = after.attn.qkv
        expected = before.attn.qkv(x)
        expected[..., :WIDTH] += 0.7 * (x @ qkv.lora_q.down.weight.T @ qkv.lora_q.up.weight.T)
        expected[..., 2 * WIDTH :] += 0.7 * (x @ qkv.lora_v.down.weight.T @ qkv.lora_v.up.weight.T)
        torch.testing.assert_close(qkv(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 32])
@pytest.mark.parametrize("name", [name for name in methods.names() if methods.get(name).linear])
def test_merged_equals_factored_and_is_a_plain_network(name, bits, images):
    """NUMERICS rule 13: at alpha 0 to 1e-5."""
    method, model = methods.get(name), tuned(name, bits=bits, scale=1.3).eval()
    before = {key: w.clone() for key, w in model.state_dict().items()}
    merged = method.merge(model)
    assert (model(images) - merged(images)).abs().max() < 1e-5
    assert all(torch.equal(w, before[key]) for key, w in model.state_dict().items()), "the model itself is untouched"
    plain = dict(vit().named_parameters())
    own = dict(merged.named_parameters())
    assert set(own) == set(plain)
    assert all(type(m) is nn.Linear for m in merged.modules() if isinstance(m, nn.Linear))
    changed = [key for key in plain if not key.startswith("head.") and not torch.equal(own[key], plain[key])]
    assert changed == method.merged_names(model)


@pytest.mark.parametrize("name", [name for name in methods.names() if not methods.get(name).linear])
def test_a_method_without_a_merged_form_says_so(name):
    model = tuned(name)
    for ask in (methods.get(name).merge, methods.get(name).merged_names):
        with pytest.raises(TrainError, match=r"has no merged form.*lora"):
            ask(model)


@pytest.mark.parametrize("name", ["adaptformer", "lora"])
def test_other_blocks_are_refused_by_the_name_of_their_type(name):
    with pytest.raises(TrainError, match=r"expected timm's standard Block, found ResPostBlock as blocks\.0"):
        tuned(name, model=vit(block_fn=ResPostBlock))
    with pytest.raises(TrainError, match="expected a timm vision transformer made of Block, found Sequential"):
        tuned(name, model=nn.Sequential(nn.Linear(2, 2)))


def test_lora_refuses_an_attention_without_fused_projection_and_a_low_bit_head_needs_a_head():
    model = vit()
    model.blocks[1].attn.qkv = nn.Identity()
    with pytest.raises(TrainError, match=r"linear attn\.qkv, found Identity in Attention of blocks\.1"):
        tuned("lora", model=model)
    with pytest.raises(TrainError, match="linear layer named head, found Identity"):
        tuned("linear", model=vit(num_classes=0), head_bits=1)
