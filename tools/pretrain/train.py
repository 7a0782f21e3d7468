"""Train the embedded CLIP from scratch on the collected corpus.

    python -m tools.pretrain.train --corpus CORPUS --out checkpoint.pt --seconds 540

Image features are matched against the captions of all concepts in the batch and of a random sample of others:
a softmax in
which every image has exactly one right concept, and, in the other direction, every caption has all images of
its concept (Khosla et al. 2020, supervised contrastive, with text as the second view; Yang et al. 2022, UniCL).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from fedmvp.model.clip_library import open_clip
from tools.pretrain.augment import view
from tools.pretrain.corpus import Concepts, Source, load_corpus
from tools.pretrain.muon import Muon

CONFIG = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 160, "head_width": 32, "patch_size": 4},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
}
MEAN = STD = 0.5
EMA_DECAY = 0.999
# The share of patches hidden from the tower, by progress: cheap steps first, whole images at the end.
PATCH_DROPOUT = ((0.0, 0.5), (0.75, 0.25), (0.92, 0.0))


@dataclass(frozen=True)
class Captions:
    """All captions of all concepts, tokenised over the vocabulary that they use.

    Args:
        tokens: ``(n_captions, 32)``, positions in ``used``; zero pads.
            first: where each concept's captions begin ``(n_concepts,)``.
        counts: how many captions each concept has ``(n_concepts,)``.
        used: CLIP's numbers of the tokens in use, ascending; the first is the padding, the last the end of text.
    """

    tokens: torch.Tensor
    first: torch.Tensor
    counts: torch.Tensor
    used: torch.Tensor


def tokenize(concepts: Concepts, device: torch.device) -> Captions:
    """Tokenise every caption with CLIP's tokenizer and renumber the tokens densely, in ascending order.

    The order is kept because open_clip finds the end of a text at its largest token number.
    """
    tokenizer = open_clip.SimpleTokenizer(context_length=CONFIG["text_cfg"]["context_length"])
    counts = torch.tensor([len(captions) for captions in concepts.captions], device=device)
    used, tokens = tokenizer([caption for captions in concepts.captions for caption in captions]).unique(
        return_inverse=True
    )
    return Captions(tokens.to(device), counts.cumsum(0) - counts, counts, used)


def draw_batch(sources: list[Source], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of augmented images ``(b, 3, 32, 32)`` and their concepts ``(b,)``, each source by its share."""
    images, labels = [], []
    for source in sources:
        rows = torch.randint(len(source.pixels), (round(size * source.share),), device=source.pixels.device)
        images.append(view(source.name, source.pixels[rows]))
        labels.append(source.concepts[rows])
    return (torch.cat(images) - MEAN) / STD, torch.cat(labels)


def contrast(
    image_features: torch.Tensor, text_features: torch.Tensor, targets: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Both directions of the softmax; ``targets (b,)`` is each image's row of ``text_features``."""
    logits = scale * image_features @ text_features.T  # (batch, captions)
    to_text = F.cross_entropy(logits, targets, label_smoothing=0.05)
    positives = F.one_hot(targets, len(text_features)).T.float()  # (captions, batch)
    present = positives.sum(1) > 0
    to_image = -(positives * F.log_softmax(logits.T, dim=1)).sum(1)[present] / positives.sum(1)[present]
    return to_text + 0.3 * to_image.mean()


def start_like_a_trained_tower(visual: torch.nn.Module) -> None:
    """Initialise attention and positions as they look after training (mimetic, Trockman and Kolter 2023).

    Query times key is close to the identity, value times projection close to its negative, and positions are sines: a
    small tower on little data then needs far fewer images to reach the same accuracy.
    """
    for block in visual.transformer.resblocks:
        attention = block.attn
        width, heads = attention.embed_dim, attention.num_heads
        size = width // heads
        with torch.no_grad():
            queries, keys = [], []
            for _ in range(heads):
                target = 0.7 * torch.randn(width, width) / width**0.5 + 0.7 * torch.eye(width)
                left, spectrum, right = torch.linalg.svd(target)
                queries.append((left[:, :size] * spectrum[:size].sqrt()).T)
                keys.append((right[:size].T * spectrum[:size].sqrt()).T)
            left, spectrum, right = torch.linalg.svd(
                0.4 * torch.randn(width, width) / width**0.5 - 0.4 * torch.eye(width)
            )
            attention.in_proj_weight.copy_(torch.cat([*queries, *keys, (right.T * spectrum.sqrt()).T]))
            attention.out_proj.weight.copy_(left * spectrum.sqrt())
    side, width = visual.grid_size[0], visual.positional_embedding.shape[1]
    frequencies = 1 / 100 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies[None]
    waves = torch.cat([angles.sin(), angles.cos()], 1)  # (side, width / 2)
    grid = torch.cat([waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)], -1).reshape(
        side * side, width
    )
    with torch.no_grad():
        visual.positional_embedding[1:].copy_(0.3 * grid)


