"""Small networks, one for each family of architectures that users bring. Each takes a batch of one and runs in milliseconds."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from helpers.families_attention import (
    EfficientLinearAttention,
    MlpMixer,
    MobileVit,
    MultiheadVit,
    Swin,
    TransformerEncoder,
    Vit,
    VitSeparate,
    Xcit,
)
from helpers.families_conv import (
    Bottleneck,
    ConvNext,
    DenseNet,
    DepthMultiplier,
    Eca,
    GhostNet,
    HandWrittenNorm,
    Inception,
    MixNet,
    MobileNetSe,
    RepVgg,
    Res2Net,
    ResNet,
    ResNetOptionA,
    ResNeXt,
    ShuffleNet,
    SplitAttention,
    Vgg,
)
from helpers.families_other import (
    C2f,
    Cast,
    ConcatenatedRelu,
    Csp,
    Detector,
    Frozen,
    Glu,
    Maxout,
    NormFree,
    PReLUs,
    Recurrent,
    Segmenter,
    Siamese,
    Sound,
    SpectralNorm,
    StyleTransfer,
    SuperResolution,
    UNet,
    UnevenSplit,
    Video,
    WeightNorm,
)

__all__ = ["FAMILIES", "LIMIT_PARAMETERS"]

LIMIT_PARAMETERS = 100_000
"""Every network here has fewer parameters."""

SEED = 0


def _family(factory: Callable[[], nn.Module], *shape: int) -> Callable[[], tuple[nn.Module, Tensor]]:
    def make() -> tuple[nn.Module, Tensor]:
        torch.manual_seed(SEED)
        module = factory()
        _randomise(module)
        return module.eval(), torch.randn(1, *(shape or (3, 32, 32)), generator=torch.Generator().manual_seed(SEED))

    return make


@torch.no_grad()
def _randomise(module: nn.Module) -> None:
    """New statistics and scales for each normalisation, noise on what starts at 0 or 1, and convolutions whose outputs are not
    smaller than their inputs, so that wrong handling is visible.
    """
    for name, value in module.named_buffers():
        if name.endswith(("running_mean", "frozen_mean")):
            value.normal_()
        elif name.endswith(("running_var", "frozen_var")):
            value.uniform_(0.5, 2.0)
    for value in module.parameters():
        if value.dim() == 1 and len(value.unique()) == 1:
            value.add_(0.3 * torch.randn_like(value))
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and "weight" in layer._parameters:
            nn.init.kaiming_normal_(layer.weight)


FAMILIES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "vgg": _family(Vgg),
    "resnet": _family(ResNet),
    "resnet-option-a": _family(ResNetOptionA),
    "bottleneck-group-norm": _family(Bottleneck),
    "resnext": _family(ResNeXt),
    "res2net": _family(Res2Net),
    "split-attention": _family(SplitAttention),
    "densenet": _family(DenseNet),
    "inception": _family(Inception),
    "repvgg": _family(RepVgg),
    "shufflenet-v2": _family(ShuffleNet),
    "mobilenet-se-conv": _family(lambda: MobileNetSe("conv")),
    "mobilenet-se-view": _family(lambda: MobileNetSe("view")),
    "mobilenet-se-expand": _family(lambda: MobileNetSe("expand")),
    "eca": _family(Eca),
    "ghostnet": _family(GhostNet),
    "mixnet": _family(MixNet),
    "depth-multiplier": _family(DepthMultiplier),
    "convnext": _family(ConvNext),
    "hand-written-norm": _family(HandWrittenNorm),
    "vit": _family(Vit),
    "vit-separate": _family(VitSeparate),
    "multihead-attention": _family(MultiheadVit),
    "transformer-encoder": _family(TransformerEncoder),
    "swin": _family(Swin),
    "linear-attention": _family(EfficientLinearAttention),
    "xcit": _family(Xcit),
    "mobilevit": _family(MobileVit),
    "mlp-mixer": _family(MlpMixer),
    "c2f-chunk": _family(lambda: C2f("chunk")),
    "c2f-split": _family(lambda: C2f("split")),
    "csp": _family(Csp),
    "unet": _family(UNet),
    "segmenter": _family(Segmenter),
    "detector": _family(Detector),
    "super-resolution": _family(SuperResolution, 3, 16, 16),
    "style-transfer": _family(StyleTransfer),
    "siamese": _family(Siamese, 6, 32, 32),
    "maxout": _family(Maxout),
    "glu": _family(Glu),
    "prelu": _family(PReLUs),
    "concatenated-relu": _family(ConcatenatedRelu),
    "uneven-split": _family(UnevenSplit),
    "frozen-batch-norm": _family(Frozen),
    "weight-norm": _family(WeightNorm),
    "spectral-norm": _family(SpectralNorm),
    "norm-free": _family(NormFree),
    "cast-at-the-door": _family(Cast),
    "cnn-gru": _family(lambda: Recurrent(nn.GRU), 3, 16, 32),
    "cnn-lstm": _family(lambda: Recurrent(nn.LSTM), 3, 16, 32),
    "conv1d": _family(Sound, 2, 256),
    "conv3d": _family(Video, 3, 4, 16, 16),
}
"""Name -> a function that makes the network, seeded and in evaluation mode, and one example, a batch of one."""
