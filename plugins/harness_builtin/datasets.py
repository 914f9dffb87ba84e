"""Named data sets: drawn flowers, and public sets through torchvision, with their official splits."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from harness import DatasetSpec, Sample, hookimpl
from harness_builtin.petals import build_petals

SplitName = Literal["train", "val", "test"]

NOT_STATED = "not stated"
_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"


def build_flowers(folder: Path, download: bool) -> Iterable[Sample]:
    """Oxford 102 flowers: 1,020 train, 1,020 val and 6,149 test images."""
    from torchvision.datasets import Flowers102

    _adopt(folder, "flowers-102", download)
    splits: tuple[SplitName, ...] = ("train", "val", "test")
    for split in splits:
        data = Flowers102(folder, split, download=download)
        yield from _files(folder, split, data._image_files, data._labels, data.classes)


def build_pets(folder: Path, download: bool) -> Iterable[Sample]:
    """Oxford-IIIT pets: 3,680 train and 3,669 test images."""
    from torchvision.datasets import OxfordIIITPet

    _adopt(folder, "oxford-iiit-pet", download)
    parts: tuple[tuple[SplitName, str], ...] = (("train", "trainval"), ("test", "test"))
    for split, part in parts:
        data = OxfordIIITPet(folder, part, download=download)
        yield from _files(folder, split, data._images, data._labels, data.classes)


def build_dtd(folder: Path, download: bool) -> Iterable[Sample]:
    """Describable textures, partition 1: 1,880 images in each split."""
    from torchvision.datasets import DTD

    _adopt(folder, "dtd", download)
    splits: tuple[SplitName, ...] = ("train", "val", "test")
    for split in splits:
        data = DTD(folder, split, partition=1, download=download)
        yield from _files(folder, split, data._image_files, data._labels, data.classes)


def build_eurosat(folder: Path, download: bool) -> Iterable[Sample]:
    """EuroSAT in RGB: 27,000 images without a split."""
    from torchvision.datasets import EuroSAT

    _adopt(folder, "eurosat", download)
    data = EuroSAT(folder, download=download)
    paths, labels = zip(*data.samples, strict=True)
    return _files(folder, None, paths, labels, data.classes)


def build_food101(folder: Path, download: bool) -> Iterable[Sample]:
    """Food-101: 75,750 train and 25,250 test images."""
    from torchvision.datasets import Food101

    splits: tuple[SplitName, ...] = ("train", "test")
    for split in splits:
        data = Food101(folder, split, download=download)
        yield from _files(folder, split, data._image_files, data._labels, data.classes)


def build_gtsrb(folder: Path, download: bool) -> Iterable[Sample]:
    """German traffic signs: 26,640 train and 12,630 test images; classes are the benchmark's numbers."""
    from torchvision.datasets import GTSRB

    _adopt(folder, "gtsrb", download)
    names = [f"{number:02}" for number in range(43)]
    splits: tuple[SplitName, ...] = ("train", "test")
    for split in splits:
        paths, labels = zip(*GTSRB(folder, split, download=download)._samples, strict=True)
        yield from _files(folder, split, paths, labels, names)


def build_cifar10(folder: Path, download: bool) -> Iterable[Sample]:
    """CIFAR-10: 50,000 train and 10,000 test images of 32 pixels."""
    from torchvision.datasets import CIFAR10

    return _arrays(CIFAR10, folder, download)


def build_cifar100(folder: Path, download: bool) -> Iterable[Sample]:
    """CIFAR-100 with its fine labels: 50,000 train and 10,000 test images of 32 pixels."""
    from torchvision.datasets import CIFAR100

    return _arrays(CIFAR100, folder, download)


def build_fashion_mnist(folder: Path, download: bool) -> Iterable[Sample]:
    """Fashion-MNIST: 60,000 train and 10,000 test images of 28 grey pixels."""
    from torchvision.datasets import FashionMNIST

    _adopt(folder, "FashionMNIST/raw", download)
    return _arrays(FashionMNIST, folder, download)


def _adopt(folder: Path, inner: str, download: bool) -> None:
    """Show torchvision, which looks in a folder of its own, archives that were put into ours by hand."""
    if download and folder.is_dir():
        for file in [entry for entry in folder.iterdir() if entry.is_file()]:
            target = folder / inner / file.name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    target.hardlink_to(file)
                except OSError:  # not every file system has links
                    shutil.copy2(file, target)


def _files(
    folder: Path, split: SplitName | None, paths: Iterable[Any], labels: Iterable[int], names: Any
) -> Iterator[Sample]:
    """Yield the files of one split, named by their place below the data set's folder."""
    for path, label in zip(paths, labels, strict=True):
        file = Path(path)
        yield Sample(id=file.relative_to(folder).as_posix(), label=names[label], image=file, split=split)