def make_optimizers(model: torch.nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    inside = [p for name, p in model.named_parameters() if "resblocks" in name and p.ndim == 2]
    others = [p for name, p in model.named_parameters() if not ("resblocks" in name and p.ndim == 2)]
    return [
        Muon(inside, lr=learning_rate),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def train(arguments: argparse.Namespace, device: torch.device) -> None:
    """The whole training; saves the averaged model now and then, and at the end."""
    torch.manual_seed(arguments.seed)
    concepts, sources = load_corpus(arguments.corpus, device)
    captions = tokenize(concepts, device)
    config = copy.deepcopy(CONFIG)
    config["text_cfg"]["vocab_size"] = len(captions.used)
    model = open_clip.CLIP(**config)
    start_like_a_trained_tower(model.visual)
    model.visual.patch_dropout = open_clip.transformer.PatchDropout(0.5)
    model = model.to(device)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizers = make_optimizers(model, arguments.learning_rate)
    start, step, progress, seen = time.monotonic(), 0, 0.0, 0
    while progress < 1:
        progress = (time.monotonic() - start) / arguments.seconds
        model.visual.patch_dropout.prob = [share for begin, share in PATCH_DROPOUT if begin <= progress][-1]
        rate = arguments.learning_rate * min(1.0, (step + 1) / 200) * min(1.0, max(0.0, 1.3 * (1 - progress))) + 1e-6
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        images, labels = draw_batch(sources, arguments.batch)
        extra = torch.randint(len(captions.counts), (arguments.negatives,), device=device)
        asked = torch.cat([labels, extra]).unique()  # sorted concept numbers
        chosen = captions.tokens[
            captions.first[asked] + (torch.rand(len(asked), device=device) * captions.counts[asked]).long()
        ]
        targets = torch.searchsorted(asked, labels)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            image_features = F.normalize(model.visual(images), dim=-1)
            text_features = F.normalize(model.encode_text(chosen), dim=-1)
        loss = contrast(image_features.float(), text_features.float(), targets, model.logit_scale.exp())
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
            keep = min(EMA_DECAY, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
        step, seen = step + 1, seen + len(images)
        if step % arguments.log_every == 0:
            seconds = time.monotonic() - start
            print(
                json.dumps(
                    {
                        "step": step,
                        "seconds": round(seconds),
                        "loss": round(loss.item(), 3),
                        "images_per_second": round(seen / seconds),
                    }
                ),
                flush=True,
            )
        if step % arguments.save_every == 0:
            save(average, captions.used, arguments.out)
    save(average, captions.used, arguments.out)


def save(model: torch.nn.Module, used: torch.Tensor, path: Path) -> None:
    """A float16 state whose token rows are those in use, with their numbers beside them."""
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items() if name != "attn_mask"}
    state["token_embedding.rows"] = state.pop("token_embedding.weight")
    state["token_embedding.ids"] = used.to(torch.int32)
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    torch.save({"config": CONFIG, "state": halves}, path)


def main() -> None:
    """Train and save; `tools.pretrain.export` measures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=4700)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--negatives", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=500)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train(arguments, device)


if __name__ == "__main__":
    main()
