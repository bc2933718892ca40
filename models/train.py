"""Trains the two bundled networks and writes them as ONNX, batch normalization still in the graph. Needs the extra `torch`.

python models/train.py [digits_resnet | digits_dwconv]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from digits import HERE, Samples, split
from torch import Tensor, nn
from torch.nn import functional as F

EPOCHS, BATCH = 40, 64


class Residual(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x)))))), with a 1x1 convolution on the shortcut where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = normalized(nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False))
        self.second = normalized(nn.Conv2d(channels, channels, 3, 1, 1, bias=False))
        same = stride == 1 and channels_in == channels
        self.shortcut = nn.Identity() if same else normalized(nn.Conv2d(channels_in, channels, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """The block's result."""
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def normalized(conv: nn.Conv2d) -> nn.Sequential:
    """A convolution and its batch normalization."""
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))


def separable(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    """Depthwise 3x3 and pointwise convolution, each normalized and clipped to [0, 6]."""
    depthwise = nn.Conv2d(channels_in, channels_in, 3, stride, 1, groups=channels_in, bias=False)
    pointwise = nn.Conv2d(channels_in, channels, 1, bias=False)
    return nn.Sequential(normalized(depthwise), nn.ReLU6(), normalized(pointwise), nn.ReLU6())


def head(channels: int) -> nn.Sequential:
    """Global average and a dense layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def digits_resnet() -> nn.Module:
    """A residual network of three blocks."""
    stem = nn.Sequential(normalized(nn.Conv2d(1, 16, 3, 1, 1, bias=False)), nn.ReLU())
    return nn.Sequential(stem, Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 32, 1), head(32))


def digits_dwconv() -> nn.Module:
    """A depthwise separable network of four blocks."""
    stem = nn.Sequential(normalized(nn.Conv2d(1, 16, 3, 1, 1, bias=False)), nn.ReLU6())
    return nn.Sequential(stem, separable(16, 32, 1), separable(32, 64, 2), separable(64, 64, 1), separable(64, 96, 2), head(96))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"digits_resnet": digits_resnet, "digits_dwconv": digits_dwconv}


def shifted(images: Tensor) -> Tensor:
    """Each image moved by at most one pixel either way."""
    padded = F.pad(images, (1, 1, 1, 1))
    corners = torch.randint(0, 3, (len(images), 2)).tolist()
    return torch.stack([p[:, y : y + 8, x : x + 8] for p, (y, x) in zip(padded, corners)])


def batches(samples: int) -> Iterator[Tensor]:
    """The indices of each step's batch, every epoch in another order."""
    for _ in range(EPOCHS):
        yield from torch.randperm(samples)[: samples // BATCH * BATCH].split(BATCH)


def train(network: nn.Module, data: Samples) -> None:
    """One-cycle stochastic gradient descent with label smoothing."""
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, EPOCHS * (len(images) // BATCH))
    for batch in batches(len(images)):
        loss = F.cross_entropy(network(shifted(images[batch])), labels[batch], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def accuracy(network: nn.Module, data: Samples) -> float:
    """Share of digits named right."""
    with torch.no_grad():
        answers = network(torch.from_numpy(data.images)).argmax(1)
    return float((answers == torch.from_numpy(data.labels)).float().mean())


def export(network: nn.Module, path: Path) -> None:
    """ONNX with a free batch dimension; `preserve` keeps batch normalization apart from its convolution."""
    torch.onnx.export(
        network,
        (torch.zeros(1, 1, 8, 8),),
        str(path),
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        opset_version=17,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
    )


def main(names: list[str]) -> None:
    """Train and write the named networks, or both."""
    training, evaluation = split()
    for name in names or list(NETWORKS):
        torch.manual_seed(0)
        network = NETWORKS[name]()
        train(network, training)
        network.eval()
        print(f"{name}: top-1 {100 * accuracy(network, evaluation):.1f} on {len(evaluation.labels)} held-out digits")
        export(network, HERE / f"{name}.onnx")


if __name__ == "__main__":
    main(sys.argv[1:])