def _arrays(dataset: Any, folder: Path, download: bool) -> Iterator[Sample]:
    """Yield the images of a data set that torchvision holds in memory, named by their number."""
    import numpy as np

    splits: tuple[SplitName, ...] = ("train", "test")
    for split in splits:
        data = dataset(folder, train=split == "train", download=download)
        images = np.asarray(data.data)
        for index, (image, label) in enumerate(zip(images, data.targets, strict=True)):
            yield Sample(id=f"{split}/{index:05}", label=data.classes[int(label)], image=image, split=split)


@hookimpl
def harness_datasets() -> Iterable[DatasetSpec]:
    """Yield the data sets."""
    drawn = {
        "petals": "12 kinds of flowers, drawn by this package: 3,120 images of 64 px; train, val, test",
        "petals-hard": "18 kinds of drawn flowers, smaller, tilted, hidden: 6,300 images; train, val, test",
        "petals-longtail": "petals, the rarest kind ten times rarer than the most frequent, in every split",
    }
    for name, summary in drawn.items():
        yield DatasetSpec(
            name=name,
            summary=summary,
            build=partial(build_petals, name),
            licence="Apache-2.0",
            url="",
            citation="none: drawn by harness_builtin.petals, version 1, from random numbers; no photographs",
        )
    yield DatasetSpec(
        name="flowers",
        summary="102 flowers, 8,189 photographs; train, val, test",
        build=build_flowers,
        licence=NOT_STATED,
        url=f"{_OXFORD}/flowers/102/",
        download_url=f"{_OXFORD}/flowers/102/102flowers.tgz",
        size="345 MB",
        citation="Nilsback and Zisserman, Automated flower classification over a large number of classes, "
        "ICVGIP 2008",
    )
    yield DatasetSpec(
        name="pets",
        summary="37 breeds of cats and dogs, 7,349 photographs; train, test",
        build=build_pets,
        licence="CC-BY-SA-4.0",
        url=f"{_OXFORD}/pets/",
        download_url=f"{_OXFORD}/pets/data/images.tar.gz",
        size="810 MB",
        citation="Parkhi, Vedaldi, Zisserman and Jawahar, Cats and dogs, CVPR 2012",
    )
    yield DatasetSpec(
        name="dtd",
        summary="47 describable textures, 5,640 photographs; train, val, test of partition 1",
        build=build_dtd,
        licence="research purposes",
        url=f"{_OXFORD}/dtd/",
        download_url=f"{_OXFORD}/dtd/download/dtd-r1.0.1.tar.gz",
        size="600 MB",
        citation="Cimpoi, Maji, Kokkinos, Mohamed and Vedaldi, Describing textures in the wild, CVPR 2014",
    )
    yield DatasetSpec(
        name="eurosat",
        summary="10 kinds of land use, 27,000 satellite images of 64 px; no official split",
        build=build_eurosat,
        licence="MIT",
        url="https://github.com/phelber/eurosat",
        download_url="https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
        "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
        size="94 MB",
        citation="Helber, Bischke, Dengel and Borth, EuroSAT: a novel dataset and deep learning benchmark "
        "for land use and land cover classification, IEEE JSTARS 2019",
    )
    yield DatasetSpec(
        name="cifar10",
        summary="10 classes, 60,000 images of 32 px; train, test",
        build=build_cifar10,
        licence=NOT_STATED,
        url="https://www.cs.toronto.edu/~kriz/cifar.html",
        download_url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        size="170 MB",
        citation="Krizhevsky, Learning multiple layers of features from tiny images, 2009",
    )
    yield DatasetSpec(
        name="cifar100",
        summary="100 classes, 60,000 images of 32 px; train, test",
        build=build_cifar100,
        licence=NOT_STATED,
        url="https://www.cs.toronto.edu/~kriz/cifar.html",
        download_url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        size="169 MB",
        citation="Krizhevsky, Learning multiple layers of features from tiny images, 2009",
    )
    yield DatasetSpec(
        name="food101",
        summary="101 dishes, 101,000 photographs; train, test",
        build=build_food101,
        licence=NOT_STATED,
        url="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        download_url="http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
        size="5 GB",
        citation="Bossard, Guillaumin and Van Gool, Food-101: mining discriminative components with random "
        "forests, ECCV 2014",
    )
    yield DatasetSpec(
        name="gtsrb",
        summary="43 German traffic signs by number, 39,270 images; train, test",
        build=build_gtsrb,
        licence=NOT_STATED,
        url="https://benchmark.ini.rub.de/",
        download_url="https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
        "GTSRB-Training_fixed.zip",
        size="280 MB",
        citation="Stallkamp, Schlipsing, Salmen and Igel, Man vs. computer: benchmarking machine learning "
        "algorithms for traffic sign recognition, Neural Networks 2012",
    )
    yield DatasetSpec(
        name="fashion-mnist",
        summary="10 kinds of clothing, 70,000 grey images of 28 px; train, test",
        build=build_fashion_mnist,
        licence="MIT",
        url="https://github.com/zalandoresearch/fashion-mnist",
        download_url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-images-idx3-ubyte.gz",
        size="31 MB",
        citation="Xiao, Rasul and Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine "
        "learning algorithms, 2017",
    )
