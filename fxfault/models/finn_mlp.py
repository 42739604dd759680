"""The fully connected networks of FINN: TFC and LFC."""

from __future__ import annotations

from torch import nn

from fxfault.models.quantised_layers import ImageClassifier, hard_tanh, linear, linear_block

HIDDEN_LAYERS = 3


class _FullyConnected(ImageClassifier):
    """Three hidden layers of one width on all pixels of an image."""

    WIDTH: int

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size: tuple[int, int],
        weight_bit_width: int,
        act_bit_width: int,
        input_bit_width: int = 8,
    ) -> None:
        super().__init__(input_bit_width)
        bits = weight_bit_width, act_bit_width
        self.features = nn.Flatten()
        layers: list[nn.Module] = []
        width = in_channels * image_size[0] * image_size[1]
        for _ in range(HIDDEN_LAYERS):
            layers += linear_block(width, self.WIDTH, bits, activation=hard_tanh)
            width = self.WIDTH
        layers.append(linear(width, num_classes, bit_width=weight_bit_width, bias=True))
        self.classifier = nn.Sequential(*layers)


class QuantTFC(_FullyConnected):
    """TFC: three hidden layers of 64 features, for images of any size.

    BatchNorm and a signed, narrow-range activation follow every layer but the last. The network
    has four activations; the first is the quantised input. FINN's networks for MNIST are
    `weight_bit_width` and `act_bit_width` 1 or 2; unlike them, this one has no dropout.

    The arguments are those of `fxfault.models.build_model`.

    >>> import torch
    >>> net = QuantTFC(num_classes=10, in_channels=1, image_size=(28, 28),
    ...                weight_bit_width=1, act_bit_width=1)
    >>> net.eval()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])

    Reference:
        Blott et al., "FINN-R: An End-to-End Deep-Learning Framework for Fast Exploration of
        Quantized Neural Networks", ACM TRETS, 2018 (arXiv:1809.04570).
    """

    WIDTH = 64


class QuantLFC(_FullyConnected):
    """LFC: three hidden layers of 1,024 features, for images of any size; otherwise as TFC.

    The arguments are those of `fxfault.models.build_model`.

    >>> import torch
    >>> net = QuantLFC(num_classes=10, in_channels=1, image_size=(28, 28),
    ...                weight_bit_width=1, act_bit_width=1)
    >>> sum(parameter.numel() for parameter in net.parameters() if parameter.dim() > 1)
    2910208

    Reference:
        Umuroglu et al., "FINN: A Framework for Fast, Scalable Binarized Neural Network
        Inference", FPGA 2017, section 5 (network LFC).
    """

    WIDTH = 1024
